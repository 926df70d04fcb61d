import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Memory, type RiscvAccess, type RiscvRegisters, translateRiscv } from './naive-riscv.ts';

// Translations worked out by hand, to see that the oracle itself says what the manual says.

/** Memory of single entries, keyed by their address; everything else is 0. */
function memoryOf(entries: readonly (readonly [address: bigint, value: bigint])[]): Memory {
  const values = new Map(entries);
  return { read: (address) => values.get(address) ?? 0n };
}

const R = 1n << 1n;
const W = 1n << 2n;
const X = 1n << 3n;
const U = 1n << 4n;
const A = 1n << 6n;
const D = 1n << 7n;
/** A valid entry for the page at this address. */
const entry = (address: bigint, flags: bigint) => ((address >> 12n) << 10n) | flags | 1n;

const SV39 = 8n << 60n;
const SV48 = 9n << 60n;
const SV57 = 10n << 60n;
const supervisor = (kind: RiscvAccess['kind']): RiscvAccess => ({ kind, user: false });
const user = (kind: RiscvAccess['kind']): RiscvAccess => ({ kind, user: true });
const page = (level: number, cause: number) => ({ kind: 'fault', what: 'page fault', level, cause });
const guest = (level: number, cause: number) => ({ kind: 'fault', what: 'guest-page fault', level, cause });

function registers(some: Partial<RiscvRegisters>): RiscvRegisters {
  return { satp: SV39 | 1n, sum: false, mxr: false, svadu: false, ...some };
}

test('Sv39: pages, superpages, rights', () => {
  // 0x40403abc: indices 1, 2, 3.
  const memory = memoryOf([
    [0x1008n, entry(0x2000n, 0n)],
    [0x2010n, entry(0x3000n, 0n)],
    [0x3018n, entry(0x9000n, R | W | X | A)],
    [0x3020n, entry(0x9000n, X | A)],
    [0x3028n, entry(0x9000n, R | X | U | A)],
    [0x3030n, entry(0x9000n, 0n)],
    [0x2018n, entry(0x8020_0000n, R | A)],
    [0x2020n, entry(0x8020_1000n, R | A)],
    [0x2028n, entry(0x3000n, A)],
    [0x2030n, entry(0x8020_0000n, W | A)],
    [0x2038n, entry(0x8020_0000n, R | A) | (1n << 60n)],
    [0x2040n, entry(0x8020_0000n, R | A) | (3n << 61n)],
  ]);
  const regs = registers({});
  const walk = (address: bigint, access: RiscvAccess, some: Partial<RiscvRegisters> = {}) =>
    translateRiscv(memory, registers(some), address, access);
  assert.deepEqual(walk(0x40403abcn, supervisor('read')), { kind: 'ok', gpa: 0x9abcn, pa: 0x9abcn });
  // D = 0.
  assert.deepEqual(walk(0x40403abcn, supervisor('write')), page(0, 15));
  assert.deepEqual(walk(0x40403abcn, supervisor('write'), { svadu: true }), { kind: 'ok', gpa: 0x9abcn, pa: 0x9abcn });
  assert.deepEqual(walk(0x40403abcn, user('read')), page(0, 13));
  assert.deepEqual(walk(0x40404000n, supervisor('read')), page(0, 13));
  assert.equal(walk(0x40404000n, supervisor('read'), { mxr: true }).kind, 'ok');
  assert.equal(walk(0x40405000n, user('fetch')).kind, 'ok');
  assert.deepEqual(walk(0x40405000n, supervisor('read')), page(0, 13));
  assert.equal(walk(0x40405000n, supervisor('read'), { sum: true }).kind, 'ok');
  assert.deepEqual(walk(0x40405000n, supervisor('fetch'), { sum: true }), page(0, 12));
  assert.deepEqual(walk(0x40406000n, supervisor('read')), page(0, 13));
  assert.deepEqual(walk(0x4061_2345n, supervisor('read')), { kind: 'ok', gpa: 0x8021_2345n, pa: 0x8021_2345n });
  assert.deepEqual(walk(0x4080_0000n, supervisor('read')), page(1, 13));
  assert.deepEqual(walk(0x40a0_0000n, supervisor('read')), page(1, 13));
  assert.deepEqual(walk(0x40c0_0000n, supervisor('write')), page(1, 15));
  assert.deepEqual(walk(0x40e0_0000n, supervisor('read')), page(1, 13));
  assert.equal(walk(0x4100_0000n, supervisor('read')).kind, 'ok');
  assert.deepEqual(walk(0n, supervisor('fetch')), page(2, 12));
  assert.deepEqual(translateRiscv(memory, regs, 1n << 38n, supervisor('read')), { kind: 'not-canonical' });
});

