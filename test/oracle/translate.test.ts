import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Format } from '../../engine/formats/compile.ts';
import { EPT } from '../../engine/formats/ept.ts';
import type { Feature } from '../../engine/formats/format.ts';
import { NPT } from '../../engine/formats/npt.ts';
import { accessBits, untranslatable } from '../../engine/guest/access.ts';
import { LONG_MODE, pagingMode, type Registers } from '../../engine/guest/registers.ts';
import { finishWalk, type Reference, type SecondStage, startWalk, type WalkMemory } from '../../engine/guest/walk.ts';
import { PhysicalMemory } from '../../engine/memory/physical.ts';
import { addressToFrame, frameToAddress, pageOffset, toBigint } from '../../engine/memory/words.ts';
import { describeWalkFault } from '../../engine/tdp/explain-fault.ts';
import { type NaiveOutcome, naiveTranslate } from './naive.ts';

// The engine's two-dimensional walk against a straight-line translation written from the manuals alone. Tables are random but
// few, so that walks go deep: an entry points to one of a handful of frames, and most of its bits are sensible.

const RUNS = Number(process.env.FUZZ_RUNS ?? 5_000);
const GUEST_TABLES = 6;
const SECOND_TABLES = 8;
/** Host frames 1 … 6 hold guest tables and data, 16 … 23 second-stage tables. */
const SECOND_BASE = 16;

interface Case {
  readonly second: 'ept' | 'npt' | 'none';
  readonly guestEntries: readonly (readonly [frame: number, index: number, entry: bigint])[];
  readonly secondEntries: readonly (readonly [frame: number, index: number, entry: bigint])[];
  readonly registers: Registers;
  readonly gva: bigint;
  readonly access: { readonly kind: 'read' | 'write' | 'fetch'; readonly cpl: 0 | 3; readonly implicit: boolean };
  readonly maxPhyAddr: number;
  readonly features: readonly Feature[];
}

const INDICES = [0, 1, 2, 511];
const weighted = (often: number, seldom: fc.Arbitrary<bigint>, common: fc.Arbitrary<bigint>) =>
  fc.oneof({ weight: often, arbitrary: common }, { weight: 1, arbitrary: seldom });
const bit = (number: number) => fc.constantFrom(0n, 1n << BigInt(number));
const stray = fc.integer({ min: 0, max: 63 }).map((number) => 1n << BigInt(number));

/** A guest or NPT entry: present, mostly writable and user, sometimes large, sometimes with a stray bit. */
const x86Entry = (frames: number, base: number) =>
  fc
    .tuple(
      weighted(30, fc.constant(0n), fc.constant(1n)),
      weighted(12, fc.constant(0n), fc.constant(2n)),
      weighted(9, fc.constant(0n), fc.constant(4n)),
      weighted(4, fc.constant(0x80n), fc.constant(0n)),
      bit(5),
      bit(6),
      bit(63),
      fc.bigInt(0n, 15n).map((key) => key << 59n),
      fc.integer({ min: 0, max: frames - 1 }),
      weighted(30, stray, fc.constant(0n)),
    )
    .map(([p, w, u, ps, a, d, nx, pk, frame, odd]) => {
      const address = ps ? BigInt(frame % 2) << 30n : BigInt(base + frame) << 12n;
      return (p | w | u | ps | a | d | (nx && frame % 3 === 0 ? nx : 0n) | pk | address) ^ odd;
    });

const eptEntry = fc
  .tuple(
    weighted(20, fc.bigInt(0n, 7n), fc.constant(7n)),
    weighted(4, fc.constant(0x80n), fc.constant(0n)),
    weighted(6, fc.bigInt(0n, 7n), fc.constantFrom(0n, 6n)),
    bit(8),
    bit(9),
    fc.integer({ min: 0, max: SECOND_TABLES - 1 }),
    weighted(30, stray, fc.constant(0n)),
  )
  .map(
    ([rwx, ps, type, a, d, frame, odd]) =>
      (rwx |
        ps |
        (ps ? type << 3n : 0n) |
        a |
        d |
        (ps ? BigInt(frame % 2) << 30n : BigInt(SECOND_BASE + frame) << 12n)) ^
      odd,
  );

const entries = (frames: number, base: number, entry: fc.Arbitrary<bigint>) =>
  fc
    .tuple(
      ...Array.from({ length: frames }, (_, frame) =>
        fc.tuple(...INDICES.map((index) => entry.map((value) => [base + frame, index, value] as const))),
      ),
    )
    .map((tables) => tables.flat());

