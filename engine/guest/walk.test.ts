import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Format } from '../formats/compile.ts';
import { EPT } from '../formats/ept.ts';
import { NPT } from '../formats/npt.ts';
import { PhysicalMemory } from '../memory/physical.ts';
import { LONG_MODE, pagingMode, UNPAGED } from './registers.ts';
import { finishWalk, isCanonical, type Reference, startWalk } from './walk.ts';

/** Second-stage tables in frames 16 … 19 that map guest frames 0 … 15 to themselves; a guest in frames 1 … 4 that maps page 0 to 5. */
function machine(spec: typeof EPT) {
  const memory = new PhysicalMemory();
  const set = (frame: number, index: number, lo: number) => {
    memory.writable(frame)[2 * index] = lo;
  };
  for (const frame of [16, 17, 18]) set(frame, 0, (frame + 1) * 4096 + 7);
  for (let frame = 0; frame < 16; frame++) set(19, frame, frame * 4096 + (spec === EPT ? 0x37 : 7));
  for (const frame of [1, 2, 3]) set(frame, 0, (frame + 1) * 4096 + 7);
  set(4, 0, 5 * 4096 + 7);
  const format = new Format(spec, { maxPhyAddr: 46, features: new Set(['nx']) });
  const stores: string[] = [];
  const walkMemory = {
    page: (pfn: number) => memory.page(pfn),
    setBits(pfn: number, index: number, lo: number, hi: number) {
      stores.push(`${pfn}.${index}`);
      memory.writable(pfn)[2 * index] = lo;
      memory.writable(pfn)[2 * index + 1] = hi;
    },
    resolve: (gfn: number) => gfn,
    mayUpdate: () => true,
  };
  const mode = pagingMode({ ...LONG_MODE, cr3: 0x1000n }, { maxPhyAddr: 46, features: new Set() });
  const entry = (frame: number, index: number) => memory.page(frame)[2 * index]!;
  const second = { kind: spec === EPT ? 'ept' : 'npt', format, root: 16 } as const;
  return { memory, walkMemory, mode, second, entry, stores };
}

for (const spec of [EPT, NPT]) {
  test(`${spec.name}: which accessed and dirty bits a cold read and then a write set`, () => {
    const { walkMemory, mode, second, entry, stores } = machine(spec);
    const { accessedLo, dirtyLo } = second.format;
    const trace: Reference[] = [];
    const read = finishWalk(startWalk(mode, second, 0, { bits: 0, implicit: false }), mode, second, walkMemory, trace);
    assert.equal(read.status, 'done');
    assert.equal(read.pfn, 5);
    assert.equal(read.references, 24);
    assert.deepEqual(
      trace.map((reference) => `${reference.stage[0]}${reference.level}`).join(' '),
      's4 s3 s2 s1 g4 s4 s3 s2 s1 g3 s4 s3 s2 s1 g2 s4 s3 s2 s1 g1 s4 s3 s2 s1',
    );
    for (const frame of [16, 17, 18])
      assert.equal(entry(frame, 0) & (accessedLo | dirtyLo), accessedLo, `table entry in frame ${frame}`);
    // Guest tables are read as if written, the page itself was only read.
    for (const frame of [1, 2, 3, 4])
      assert.equal(entry(19, frame) & (accessedLo | dirtyLo), accessedLo | dirtyLo, `leaf of guest table ${frame}`);
    assert.equal(entry(19, 5) & (accessedLo | dirtyLo), accessedLo);
    for (const frame of [1, 2, 3, 4]) assert.equal(entry(frame, 0) & 0x60, 0x20, `guest entry in frame ${frame}`);
    assert.equal(read.leafDirty, false);
    assert.equal(read.secondDirty, false);

    stores.length = 0;
    const write = finishWalk(startWalk(mode, second, 0, { bits: 2, implicit: false }), mode, second, walkMemory);
    assert.equal(write.status, 'done');
    assert.deepEqual(stores, ['4.0', '19.5'], 'only the two dirty bits were missing');
    assert.equal(entry(4, 0) & 0x60, 0x60);
    assert.equal(entry(3, 0) & 0x40, 0, 'a table entry has no dirty bit');
    assert.equal(entry(19, 5) & (accessedLo | dirtyLo), accessedLo | dirtyLo);
    assert.equal(write.leafDirty && write.secondDirty, true);

    stores.length = 0;
    finishWalk(startWalk(mode, second, 0, { bits: 2, implicit: false }), mode, second, walkMemory);
    assert.deepEqual(stores, [], 'nothing is stored when nothing is missing');
  });
}

test('an execute-only EPT page can be fetched from and not read; an NPT page without U can be neither', () => {
  const mode = pagingMode(UNPAGED, { maxPhyAddr: 46, features: new Set() });
  const outcome = (spec: typeof EPT, leaf: number, bits: number): string => {
    const { memory, walkMemory, second } = machine(spec);
    memory.writable(19)[2 * 7] = 7 * 4096 + leaf;
    const format = new Format(spec, { maxPhyAddr: 46, features: new Set(['nx', 'execute-only']) });
    return finishWalk(
      startWalk(mode, { ...second, format }, 7, { bits, implicit: false }),
      mode,
      { ...second, format },
      walkMemory,
    ).status;
  };
  assert.deepEqual(
    [outcome(EPT, 0x34, 16), outcome(EPT, 0x34, 0), outcome(EPT, 0x34, 2)],
    ['done', 'violation', 'violation'],
  );
  assert.deepEqual(
    [outcome(EPT, 0x31, 16), outcome(EPT, 0x31, 0), outcome(EPT, 0x31, 2)],
    ['violation', 'done', 'violation'],
  );
  assert.deepEqual(
    [outcome(NPT, 3, 16), outcome(NPT, 3, 0), outcome(NPT, 7, 16), outcome(NPT, 5, 2)],
    ['violation', 'violation', 'done', 'violation'],
  );
});

