import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FOUR_PAGES, tree } from './fixture.ts';
import { addressAt, findTable, mappedRange, memberOf, pathOf, positionOf, positionOfAddress, runOf } from './model.ts';

test('an entry’s place in the tables and its place in the space say the same', () => {
  const { root } = tree(FOUR_PAGES);
  assert.equal(positionOf([0, 0, 2, 1], root), 0x401000);
  assert.deepEqual(pathOf(0x401000, root, 1), [0, 0, 2, 1]);
  assert.deepEqual(pathOf(0x401000, root, 2), [0, 0, 2]);
});

test('addresses of the upper half lie at the end of the space, those that are not canonical nowhere', () => {
  const { root } = tree(FOUR_PAGES);
  assert.equal(positionOfAddress('0xffff800000000000', root), 2 ** 47);
  assert.equal(addressAt(2 ** 47, root), 0xffff_8000_0000_0000n);
  assert.equal(positionOfAddress('0x800000000000', root), undefined);
});

test('a second-stage root has no upper half, and ends where its tables end', () => {
  const { root } = tree(FOUR_PAGES);
  const second = { ...root, canonical: false };
  assert.equal(positionOfAddress('0x800000000000', second), 2 ** 47);
  assert.equal(positionOfAddress('0x1000000000000', second), undefined);
});

test('what is mapped is found below tables with a single entry', () => {
  const { root, get } = tree(FOUR_PAGES);
  assert.deepEqual(
    mappedRange(root, get, () => assert.fail('all tables are there')),
    { start: 0x400000, size: 0x4000 },
  );
  assert.equal(
    mappedRange(tree([[0, 512, 'absent']]).root, tree([[0, 512, 'absent']]).get, () => {}),
    undefined,
  );
});

test('tables that are not there yet are asked for', () => {
  const { root } = tree(FOUR_PAGES);
  const asked: number[] = [];
  mappedRange(
    root,
    () => undefined,
    ({ level }) => asked.push(level),
  );
  assert.deepEqual(asked, [4]);
});

test('an entry of a run is the first with its addresses moved on', () => {
  const { root, get } = tree(FOUR_PAGES);
  const third = memberOf(runOf([0, 0, 2, 3], root, get)!, 3);
  assert.deepEqual(
    [third.index, third.count, third.input, third.entry.value, third.entry.address, third.entry.fields[0]!.words],
    [3, 1, '0x403000', '0x8007', '0x8000', '0x8000'],
  );
});

test('a table is found below the root that leads to it; tables on the way that are not there are asked for', () => {
  const { root, get } = tree(FOUR_PAGES);
  const target = { ...root.table, table: '0x100', level: 2, base: '0x7' };
  const none = () => {};
  assert.deepEqual(findTable(target, [root], get, none), { root, path: [0, 0] });
  assert.deepEqual(findTable(root.table, [root], get, none), { root, path: [] });
  assert.equal(findTable({ ...target, table: '0x999' }, [root], get, none), undefined);
  assert.equal(findTable({ ...target, space: 'second' }, [root], get, none), undefined);
  const asked: string[] = [];
  assert.equal(
    findTable(
      target,
      [root],
      () => undefined,
      ({ table }) => asked.push(table),
    ),
    'waiting',
  );
  assert.deepEqual(asked, ['0x1']);
});