const registersOf = fc
  .record({
    wp: fc.boolean(),
    nxe: fc.boolean(),
    smep: fc.boolean(),
    smap: fc.boolean(),
    ac: fc.boolean(),
    pke: fc.boolean(),
    pkru: fc.bigInt(0n, 0xffffffffn),
    paging: fc.integer({ min: 0, max: 15 }),
  })
  .map(
    ({ wp, nxe, smep, smap, ac, pke, pkru, paging }): Registers => ({
      ...LONG_MODE,
      cr0: paging === 0 ? 0x33n : wp ? 0x80050033n : 0x80040033n,
      cr3: 0x1000n,
      cr4: 0xa0n | (smep ? 1n << 20n : 0n) | (smap ? 1n << 21n : 0n) | (pke ? 1n << 22n : 0n),
      efer: nxe ? 0xd01n : 0x501n,
      rflags: ac ? 0x40002n : 2n,
      pkru,
    }),
  );

const gvaOf = fc
  .tuple(
    ...[4, 3, 2, 1].map(() => fc.constantFrom(...INDICES)),
    fc.integer({ min: 0, max: 511 }),
    fc.integer({ min: 0, max: 20 }),
  )
  .map(([l4, l3, l2, l1, offset, odd]) => {
    const low =
      (BigInt(l4!) << 39n) | (BigInt(l3!) << 30n) | (BigInt(l2!) << 21n) | (BigInt(l1!) << 12n) | BigInt(offset! * 8);
    const extended = l4! >= 256 ? low | (0xffffn << 48n) : low;
    return odd === 0 ? extended ^ (1n << 50n) : extended;
  });

/** A second stage maps guest frames 0 … 511 one to one below all its random entries, so that most guest tables are found. */
const caseOf: fc.Arbitrary<Case> = fc.constantFrom('ept' as const, 'npt' as const, 'none' as const).chain((second) =>
  fc.record({
    second: fc.constant(second),
    guestEntries: entries(GUEST_TABLES, 1, x86Entry(GUEST_TABLES, 1)),
    secondEntries:
      second === 'none'
        ? fc.constant([])
        : entries(SECOND_TABLES, SECOND_BASE, second === 'ept' ? eptEntry : x86Entry(SECOND_TABLES, SECOND_BASE)),
    registers: registersOf,
    gva: gvaOf,
    access: fc.record({
      kind: fc.constantFrom('read' as const, 'write' as const, 'fetch' as const),
      cpl: fc.constantFrom(0 as const, 3 as const),
      implicit: fc.integer({ min: 0, max: 7 }).map((odd) => odd === 0),
    }),
    maxPhyAddr: fc.constantFrom(36, 46, 48, 52),
    features: fc.subarray<Feature>(['1g-pages', 'execute-only', 'amd']),
  }),
);

function engineOutcome(test: Case, memory: PhysicalMemory): NaiveOutcome {
  const cpu = {
    maxPhyAddr: test.maxPhyAddr,
    features: new Set(test.features.filter((feature) => feature !== 'execute-only')),
  };
  const mode = pagingMode(test.registers, cpu);
  const hostFeatures = new Set<Feature>([
    ...test.features.filter((feature) => feature !== 'amd'),
    'nx',
    ...(test.second === 'npt' ? (['amd'] as const) : []),
  ]);
  const second: SecondStage | undefined =
    test.second === 'none'
      ? undefined
      : {
          kind: test.second,
          format: new Format(test.second === 'ept' ? EPT : NPT, {
            maxPhyAddr: test.maxPhyAddr,
            features: hostFeatures,
          }),
          root: SECOND_BASE,
        };

  if (mode.paging && untranslatable(mode, test.gva) !== undefined) return { kind: 'not-canonical' };
  const before = memory.clone();
  const trace: Reference[] = [];
  const isGuests = (pfn: number, index: number): boolean =>
    trace.some((each) => each.stage === 'guest' && each.pfn === pfn && each.index === index);
  const walkMemory: WalkMemory = {
    page: (pfn) => memory.page(pfn),
    setBits(pfn, index, lo, hi) {
      // A random guest table may lie in a second-stage table, whose bits would then change under the walk's feet.
      // And an entry of the second stage may lead to a table among the guest's, of whose bits the oracle says nothing.
      if (pfn >= SECOND_BASE || !isGuests(pfn, index)) return;
      const page = memory.writable(pfn);
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
    },
    resolve: (gfn) => Number(gfn),
    mayUpdate: () => true,
  };
  const access = { ...test.access, address: test.gva, size: 1, value: 0n };
  const walk = startWalk(mode, second, addressToFrame(test.gva), {
    bits: accessBits(access),
    implicit: access.implicit,
  });
  finishWalk(walk, mode, second, walkMemory, trace);
  if (walk.status === 'done') {
    const setAccessed: bigint[] = [];
    const setDirty: bigint[] = [];
    // Guest entries only: the oracle says nothing of second-stage bits.
    for (let pfn = 0; pfn < SECOND_BASE; pfn++) {
      for (let index = 0; index < 512; index++) {
        const changed = before.page(pfn)[2 * index]! ^ memory.page(pfn)[2 * index]!;
        if (changed & 0x20) setAccessed.push(frameToAddress(pfn, index * 8));
        if (changed & 0x40) setDirty.push(frameToAddress(pfn, index * 8));
      }
    }
    return {
      kind: 'ok',
      gpa: frameToAddress(walk.gfn, pageOffset(test.gva)),
      hpa: frameToAddress(walk.pfn, pageOffset(test.gva)),
      setAccessed,
      setDirty,
    };
  }
  const fault = describeWalkFault(0, walk, mode, second, access);
  if (fault.kind === 'guest') return { kind: 'page-fault', errorCode: fault.errorCode, level: fault.level };
  const forTable = fault.target === 'table';
  if (fault.kind === 'misconfiguration')
    return { kind: 'misconfiguration', gpa: fault.gpa!, level: fault.level, forTable };
  const ept = test.second === 'ept';
  return {
    kind: 'violation',
    gpa: fault.gpa!,
    exitQualification: ept ? fault.exitInfo : 0,
    npfErrorCode: ept ? 0n : BigInt(fault.exitInfo),
    level: fault.level,
    forTable,
  };
}

