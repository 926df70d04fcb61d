import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RootCardAnswer, VcpuRootsAnswer } from '../../engine/queries/answers.ts';
import { compareRoles, differingFields, fieldWords, reuseWords } from './roles.ts';

const WANTED = [
  { name: 'level', value: 4 },
  { name: 'direct', value: 0 },
  { name: 'cr0_wp', value: 1 },
  { name: 'access', value: 7 },
];
const with_ = (changes: Readonly<Record<string, number>>) =>
  WANTED.map(({ name, value }) => ({ name, value: changes[name] ?? value }));
const vcpu = {
  vcpu: 0,
  mmu: 'root',
  active: true,
  pgd: '0xfff000',
  pgdName: 'CR3',
  cpuRole: { word: '0x0', fields: [] },
  extRole: [],
  rootRole: { word: '0x0', fields: WANTED },
  roots: [],
} satisfies VcpuRootsAnswer;
const root = (changes: Partial<RootCardAnswer>): RootCardAnswer => ({
  hpa: '0x1001000',
  pgd: '0xfff000',
  levels: 4,
  invalid: false,
  isUsable: false,
  table: { kind: 'table', space: 'second', vcpu: 0, table: '0x1001000', level: 4, base: '0x0' },
  fields: WANTED,
  ...changes,
});

test('a role’s fields are marked where another role has another value', () => {
  const cells = compareRoles(with_({ cr0_wp: 0 }), WANTED);
  assert.deepEqual(differingFields(cells), ['cr0_wp']);
  assert.deepEqual(cells[2], { name: 'cr0_wp', value: 0, wanted: 1 });
  assert.deepEqual(cells[0], { name: 'level', value: 4 });
});

test('a field that only one of two kernels has does not differ', () => {
  assert.deepEqual(differingFields(compareRoles([{ name: 'gpte_is_8_bytes', value: 1 }], WANTED)), []);
  assert.deepEqual(compareRoles([], WANTED), []);
});

test('rights are letters, other fields numbers', () => {
  assert.deepEqual(
    [7, 1, 2, 4, 0].map((value) => fieldWords('access', value)),
    ['wux', '--x', 'w--', '-u-', '---'],
  );
  assert.equal(fieldWords('level', 4), '4');
});

test('a root says whether it would be reused, and if not, why', () => {
  const words = (changes: Partial<RootCardAnswer>) => reuseWords(root(changes), vcpu, false);
  assert.equal(words({ isUsable: true }), 'would be reused');
  assert.equal(words({ invalid: true }), 'being taken down');
  assert.equal(words({ fields: with_({ cr0_wp: 0 }) }), 'would not be reused: another cr0_wp');
  assert.equal(words({ fields: with_({ cr0_wp: 0, level: 5 }) }), 'would not be reused: another level and cr0_wp');
  assert.equal(words({ fields: with_({ cr0_wp: 0, level: 5, access: 1 }) }), 'would not be reused: another role');
  assert.equal(words({ pgd: '0xbff000' }), 'would not be reused: another CR3');
  const { fields: _, ...untold } = root({});
  assert.equal(reuseWords(untold, vcpu, false), 'would not be reused: its role is not told');
  assert.equal(reuseWords({ ...untold, quarters: [null] }, vcpu, true), 'pae_root: never reused');
  assert.equal(reuseWords(root({ isUsable: true }), vcpu, true), 'fits what is wanted');
});
