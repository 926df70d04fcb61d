import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fit, MIN_SIZE, pan, ticks, zoomAround } from './viewport.ts';

const TOTAL = 2 ** 48;

test('zooming keeps what is under the pointer where it is', () => {
  const view = { start: 2 ** 40, size: 2 ** 41 };
  const closer = zoomAround(view, 4, 0.25, TOTAL);
  assert.equal(closer.start + closer.size * 0.25, view.start + view.size * 0.25);
  assert.equal(closer.size, 2 ** 39);
});

test('neither zooming nor panning leaves the space, and a page is as close as it gets', () => {
  assert.deepEqual(zoomAround({ start: 0, size: TOTAL }, 0.5, 0.5, TOTAL), { start: 0, size: TOTAL });
  assert.equal(zoomAround({ start: 0, size: MIN_SIZE * 1.5 }, 100, 0.5, TOTAL).size, MIN_SIZE);
  assert.equal(pan({ start: 0, size: 2 ** 20 }, -1, TOTAL).start, 0);
  assert.equal(pan({ start: TOTAL - 2 ** 20, size: 2 ** 20 }, 1, TOTAL).start, TOTAL - 2 ** 20);
});

test('a range is shown with a margin', () => {
  assert.deepEqual(fit(2 ** 30, 2 ** 20, TOTAL, 0.5), { start: 2 ** 30 - 2 ** 19, size: 2 ** 21 });
});

test('ticks are round addresses, no more than asked for', () => {
  const found = ticks({ start: 0x3ff000, size: 0x8000 }, 4);
  assert.deepEqual(found, [0x400000, 0x402000, 0x404000, 0x406000]);
  assert.ok(ticks({ start: 0, size: TOTAL }, 5).length <= 5);
});
