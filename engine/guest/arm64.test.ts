import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PhysicalMemory } from '../memory/physical.ts';
import { frameToAddress } from '../memory/words.ts';
import type { Tables } from '../pgtable/tables.ts';
import { Leaves } from '../queries/leaves.ts';
import { type Arm64Registers, arm64Regime, faultStatus } from './arm64.ts';
import type { RegimeAccess } from './regime.ts';

const READ: RegimeAccess = { kind: 'read', user: false };

/** Memory with 64-bit entries at physical addresses. */
function memoryOf(entries: Readonly<Record<string, bigint>>): PhysicalMemory {
  const memory = new PhysicalMemory();
  for (const [address, value] of Object.entries(entries)) {
    const at = BigInt(address);
    const page = memory.writable(Number(at >> 12n));
    const word = Number(at & 0xfffn) / 4;
    page[word] = Number(value & 0xffffffffn);
    page[word + 1] = Number(value >> 32n);
  }
  return memory;
}

function walk(memory: Tables, registers: Arm64Registers, address: bigint, access: RegimeAccess = READ) {
  const { end, gpa, hpa, code, reason } = arm64Regime(registers).walk(memory, address, access);
  return end === 'done' ? hpa : { end, gpa, code, reason };
}

/** AF, inner shareable, a page or a table. */
const PAGE = 0x703n;
const BLOCK = 0x701n;
const TABLE = 3n;

test('stage 2 with concatenated tables: the upper half of the input space is not lost', () => {
  // 40 bits from level 1: two tables of 512 entries, one behind the other (T0SZ 24, SL0 1).
  const vtcr = 0x8000_0000n | 24n | (1n << 6n) | (2n << 16n);
  const registers = { regime: 'el1', vttbr: 0x8000n, vtcr } as const;
  const upper = 0x80_4000_0000n;
  const memory = memoryOf({ '0x9008': 0x4000_0000n | BLOCK | 0xc0n });
  assert.equal(walk(memory, registers, upper + 0x1234n), 0x4000_1234n);
  const { second } = arm64Regime(registers);
  assert.deepEqual([second!.tree.format.entries[3], second!.tree.format.tableFrames[3]], [1024, 2]);
  const leaves = new Leaves(memory, second!, 0, second!.tree.format.inputFrames, () => {});
  assert.ok(leaves.next());
  assert.equal(frameToAddress(leaves.frame), upper);
  assert.equal(leaves.next(), false);
  // Sixteen tables of 16K: 47 bits from level 2 would need 17 bits of index.
  const sixteen = { regime: 'el1', vttbr: 0x40000n, vtcr: (2n << 14n) | (1n << 6n) | 24n | (5n << 16n) } as const;
  assert.equal(arm64Regime(sixteen).second!.tree.format.tableFrames[2], 64);
});

test('the size of output addresses is what PS says, not 32 + 4 · PS', () => {
  for (const [ps, bits] of [
    [0, 32],
    [1, 36],
    [2, 40],
    [3, 42],
    [4, 44],
    [5, 48],
    // 52 bits need LPA2 in 4K granules: without they are 48.
    [6, 48],
  ] as const) {
    const { stages } = arm64Regime({ regime: 'el1', ttbr0: 0x1000n, tcr: 16n | (BigInt(ps) << 32n) });
    assert.equal(stages[0]!.tree.format.options.maxPhyAddr, bits, `PS ${ps}`);
  }
  const memory = memoryOf({ '0x1000': (1n << 42n) | TABLE });
  const tcr = (ps: bigint) => 25n | (ps << 32n);
  const beyond = walk(memory, { regime: 'el1', ttbr0: 0x1000n, tcr: tcr(3n) }, 0n);
  assert.deepEqual(beyond, {
    end: 'guest-fault',
    gpa: undefined,
    code: 'address size fault, level 1 (status 0x01)',
    reason: 'L1 descriptor 0 has an address beyond the 42 bits of an output address',
  });
  assert.throws(() => arm64Regime({ regime: 'el1', ttbr0: 0x1000n, tcr: tcr(7n) }), /IPS, PS\) of 7 is reserved/);
});

