import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { KvmRoot, KvmTable, KvmTables } from '../../engine/kernel/tables.ts';
import type { Certainty, WalkAnswer } from '../../engine/queries/answers.ts';
import { builtCertainty, builtRoots, builtStage, withBuilt } from '../../engine/queries/built-answers.ts';
import { DIRECT, Events, GUEST_MODE, leaf, ROOT, SHADOW } from './events.ts';

// What is said of tables that KVM has built: no more than is known.

function table(frame: number, level: number, index: number, lo: number, certainty: Certainty): [number, KvmTable] {
  const entries = new Uint32Array(1024);
  entries[2 * index] = lo;
  return [frame, { frame, gfn: 0, role: level, roleKnown: 15, entries, certainty }];
}

/** Tables at frames 1 to 4 that map gpa 0x5000. */
function built(certainty: Certainty, of: Certainty, roots: readonly KvmRoot[]): KvmTables {
  return {
    kind: 'npt',
    source: 'kernel',
    certainty,
    why: certainty,
    tables: new Map([
      table(1, 4, 0, 0x2827, of),
      table(2, 3, 0, 0x3827, of),
      table(3, 2, 0, 0x4827, of),
      table(4, 1, 5, 0x77867, of),
    ]),
    roots,
  };
}
const CURRENT: KvmRoot = { vcpu: 0, which: 'current', frame: 1, levels: 4, invalid: false };

const WALK = {
  kind: 'walk',
  vcpu: 0,
  space: 'gpa',
  address: '0x5000',
  certainty: 'exact',
  references: [],
  outcome: { status: 'done', gpa: '0x5000' },
  sentence: 'a walk',
} as unknown as WalkAnswer;

test('an entry is no more certain than the whole of the tables', () => {
  const of = (whole: Certainty, each: Certainty): readonly (Certainty | undefined)[] =>
    withBuilt({ tables: built(whole, each, [CURRENT]), maxPhyAddr: 48 }, WALK).references.map(
      ({ certainty }) => certainty,
    );
  // Where it is the answer's own it is not repeated.
  assert.deepEqual(of('stale', 'exact'), [undefined, undefined, undefined, undefined]);
  assert.deepEqual(of('inferred', 'stale'), ['stale', 'stale', 'stale', 'stale']);
});

test('a root that no format reads is left out, with words', () => {
  const strange: KvmRoot = { vcpu: 1, which: 'current', frame: 9, levels: 2, invalid: false };
  const both = { tables: built('exact', 'exact', [strange, CURRENT]), maxPhyAddr: 48 };
  assert.deepEqual(
    builtRoots(both).map(({ title }) => title),
    ["KVM's NPT root at hpa 0x1000"],
  );
  assert.match(builtCertainty(both).why!, /the root at hpa 0x9000 has 2 levels, which npt has not/);
  assert.equal(builtStage(both, 1)?.tree.root, 1);
  assert.match(withBuilt(both, { ...WALK, vcpu: 1 }).sentence, /cannot be read/);
});

const titles = (events: Events): [string, readonly number[]][] =>
  builtRoots({ tables: events.machines()[0]!.tables, maxPhyAddr: 52 }).map(({ title, vcpus }) => [title, vcpus]);
const UNTOLD = ' (no event tells which vCPU uses it)';

test('a root is a vCPU’s where it can be no other', () => {
  const begun = () => new Events().entry(10, 0).page(10, 0, ROOT).map(10, 0, 0x1000n, 5, 0x77n);
  assert.deepEqual(titles(begun()), [["KVM's NPT root", [0]]]);
  const withSmm = begun().page(10, 0, ROOT | (1 << 24));
  assert.deepEqual(titles(withSmm), [
    ["KVM's NPT root", [0]],
    [`KVM's NPT root${UNTOLD}`, []],
  ]);
  withSmm.fault(10, 0, 0x5000).change(10, 4, 0, 0n, 0x2000_827n, 1);
  for (const level of [3, 2]) withSmm.change(10, level, 0, 0n, 0x2000_827n + BigInt(4 - level) * 4096n, 1);
  withSmm.change(10, 1, 5, 0n, leaf(0x77n), 1);
  assert.deepEqual(
    titles(withSmm).map(([, vcpus]) => vcpus),
    [[], []],
  );
  const nested = begun().page(10, 0, ROOT | GUEST_MODE);
  assert.deepEqual(titles(nested), [
    [`KVM's NPT root${UNTOLD}`, []],
    [`KVM's NPT root${UNTOLD}`, []],
  ]);
  const { tables } = nested.machines()[0]!;
  assert.match(withBuilt({ tables, maxPhyAddr: 52 }, WALK).sentence, /no event tells which of KVM’s roots/);
  assert.equal(ROOT & DIRECT, DIRECT);
});

test('a shadow root that no thread has loaded any more is nobody’s', () => {
  const events = new Events()
    .entry(10, 0)
    .page(10, 0x34, SHADOW | 4)
    .page(10, 0x35, SHADOW | 4);
  assert.deepEqual(titles(events), [
    ['Shadow root', [0]],
    [`Shadow root${UNTOLD}`, []],
  ]);
});
