import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Feature } from '../../engine/formats/format.ts';
import { accessBits, untranslatable } from '../../engine/guest/access.ts';
import { LONG_MODE, pagingMode } from '../../engine/guest/registers.ts';
import { finishWalk, startWalk } from '../../engine/guest/walk.ts';
import { addressToFrame, frameToAddress, pageOffset } from '../../engine/memory/words.ts';
import { describeWalkFault } from '../../engine/tdp/explain-fault.ts';
import { translateX86, type X86Outcome } from './naive-x86-modes.ts';
import { Bits, functionMemory, hash } from './random-memory.ts';

// Every mode of x86 paging, 32-bit to 5-level, against a translation written from the manuals alone by another hand: outcome,
// error code, level, and which accessed and dirty bits are to be set.

const RUNS = Number(process.env.FUZZ_RUNS ?? 5_000);
type Mode = '32-bit' | 'pae' | '4-level' | '5-level';

/** An entry of 8 bytes, or two of 4 where tables have such. */
function entries(seed: number, mode: Mode, address: bigint): bigint {
  const bits = new Bits(hash(seed, Number(address & 0xffffffffn), Number(address >> 32n)));
  const one = (): bigint => {
    if (bits.once(24)) return BigInt(bits.below(128) << 1);
    let value = 1n;
    if (!bits.once(8)) value |= 2n;
    if (!bits.once(6)) value |= 4n;
    value |= BigInt(bits.below(4)) << 5n;
    const large = bits.once(4);
    if (large) value |= 0x80n;
    value |= BigInt(large ? bits.below(4) : bits.below(1 << 10)) << (large ? 30n : 12n);
    if (bits.once(20)) value |= 1n << BigInt(8 + bits.below(24));
    if (mode === '32-bit') {
      if (large && bits.once(3)) value |= BigInt(bits.below(16)) << 13n;
      return value & 0xffffffffn;
    }
    if (bits.once(4)) value |= 1n << 63n;
    if (bits.once(30)) value |= 1n << BigInt(32 + bits.below(31));
    if (mode !== 'pae') value |= BigInt(bits.below(16)) << 59n;
    return value;
  };
  if (mode === '32-bit') return one() | (one() << 32n);
  // PDPTEs were judged when CR3 was loaded: none leads beyond the smallest MAXPHYADDR.
  return mode === 'pae' && address >> 12n === 0x100n ? one() & 0xffffffffn : one();
}

const addressOf = fc
  .tuple(
    fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    fc.integer({ min: 0, max: 9 }),
  )
  .map(([low, high, shape]) => {
    const value = (BigInt(high) << 26n) ^ BigInt(low);
    if (shape < 4) return value & 0xffffffffn;
    if (shape === 4) return BigInt.asUintN(64, value << 7n);
    const narrow = value & ((1n << (shape < 8 ? 46n : 55n)) - 1n);
    return shape % 2 === 0 ? narrow : BigInt.asUintN(64, ~narrow);
  });

const registersOf = fc
  .record({
    mode: fc.constantFrom<Mode>('32-bit', 'pae', '4-level', '5-level'),
    wp: fc.boolean(),
    nxe: fc.boolean(),
    smep: fc.boolean(),
    smap: fc.boolean(),
    pke: fc.boolean(),
    pse: fc.boolean(),
    ac: fc.boolean(),
    pkru: fc.bigInt(0n, 0xffffffffn),
    cr3: fc.constantFrom(0x10_0000n, 0x10_0020n, 0x10_0fe0n),
  })
  .map(({ mode, wp, nxe, smep, smap, pke, pse, ac, pkru, cr3 }) => {
    const bit = (on: boolean, at: number): bigint => (on ? 1n << BigInt(at) : 0n);
    const long = mode === '4-level' || mode === '5-level';
    const registers = {
      ...LONG_MODE,
      cr0: wp ? 0x8005_0033n : 0x8004_0033n,
      cr3,
      cr4:
        bit(pse, 4) |
        bit(mode !== '32-bit', 5) |
        bit(mode === '5-level', 12) |
        bit(smep, 20) |
        bit(smap, 21) |
        bit(pke, 22),
      efer: bit(long, 8) | bit(long, 10) | bit(nxe, 11),
      rflags: 2n | bit(ac, 18),
      pkru,
    };
    return { mode, registers };
  });

