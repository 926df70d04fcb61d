import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FOUR_PAGES, tree } from './fixture.ts';
import { boxAt, layout, MIN_WIDTH, wholeSpace } from './layout.ts';

test('position on screen is position in the address space, a row for each level', () => {
  const { root, get } = tree(FOUR_PAGES);
  const boxes = layout(root, get, { start: 0x400000, size: 0x8000 }, 800, () => {});
  const pages = boxes.find(({ row, run }) => row === 3 && run.entry.state === 'leaf')!;
  assert.deepEqual([pages.x, pages.width, pages.start, pages.size], [0, 400, 0x400000, 0x4000]);
  assert.deepEqual([...new Set(boxes.map(({ row }) => row))], [0, 1, 2, 3]);
});

test('what is present stays visible however small, and its table is not asked for', () => {
  const { root, get } = tree(FOUR_PAGES);
  const asked: number[] = [];
  const boxes = layout(root, get, wholeSpace(root), 800, ({ level }) => asked.push(level));
  const [first] = boxes.filter(({ run }) => run.entry.state === 'table');
  assert.equal(first!.width, MIN_WIDTH);
  assert.deepEqual(asked, [4]);
});

test('what is out of sight is left out', () => {
  const { root, get } = tree(FOUR_PAGES);
  const boxes = layout(root, get, { start: 2 ** 40, size: 2 ** 30 }, 800, () => {});
  assert.deepEqual(
    boxes.map(({ run }) => run.entry.state),
    ['absent'],
  );
});

test('entries that fall into the same pixel are drawn once, unless one is marked', () => {
  const { root, get, tables } = tree([
    [0, 1, 'leaf'],
    [1, 1, 'leaf'],
    [2, 1, 'leaf'],
  ]);
  const view = { start: 0, size: 2 ** 48 };
  assert.equal(layout(root, get, view, 100, () => {}).length, 1);
  const [key, table] = [...tables][0]!;
  tables.set(key, { ...table, runs: table.runs.map((run) => ({ ...run, faulting: run.index === 2 })) });
  assert.deepEqual(
    layout(root, get, view, 100, () => {}).map(({ run }) => run.index),
    [0, 2],
  );
});

test('the pointer finds the entry at the fault before its neighbours', () => {
  const { root, get, tables } = tree([
    [0, 1, 'leaf'],
    [1, 1, 'absent'],
    [2, 510, 'absent'],
  ]);
  const [key, table] = [...tables][0]!;
  tables.set(key, { ...table, runs: table.runs.map((run) => ({ ...run, faulting: run.index === 1 })) });
  const boxes = layout(root, get, { start: 0, size: 2 ** 48 }, 512, () => {});
  assert.equal(boxAt(boxes, 0, 1)!.run.index, 1);
  assert.equal(boxAt(boxes, 1, 1), undefined);
});