test('EL2 has tables of its own: one range, XN and no user', () => {
  const registers = { regime: 'el2', ttbr0: 0x1001n, tcr: 0x8081_3510n } as const;
  const memory = memoryOf({
    '0x1000': 0x2000n | TABLE,
    '0x2000': 0x3000n | TABLE,
    '0x3000': 0x4000n | TABLE,
    '0x4000': 0x5000n | PAGE,
    '0x4008': (1n << 54n) | 0x6000n | PAGE | 0x80n,
  });
  assert.equal(walk(memory, registers, 0x123n), 0x5123n);
  assert.equal(walk(memory, registers, 0x1000n), 0x6000n);
  assert.deepEqual(walk(memory, registers, 0x1000n, { kind: 'fetch', user: false }), {
    end: 'guest-fault',
    gpa: undefined,
    code: 'permission fault, level 3 (status 0x0f)',
    reason: 'L3 descriptor 1 or a table above it does not let EL2 execute',
  });
  assert.throws(() => arm64Regime({ ...registers, ttbr1: 0n }), /EL2 without VHE has no TTBR1_EL2/);
});

test('features of -cpu max change nothing by themselves: CnP, ASIDs, 52-bit sizes without DS, HA and HD', () => {
  // As Linux sets them up there: IPS 6, HA, HD; TTBRs with an ASID above and CnP below.
  const tcr = 16n | (16n << 16n) | (2n << 30n) | (6n << 32n) | (1n << 39n) | (1n << 40n);
  const registers = { regime: 'el1', ttbr0: 0x5_0000_0000_1001n, ttbr1: 0x30_0000_0000_2001n, tcr } as const;
  const memory = memoryOf({
    '0x1000': 0x3000n | TABLE,
    '0x3000': 0x4000_0000n | 0x741n,
    '0x2ff8': 0x4000n | TABLE,
    // AF clear: hardware would set it. DBM with AP[2] set: the first write is let through.
    '0x4ff8': (1n << 51n) | 0x8000_0000n | 0x381n,
  });
  assert.equal(walk(memory, registers, 0x1234n), 0x4000_1234n);
  assert.equal(walk(memory, registers, 0xffff_ffff_c000_1234n), 0x8000_1234n);
  assert.equal(walk(memory, registers, 0xffff_ffff_c000_1234n, { kind: 'write', user: false }), 0x8000_1234n);
  assert.match(JSON.stringify(walk(memory, registers, 0x20_0000_0040_0000n), replace), /is in no range/);
  const managed = { ...registers, tcr: tcr & ~(3n << 39n) };
  assert.match(
    JSON.stringify(walk(memory, managed, 0xffff_ffff_c000_0000n), replace),
    /access flag fault, level 1 \(status 0x09\)/,
  );
});

const replace = (_: string, value: unknown): unknown => (typeof value === 'bigint' ? `${value}` : value);

test('LPA2 and level −1: bits 51:50 at 9:8, TTBR bits 51:48 at 5:2', () => {
  const tcr = 12n | (6n << 32n) | (1n << 59n);
  // 52 bits: 16 entries at level −1, the root at 0xf_0000_0001_0000 by its bits 5:2.
  const registers = { regime: 'el1', ttbr0: 0x1_003cn, tcr } as const;
  const memory = memoryOf({
    '0xf000000010010': 0x2000n | TABLE,
    '0x2000': (1n << 8n) | 0x401n,
  });
  assert.equal(walk(memory, registers, 0x2_0000_0000_0000n + 0x77n), 0x4_0000_0000_0077n);
  assert.deepEqual(walk(memory, registers, 0n), {
    end: 'guest-fault',
    gpa: undefined,
    code: 'translation fault, level -1 (status 0x2b)',
    reason: 'L-1 descriptor 0 is not valid',
  });
  assert.deepEqual(
    [faultStatus('address size', -1), faultStatus('translation', 0), faultStatus('permission', 3)],
    [0x29, 4, 15],
  );
});

