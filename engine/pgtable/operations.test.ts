import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FORMATS } from '../formats/all.ts';
import { arm64Stage1, arm64Stage2 } from '../formats/arm64.ts';
import { Format } from '../formats/compile.ts';
import { EPT } from '../formats/ept.ts';
import type { FormatSpec } from '../formats/format.ts';
import { X86_32 } from '../formats/x86-32.ts';
import { X86_64 } from '../formats/x86-64.ts';
import { PhysicalMemory } from '../memory/physical.ts';
import { hashTables } from './hash.ts';
import { collapse, map, type Pgtable, protect, split, unmap } from './operations.ts';
import { DONE, LEAF, READ_ONLY, TABLE_POST, TABLE_PRE, Walker } from './walker.ts';

// Table operations against a plain map from input frame to (output frame, rights): what the tables must mean.

interface Rights {
  readonly write: boolean;
  readonly execute: boolean;
  readonly user: boolean;
}

/** Tables in a memory of their own, whose frames are counted so that none is lost or freed twice. */
function makeTables(spec: FormatSpec, firstTable = 0x1000): Pgtable & { readonly live: Map<number, number> } {
  const memory = new PhysicalMemory();
  const maxPhyAddr = spec.entryBytes === 4 ? 36 : 46;
  const format = new Format(spec, { maxPhyAddr, features: new Set(['nx', '1g-pages', 'pse']) });
  /** Frames of each table, by its first one. */
  const live = new Map<number, number>();
  const isLive = (frame: number): boolean =>
    [...live].some(([first, frames]) => frame >= first && frame < first + frames);
  let next = firstTable;
  const store = {
    page: (frame: number) => memory.page(frame),
    store(frame: number, index: number, lo: number, hi: number) {
      assert.ok(isLive(frame), `a store to the freed table ${frame}`);
      const page = memory.writable(frame);
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
    },
    allocate(frames: number) {
      const first = Math.ceil(next / frames) * frames;
      live.set(first, frames);
      next = first + frames;
      return first;
    },
    release(frame: number, frames: number) {
      assert.equal(live.get(frame), frames, `table ${frame} is freed twice, or in part`);
      live.delete(frame);
      for (let i = 0; i < frames; i++) memory.drop(frame + i);
    },
  };
  // A small root in the middle of its frame, where the architecture has such.
  const root = store.allocate(format.tableFrames[format.rootLevel]!);
  const rootEntry = format.entries[format.rootLevel]! <= 64 ? 64 : 0;
  return { store, format, root, rootEntry, live };
}

/** Everything that a tree maps, page by page (of the format's size), and the tables that are reached. */
function contents(table: Pgtable): { pages: Map<number, string>; tables: Set<number> } {
  const { store, format, root } = table;
  const pages = new Map<number, string>();
  const tables = new Set([root]);
  const unit = format.span[1]!;
  const walker = new Walker(store, table, 0, format.inputFrames, LEAF | TABLE_PRE | READ_ONLY);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    const { level, lo, hi, frame, target } = walker;
    assert.equal(target, format.frame(level, lo, hi));
    if (visit === TABLE_PRE) tables.add(target);
    else {
      assert.equal(format.isMalformed(level, lo, hi), false, 'an operation stored a malformed leaf');
      const rights = format.effective(format.rights(level, lo, hi));
      for (let i = 0; i < format.span[level]!; i += unit)
        pages.set((frame + i) / unit, `${(target + i) / unit} ${rights}`);
    }
  }
  return { pages, tables };
}

function checkContents(table: ReturnType<typeof makeTables>, model: ReadonlyMap<number, string>): void {
  const { pages, tables } = contents(table);
  for (const [page, is] of pages)
    if (model.get(page) !== is) assert.fail(`page ${page} is ${is}, and should be ${model.get(page)}`);
  assert.equal(pages.size, model.size, 'pages are missing');
  assert.deepEqual([...tables].sort(), [...table.live.keys()].sort(), 'a table is lost, or used after it was freed');
}

