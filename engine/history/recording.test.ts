import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Recording } from './recording.ts';
import { TRACEPOINTS, traceField, traceKind } from './tracepoints.ts';

const SPTE = traceKind('kvm_mmu_set_spte');
const [GFN, LEVEL, U] = ['gfn', 'level', 'u'].map((name) => traceField(SPTE, name)) as [number, number, number];

/** An event whose gfn says which it is. */
function append(recording: Recording, time: number, gfn: number, cpu = 0): void {
  const shape = recording.shapeOf(SPTE, (1 << GFN) | (1 << LEVEL) | (1 << U));
  recording.append(time, cpu, 100 + cpu, shape);
  recording.words[recording.wordAt] = gfn;
  recording.words[recording.wordAt + 1] = 0x12;
  recording.words[recording.wordAt + 2] = 0xffffffff;
  recording.words[recording.wordAt + 3] = 0xffffffff;
}

const gfns = (recording: Recording): number[] =>
  Array.from({ length: recording.length }, (_, i) => recording.lo(i, GFN));

test('every tracepoint has its own name, and fewer fields than a mask has bits', () => {
  assert.equal(new Set(TRACEPOINTS.map(({ name }) => name)).size, TRACEPOINTS.length);
  for (const { kind, name, fields } of TRACEPOINTS) {
    assert.equal(traceKind(name), kind);
    assert.ok(fields.length < 31, name);
    assert.equal(
      new Set(fields.flatMap((field) => [field.name, ...field.aliases])).size,
      new Set(fields.flatMap((field) => [field.name, ...field.aliases])).size,
    );
  }
  assert.throws(() => traceKind('sched_switch'), RangeError);
  assert.throws(() => traceField(SPTE, 'role'), RangeError);
});

test('a field is read as words, number and 64 bits; what is unknown reads as 0', () => {
  const recording = new Recording('pages');
  append(recording, 0, 0xfedcba98, 3);
  recording.settle();
  assert.equal(recording.lo(0, GFN), 0xfedcba98);
  assert.equal(recording.hi(0, GFN), 0x12);
  assert.equal(recording.number(0, GFN), 0x12fedcba98);
  assert.equal(recording.value(0, GFN), 0x12fedcba98n);
  // Unsigned of 32 bits, and signed.
  assert.equal(recording.value(0, LEVEL), 0xffffffffn);
  assert.equal(recording.hi(0, LEVEL), 0);
  assert.equal(recording.number(0, U), -1);
  assert.equal(recording.value(0, U), -1n);
  const spte = traceField(SPTE, 'spte');
  assert.equal(recording.known(0, spte), false);
  assert.equal(recording.value(0, spte), 0n);
  assert.equal(recording.known(0, GFN), true);
  assert.deepEqual([recording.cpu(0), recording.pid(0), recording.kind(0)], [3, 103, SPTE]);
  assert.equal(recording.shape(0).roleKnown, 0);
});

test('what is appended late is put in order, and events of one time stay as they came', () => {
  const recording = new Recording('pages');
  for (const [time, gfn] of [
    [0, 1],
    [10, 2],
    [20, 3],
    [30, 4],
  ] as const)
    append(recording, time, gfn);
  assert.deepEqual(recording.settle(), { from: 0, late: 0 });
  for (const [time, gfn] of [
    [15, 5],
    [20, 6],
    [40, 7],
    [15, 8],
  ] as const)
    append(recording, time, gfn);
  recording.lose({ after: undefined, time: 20, cpu: 1, count: 5 });
  assert.deepEqual(recording.settle(), { from: 2, late: 3 });
  assert.deepEqual(gfns(recording), [1, 2, 5, 8, 3, 6, 4, 7]);
  assert.equal(recording.losses[0]?.beforeIndex, 4);
  assert.deepEqual(
    [-1, 0, 15, 16, 41].map((time) => recording.at(time)),
    [0, 0, 2, 4, 8],
  );
  append(recording, 20, 10);
  assert.deepEqual(recording.settle(), { from: 6, late: 1 });
  assert.deepEqual(gfns(recording), [1, 2, 5, 8, 3, 6, 10, 4, 7]);
  append(recording, 50, 9);
  assert.deepEqual(recording.settle(), { from: 9, late: 0 });
});

test('columns go on behind their first chunks, and no event is cut in two', () => {
  const recording = new Recording('pages');
  const count = 200_000;
  for (let i = 0; i < count; i++) append(recording, i, i);
  assert.equal(recording.length, count);
  for (const i of [0, 65_535, 65_536, 131_072, count - 1]) {
    assert.equal(recording.time(i), i);
    assert.equal(recording.lo(i, GFN), i);
    assert.equal(recording.hi(i, GFN), 0x12);
  }
  for (let i = 0; i < count; i++)
    if (recording.lo(i, GFN) !== i || recording.number(i, U) !== -1) assert.fail(`event ${i}`);
  assert.ok(recording.bytes < 64 * count);
});

test('a cycle counter’s times become nanoseconds', () => {
  const recording = new Recording('pages');
  recording.base = 3_000_000_000n;
  append(recording, 0, 1);
  append(recording, 3000, 2);
  recording.rescale(715_827_883, 31);
  assert.equal(recording.time(1), 1000);
  assert.equal(recording.base, 1_000_000_000n);
});

test('a recording that is full says how many events it has not', () => {
  const recording = new Recording('pages', 9);
  for (let i = 0; i < 5; i++) append(recording, i, i);
  recording.settle();
  assert.deepEqual(gfns(recording), [0, 1, 2]);
  assert.match(recording.problems.join(), /^2 events were left out/);
});
