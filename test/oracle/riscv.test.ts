import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { RegimeWalk } from '../../engine/guest/regime.ts';
import { riscvRegime } from '../../engine/guest/riscv.ts';
import { type RiscvOutcome, translateRiscv } from './naive-riscv.ts';
import { Bits, functionMemory, hash } from './random-memory.ts';

// RISC-V translation, with and without a G-stage, against one written from the specification alone by another hand.

const RUNS = Number(process.env.FUZZ_RUNS ?? 5_000);

function entry(seed: number, address: bigint): bigint {
  const bits = new Bits(hash(seed, Number(address & 0xffffffffn), Number(address >> 32n)));
  if (bits.once(24)) return BigInt(bits.below(64) << 1);
  let value = 1n;
  const leaf = bits.once(3);
  if (leaf) {
    value |= BigInt(1 + bits.below(7)) << 1n;
    if (!bits.once(3)) value |= 0xen;
    if (!bits.once(3)) value |= 0x10n;
    if (!bits.once(6)) value |= 0x40n;
    if (!bits.once(4)) value |= 0x80n;
  } else if (bits.once(20)) value |= 1n << BigInt(4 + bits.below(4));
  value |= BigInt(bits.below(1024)) << 28n;
  // Pointers may lead anywhere; large pages must be aligned, and sometimes are not.
  if (!leaf || bits.once(8)) value |= BigInt(bits.below(1 << 12)) << 10n;
  if (bits.once(24)) value |= 1n << BigInt(54 + bits.below(10));
  if (bits.once(16)) value |= 1n << BigInt(40 + bits.below(14));
  return value;
}

const addressOf = fc
  .tuple(
    fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    fc.integer({ min: 0, max: 9 }),
  )
  .map(([low, high, shape]) => {
    const value = (BigInt(high) << 26n) ^ BigInt(low);
    if (shape === 0) return BigInt.asUintN(64, value << 7n);
    const narrow = value & ((1n << (shape < 6 ? 38n : shape < 8 ? 47n : 56n)) - 1n);
    return shape % 2 === 0 ? narrow : BigInt.asUintN(64, ~narrow);
  });

function outcomeOf({ end, gpa, hpa, code, references }: RegimeWalk): RiscvOutcome {
  if (end === 'done') return { kind: 'ok', gpa: gpa!, pa: hpa! };
  if (end === 'untranslatable') return { kind: 'not-canonical' };
  const parts = /^(?:load|store|instruction) (page fault|guest-page fault) \(cause (\d+)\)$/.exec(code!);
  assert.ok(parts, `${code} is no fault that the specification has`);
  const last = references.at(-1);
  return {
    kind: 'fault',
    what: parts[1] as 'page fault',
    level: last ? last.format.number(last.level) : -1,
    cause: Number(parts[2]),
  };
}

test('RISC-V translation agrees with one written from the specification alone', () => {
  const seen = new Map<string, number>();
  fc.assert(
    fc.property(
      fc.record({
        mode: fc.constantFrom(8n, 9n, 10n),
        gMode: fc.constantFrom(0n, 8n, 9n, 10n),
        sum: fc.boolean(),
        mxr: fc.boolean(),
        svadu: fc.boolean(),
      }),
      addressOf,
      fc.constantFrom('read' as const, 'write' as const, 'fetch' as const),
      fc.boolean(),
      fc.integer(),
      ({ mode, gMode, sum, mxr, svadu }, address, kind, user, seed) => {
        const { engine, oracle } = functionMemory((at) => entry(seed, at));
        const satp = (mode << 60n) | 0x100n;
        const hgatp = gMode === 0n ? undefined : (gMode << 60n) | 0x200n;
        const registers = { satp, sum, mxr, svadu, ...(hgatp === undefined ? {} : { hgatp }) };
        const walk = riscvRegime(registers).walk({ page: (frame) => engine.page(frame) }, address, { kind, user });
        const expected = translateRiscv(oracle, { satp, hgatp, sum, mxr, svadu }, address, { kind, user });
        const got = outcomeOf(walk);
        // An address beyond the G-stage's input size reads no entry of it: the reason says so, no reference does.
        if (/is beyond the \d+ bits/.test(walk.reason) && got.kind === 'fault' && expected.kind === 'fault') {
          assert.deepEqual({ ...got, level: expected.level }, expected, walk.reason);
          assert.equal(expected.level, { 8: 2, 9: 3, 10: 4 }[Number(gMode)]);
        } else assert.deepEqual(got, expected, walk.reason);
        const what = expected.kind === 'fault' ? expected.what : expected.kind;
        seen.set(what, (seen.get(what) ?? 0) + 1);
      },
    ),
    { numRuns: RUNS },
  );
  for (const what of ['ok', 'not-canonical', 'page fault', 'guest-page fault'])
    assert.ok(
      (seen.get(what) ?? 0) >= RUNS / 100,
      `${what} came ${seen.get(what) ?? 0} times: ${JSON.stringify([...seen])}`,
    );
});