/** What the rights of a leaf must come to (SUPER_*, USER_*), by the architectures' words and not by the format's. */
function expectedRights(name: string, { write, execute, user }: Rights): number {
  const rwx = 1 | (write ? 2 : 0) | (execute || name === 'x86-32' ? 4 : 0);
  const hasUsers = !/^(ept|arm64-s2|arm64-el2)|x4$/.test(name);
  // Stage 2 can withhold execution from EL0 alone.
  if (!hasUsers) return rwx | ((rwx << 3) & (name.startsWith('arm64-s2') && !user ? ~32 : 63));
  if (!user) return rwx;
  const both = rwx | (rwx << 3);
  // RISC-V: the supervisor never executes a user page; arm64: nor what EL0 may write.
  return name.startsWith('sv') || (name.startsWith('arm64-s1') && write) ? both & ~4 : both;
}

/** Ranges in pages near a few boundaries, so that operations meet: `huge` pages are one large page. */
const rangeOf = (huge: number) =>
  fc.tuple(
    fc.constantFrom(0, 1, 5, huge - 2, huge, huge + 3, 2 * huge, 3 * huge),
    fc.constantFrom(1, 2, 7, huge - 1, huge, huge + 1, 2 * huge),
  );
const rightsOf = fc.record({ write: fc.boolean(), execute: fc.boolean(), user: fc.boolean() });
const operationOf = (huge: number) =>
  fc.oneof(
    fc.record({
      kind: fc.constant('map' as const),
      range: rangeOf(huge),
      target: fc.constantFrom(0, huge, huge + 1, 8 * huge),
      rights: rightsOf,
      maxLevel: fc.constantFrom(1, 2, 4),
    }),
    fc.record({ kind: fc.constant('unmap' as const), range: rangeOf(huge) }),
    fc.record({ kind: fc.constant('protect' as const), range: rangeOf(huge), rights: rightsOf }),
    fc.record({ kind: fc.constant('split' as const), range: rangeOf(huge) }),
    fc.record({ kind: fc.constant('collapse' as const), range: rangeOf(huge) }),
  );

/** Formats, and what they are called: all, and arm64's with a small and with a concatenated root table. */
const SPECS: [string, FormatSpec][] = [
  ...FORMATS,
  ['arm64-s1-4k of 39 bits', arm64Stage1({ granule: 12, inputBits: 39, levels: 3, wide: false }, 2)],
  ['arm64-s2-4k of 40 bits, 2 tables at the top', arm64Stage2({ granule: 12, inputBits: 40, levels: 3, wide: false })],
  [
    'arm64-s2-16k of 40 bits, 16 tables at the top',
    arm64Stage2({ granule: 14, inputBits: 40, levels: 2, wide: false }),
  ],
];