test('permissions: PAN, WXN, what EL0 may write, tables above, hierarchy switched off', () => {
  const tcr = 25n | (5n << 32n);
  const base = { regime: 'el1', ttbr0: 0x1000n, tcr } as const;
  const memory = memoryOf({
    '0x1000': 0x2000n | TABLE,
    '0x1008': (1n << 61n) | 0x2000n | TABLE,
    '0x2000': 0x4000_0000n | BLOCK | 0x40n,
    '0x2008': 0x4020_0000n | BLOCK,
  });
  const fault = (change: Partial<Arm64Registers>, address: bigint, kind: RegimeAccess['kind'], user: boolean) => {
    const outcome = walk(memory, { ...base, ...change }, address, { kind, user });
    return typeof outcome === 'bigint' ? 'ok' : outcome!.reason;
  };
  assert.equal(fault({}, 0n, 'write', true), 'ok');
  assert.equal(fault({}, 0n, 'fetch', false), 'EL1 does not execute what EL0 may write');
  assert.equal(fault({ pan: true }, 0n, 'read', false), 'PSTATE.PAN keeps the kernel from what EL0 may access');
  assert.equal(fault({ pan: true }, 0x20_0000n, 'read', false), 'ok');
  assert.equal(
    fault({ sctlr: 1n << 19n }, 0x20_0000n, 'fetch', false),
    'SCTLR.WXN forbids to execute what may be written',
  );
  assert.equal(fault({}, 0x20_0000n, 'read', true), 'L2 descriptor 1 or a table above it does not let EL0 read');
  assert.equal(fault({}, 0x4000_0000n, 'read', true), 'L2 descriptor 0 or a table above it does not let EL0 read');
  assert.equal(fault({ tcr: tcr | (1n << 41n) }, 0x4000_0000n, 'read', true), 'ok');
});

test('an abort on a table read names stage 2 and the table', () => {
  // Stage 2: 32 bits from level 2 (4 tables), ipa 0 … 2M to 1G, all else unmapped.
  const vtcr = 32n | (5n << 16n);
  const registers = { regime: 'el1', ttbr0: 0x1000n, tcr: 25n | (5n << 32n), vttbr: 0x8000n, vtcr } as const;
  const memory = memoryOf({
    '0x8000': 0x4000_0000n | BLOCK | 0xc0n,
    '0x40001000': 0x2000n | TABLE,
    '0x40001008': 0x30_0000n | TABLE,
    '0x40002000': BLOCK,
  });
  assert.equal(walk(memory, registers, 0x1234n), 0x4000_1234n);
  assert.deepEqual(walk(memory, registers, 0x4000_0000n), {
    end: 'second-fault',
    gpa: 0x30_0000n,
    code: 'stage-2 translation fault, level 2 (status 0x06), on a stage-1 table walk',
    reason: 'gpa 0x300000 of the level 2 table: L2 descriptor 1 is not valid',
  });
  const { references } = arm64Regime(registers).walk(memory, 0n, READ);
  assert.deepEqual(
    references.map(({ stage, forLevel }) => `${stage} ${forLevel}`),
    ['second 3', 'guest 3', 'second 2', 'guest 2', 'second 0'],
  );
});

