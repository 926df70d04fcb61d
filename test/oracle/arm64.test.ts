import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type Arm64Registers, arm64Regime } from '../../engine/guest/arm64.ts';
import type { RegimeWalk } from '../../engine/guest/regime.ts';
import { type ArmOutcome, translateArm64 } from './naive-arm64.ts';
import { Bits, functionMemory, hash } from './random-memory.ts';

// arm64 translation, one stage and two, against a straight-line translation written from the manual alone by another hand.
// Every physical address holds a descriptor that is a function of a seed and of itself.

const RUNS = Number(process.env.FUZZ_RUNS ?? 5_000);

function descriptor(seed: number, address: bigint): bigint {
  const bits = new Bits(hash(seed, Number(address & 0xffffffffn), Number(address >> 32n)));
  if (bits.once(24)) return BigInt(bits.below(2) * 2);
  let value = bits.once(5) ? 1n : 3n;
  // Addresses are aligned to 64K mostly; few lie beyond small output sizes.
  value |= BigInt(bits.below(1 << 12)) << 18n;
  if (bits.once(6)) value |= BigInt(bits.below(16)) << 14n;
  if (bits.once(10)) value |= 1n << BigInt(30 + bits.below(22));
  if (bits.once(12)) value |= BigInt(bits.below(4)) << 8n;
  if (bits.once(12)) value |= BigInt(bits.below(4)) << 12n;
  if (!bits.once(12)) value |= 1n << 10n;
  value |= BigInt(bits.below(4)) << 6n;
  if (bits.once(2)) value |= 0xc0n;
  value |= BigInt(bits.below(16)) << 2n;
  if (bits.once(4)) value |= 1n << 51n;
  if (bits.once(3)) value |= BigInt(bits.below(4)) << 53n;
  if (bits.once(8)) value |= BigInt(bits.below(32)) << 59n;
  return value;
}

const GRANULES = [12, 14, 16] as const;
const TG0 = { 12: 0n, 14: 2n, 16: 1n } as const;
const TG1 = { 12: 2n, 14: 1n, 16: 3n } as const;

const registersOf = fc
  .record({
    /** Small tables at the top need not begin with a page. */
    ttbr0: fc.constantFrom(0x10_0000n, 0x10_0040n, 0x10_0fc0n),
    granule0: fc.constantFrom(...GRANULES),
    granule1: fc.constantFrom(...GRANULES),
    t0sz: fc.constantFrom(12, 16, 17, 20, 25, 28, 32, 34, 39, 47),
    t1sz: fc.constantFrom(12, 16, 17, 25, 28, 39),
    ips: fc.integer({ min: 0, max: 6 }),
    ds: fc.boolean(),
    flags: fc.record({ ha: fc.boolean(), hd: fc.boolean(), hpd0: fc.boolean(), hpd1: fc.boolean() }),
    wxn: fc.boolean(),
    pan: fc.boolean(),
    second: fc.boolean(),
    vGranule: fc.constantFrom(...GRANULES),
    ipaBits: fc.constantFrom(32, 36, 40, 42, 44, 48, 52),
    levels: fc.integer({ min: 1, max: 5 }),
    vps: fc.integer({ min: 1, max: 6 }),
    vds: fc.boolean(),
    vflags: fc.record({ ha: fc.boolean(), hd: fc.boolean() }),
  })
  .map((c): Arm64Registers | undefined => {
    const least = (granule: number): number => (granule === 16 || c.ds ? 12 : 16);
    const t0sz = Math.max(c.t0sz, least(c.granule0));
    const t1sz = Math.max(c.t1sz, least(c.granule1));
    const bit = (on: boolean, at: number): bigint => (on ? 1n << BigInt(at) : 0n);
    const { ha, hd, hpd0, hpd1 } = c.flags;
    const tcr =
      BigInt(t0sz) |
      (TG0[c.granule0] << 14n) |
      (BigInt(t1sz) << 16n) |
      (TG1[c.granule1] << 30n) |
      (BigInt(c.ips) << 32n) |
      bit(ha, 39) |
      bit(hd, 40) |
      bit(hpd0, 41) |
      bit(hpd1, 42) |
      bit(c.ds, 59);
    const base = {
      regime: 'el1',
      ttbr0: c.ttbr0,
      ttbr1: 0x20_0000n,
      tcr,
      sctlr: bit(c.wxn, 19),
      pan: c.pan,
    } as const;
    if (!c.second) return base;
    // Only shapes that VTCR can say: a start level that leaves the first table 2 … 16 times as large at most.
    const wide = c.vds && c.vGranule < 16;
    const perLevel = c.vGranule - 3;
    const top = c.ipaBits - c.vGranule - perLevel * (c.levels - 1);
    if (top < 1 || top > perLevel + 4) return undefined;
    const start = 4 - c.levels;
    const sl0 = c.vGranule === 12 ? [2, 1, 0, 3].indexOf(start) : 3 - start;
    if (start === -1 && !(c.vGranule === 12 && wide)) return undefined;
    if (start !== -1 && (sl0 < 0 || sl0 > 3)) return undefined;
    if (sl0 === 3 && (c.vGranule === 16 || (c.vGranule === 14 && !wide))) return undefined;
    if (c.ipaBits > 48 && !(wide || c.vGranule === 16)) return undefined;
    const vtcr =
      BigInt(64 - c.ipaBits) |
      (BigInt(start === -1 ? 0 : sl0) << 6n) |
      (TG0[c.vGranule] << 14n) |
      (BigInt(c.vps) << 16n) |
      bit(c.vflags.ha, 21) |
      bit(c.vflags.hd, 22) |
      bit(wide, 32) |
      bit(start === -1, 33);
    return { ...base, vttbr: 0x80_0000n, vtcr };
  });

