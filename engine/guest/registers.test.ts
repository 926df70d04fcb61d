import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LONG_MODE, pagingMode, registerProblem, UNPAGED } from './registers.ts';

const problem = (change: Partial<typeof LONG_MODE>) => registerProblem({ ...LONG_MODE, ...change }, 46);

test('the registers that a kernel runs with are accepted, and so are those before paging', () => {
  assert.equal(problem({}), undefined);
  assert.equal(registerProblem(UNPAGED, 46), undefined);
});

test('what is not modelled or not possible is named with its register', () => {
  assert.equal(problem({ cr4: 0xa0n | (1n << 17n) }), undefined);
  assert.equal(problem({ efer: 0n, cr4: 0xa0n | (1n << 17n) }), 'cr4.pcide needs long mode');
  assert.match(problem({ cr3: 1n << 63n })!, /bit 63 is NOFLUSH only with cr4\.pcide/);
  assert.equal(problem({ cr4: 0xa0n | (1n << 23n) }), 'cr4.cet: shadow stacks are not modelled yet');
  assert.equal(problem({ cr4: 0n }), 'efer.lme needs cr4.pae while paging is on');
  assert.equal(problem({ efer: 0n, cr4: 0x1020n }), 'cr4.la57 needs long mode');
  assert.equal(
    problem({ efer: 0n, cr3: 1n << 32n }),
    'cr3 0x100000000 has more than the 32 bits that there are outside of long mode',
  );
  assert.equal(problem({ cr0: 0x8000_0000n }), 'cr0.pg needs cr0.pe');
  assert.equal(problem({ cr3: 1n << 62n }), 'cr3 0x4000000000000000: linear-address masking is not modelled yet');
  assert.equal(problem({ cr3: 1n << 46n }), 'cr3 0x400000000000 has bits beyond MAXPHYADDR 46');
  assert.equal(problem({ cpl: 4n }), 'cpl 4 is out of range: 0 … 3');
  assert.equal(problem({ pkru: 1n << 32n }), 'pkru 0x100000000 has more than 32 bits');
});

test('CR4.PAE, EFER.LME and CR4.LA57 select the tables', () => {
  const cpu = { maxPhyAddr: 46, features: new Set(['1g-pages'] as const) };
  const mode = (change: Partial<typeof LONG_MODE>) => pagingMode({ ...LONG_MODE, cr3: 0x1234_5fe0n, ...change }, cpu);
  const facts = ({ format, addressBits, rootEntry, nxe }: ReturnType<typeof mode>) => [
    format.spec.name,
    addressBits,
    rootEntry,
    nxe,
  ];
  assert.deepEqual(facts(mode({})), ['x86-64', 48, 0, true]);
  assert.deepEqual(facts(mode({ cr4: 0x10a0n })), ['x86-64-5', 57, 0, true]);
  assert.deepEqual(facts(mode({ efer: 0x800n })), ['pae', 32, 0xfe0 / 8, true]);
  assert.deepEqual(facts(mode({ efer: 0x800n, cr4: 0x90n })), ['x86-32', 32, 0, false]);
  assert.equal(mode({ efer: 0x800n, cr4: 0x90n }).format.isLargeLevel(2), true);
  assert.equal(mode({ efer: 0x800n, cr4: 0x80n }).format.isLargeLevel(2), false);
  // PKRU counts in long mode only.
  assert.equal(mode({ efer: 0x800n, cr4: 0x4000_a0n }).pke, false);
});

test('the mode follows the registers bit by bit', () => {
  const cpu = { maxPhyAddr: 46, features: new Set(['1g-pages'] as const) };
  const mode = (change: Partial<typeof LONG_MODE>) => pagingMode({ ...LONG_MODE, ...change }, cpu);
  assert.equal(mode({ cr3: 0x1234_5fffn }).rootGfn, 0x12345);
  for (const [name, change] of [
    ['wp', { cr0: LONG_MODE.cr0 & ~(1n << 16n) }],
    ['nxe', { efer: LONG_MODE.efer & ~(1n << 11n) }],
    ['paging', { cr0: 0x33n }],
    ['pge', { cr4: 0x20n }],
  ] as const) {
    assert.equal(mode({})[name], true, name);
    assert.equal(mode(change)[name], false, name);
  }
  for (const [name, change] of [
    ['smep', { cr4: 0xa0n | (1n << 20n) }],
    ['smap', { cr4: 0xa0n | (1n << 21n) }],
    ['pke', { cr4: 0xa0n | (1n << 22n) }],
    ['ac', { rflags: 1n << 18n }],
  ] as const) {
    assert.equal(mode({})[name], false, name);
    assert.equal(mode(change)[name], true, name);
  }
  assert.equal(mode({ efer: 0x501n }).reportsFetch, false);
  assert.equal(mode({ efer: 0x501n, cr4: 0xa0n | (1n << 20n) }).reportsFetch, true);
});