test('every mode of x86 paging agrees with a translation written from the manuals alone', () => {
  const seen = new Map<string, number>();
  fc.assert(
    fc.property(
      registersOf,
      addressOf,
      fc.record({
        kind: fc.constantFrom('read' as const, 'write' as const, 'fetch' as const),
        user: fc.boolean(),
        implicit: fc.integer({ min: 0, max: 7 }).map((odd) => odd === 0),
      }),
      fc.constantFrom(32, 34, 36, 40, 46, 52),
      fc.boolean(),
      fc.boolean(),
      fc.integer(),
      ({ mode, registers }, address, access, maxPhyAddr, oneGigPages, amd, seed) => {
        const { engine, oracle } = functionMemory((at) => entries(seed, mode, at));
        const features = new Set<Feature>([
          ...(oneGigPages ? (['1g-pages'] as const) : []),
          ...(amd ? (['amd'] as const) : []),
        ]);
        const expected = translateX86(oracle, registers, { maxPhyAddr, oneGigPages, amd }, address, access);
        const paging = pagingMode(registers, { maxPhyAddr, features });
        const got = engineOutcome(paging, engine, address, access);
        assert.deepEqual(got, expected, `${mode} ${address.toString(16)}`);
        const what = `${mode} ${expected.kind}`;
        seen.set(what, (seen.get(what) ?? 0) + 1);
      },
    ),
    { numRuns: RUNS },
  );
  for (const mode of ['32-bit', 'pae', '4-level', '5-level'])
    for (const kind of ['ok', 'page-fault', mode.endsWith('level') ? 'not-canonical' : 'out-of-range'])
      assert.ok((seen.get(`${mode} ${kind}`) ?? 0) >= RUNS / 200, `${mode} ${kind}: ${JSON.stringify([...seen])}`);
});

function engineOutcome(
  mode: ReturnType<typeof pagingMode>,
  memory: ReturnType<typeof functionMemory>['engine'],
  address: bigint,
  { kind, user, implicit }: { kind: 'read' | 'write' | 'fetch'; user: boolean; implicit: boolean },
): X86Outcome {
  if (untranslatable(mode, address) !== undefined)
    return { kind: mode.addressBits > 32 ? 'not-canonical' : 'out-of-range' };
  const access = { kind, address, size: 1, value: 0n, cpl: user ? 3 : 0, implicit };
  const setAccessed: bigint[] = [];
  const setDirty: bigint[] = [];
  const walk = startWalk(mode, undefined, addressToFrame(address), { bits: accessBits(access), implicit });
  finishWalk(walk, mode, undefined, {
    page: (pfn) => memory.page(pfn),
    setBits(pfn, index, lo, hi) {
      const page = memory.writable(pfn);
      const before = [page[2 * index]!, page[2 * index + 1]!] as const;
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
      // In tables of 4-byte entries the pair holds two of them.
      [lo ^ before[0], mode.format.entryBytes === 4 ? hi ^ before[1] : 0].forEach((changed, half) => {
        if (changed & 0x20) setAccessed.push(frameToAddress(pfn, index * 8 + half * 4));
        if (changed & 0x40) setDirty.push(frameToAddress(pfn, index * 8 + half * 4));
      });
    },
    resolve: Number,
    mayUpdate: () => true,
  });
  if (walk.status === 'done')
    return {
      kind: 'ok',
      physical: frameToAddress(walk.pfn, pageOffset(address)),
      pageSize: mode.format.span[walk.leafLevel]! * 4096,
      setAccessed,
      setDirty,
    };
  const fault = describeWalkFault(0, walk, mode, undefined, access);
  return { kind: 'page-fault', errorCode: fault.errorCode, level: fault.level };
}
