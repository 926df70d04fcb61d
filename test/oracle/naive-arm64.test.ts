import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ArmAccess, type ArmRegisters, type Memory, translateArm64 } from './naive-arm64.ts';

// Translations worked out by hand, to see that the oracle itself says what the manual says.

/** Memory of single descriptors, keyed by their address; everything else is 0. */
function memoryOf(entries: readonly (readonly [address: bigint, value: bigint])[]): Memory {
  const values = new Map(entries);
  return { read: (address) => values.get(address) ?? 0n };
}

const AF = 1n << 10n;
const EL0 = 1n << 6n;
const READ_ONLY = 1n << 7n;
const DBM = 1n << 51n;
const PXN = 1n << 53n;
const UXN = 1n << 54n;
const TABLE = 3n;
const PAGE = 3n;
const BLOCK = 1n;

// TCR_EL1.
const HA = 1n << 39n;
const HD = 1n << 40n;
const HPD0 = 1n << 41n;
const DS = 1n << 59n;
const ips = (value: bigint) => value << 32n;
const tg0 = (value: bigint) => value << 14n;
const tg1 = (value: bigint) => value << 30n;

const el1 = (kind: ArmAccess['kind']): ArmAccess => ({ kind, el0: false });
const el0 = (kind: ArmAccess['kind']): ArmAccess => ({ kind, el0: true });
const stage1 = (what: string, level: number) => ({ kind: 'fault', stage: 1, what, level, onTableWalk: false });
const stage2 = (what: string, level: number, onTableWalk = false) => ({
  kind: 'fault',
  stage: 2,
  what,
  level,
  onTableWalk,
});

function registers(some: Partial<ArmRegisters>): ArmRegisters {
  return {
    ttbr0: 0x1000n,
    ttbr1: 0x1000n,
    tcr: 25n | (25n << 16n) | tg1(2n) | ips(5n),
    sctlr: 0n,
    pan: false,
    ...some,
  };
}

test('4 KB, 39 bits: start at level 1, pages and blocks of both ranges', () => {
  // 0x40201008: indices 1, 1, 1. In the upper range 0xffffffff_c0000000 has index 511 at level 1.
  const memory = memoryOf([
    [0x1008n, 0x2000n | TABLE],
    [0x2008n, 0x3000n | TABLE],
    [0x3008n, 0xabc000n | AF | PAGE],
    [0x3010n, 0xabc000n | PAGE],
    [0x3018n, 0xabc000n | AF | BLOCK],
    [0x3020n, (1n << 47n) | AF | PAGE],
    [0x1ff8n, 0x1_c000_0000n | AF | BLOCK],
  ]);
  const regs = registers({});
  assert.deepEqual(translateArm64(memory, regs, 0x40201008n, el1('write')), {
    kind: 'ok',
    ipa: 0xabc008n,
    pa: 0xabc008n,
  });
  assert.deepEqual(translateArm64(memory, regs, 0xffff_ffff_c234_5678n, el1('read')), {
    kind: 'ok',
    ipa: 0x1_c234_5678n,
    pa: 0x1_c234_5678n,
  });
  assert.deepEqual(translateArm64(memory, regs, 0x40201008n, el0('read')), stage1('permission', 3));
  assert.deepEqual(translateArm64(memory, regs, 0x40202000n, el1('read')), stage1('access flag', 3));
  const accessFlagByHardware = registers({ tcr: regs.tcr | HA });
  assert.equal(translateArm64(memory, accessFlagByHardware, 0x40202000n, el1('read')).kind, 'ok');
  assert.deepEqual(translateArm64(memory, regs, 0x40203000n, el1('read')), stage1('translation', 3));
  const small = registers({ tcr: (regs.tcr & ~ips(7n)) | ips(4n) });
  assert.deepEqual(translateArm64(memory, small, 0x40204000n, el1('read')), stage1('address size', 3));
  assert.deepEqual(translateArm64(memory, regs, 0n, el1('read')), stage1('translation', 1));
  assert.deepEqual(translateArm64(memory, regs, 1n << 39n, el1('read')), { kind: 'no-range' });
  assert.deepEqual(translateArm64(memory, registers({ tcr: regs.tcr | (1n << 7n) }), 0x40201008n, el1('read')), {
    kind: 'no-range',
  });
});

