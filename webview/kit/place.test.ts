import assert from 'node:assert/strict';
import { test } from 'node:test';
import { placeTooltip } from './place.ts';

const page = { width: 400, height: 300 };
const size = { width: 200, height: 100 };

test('a tooltip goes below its anchor', () => {
  assert.deepEqual(placeTooltip({ left: 20, top: 20, width: 10, height: 10 }, size, page), { left: 20, top: 36 });
});

test('above where there is no room below, and never past an edge', () => {
  assert.deepEqual(placeTooltip({ left: 390, top: 280, width: 10, height: 10 }, size, page), { left: 194, top: 174 });
  const tall = placeTooltip({ left: 0, top: 150, width: 10, height: 10 }, { width: 200, height: 280 }, page);
  assert.deepEqual(tall, { left: 6, top: 14 });
});