const addressOf = fc
  .tuple(
    fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    fc.integer({ min: 0, max: 12 }),
  )
  .map(([low, high, shape]) => {
    const value = (BigInt(high) << 24n) ^ BigInt(low);
    if (shape === 0) return value << 9n;
    // Small enough for the narrow ranges; half of them at the top of the space.
    const narrow = value & ((1n << BigInt(17 + shape * 2)) - 1n);
    return shape % 2 === 0 ? narrow : BigInt.asUintN(64, ~narrow);
  });

/** The regime; a case with a large root table that is not aligned is none. */
function regimeOf(registers: Arm64Registers): ReturnType<typeof arm64Regime> {
  try {
    return arm64Regime(registers);
  } catch (error) {
    assert.match((error as Error).message, /is not aligned to its \d+ bytes$/);
    fc.pre(false);
    throw error;
  }
}

/** The engine's words as the oracle's facts. */
function outcomeOf({ end, gpa, hpa, code }: RegimeWalk): ArmOutcome {
  if (end === 'done') return { kind: 'ok', ipa: gpa!, pa: hpa! };
  if (end === 'untranslatable') return { kind: 'no-range' };
  const parts =
    /^(stage-2 )?(address size|translation|access flag|permission) fault, level (-?\d) \(status 0x[0-9a-f]{2}\)(, on a stage-1 table walk)?$/.exec(
      code!,
    );
  assert.ok(parts, `${code} is no fault that the manual has`);
  return {
    kind: 'fault',
    stage: parts[1] ? 2 : 1,
    what: parts[2] as 'permission',
    level: Number(parts[3]),
    onTableWalk: parts[4] !== undefined,
  };
}

test('arm64 translation agrees with one written from the manual alone', () => {
  const seen = new Map<string, number>();
  fc.assert(
    fc.property(
      registersOf,
      addressOf,
      fc.constantFrom('read' as const, 'write' as const, 'fetch' as const),
      fc.boolean(),
      fc.integer(),
      (registers, address, kind, el0, seed) => {
        fc.pre(registers !== undefined);
        const { engine, oracle } = functionMemory((at) => descriptor(seed, at));
        const walk = regimeOf(registers!).walk({ page: (frame) => engine.page(frame) }, address, {
          kind,
          user: el0,
        });
        const { ttbr0, ttbr1, tcr, sctlr, pan, vttbr, vtcr } = registers!;
        const expected = translateArm64(
          oracle,
          { ttbr0: ttbr0!, ttbr1: ttbr1!, tcr: tcr!, sctlr: sctlr!, pan: pan!, vttbr, vtcr },
          address,
          { kind, el0 },
        );
        const got = outcomeOf(walk);
        assert.deepEqual(got, expected, walk.reason);
        const what =
          expected.kind === 'fault' ? `${expected.what} ${expected.stage}${expected.onTableWalk}` : expected.kind;
        seen.set(what, (seen.get(what) ?? 0) + 1);
      },
    ),
    { numRuns: RUNS },
  );
  // Random cases that never get anywhere would prove nothing.
  for (const what of [
    'ok',
    'no-range',
    'permission 1false',
    'permission 2false',
    'permission 2true',
    'translation 1false',
    'translation 2true',
    'translation 2false',
    'access flag 1false',
    'access flag 2true',
    'address size 1false',
    'address size 2true',
  ])
    assert.ok(
      (seen.get(what) ?? 0) >= RUNS / 5000,
      `${what} came ${seen.get(what) ?? 0} times: ${JSON.stringify([...seen])}`,
    );
});
