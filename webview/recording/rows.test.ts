import assert from 'node:assert/strict';
import { test } from 'node:test';
import { barHeights, timeWords } from './rows.ts';

test('times are in the unit that suits them', () => {
  assert.deepEqual([0, 950, 12_345, 12_345_678, 2_500_000_000].map(timeWords), [
    '0 ns',
    '950 ns',
    '12.345 µs',
    '12.346 ms',
    '2.500 s',
  ]);
});

test('one event beside thousands is still seen, and nothing is drawn where there is none', () => {
  assert.deepEqual(barHeights([0, 1, 10_000]), [0, 0.06, 1]);
});
