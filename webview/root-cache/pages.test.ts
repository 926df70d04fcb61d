import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ShadowPageAnswer } from '../../engine/queries/answers.ts';
import { filterPages, pageMarks, pageRows, quadrantOf, withoutLevel } from './pages.ts';

const page = (gfn: string, changes: Partial<ShadowPageAnswer> = {}): ShadowPageAnswer => ({
  hpa: '0x1001000',
  gfn,
  level: 1,
  role: '0x3701',
  fields: [],
  words: 'level 1, 8-byte, wux, nx wp',
  certainty: 'exact',
  roots: 0,
  unsync: false,
  unsyncChildren: 0,
  writeFlooding: 0,
  table: { kind: 'table', space: 'second', vcpu: 0, table: '0x1001000', level: 1, base: '0x0' },
  ...changes,
});

test('pages of a gfn come together, with their number', () => {
  const rows = pageRows([page('0x10'), page('0x20'), page('0x10', { level: 2 })]);
  assert.deepEqual(
    rows.map(({ page: { gfn, level }, isFirst, ofGfn }) => [gfn, level, isFirst, ofGfn]),
    [
      ['0x10', 1, true, 2],
      ['0x10', 2, false, 2],
      ['0x20', 1, true, 1],
    ],
  );
});

test('pages are found by digits of their gfn, and what is no number is refused', () => {
  const pages = [page('0xbfc'), page('0xffc'), page('0x1bfc0')];
  const found = (text: string) => {
    const answer = filterPages(pages, text);
    return 'error' in answer ? answer.error : answer.map(({ gfn }) => gfn);
  };
  assert.deepEqual(found('0xBFC'), ['0xbfc', '0x1bfc0']);
  assert.deepEqual(found(' 1_bfc0 '), ['0x1bfc0']);
  assert.deepEqual(found(''), ['0xbfc', '0xffc', '0x1bfc0']);
  assert.equal(found('wux'), '“wux” is not a gfn: hexadecimal digits, such as 0x400.');
});

test('only pages of a 32-bit guest’s tables have a quadrant', () => {
  const fields = (entries: number) => [
    { name: 'has_4_byte_gpte', value: entries },
    { name: 'quadrant', value: 2 },
  ];
  assert.equal(quadrantOf(page('0x1', { fields: fields(1) })), 2);
  assert.equal(quadrantOf(page('0x1', { fields: fields(0) })), undefined);
  assert.equal(quadrantOf(page('0x1')), undefined);
});

test('what is to be noticed of a page is said in words', () => {
  assert.deepEqual(pageMarks(page('0x1')), []);
  assert.deepEqual(pageMarks(page('0x1', { unsync: true, unsyncChildren: 3, writeFlooding: 2, nxDisallowed: true })), [
    'unsync',
    '3 unsync below',
    'write-flooding 2',
    'NX huge page disallowed',
  ]);
  assert.equal(withoutLevel('level 1, 8-byte, wux'), '8-byte, wux');
  assert.equal(withoutLevel('level 1'), '');
});