test('Sv48 and Sv57: root level, canonical addresses of the upper half', () => {
  const memory = memoryOf([[0x1ff8n, entry(0x80_0000_0000n, R | A)]]);
  assert.deepEqual(translateRiscv(memory, registers({ satp: SV48 | 1n }), 0xffff_ff80_0000_0042n, supervisor('read')), {
    kind: 'ok',
    gpa: 0x80_0000_0042n,
    pa: 0x80_0000_0042n,
  });
  assert.deepEqual(
    translateRiscv(memory, registers({ satp: SV57 | 1n }), 0xffff_ff80_0000_0042n, supervisor('read')),
    // 0x80_0000_0000 is not aligned to 256 TiB.
    page(4, 13),
  );
  assert.deepEqual(translateRiscv(memory, registers({ satp: SV57 | 1n }), 1n << 56n, supervisor('read')), {
    kind: 'not-canonical',
  });
});

test('G-stage: wide root, rights, implicit reads with the cause of the access', () => {
  const all = R | W | X | U | A | D;
  const memory = memoryOf([
    // Sv39x4, root at 0x4000 … 0x7fff: entry 0 maps the first GiB to 0x1_0000_0000, readable only.
    [0x4000n, entry(0x1_0000_0000n, R | U | A)],
    // GPA bits 40:30 = 0x401: beyond a plain root table.
    [0x4000n + 0x401n * 8n, entry(0x2_4000_0000n, all)],
    // Not a user page; executable only.
    [0x4010n, entry(0x2_4000_0000n, R | W | X | A | D)],
    [0x4018n, entry(0x2_4000_0000n, X | U | A)],
    // VS-stage, Sv39, root at GPA 0x1000.
    [0x1_0000_1000n, entry(0x401n << 30n, R | W | A | D)],
    [0x1_0000_1008n, entry(2n << 30n, R | W | A | D)],
    [0x1_0000_1010n, entry(3n << 30n, R | X | A | D)],
    [0x1_0000_1018n, entry(3n << 30n, 0n)],
    [0x1_0000_1020n, entry(1n << 41n, R | W | A | D)],
    [0x1_0000_1028n, entry(0n, R | W | A | D)],
  ]);
  // The low two bits of hgatp.PPN do not count.
  const regs = registers({ hgatp: SV39 | 7n, mxr: true });
  const walk = (address: bigint, access: RiscvAccess) => translateRiscv(memory, regs, address, access);
  assert.deepEqual(walk(0x123n, supervisor('write')), {
    kind: 'ok',
    gpa: (0x401n << 30n) | 0x123n,
    pa: 0x2_4000_0123n,
  });
  assert.deepEqual(walk(0x4000_0000n, supervisor('read')), guest(2, 21));
  assert.equal(walk(0x8000_0000n, supervisor('fetch')).kind, 'ok');
  assert.deepEqual(walk(0x8000_0000n, supervisor('read')), guest(2, 21));
  // A table in memory that is executable only: the implicit read fails, MXR or not.
  assert.deepEqual(walk(0xc000_0000n, supervisor('write')), guest(2, 23));
  assert.deepEqual(walk(0xc000_0000n, supervisor('fetch')), guest(2, 20));
  assert.deepEqual(walk(0x1_0000_0000n, supervisor('read')), guest(2, 21));
  assert.deepEqual(walk(0x1_4000_0000n, supervisor('write')), guest(2, 23));
  assert.equal(walk(0x1_4000_0000n, supervisor('read')).kind, 'ok');
  assert.deepEqual(walk(0x1_8000_0000n, supervisor('read')), page(2, 13));
});