test('words: which registers, which ranges, where memory ends', () => {
  const tcr = 25n | (25n << 16n) | (2n << 30n) | (5n << 32n);
  const both = { ttbr0: 0x1000n, ttbr1: 0x1000n, tcr };
  const names = (registers: Arm64Registers) => arm64Regime(registers).registers.map(({ name }) => name);
  assert.deepEqual(names({ regime: 'el1', ...both }), ['TTBR0_EL1', 'TTBR1_EL1', 'TCR_EL1']);
  assert.deepEqual(names({ regime: 'vhe', ...both }), ['TTBR0_EL2', 'TTBR1_EL2', 'TCR_EL2']);
  assert.equal(arm64Regime({ regime: 'vhe', ...both }).stages[1]!.register, 'TTBR1_EL2');
  assert.throws(() => arm64Regime({ regime: 'el1', ttbr0: 0x1000n }), /mean nothing without TCR_EL1$/);
  assert.throws(() => arm64Regime({ regime: 'el2', ttbr0: 0x1000n }), /mean nothing without TCR_EL2$/);
  assert.throws(() => arm64Regime({ regime: 'vhe', ...both, tcr: tcr | 0x3fn }), /^Error: TCR_EL2 0x/);
  const { reason } = arm64Regime({ regime: 'el1', ...both }).walk(memoryOf({}), 1n << 50n, READ);
  assert.equal(
    reason,
    '0x4000000000000 is in no range: TTBR0_EL1 translates 0x0 … 0x7fffffffff; TTBR1_EL1 translates 0xffffff8000000000 … 0xffffffffffffffff',
  );
  const memory = memoryOf({ '0x1000': 0x2000n | TABLE, '0x2000': 0x4000_0000n | BLOCK });
  const small: Tables = { page: (frame) => memory.page(frame), has: (frame) => frame < 16 };
  const reasonOf = (tables: Tables) => arm64Regime({ regime: 'el1', ...both }).walk(tables, 0n, READ).reason;
  assert.equal(reasonOf(small), 'the translation succeeds, to where there is no memory');
  assert.equal(reasonOf({ page: small.page }), 'the translation succeeds');
});

test('an ipa beyond stage 2 is reported at level 0, of the page and of a table', () => {
  const vtcr = 32n | (5n << 16n);
  const registers = { regime: 'el1', ttbr0: 1n << 40n, tcr: 25n | (5n << 32n), vttbr: 0x8000n, vtcr } as const;
  const regime = arm64Regime(registers);
  assert.equal(regime.walkSecond(memoryOf({}), 1n << 32n).code, 'stage-2 translation fault, level 0 (status 0x04)');
  assert.equal(
    regime.walkSecond(memoryOf({}), (1n << 32n) - 1n).code,
    'stage-2 translation fault, level 2 (status 0x06)',
  );
  assert.equal(
    regime.walk(memoryOf({}), 0n, READ).code,
    'stage-2 translation fault, level 0 (status 0x04), on a stage-1 table walk',
  );
});

test('EL2’s own tables have limits above them too, unless TCR_EL2.HPD turns them off', () => {
  const memory = memoryOf({ '0x1000': (1n << 62n) | 0x2000n | TABLE, '0x2000': 0x4000_0000n | BLOCK });
  const write: RegimeAccess = { kind: 'write', user: false };
  const registers = { regime: 'el2', ttbr0: 0x1000n, tcr: 25n | (5n << 16n) } as const;
  assert.match(JSON.stringify(walk(memory, registers, 0n, write), replace), /does not let EL2 write/);
  assert.equal(walk(memory, { ...registers, tcr: registers.tcr | (1n << 24n) }, 0n, write), 0x4000_0000n);
});

test('what the registers of tables may not say', () => {
  const second = (vtcr: bigint) => () => arm64Regime({ regime: 'el1', vttbr: 0x8000n, vtcr });
  assert.throws(second(16n | (5n << 16n)), /48 bits of input address \(T0SZ\) cannot begin at level 2 \(SL0\)/);
  assert.throws(
    second(48n | (1n << 6n) | (5n << 16n)),
    /16 bits of input address \(T0SZ\) cannot begin at level 1 \(SL0\)/,
  );
  assert.throws(second(24n | (3n << 14n)), /TG0 3 is reserved/);
  assert.throws(() => arm64Regime({ regime: 'el1', vttbr: 0x8000n }), /stage 2 needs both VTTBR_EL2 and VTCR_EL2/);
  // Bits 5:2 are address bits where addresses have 52, and nothing elsewhere.
  const { stages } = arm64Regime({ regime: 'el1', ttbr0: 0x103cn, tcr: 25n | (5n << 32n) });
  assert.deepEqual([stages[0]!.tree.root, stages[0]!.tree.rootEntry], [1, 0]);
  const large = () => arm64Regime({ regime: 'el1', ttbr0: 0x1800n, tcr: 25n | (5n << 32n) });
  assert.throws(large, /TTBR0_EL1 0x1800: the table at 0x1800 is not aligned to its 4096 bytes/);
});
