import assert from 'node:assert/strict';
import { test } from 'node:test';
import { visibleRows } from './visible-rows.ts';

test('rows on screen, with a margin, and never outside of the list', () => {
  assert.deepEqual(visibleRows(0, 220, 22, 1000), { first: 0, count: 30 });
  assert.deepEqual(visibleRows(22_000, 220, 22, 1_000_000), { first: 980, count: 50 });
  assert.deepEqual(visibleRows(0, 220, 22, 3), { first: 0, count: 3 });
  assert.deepEqual(visibleRows(0, 220, 22, 0), { first: 0, count: 0 });
});