test('entries with high bits set are judged, kept and not stored again', () => {
  const { memory, walkMemory, mode, second, entry, stores } = machine(EPT);
  // The guest's leaf has NX and bit 31 of its address; the page lies at guest frame 0x80005, mapped by a 2M page.
  memory.writable(4)[0] = 0x80005000 + 7;
  memory.writable(4)[1] = 0x8000_0000;
  memory.writable(17)[2 * 2] = 0x80000000 + 0xb7;
  memory.writable(17)[2 * 2 + 1] = 0x0600_0001;
  const format = new Format(EPT, { maxPhyAddr: 46, features: new Set(['nx', '1g-pages']) });
  const run = (bits: number) =>
    finishWalk(
      startWalk(mode, { ...second, format }, 0, { bits, implicit: false }),
      mode,
      { ...second, format },
      walkMemory,
    );
  const walk = run(2);
  assert.deepEqual([walk.status, walk.gfn, walk.pfn], ['done', 0x80005, 0x180005]);
  assert.equal(memory.page(4)[1], 0x8000_0000, 'NX stays');
  assert.equal(memory.page(17)[5], 0x0600_0001, 'the high word of a second-stage leaf stays');
  assert.equal(entry(4, 0), 0x80005067);
  stores.length = 0;
  run(2);
  assert.deepEqual(stores, []);
  const fetch = run(16);
  assert.deepEqual([fetch.status, fetch.error, fetch.withoutExec, fetch.withoutWrite], ['guest-fault', 0x11, 1, 0]);
});

test('a refused access knows the level that took the right away', () => {
  const { memory, walkMemory, mode, second } = machine(EPT);
  memory.writable(3)[0] = 4 * 4096 + 5;
  memory.writable(2)[0] = 3 * 4096 + 3;
  const run = (bits: number) =>
    finishWalk(startWalk(mode, second, 0, { bits, implicit: false }), mode, second, walkMemory);
  const write = run(2);
  assert.deepEqual([write.status, write.withoutWrite, write.withoutUser, write.withoutExec], ['guest-fault', 2, 3, 0]);
  assert.equal(run(4).error, 5);
  assert.equal(run(0).status, 'done');
});

test('a guest-physical address beyond the second stage’s 48 bits has no entry', () => {
  const { walkMemory, second } = machine(EPT);
  const mode = pagingMode(UNPAGED, { maxPhyAddr: 52, features: new Set() });
  const walk = (gfn: number) =>
    finishWalk(startWalk(mode, second, gfn, { bits: 0, implicit: false }), mode, second, walkMemory);
  assert.deepEqual(
    [walk(2 ** 36).status, walk(2 ** 36).secondLevel, walk(2 ** 36 + 7).secondLevel],
    ['violation', 4, 4],
  );
  assert.equal(walk(7).status, 'done');
});

test('with paging off only the second stage is walked', () => {
  const { walkMemory, second } = machine(EPT);
  const mode = pagingMode(UNPAGED, { maxPhyAddr: 46, features: new Set() });
  const walk = finishWalk(startWalk(mode, second, 7, { bits: 2, implicit: false }), mode, second, walkMemory);
  assert.deepEqual([walk.status, walk.gfn, walk.pfn, walk.references], ['done', 7, 7, 4]);
});

test('KVM’s own walk needs no second stage, and stops where no slot holds a table', () => {
  const { walkMemory, mode } = machine(EPT);
  const walk = finishWalk(startWalk(mode, undefined, 0, { bits: 0, implicit: false }), mode, undefined, walkMemory);
  assert.deepEqual([walk.status, walk.gfn, walk.references], ['done', 5, 4]);
  const outside = { ...walkMemory, resolve: (gfn: number) => (gfn === 3 ? -1 : gfn) };
  const fault = finishWalk(startWalk(mode, undefined, 0, { bits: 6, implicit: false }), mode, undefined, outside);
  assert.deepEqual([fault.status, fault.error, fault.level], ['guest-fault', 6, 2]);
});

test('canonical addresses agree in bits 63:47, or 63:56 with five levels', () => {
  for (const [address, expected] of [
    [0n, true],
    [0x7fff_ffff_f000n, true],
    [0x8000_0000_0000n, false],
    [0xffff_7fff_ffff_f000n, false],
    [0xffff_8000_0000_0000n, true],
    [0xffff_ffff_ffff_f000n, true],
    [0x0001_0000_0000_0000n, false],
  ] as const)
    assert.equal(isCanonical(Number(address >> 12n), 48), expected, address.toString(16));
  for (const [address, expected] of [
    [0xff_ffff_ffff_f000n, true],
    [0x100_0000_0000_0000n, false],
    [0xff00_0000_0000_0000n, true],
    [0xfeff_ffff_ffff_f000n, false],
  ] as const)
    assert.equal(isCanonical(Number(address >> 12n), 57), expected, address.toString(16));
});