function naiveOutcome(test: Case, memory: PhysicalMemory): NaiveOutcome {
  const outcome = naiveTranslate(
    {
      read(hpa) {
        const page = memory.page(addressToFrame(hpa));
        const word = pageOffset(hpa) / 4;
        return toBigint(page[word]!, page[word + 1]!);
      },
    },
    { ...test.registers, cpl: test.access.cpl },
    {
      maxPhyAddr: test.maxPhyAddr,
      oneGigPages: test.features.includes('1g-pages'),
      amd: test.features.includes('amd'),
    },
    test.second === 'none'
      ? undefined
      : {
          kind: test.second,
          root: BigInt(SECOND_BASE) << 12n,
          maxPhyAddr: test.maxPhyAddr,
          oneGigPages: test.features.includes('1g-pages'),
          executeOnly: test.features.includes('execute-only'),
        },
    test.gva,
    test.access,
  );
  if (outcome.kind !== 'ok') return outcome;
  // The host frames 16 and up hold second-stage tables; a guest entry that is there belongs to no guest here.
  const ascending = (list: readonly bigint[]) =>
    [...list].filter((hpa) => hpa < BigInt(SECOND_BASE) << 12n).sort((a, b) => (a < b ? -1 : 1));
  return { ...outcome, setAccessed: ascending(outcome.setAccessed), setDirty: ascending(outcome.setDirty) };
}

function fill(test: Case): PhysicalMemory {
  const memory = new PhysicalMemory();
  for (const [frame, index, entry] of [...test.guestEntries, ...test.secondEntries]) {
    const page = memory.writable(frame);
    page[2 * index] = Number(entry & 0xffffffffn);
    page[2 * index + 1] = Number(entry >> 32n);
  }
  if (test.second === 'none') return memory;
  // Table 16 is the root; its first entry leads, through 17 and 18, to a table 19 that maps guest frames to themselves.
  const rights = test.second === 'ept' ? 7n : 7n;
  const set = (frame: number, index: number, entry: bigint) => {
    const page = memory.writable(frame);
    page[2 * index] = Number(entry & 0xffffffffn);
    page[2 * index + 1] = Number(entry >> 32n);
  };
  set(16, 0, rights | (17n << 12n));
  set(17, 0, rights | (18n << 12n));
  set(18, 0, rights | (19n << 12n));
  for (let frame = 3; frame < 16; frame++)
    set(19, frame, rights | (test.second === 'ept' ? 0x30n : 0n) | (BigInt(frame) << 12n));
  return memory;
}

test('the two-dimensional walk agrees with a translation written from the manuals alone', () => {
  const kinds = new Map<string, number>();
  fc.assert(
    fc.property(caseOf, (test) => {
      const expected = naiveOutcome(test, fill(test));
      const actual = engineOutcome(test, fill(test));
      kinds.set(`${test.second} ${expected.kind}`, (kinds.get(`${test.second} ${expected.kind}`) ?? 0) + 1);
      assert.deepEqual(actual, expected);
    }),
    { numRuns: RUNS },
  );
  // Each kind of outcome has really been met, or the agreement says little.
  for (const second of ['ept', 'npt', 'none'])
    for (const kind of ['ok', 'page-fault', 'not-canonical'])
      assert.ok(
        (kinds.get(`${second} ${kind}`) ?? 0) > RUNS / 500,
        `too few ${second} ${kind}: ${[...kinds].join(' ')}`,
      );
  for (const kind of ['ept violation', 'ept misconfiguration', 'npt violation'])
    assert.ok((kinds.get(kind) ?? 0) > RUNS / 500, `too few ${kind}: ${[...kinds].join(' ')}`);
});
