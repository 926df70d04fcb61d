import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Memory, translateX86, type X86Access, type X86Cpu, type X86Registers } from './naive-x86-modes.ts';

// Translations worked out by hand, to see that the oracle itself says what the manuals say.

/** Memory of single entries, keyed by their address; everything else is 0. */
function memoryOf(entries: Record<string, bigint>): Memory {
  const values = new Map(Object.entries(entries).map(([address, value]) => [BigInt(address), value]));
  return { read: (address) => values.get(address) ?? 0n };
}

const CPU: X86Cpu = { maxPhyAddr: 40, oneGigPages: true, amd: false };
const WP = 1n << 16n;
const PSE = 1n << 4n;
const PAE = 1n << 5n;
const LA57 = 1n << 12n;
const SMEP = 1n << 20n;
const SMAP = 1n << 21n;
const PKE = 1n << 22n;
const LME = 1n << 8n;
const NXE = 1n << 11n;
const AC = 1n << 18n;
const NX = 1n << 63n;

function registers(some: Partial<X86Registers>): X86Registers {
  return { cr0: (1n << 31n) | WP, cr3: 0x1000n, cr4: 0n, efer: 0n, rflags: 0n, pkru: 0n, ...some };
}

const userRead: X86Access = { kind: 'read', user: true, implicit: false };
const userWrite: X86Access = { kind: 'write', user: true, implicit: false };
const userFetch: X86Access = { kind: 'fetch', user: true, implicit: false };
const kernelRead: X86Access = { kind: 'read', user: false, implicit: false };
const kernelWrite: X86Access = { kind: 'write', user: false, implicit: false };
const kernelFetch: X86Access = { kind: 'fetch', user: false, implicit: false };

test('32-bit: 4-KByte page, accessed and dirty, no I/D bit, out of range', () => {
  // 0x00403004: PDE 1, PTE 3.
  const memory = memoryOf({ 4100: 0x2007n, 8204: 0x9025n });
  const regs = registers({});
  assert.deepEqual(translateX86(memory, regs, CPU, 0x00403004n, userRead), {
    kind: 'ok',
    physical: 0x9004n,
    pageSize: 4096,
    setAccessed: [0x1004n],
    setDirty: [],
  });
  assert.deepEqual(translateX86(memory, regs, CPU, 0x00403004n, userWrite), {
    kind: 'page-fault',
    errorCode: 0b00111,
    level: 1,
  });
  assert.deepEqual(translateX86(memory, registers({ cr0: 1n << 31n }), CPU, 0x00403004n, kernelWrite), {
    kind: 'ok',
    physical: 0x9004n,
    pageSize: 4096,
    setAccessed: [0x1004n],
    setDirty: [0x200cn],
  });
  // NXE does not exist for 32-bit paging: neither a denial nor I/D. SMEP gives I/D.
  const fault = { kind: 'page-fault', level: 2 };
  assert.deepEqual(translateX86(memory, registers({ efer: NXE }), CPU, 0n, userFetch), {
    ...fault,
    errorCode: 0b00100,
  });
  assert.deepEqual(translateX86(memory, registers({ cr4: SMEP }), CPU, 0n, userFetch), {
    ...fault,
    errorCode: 0b10100,
  });
  assert.deepEqual(translateX86(memory, regs, CPU, 1n << 32n, userRead), { kind: 'out-of-range' });
});

test('32-bit: 4-MByte page with PSE-36', () => {
  // PDE 0x301 = address bits 31:22; bits 35:32 = 0b1010 in bits 16:13.
  const pde = 0xc0400000n | (0b1010n << 13n) | 0xe7n;
  const memory = memoryOf({ 7172: pde, 7176: pde | (1n << 17n) });
  const regs = registers({ cr4: PSE });
  assert.deepEqual(translateX86(memory, regs, CPU, 0xc0723456n, userWrite), {
    kind: 'ok',
    physical: 0xac0723456n,
    pageSize: 0x400000,
    setAccessed: [],
    setDirty: [],
  });
  const reserved = { kind: 'page-fault', errorCode: 0b01101, level: 2 };
  assert.deepEqual(translateX86(memory, regs, CPU, 0xc0800000n, userRead), reserved);
  assert.deepEqual(translateX86(memory, regs, { ...CPU, maxPhyAddr: 35 }, 0xc0723456n, userRead), reserved);
  // Without CR4.PSE the same PDE points to a page table at bits 31:12.
  const table = memoryOf({ 7172: pde, [String((pde & 0xfffff000n) + 4n * 0x323n)]: 0x5007n });
  assert.equal(translateX86(table, registers({}), CPU, 0xc0723456n, userRead).kind, 'ok');
});