test('stage 1 permissions: hierarchy, PAN, WXN, DBM', () => {
  const leaf = 0xabc000n | AF | PAGE;
  const memory = memoryOf([
    [0x1000n, 0x2000n | TABLE],
    [0x2000n, 0x3000n | TABLE],
    // A table that keeps EL0 out and takes the writes.
    [0x2008n, 0x3000n | TABLE | (3n << 61n)],
    [0x3000n, leaf | EL0],
    [0x3008n, leaf | READ_ONLY | DBM],
    [0x3010n, leaf | UXN],
    [0x3018n, leaf | EL0 | READ_ONLY | PXN],
  ]);
  const regs = registers({});
  const verdict = (some: Partial<ArmRegisters>, address: bigint, access: ArmAccess) =>
    translateArm64(memory, registers(some), address, access).kind === 'ok';
  // What EL0 writes EL1 does not execute.
  assert.equal(verdict({}, 0n, el0('write')), true);
  assert.equal(verdict({}, 0n, el0('fetch')), true);
  assert.equal(verdict({}, 0n, el1('fetch')), false);
  assert.equal(verdict({ sctlr: 1n << 19n }, 0n, el0('fetch')), false);
  // PAN; under the limiting table EL0 has no access, so PAN has nothing to keep EL1 from.
  assert.equal(verdict({ pan: true }, 0n, el1('read')), false);
  assert.equal(verdict({ pan: true }, 0x200000n, el1('read')), true);
  assert.equal(verdict({}, 0x200000n, el1('write')), false);
  assert.equal(verdict({}, 0x200000n, el1('fetch')), true);
  assert.equal(verdict({ tcr: regs.tcr | HPD0 }, 0x200000n, el0('write')), true);
  // DBM needs HA and HD.
  assert.equal(verdict({}, 0x1000n, el1('write')), false);
  assert.equal(verdict({ tcr: regs.tcr | HD }, 0x1000n, el1('write')), false);
  assert.equal(verdict({ tcr: regs.tcr | HA | HD }, 0x1000n, el1('write')), true);
  assert.equal(verdict({ tcr: regs.tcr | HA | HD, sctlr: 1n << 19n }, 0x1000n, el1('fetch')), false);
  assert.equal(verdict({}, 0x2000n, el0('fetch')), false);
  assert.equal(verdict({ sctlr: 1n << 19n }, 0x2000n, el1('fetch')), false);
  assert.equal(verdict({}, 0x3000n, el1('fetch')), false);
  assert.equal(verdict({}, 0x3000n, el0('fetch')), true);
});

test('52-bit addresses: LPA2 with 4 KB and 16 KB, 64 KB with 52-bit output', () => {
  // 4 KB, T0SZ 12: level -1 is indexed by 51:48, level 0 by 47:39. TTBR bits 5:2 = 0b1001 are bits 51:48.
  const lpa2 = memoryOf([
    [0x9_0000_0000_1010n, 0x2000n | (1n << 48n) | (2n << 8n) | TABLE],
    // A 512-GByte block at level 0.
    [0x9_0000_0000_2008n, (1n << 47n) | (1n << 49n) | (1n << 8n) | AF | BLOCK],
  ]);
  assert.deepEqual(
    translateArm64(
      lpa2,
      registers({ ttbr0: 0x1000n | (9n << 2n), tcr: 12n | DS | ips(6n) }),
      (2n << 48n) | (1n << 39n) | 0x12_3456_789an,
      el1('read'),
    ),
    { kind: 'ok', ipa: 0x6_8012_3456_789an, pa: 0x6_8012_3456_789an },
  );
  // 16 KB: T0SZ 16 starts at level 0 with one index bit (16 bytes of table, aligned to 64); blocks at level 1: 64 GB.
  const granule16 = memoryOf([
    [0x4048n, 0x8000n | TABLE],
    [0x8008n, (1n << 36n) | AF | BLOCK],
  ]);
  const tcr16 = 16n | tg0(2n) | ips(5n);
  const address16 = (1n << 47n) | (1n << 36n) | 0x1_2345n;
  assert.deepEqual(translateArm64(granule16, registers({ ttbr0: 0x4040n, tcr: tcr16 | DS }), address16, el1('read')), {
    kind: 'ok',
    ipa: (1n << 36n) | 0x1_2345n,
    pa: (1n << 36n) | 0x1_2345n,
  });
  assert.deepEqual(
    translateArm64(granule16, registers({ ttbr0: 0x4060n, tcr: tcr16 }), address16, el1('read')),
    stage1('translation', 1),
  );
  // 64 KB, T0SZ 12: level 1 is indexed by 51:42, a 4-TByte block.
  const granule64 = memoryOf([[0x10008n, (1n << 43n) | (5n << 12n) | AF | BLOCK]]);
  const tcr64 = 12n | tg0(1n);
  const address64 = (1n << 42n) | 0xfedcban;
  assert.deepEqual(
    translateArm64(granule64, registers({ ttbr0: 0x10000n, tcr: tcr64 | ips(6n) }), address64, el1('read')),
    { kind: 'ok', ipa: 0x5_0800_00fe_dcban, pa: 0x5_0800_00fe_dcban },
  );
  assert.deepEqual(
    translateArm64(granule64, registers({ ttbr0: 0x10000n, tcr: tcr64 | ips(5n) }), address64, el1('read')),
    stage1('translation', 1),
  );
});

