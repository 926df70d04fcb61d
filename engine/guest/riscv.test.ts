import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PhysicalMemory } from '../memory/physical.ts';
import type { RegimeAccess } from './regime.ts';
import { type RiscvRegisters, riscvRegime } from './riscv.ts';

function memoryOf(entries: readonly (readonly [frame: number, index: number, value: number])[]): PhysicalMemory {
  const memory = new PhysicalMemory();
  for (const [frame, index, value] of entries) memory.writable(frame)[2 * index] = value;
  return memory;
}

const pointer = (frame: number): number => frame * 1024 + 1;
/** V, R, W, X, U, A, D by letters. */
const leaf = (frame: number, flags: string): number =>
  frame * 1024 +
  [...'VRWXU AD'].reduce((bits, name, at) => bits + (name === 'V' || flags.includes(name) ? 2 ** at : 0), 0);

const SATP = (8n << 60n) | 1n;
const memory = memoryOf([
  [1, 0, pointer(2)],
  [2, 0, pointer(3)],
  [3, 0, leaf(16, 'RWAD')],
  [3, 1, leaf(17, 'RXUA')],
  [3, 2, leaf(18, 'XA')],
  [3, 3, leaf(19, 'R')],
  [3, 4, leaf(20, 'RWA')],
  [3, 5, leaf(21, 'WA')],
  [3, 6, pointer(22)],
  [2, 1, leaf(512, 'RAD')],
  [2, 2, leaf(513, 'RAD')],
  [2, 3, pointer(3) | 0x40],
  [1, 511, leaf(1 << 18, 'RXA')],
]);

function outcome(
  address: bigint,
  kind: RegimeAccess['kind'] = 'read',
  change: Partial<RiscvRegisters> = {},
  user = false,
): string {
  const { end, hpa, code, reason } = riscvRegime({ satp: SATP, ...change }).walk(memory, address, { kind, user });
  return end === 'done' ? `0x${hpa!.toString(16)}` : `${code}: ${reason}`;
}

test('Sv39: pages, large pages, sign extension', () => {
  assert.equal(outcome(0x123n), '0x10123');
  assert.equal(outcome(0x20_0123n), '0x200123');
  assert.equal(outcome(0xffff_ffff_c000_0123n), '0x40000123');
  assert.match(outcome(0x40_0000_0000n), /is not sign-extended from the 39 bits of RISC-V Sv39/);
  assert.match(outcome(0x4000_0000n), /load page fault \(cause 13\): level-2 PTE 1 is not valid/);
});

test('what an entry may not be', () => {
  assert.match(outcome(0x40_0000n), /level-1 PTE 2 is malformed: reserved bit 10 set/);
  assert.match(outcome(0x60_0000n), /level-1 PTE 3 is malformed: reserved bit 6 set/);
  assert.match(outcome(0x5000n), /level-0 PTE 5 is malformed: writable but not readable/);
  assert.match(outcome(0x6000n), /level-0 PTE 6 is malformed: a pointer to a table, at the last level/);
});

test('rights, SUM, MXR, A and D', () => {
  assert.match(outcome(0x1000n), /level-0 PTE 1 does not let S-mode read/);
  assert.equal(outcome(0x1000n, 'read', { sum: true }), '0x11000');
  assert.match(outcome(0x1000n, 'fetch', { sum: true }), /instruction page fault \(cause 12\): .* S-mode execute/);
  assert.equal(outcome(0x1000n, 'fetch', {}, true), '0x11000');
  assert.match(outcome(0x0n, 'read', {}, true), /does not let U-mode read/);
  assert.match(outcome(0x2000n), /does not let S-mode read/);
  assert.equal(outcome(0x2000n, 'read', { mxr: true }), '0x12000');
  assert.match(outcome(0x3000n), /level-0 PTE 3 has A clear/);
  assert.equal(outcome(0x3000n, 'read', { svadu: true }), '0x13000');
  assert.match(outcome(0x4000n, 'write'), /store page fault \(cause 15\): level-0 PTE 4 has D clear/);
});

test('the G-stage: four root tables, every access as a user, faults of the access that began the walk', () => {
  // hgatp: Sv39x4 with its root at frame 32 … 35; guest frames 1 … 31 are themselves.
  const nested = memoryOf([
    [32, 0, pointer(40)],
    [40, 0, pointer(41)],
    ...Array.from({ length: 31 }, (_, at) => [41, at + 1, leaf(at + 1, 'RWXUAD')] as const),
    [35, 511, leaf(1 << 18, 'RUA')],
    [1, 0, pointer(2)],
    [2, 0, pointer(3)],
    [3, 0, leaf(16, 'RWAD')],
    [3, 1, leaf(64, 'RWAD')],
    [2, 1, pointer(64)],
  ]);
  const regime = riscvRegime({ satp: SATP, hgatp: (8n << 60n) | 32n });
  const read: RegimeAccess = { kind: 'read', user: false };
  assert.equal(regime.walk(nested, 0x123n, read).hpa, 0x10123n);
  const { references } = regime.walk(nested, 0x123n, read);
  assert.equal(references.length, 15);
  assert.equal(regime.walkSecond(nested, 0x1ff_c000_0123n).hpa, 0x4000_0123n);
  assert.match(regime.walkSecond(nested, 0x200_0000_0000n).reason, /beyond the 41 bits/);
  const table = regime.walk(nested, 0x20_0000n, { kind: 'write', user: false });
  assert.equal(table.code, 'store guest-page fault (cause 23)');
  assert.match(table.reason, /gpa 0x40000 of the level 0 page table: level-0 PTE 64 is not valid/);
  assert.equal(regime.walk(nested, 0x1000n, { kind: 'fetch', user: false }).code, 'instruction page fault (cause 12)');
});

test('registers: what is shown, Bare, and modes that are none', () => {
  const names = (registers: RiscvRegisters) => riscvRegime(registers).registers.map(({ name }) => name);
  assert.deepEqual(names({ satp: SATP }), ['satp']);
  assert.deepEqual(names({ satp: SATP, hgatp: (8n << 60n) | 4n }), ['vsatp', 'hgatp']);
  assert.deepEqual(names({ hgatp: (8n << 60n) | 4n }), ['hgatp']);
  assert.deepEqual(riscvRegime({ satp: 0n }).stages, []);
  assert.throws(() => riscvRegime({ satp: 5n }), {
    message: 'satp 0x5: mode 0 is Bare, in which the other bits are 0',
  });
  assert.throws(() => riscvRegime({ satp: 1n << 60n }), /mode 1 is not Sv39/);
});