test('PAE: PDPTE without rights or A bit, 2-MByte page, NX and MAXPHYADDR', () => {
  // CR3 = 0x1060 + flags below bit 5. 0x80212345: PDPTE 2, PDE 1.
  const pde = 0x3_0060_0000n | 0x87n;
  const memory = memoryOf({ 4208: 0x2001n, 8200: pde, 8208: pde | NX, 8216: pde | (1n << 62n) });
  const regs = registers({ cr3: 0x1078n & ~0x1fn, cr4: PAE, efer: NXE });
  assert.deepEqual(translateX86(memory, regs, CPU, 0x80212345n, userWrite), {
    kind: 'ok',
    physical: 0x300612345n,
    pageSize: 0x200000,
    setAccessed: [0x2008n],
    setDirty: [0x2008n],
  });
  const at2 = { kind: 'page-fault', level: 2 };
  assert.deepEqual(translateX86(memory, regs, CPU, 0x80400000n, userFetch), { ...at2, errorCode: 0b10101 });
  assert.deepEqual(translateX86(memory, regs, CPU, 0x80600000n, userFetch), { ...at2, errorCode: 0b11101 });
  const noNxe = registers({ cr3: 0x1060n, cr4: PAE });
  assert.deepEqual(translateX86(memory, noNxe, CPU, 0x80400000n, userFetch), { ...at2, errorCode: 0b01101 });
  assert.deepEqual(translateX86(memory, regs, CPU, 0n, userRead), { kind: 'page-fault', errorCode: 0b100, level: 3 });
});

test('4-level: 1-GByte page, SMAP, SMEP, PKRU, AMD bit 8', () => {
  const leaf = (5n << 59n) | 0x4000_0000n | 0xe7n;
  const memory = memoryOf({ 8184: 0x2027n, 12272: leaf, 4096: 0x2107n });
  const regs = registers({ cr4: PAE, efer: LME | NXE });
  const address = 0xffff_ffff_8123_4567n;
  const ok = { kind: 'ok', physical: 0x4123_4567n, pageSize: 0x40000000, setAccessed: [], setDirty: [] };
  const at3 = { kind: 'page-fault', level: 3 };
  assert.deepEqual(translateX86(memory, regs, CPU, address, userWrite), ok);
  assert.deepEqual(translateX86(memory, regs, { ...CPU, oneGigPages: false }, address, userWrite), {
    ...at3,
    errorCode: 0b01111,
  });
  const guarded = registers({ cr4: PAE | SMAP | SMEP, efer: LME | NXE });
  assert.deepEqual(translateX86(memory, guarded, CPU, address, kernelRead), { ...at3, errorCode: 0b00001 });
  assert.deepEqual(translateX86(memory, { ...guarded, rflags: AC }, CPU, address, kernelRead), ok);
  assert.deepEqual(translateX86(memory, { ...guarded, rflags: AC }, CPU, address, { ...userRead, implicit: true }), {
    ...at3,
    errorCode: 0b00001,
  });
  assert.deepEqual(translateX86(memory, guarded, CPU, address, kernelFetch), { ...at3, errorCode: 0b10001 });
  // Key 5: AD is PKRU bit 10, WD bit 11.
  const keys = registers({ cr4: PAE | PKE, efer: LME | NXE, pkru: 1n << 11n });
  assert.deepEqual(translateX86(memory, keys, CPU, address, userWrite), { ...at3, errorCode: 0b100111 });
  assert.deepEqual(translateX86(memory, { ...keys, cr0: 1n << 31n }, CPU, address, kernelWrite), ok);
  assert.deepEqual(translateX86(memory, { ...keys, pkru: 1n << 10n }, CPU, address, userRead), {
    ...at3,
    errorCode: 0b100101,
  });
  assert.deepEqual(translateX86(memory, { ...keys, pkru: 3n << 10n }, CPU, address, userFetch), ok);
  assert.deepEqual(translateX86(memory, regs, { ...CPU, amd: true }, 0n, userRead), {
    kind: 'page-fault',
    errorCode: 0b01101,
    level: 4,
  });
  assert.deepEqual(translateX86(memory, regs, CPU, 1n << 47n, userRead), { kind: 'not-canonical' });
});

test('5-level: five entries, a table that maps itself is named once', () => {
  const regs = registers({ cr4: PAE | LA57, efer: LME });
  // Bit 47 set is canonical here; bit 56 alone is not.
  assert.deepEqual(translateX86(memoryOf({}), regs, CPU, 1n << 47n, userRead), {
    kind: 'page-fault',
    errorCode: 0b100,
    level: 5,
  });
  assert.deepEqual(translateX86(memoryOf({}), regs, CPU, 1n << 56n, userRead), { kind: 'not-canonical' });
  // Entry 0 of 0x1000 points to 0x1000: the whole walk of address 0xabc uses it five times.
  assert.deepEqual(translateX86(memoryOf({ 4096: 0x1007n }), regs, CPU, 0xabcn, userWrite), {
    kind: 'ok',
    physical: 0x1abcn,
    pageSize: 4096,
    setAccessed: [0x1000n],
    setDirty: [0x1000n],
  });
});