for (const [name, spec] of SPECS) {
  const { format: shape } = makeTables(spec);
  const unit = shape.span[1]!;
  const HUGE = shape.span[2]! / unit;
  test(`${name}: map, unmap, protect, split and collapse mean what a plain map means`, () => {
    fc.assert(
      fc.property(fc.array(operationOf(HUGE), { maxLength: 12 }), (operations) => {
        const table = makeTables(spec);
        const model = new Map<number, string>();
        for (const operation of operations) {
          const [first, count] = operation.range;
          const [from, frames] = [first * unit, count * unit];
          switch (operation.kind) {
            case 'map': {
              const { target, rights, maxLevel } = operation;
              map(table, from, frames, target * unit, { rights }, maxLevel);
              for (let i = 0; i < count; i++) model.set(first + i, `${target + i} ${expectedRights(name, rights)}`);
              break;
            }
            case 'unmap':
              unmap(table, from, frames);
              for (let i = 0; i < count; i++) model.delete(first + i);
              break;
            case 'protect':
              protect(table, from, frames, operation.rights);
              for (let i = 0; i < count; i++) {
                const old = model.get(first + i);
                if (old !== undefined)
                  model.set(first + i, `${old.split(' ')[0]} ${expectedRights(name, operation.rights)}`);
              }
              break;
            case 'split':
              split(table, from, frames, 1);
              break;
            case 'collapse':
              collapse(table, from, frames);
              break;
          }
          checkContents(table, model);
        }
      }),
      { numRuns: Math.ceil((Number(process.env.FUZZ_RUNS ?? 5000) / 200) * Math.min(1, (512 / HUGE) ** 1.5)) },
    );
  });

  test(`${name}: split and collapse undo each other`, () => {
    const table = makeTables(spec);
    const pages = Math.min(8, HUGE) * HUGE;
    map(table, 0, pages * unit, 0, { rights: { write: true, execute: false, user: true } });
    const before = hashTables(table.store, table);
    split(table, 0, HUGE * unit, 1);
    assert.notEqual(hashTables(table.store, table), before);
    collapse(table, 0, pages * unit);
    collapse(table, 0, pages * unit);
    assert.equal(hashTables(table.store, table), before);
  });

  test(`${name}: the hash leaves out where tables lie, and nothing else`, () => {
    const here = makeTables(spec, 0x1000);
    const there = makeTables(spec, 0x9000);
    const rights = { write: true, execute: true, user: true };
    for (const table of [here, there]) map(table, 3 * unit, 1000 * unit, 77 * unit, { rights });
    const hash = hashTables(here.store, here);
    assert.equal(hash, hashTables(there.store, there));
    protect(there, 900 * unit, unit, { ...rights, write: false });
    assert.notEqual(hash, hashTables(there.store, there));
    protect(there, 900 * unit, unit, rights);
    assert.equal(hash, hashTables(there.store, there));
    map(there, 900 * unit, unit, 12345 * unit, { rights });
    assert.notEqual(hash, hashTables(there.store, there));
  });
}

test('operations refuse parts of a page, and frames that no entry can point to', () => {
  const rights = { write: true, execute: true, user: true };
  const large = makeTables(FORMATS.get('arm64-s2-16k')!);
  assert.throws(() => map(large, 1, 4, 0, { rights }), { message: 'frame 0x1 is not a multiple of the 16K page' });
  assert.throws(() => unmap(large, 0, 2), { message: 'frame 0x2 is not a multiple of the 16K page' });
  const small = makeTables(X86_32);
  map(small, 0, 1024, 2 ** 23, { rights });
  assert.equal(contents(small).pages.get(5), `${2 ** 23 + 5} 63`);
  assert.throws(() => map(small, 0, 1, 2 ** 23, { rights }), {
    message: 'PTE cannot map frame 0x800000: it has too few address bits',
  });
});

test('the walker visits tables before and after their entries, and entries in address order', () => {
  const table = makeTables(EPT);
  map(table, 0, 2, 10, { rights: { write: true, execute: true, user: true } }, 1);
  map(table, 512, 512, 512, { rights: { write: true, execute: true, user: true } });
  const walker = new Walker(table.store, table, 0, 3 * 512, LEAF | TABLE_PRE | TABLE_POST);
  const visits: string[] = [];
  for (let visit = walker.next(); visit !== DONE; visit = walker.next())
    visits.push(`${['', 'leaf', 'pre', '', 'post'][visit]} ${walker.level}.${walker.index} ${walker.frame}`);
  assert.deepEqual(visits, [
    'pre 4.0 0',
    'pre 3.0 0',
    'pre 2.0 0',
    'leaf 1.0 0',
    'leaf 1.1 1',
    'post 2.0 0',
    'leaf 2.1 512',
    'post 3.0 0',
    'post 4.0 0',
  ]);
});

test('a tree that contains itself is refused by name, not walked for ever', () => {
  const table = makeTables(X86_64);
  map(table, 0, 1, 1, { rights: { write: true, execute: true, user: true } });
  table.store.store(table.root, 511, (table.root << 12) | 3, 0);
  assert.throws(() => hashTables(table.store, table), {
    message: 'the level-4 table at 0x1000000 has an entry that leads back to the table at 0x1000000 on its own path',
  });
});

test('a range outside what the tables translate is refused by name', () => {
  const table = makeTables(EPT);
  assert.throws(() => unmap(table, 2 ** 36, 1), {
    message: 'frames 0x1000000000 … 0x1000000001 are not within 0 … 0x1000000000',
  });
});
