import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AttributeStore } from './store.ts';

/** Deterministic numbers below a limit. */
function random(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

test('random ranges leave what an array of pages would hold', () => {
  const next = random(7);
  for (let round = 0; round < 20; round++) {
    const store = new AttributeStore();
    const first = 512 * 512 - 700;
    const pages = new Array<boolean>(2400).fill(false);
    for (let change = 0; change < 40; change++) {
      const from = next(pages.length);
      // Ends on block boundaries are as common as any other.
      const to =
        next(2) === 0 ? Math.min(pages.length, (Math.floor(from / 512) + 1) * 512 + 188) : from + 1 + next(900);
      const isPrivate = next(2) === 1;
      store.set(first + from, first + Math.min(to, pages.length), isPrivate);
      pages.fill(isPrivate, from, Math.min(to, pages.length));
    }
    pages.forEach((isPrivate, page) => {
      assert.equal(store.isPrivate(first + page), isPrivate, `page ${page} of round ${round}`);
    });
    const runs = [...store.runs(first, first + pages.length)];
    assert.deepEqual(
      runs.flatMap((run) => new Array<boolean>(run.end - run.start).fill(run.isPrivate)),
      pages,
    );
    for (let at = 1; at < runs.length; at++) assert.notEqual(runs[at]!.isPrivate, runs[at - 1]!.isPrivate);
  }
});

test('a block is mixed while its pages differ, and only then', () => {
  const store = new AttributeStore();
  assert.equal(store.mix(0, 2), 'shared');
  store.set(5, 6, true);
  assert.deepEqual([store.mix(0, 2), store.mix(512, 2), store.mix(0, 3)], ['mixed', 'shared', 'mixed']);
  store.set(0, 512, true);
  assert.deepEqual([store.mix(0, 2), store.mix(0, 3)], ['private', 'mixed']);
  store.set(0, 512 * 512, true);
  assert.equal(store.mix(0, 3), 'private');
  store.set(511, 512, false);
  assert.deepEqual([store.mix(0, 2), store.mix(512, 2), store.mix(0, 3)], ['mixed', 'private', 'mixed']);
  store.set(511, 512, true);
  assert.equal(store.mix(0, 3), 'private', 'what is alike again is one again');
});

test('a terabyte is a thousand entries', () => {
  const store = new AttributeStore();
  const terabyte = 2 ** 28;
  store.set(0, terabyte, true);
  store.set(terabyte / 2, terabyte / 2 + 1, false);
  assert.deepEqual(
    [...store.runs(0, terabyte)],
    [
      { start: 0, end: terabyte / 2, isPrivate: true },
      { start: terabyte / 2, end: terabyte / 2 + 1, isPrivate: false },
      { start: terabyte / 2 + 1, end: terabyte, isPrivate: true },
    ],
  );
});
