import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Format } from '../formats/compile.ts';
import { EPT } from '../formats/ept.ts';
import type { FormatSpec } from '../formats/format.ts';
import { NPT } from '../formats/npt.ts';
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
function makeTables(spec: FormatSpec, firstTable = 0x1000): Pgtable & { readonly live: Set<number> } {
  const memory = new PhysicalMemory();
  const format = new Format(spec, { maxPhyAddr: 46, features: new Set(['nx', '1g-pages']) });
  const live = new Set<number>();
  let next = firstTable;
  const store = {
    page: (frame: number) => memory.page(frame),
    store(frame: number, index: number, lo: number, hi: number) {
      assert.ok(live.has(frame), `a store to the freed table ${frame}`);
      const page = memory.writable(frame);
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
    },
    allocate() {
      live.add(next);
      return next++;
    },
    release(frame: number) {
      assert.ok(live.delete(frame), `table ${frame} is freed twice`);
      memory.drop(frame);
    },
  };
  const root = store.allocate();
  return { store, format, root, live };
}

/** Everything that a tree maps, page by page, and the tables that are reached. */
function contents(table: Pgtable): { pages: Map<number, string>; tables: Set<number> } {
  const { store, format, root } = table;
  const pages = new Map<number, string>();
  const tables = new Set([root]);
  const walker = new Walker(store, table, 0, format.inputFrames, LEAF | TABLE_PRE | READ_ONLY);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    const { level, lo, hi, frame } = walker;
    if (visit === TABLE_PRE) tables.add(format.frame(level, lo, hi));
    else {
      assert.equal(format.isMalformed(level, lo, hi), false, 'an operation stored a malformed leaf');
      for (let i = 0; i < format.span[level]!; i++)
        pages.set(frame + i, `${format.frame(level, lo, hi) + i} ${format.access(level, lo, hi)}`);
    }
  }
  return { pages, tables };
}

const HUGE = 512;
/** Ranges near a few boundaries, so that operations meet. */
const rangeOf = fc.tuple(
  fc.constantFrom(0, 1, 5, HUGE - 2, HUGE, HUGE + 3, 2 * HUGE, 3 * HUGE),
  fc.constantFrom(1, 2, 7, HUGE - 1, HUGE, HUGE + 1, 2 * HUGE),
);
const rightsOf = fc.record({ write: fc.boolean(), execute: fc.boolean(), user: fc.boolean() });
const operationOf = fc.oneof(
  fc.record({
    kind: fc.constant('map' as const),
    range: rangeOf,
    target: fc.constantFrom(0, HUGE, HUGE + 1, 8 * HUGE),
    rights: rightsOf,
    maxLevel: fc.constantFrom(1, 2, 4),
  }),
  fc.record({ kind: fc.constant('unmap' as const), range: rangeOf }),
  fc.record({ kind: fc.constant('protect' as const), range: rangeOf, rights: rightsOf }),
  fc.record({ kind: fc.constant('split' as const), range: rangeOf }),
  fc.record({ kind: fc.constant('collapse' as const), range: rangeOf }),
);

for (const spec of [X86_64, EPT, NPT]) {
  const access = (rights: Rights): number =>
    (rights.write ? 2 : 0) | (rights.execute ? 1 : 0) | (spec === EPT || rights.user ? 4 : 0);

  test(`${spec.name}: map, unmap, protect, split and collapse mean what a plain map means`, () => {
    fc.assert(
      fc.property(fc.array(operationOf, { maxLength: 12 }), (operations) => {
        const table = makeTables(spec);
        const model = new Map<number, string>();
        for (const operation of operations) {
          const [first, count] = operation.range;
          switch (operation.kind) {
            case 'map':
              map(table, first, count, operation.target, { rights: operation.rights }, operation.maxLevel);
              for (let i = 0; i < count; i++)
                model.set(first + i, `${operation.target + i} ${access(operation.rights)}`);
              break;
            case 'unmap':
              unmap(table, first, count);
              for (let i = 0; i < count; i++) model.delete(first + i);
              break;
            case 'protect':
              protect(table, first, count, operation.rights);
              for (let i = 0; i < count; i++) {
                const old = model.get(first + i);
                if (old !== undefined) model.set(first + i, `${old.split(' ')[0]} ${access(operation.rights)}`);
              }
              break;
            case 'split':
              split(table, first, count, 1);
              break;
            case 'collapse':
              collapse(table, first, count);
              break;
          }
          const { pages, tables } = contents(table);
          assert.deepEqual(
            [...pages].sort(([a], [b]) => a - b),
            [...model].sort(([a], [b]) => a - b),
          );
          assert.deepEqual([...tables].sort(), [...table.live].sort(), 'a table is lost, or used after it was freed');
        }
      }),
      { numRuns: Math.ceil(Number(process.env.FUZZ_RUNS ?? 5000) / 40) },
    );
  });

  test(`${spec.name}: split and collapse undo each other`, () => {
    const table = makeTables(spec);
    map(table, 0, 512 * 512, 0, { rights: { write: true, execute: false, user: true } });
    const before = hashTables(table.store, table);
    split(table, 0, HUGE, 1);
    assert.notEqual(hashTables(table.store, table), before);
    collapse(table, 0, 512 * 512);
    collapse(table, 0, 512 * 512);
    assert.equal(hashTables(table.store, table), before);
  });

  test(`${spec.name}: the hash leaves out where tables lie, and nothing else`, () => {
    const here = makeTables(spec, 0x1000);
    const there = makeTables(spec, 0x9000);
    for (const table of [here, there]) map(table, 3, 1000, 77, { rights: { write: true, execute: true, user: true } });
    const hash = hashTables(here.store, here);
    assert.equal(hash, hashTables(there.store, there));
    protect(there, 900, 1, { write: false, execute: true, user: true });
    assert.notEqual(hash, hashTables(there.store, there));
    protect(there, 900, 1, { write: true, execute: true, user: true });
    assert.equal(hash, hashTables(there.store, there));
    map(there, 900, 1, 12345, { rights: { write: true, execute: true, user: true } });
    assert.notEqual(hash, hashTables(there.store, there));
  });
}

test('the walker visits tables before and after their entries, and entries in address order', () => {
  const table = makeTables(EPT);
  map(table, 0, 2, 10, { rights: { write: true, execute: true, user: true } }, 1);
  map(table, HUGE, HUGE, HUGE, { rights: { write: true, execute: true, user: true } });
  const walker = new Walker(table.store, table, 0, 3 * HUGE, LEAF | TABLE_PRE | TABLE_POST);
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
