import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FOUR_PAGES, tree } from './fixture.ts';
import { rowOfPath, treeRows } from './rows.ts';

const keys = (open: readonly string[], made = tree(FOUR_PAGES)) =>
  treeRows(made.root, made.get, new Set(open), () => {}).map(({ key, depth }) => `${' '.repeat(depth)}${key}`);

test('a closed tree shows the root’s runs', () => {
  assert.deepEqual(keys([]), ['0', '1']);
});

test('open tables show their runs, and an open run its entries', () => {
  assert.deepEqual(keys(['0', '0/0', '0/0/2', '0/0/2/0']), [
    '0',
    ' 0/0',
    '  0/0/0',
    '  0/0/2',
    '   0/0/2/0',
    '    0/0/2/0+',
    '    0/0/2/1+',
    '    0/0/2/2+',
    '    0/0/2/3+',
    '   0/0/2/4',
    '  0/0/3',
    ' 0/1',
    '1',
  ]);
});

test('a table that has not arrived is one row, and asked for', () => {
  const { root, get, tables } = tree(FOUR_PAGES);
  const asked: number[] = [];
  tables.delete([...tables.keys()].find((key) => key.includes(' 3 '))!);
  const rows = treeRows(root, get, new Set(['0']), ({ level }) => asked.push(level));
  assert.deepEqual(
    rows.map(({ message }) => message),
    [undefined, 'reading …', undefined],
  );
  assert.deepEqual(asked, [4, 3]);
});

test('an entry is found in its run, or by itself where the run is open', () => {
  const { root, get } = tree(FOUR_PAGES);
  const closed = treeRows(root, get, new Set(['0', '0/0', '0/0/2']), () => {});
  assert.equal(closed[rowOfPath(closed, [0, 0, 2, 3])]!.key, '0/0/2/0');
  const open = treeRows(root, get, new Set(['0', '0/0', '0/0/2', '0/0/2/0']), () => {});
  assert.equal(open[rowOfPath(open, [0, 0, 2, 3])]!.key, '0/0/2/3+');
  assert.equal(
    rowOfPath(
      treeRows(root, get, new Set(), () => {}),
      [0, 0, 2, 3],
    ),
    -1,
  );
});