test('stage 2: concatenated tables, table walks, XN, start levels', () => {
  // Stage 2: 4 KB, T0SZ 31 (33 bits), SL0 0: start at level 2 with eight concatenated tables at 0x10000.
  const s2 = (pa: bigint, attributes: bigint) => pa | attributes | AF | BLOCK;
  const readWrite = 3n << 6n;
  const read = 1n << 6n;
  const write = 2n << 6n;
  const vtcr = 31n | (2n << 16n);
  const vttbr = 0x1_0000n | (7n << 48n);
  const memory = memoryOf([
    // IPA 0 … 2 MB are readable: the stage-1 tables at IPA 0x1000 are at 0x40001000.
    [0x10000n, s2(0x4000_0000n, read)],
    // IPA 0x1_4020_0000 is in the sixth table, its entry 1.
    [0x15008n, s2(0x8000_0000n, readWrite | (1n << 53n))],
    // IPA 0x20_0000: only writes.
    [0x10008n, s2(0x4000_0000n, write)],
    [0x4000_1000n, 0x1_4000_0000n | AF | EL0 | READ_ONLY | BLOCK],
    [0x4000_1008n, 0x2_0000_0000n | AF | BLOCK],
    [0x4000_1010n, 0x20_0000n | TABLE],
    [0x4000_1018n, 0x2_0000_0000n | TABLE],
  ]);
  const regs = registers({ vttbr, vtcr });
  assert.deepEqual(translateArm64(memory, regs, 0x20_0123n, el0('fetch')), {
    kind: 'ok',
    ipa: 0x1_4020_0123n,
    pa: 0x8000_0123n,
  });
  assert.deepEqual(translateArm64(memory, regs, 0x20_0123n, el1('fetch')), stage2('permission', 2));
  assert.deepEqual(translateArm64(memory, regs, 0x40_0123n, el0('read')), stage2('translation', 2));
  assert.deepEqual(translateArm64(memory, regs, 0x4000_0000n, el1('read')), stage2('translation', 0));
  assert.deepEqual(translateArm64(memory, regs, 0x8000_0000n, el1('write')), stage2('permission', 2, true));
  assert.deepEqual(translateArm64(memory, regs, 0xc000_0000n, el1('read')), stage2('translation', 0, true));
  // T0SZ 29 would need 32 concatenated tables.
  assert.deepEqual(
    translateArm64(memory, registers({ vttbr, vtcr: 29n | (2n << 16n) }), 0n, el1('read')),
    stage2('translation', 0, true),
  );
  // SL2 = 1 with DS = 1: start at level -1, whose first entry is empty.
  assert.deepEqual(
    translateArm64(
      memoryOf([]),
      registers({ vttbr: 0n, vtcr: 12n | (6n << 16n) | (1n << 32n) | (1n << 33n) }),
      0n,
      el1('read'),
    ),
    stage2('translation', -1, true),
  );
});
