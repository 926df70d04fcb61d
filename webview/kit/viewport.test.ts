import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fit, MIN_SIZE, pan, ticks, type Viewport, zoomAround, zoomPath } from './viewport.ts';

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

test('the eye arrives on every path, and on the way both ends are seen from afar', () => {
  const page = { start: 0x400000, size: MIN_SIZE };
  const far = { start: TOTAL - 2 ** 30, size: MIN_SIZE };
  const whole = { start: 0, size: TOTAL };
  const paths: [Viewport, Viewport][] = [
    [page, far],
    [far, page],
    [whole, page],
    [page, whole],
    [page, page],
    [page, { start: page.start, size: 2 ** 30 }],
    [page, { start: page.start - MIN_SIZE, size: MIN_SIZE * 3 }],
    [page, { start: page.start + MIN_SIZE, size: MIN_SIZE }],
  ];
  for (const [from, to] of paths) {
    const path = zoomPath(from, to);
    const shift = Math.abs(path(0).start - from.start) + Math.abs(path(0).size - from.size);
    assert.ok(shift <= from.size * 1e-3, `begins at ${JSON.stringify(from)}, off by ${shift}`);
    assert.deepEqual(path(1), to);
    for (let step = 0, last = path(0); step <= 100; step++) {
      const { start, size } = path(step / 100);
      assert.ok(Number.isFinite(start) && size >= MIN_SIZE * 0.999, `${step}: ${start}, ${size}`);
      // No jump: a hundredth of the way is never more than what is on screen, and zooms by less than three.
      const middle = Math.abs(start + size / 2 - last.start - last.size / 2);
      assert.ok(middle <= Math.max(size, last.size), `${step}: jumps by ${middle} with ${size} on screen`);
      assert.ok(size / last.size < 3 && last.size / size < 3, `${step}: zooms from ${last.size} to ${size}`);
      last = { start, size };
    }
  }
  assert.ok(zoomPath(page, far)(0.5).size > TOTAL / 2);
});
