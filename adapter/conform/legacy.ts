import type { Feature } from '../../engine/formats/format.ts';
import { accessBits } from '../../engine/guest/access.ts';
import { errorCodeWords } from '../../engine/guest/permission.ts';
import { LONG_MODE, type PagingMode, pagingMode } from '../../engine/guest/registers.ts';
import { finishWalk, startWalk } from '../../engine/guest/walk.ts';
import {
  addressToFrame,
  frameToAddress,
  hex,
  highWord,
  lowWord,
  pageOffset,
  toBigint,
} from '../../engine/memory/words.ts';
import type { RspClient } from '../rsp/client.ts';
import { RspError } from '../rsp/packet.ts';
import {
  CASES,
  COUNT,
  DATA_FRAME,
  DATA_FRAMES,
  dataAt,
  dataBytes,
  MEMORY_SIZE,
  NO_EXCEPTION,
  RESULTS,
  TAG_OFFSET,
  USER_DONE,
} from './layout.ts';
import { Random } from './random.ts';

// 32-bit and PAE paging, by the guest native/guests/conform32.S: accesses through two levels of tables, on KVM and in the engine.
//
// | guest-physical | what                                                                                |
// | -------------- | ----------------------------------------------------------------------------------- |
// | 0x100000       | the guest program; its CPL0 snippets from 0x100600                                   |
// | 0x200000       | 32-bit: page directory; entries 0 and 1 are the program's own, 4M pages              |
// | 0x203000       | 32-bit: page table of the cases                                                      |
// | 0x201000       | PAE: the four PDPTEs; entry 0 is the program's own                                   |
// | 0x202000       | PAE: the program's page directory                                                    |
// | 0x204000       | PAE: page directory and page table of the cases                                      |
// | the rest       | as layout.ts has it; a case and a result have 64 bytes each                          |

export const LEGACY_MODES = ['32-bit', 'pae'] as const;
export type LegacyMode = (typeof LEGACY_MODES)[number];

export interface LegacyCase {
  readonly mode: LegacyMode;
  readonly wp: boolean;
  /** EFER.NXE; without PAE it means nothing. */
  readonly nxe: boolean;
  readonly smep: boolean;
  readonly smap: boolean;
  readonly ac: boolean;
  readonly user: boolean;
  readonly kind: 'read' | 'write' | 'fetch';
  readonly size: 1 | 2 | 4;
  readonly gva: number;
  /** PDE and PTE. */
  readonly entries: readonly [bigint, bigint];
}

export interface LegacyOutcome {
  readonly kind: 'ok' | '#PF' | 'stray';
  readonly error: number;
  readonly cr2: number;
  readonly value: bigint;
  readonly entries: readonly [bigint, bigint];
  readonly words?: string;
}

export interface LegacyHost {
  readonly maxPhyAddr: number;
  readonly amd: boolean;
}

const RECORD = 64;
/** Cases that the guest takes at once. */
export const MOST_LEGACY_CASES = Number(RESULTS - CASES) / RECORD;
const PD_32 = 0x200;
const PT_32 = 0x203;
const PDPT = 0x201;
const OWN_PD = 0x202;
const PD_PAE = 0x204;
const PT_PAE = 0x205;
const KERNEL_SNIPPETS = 0x100600;
const USER_SNIPPETS = 0x400000;

const CR0 = 0x8000_0011;
const CR4_PSE = 1 << 4;
const CR4_PAE = 1 << 5;
const CR4_PGE = 1 << 7;
const UD = 6;
const PF = 14;

const P = 1n;
const PS = 0x80n;
const NX = 1n << 63n;
const bit = (at: number): bigint => 1n << BigInt(at);
const when = (on: boolean, at: number): number => (on ? 2 ** at : 0);

/** Where the entries of an address lie: frame and index. */
function places({ mode, gva }: LegacyCase): readonly [readonly [number, number], readonly [number, number]] {
  return mode === '32-bit'
    ? [
        [PD_32, Math.floor(gva / 2 ** 22)],
        [PT_32, Math.floor(gva / 4096) % 1024],
      ]
    : [
        [PD_PAE, Math.floor(gva / 2 ** 21) % 512],
        [PT_PAE, Math.floor(gva / 4096) % 512],
      ];
}

const entryBytes = (mode: LegacyMode): number => (mode === 'pae' ? 8 : 4);

/** The case of a seed and a number. */
export function makeLegacyCase(mode: LegacyMode, seed: number, number: number, host: LegacyHost): LegacyCase {
  const random = new Random(seed, number);
  const kind = random.pick(['read', 'write', 'fetch'] as const);
  const size = kind === 'fetch' ? 1 : random.pick([1, 2, 4] as const);
  const nxe = !random.once(3);
  const wide = mode === 'pae';
  const entry = (level: 1 | 2): bigint => {
    if (random.once(24)) return random.bits(wide ? 64 : 32) & ~P;
    let value = P;
    if (!random.once(6)) value |= 2n;
    if (!random.once(random.once(3) ? 2 : 12)) value |= 4n;
    if (random.once(8)) value |= random.bits(2) << 3n;
    value |= random.bits(2) << 5n;
    const large = level === 2 && random.once(3);
    if (large || (level === 1 && random.once(4))) value |= PS;
    if (random.once(4)) value |= bit(8);
    value |= random.bits(3) << 9n;
    if (large && random.once(2)) value |= bit(12);
    // Of a 4M page bits 16:13 are address bits 35:32, where no memory is: only those that are reserved are tried.
    if (large && random.once(20)) value |= wide ? bit(13 + random.below(8)) : bit(17 + random.below(5));
    if (wide && nxe ? random.once(6) : wide && random.once(40)) value |= NX;
    if (wide && random.once(40)) value |= bit(host.maxPhyAddr + random.below(63 - host.maxPhyAddr));
    const frame = DATA_FRAME + random.below(DATA_FRAMES);
    if (level === 1) return value | frameToAddress(frame);
    if (!large) return value | frameToAddress(wide ? PT_PAE : PT_32);
    return value | frameToAddress(wide ? frame - (frame % 512) : DATA_FRAME);
  };
  const offset = kind === 'read' ? random.below(4096 - size + 1) : random.below(TAG_OFFSET - size + 1);
  const page = random.below(wide ? 3 * 2 ** 18 : 2 ** 20 - 2 * 1024) + (wide ? 2 ** 18 : 2 * 1024);
  return {
    mode,
    wp: random.once(2),
    nxe,
    smep: random.once(2),
    smap: random.once(2),
    ac: random.once(2),
    user: random.once(2),
    kind,
    size,
    gva: page * 4096 + offset,
    entries: [entry(2), entry(1)],
  };
}

function registersOf({ mode, wp, nxe, smep, smap }: LegacyCase) {
  return {
    cr0: CR0 + when(wp, 16),
    cr3: (mode === 'pae' ? PDPT : PD_32) * 4096,
    cr4: CR4_PSE + CR4_PGE + (mode === 'pae' ? CR4_PAE : 0) + when(smep, 20) + when(smap, 21),
    efer: when(nxe, 11),
  };
}

const snippet = ({ kind, size, user }: LegacyCase): number =>
  (user ? USER_SNIPPETS : KERNEL_SNIPPETS) + 16 * (kind === 'fetch' ? 6 : (kind === 'write' ? 3 : 0) + Math.log2(size));

/** The program's own tables: an identity mapping of 4M for the supervisor, and of the page at 4M for the user. */
function ownTables(): ReadonlyMap<number, readonly bigint[]> {
  return new Map([
    [PD_32, [0x0000e3n, 0x4000e7n]],
    [PDPT, [frameToAddress(OWN_PD) | P, ...Array<bigint>(3).fill(frameToAddress(PD_PAE) | P)]],
    [OWN_PD, [0x0000e3n, 0x2000e3n, 0x4000e7n]],
  ]);
}

function encode(cases: readonly LegacyCase[]): Uint8Array {
  const bytes = new Uint8Array(cases.length * RECORD);
  const view = new DataView(bytes.buffer);
  cases.forEach((each, number) => {
    const put = (offset: number, value: number): void => view.setUint32(number * RECORD + offset, value, true);
    const { cr0, cr3, cr4, efer } = registersOf(each);
    [
      cr0,
      cr3,
      cr4,
      efer,
      2 + when(each.ac, 18),
      each.gva,
      snippet(each),
      each.user ? 1 : 0,
      each.mode === 'pae' ? 1 : 0,
    ].forEach((value, index) => void put(4 * index, value));
    places(each).forEach(([frame, index], at) => {
      put(36 + 4 * at, frame * 4096 + index * entryBytes(each.mode));
      view.setBigUint64(number * RECORD + 48 + 8 * at, each.entries[at]!, true);
    });
  });
  return bytes;
}

function observed(of: LegacyCase, view: DataView, number: number): LegacyOutcome {
  const get = (offset: number): number => view.getUint32(number * RECORD + offset, true);
  const [vector, error, cr2, eip, value] = [get(0), get(4), get(8), get(12), get(16)];
  const entries = [0, 1].map((at) => view.getBigUint64(number * RECORD + 24 + 8 * at, true)) as [bigint, bigint];
  const seen = { error: error!, cr2: cr2!, value: BigInt(value!), entries };
  if (of.user ? vector === UD && eip === Number(USER_DONE) : vector === NO_EXCEPTION) return { kind: 'ok', ...seen };
  if (vector === PF && eip === (of.kind === 'fetch' ? of.gva : snippet(of))) return { kind: '#PF', ...seen };
  return { kind: 'stray', ...seen, words: `vector ${vector}, error code ${hex(error!)}, at EIP ${hex(eip!)}` };
}

/** How the engine walks the tables of a case. */
export function legacyPaging(of: LegacyCase, host: LegacyHost): PagingMode {
  const { cr0, cr3, cr4, efer } = registersOf(of);
  const registers = {
    cr0: BigInt(cr0),
    cr3: BigInt(cr3),
    cr4: BigInt(cr4),
    efer: BigInt(efer),
    rflags: 2n + BigInt(when(of.ac, 18)),
  };
  const features = new Set<Feature>(host.amd ? ['amd'] : []);
  return pagingMode({ ...LONG_MODE, ...registers }, { maxPhyAddr: host.maxPhyAddr, features });
}

/** What the engine says comes of a case. */
export function legacyVerdict(of: LegacyCase, host: LegacyHost): LegacyOutcome {
  const tables = new Map([PD_32, PT_32, PDPT, OWN_PD, PD_PAE, PT_PAE].map((frame) => [frame, new Uint32Array(1024)]));
  const size = entryBytes(of.mode);
  const store = (frame: number, index: number, value: bigint, bytes: number): void => {
    const page = tables.get(frame)!;
    page[(index * bytes) / 4] = lowWord(value);
    if (bytes === 8) page[2 * index + 1] = highWord(value);
  };
  for (const [frame, entries] of ownTables())
    entries.forEach((value, index) => void store(frame, index, value, frame === PD_32 ? 4 : 8));
  const at = places(of);
  at.forEach(([frame, index], number) => void store(frame, index, of.entries[number]!, size));
  const mode = legacyPaging(of, host);
  const access = {
    kind: of.kind,
    address: BigInt(of.gva),
    size: of.size,
    value: 0n,
    cpl: of.user ? 3 : 0,
    implicit: false,
  } as const;
  const walk = finishWalk(
    startWalk(mode, undefined, addressToFrame(BigInt(of.gva)), { bits: accessBits(access), implicit: false }),
    mode,
    undefined,
    {
      page: (pfn) => tables.get(pfn) ?? new Uint32Array(1024),
      setBits: (pfn, index, lo, hi) => {
        const page = tables.get(pfn)!;
        page[2 * index] = lo;
        page[2 * index + 1] = hi;
      },
      resolve: (gfn) => (gfn < MEMORY_SIZE / 4096 ? Number(gfn) : -1),
      mayUpdate: () => true,
    },
  );
  const entries = at.map(([frame, index]) => {
    const page = tables.get(frame)!;
    return size === 4 ? BigInt(page[index]!) : toBigint(page[2 * index]!, page[2 * index + 1]!);
  }) as [bigint, bigint];
  if (walk.status !== 'done') return { kind: '#PF', error: walk.error, cr2: of.gva, value: 0n, entries };
  const value = of.kind === 'read' ? dataAt(walk.pfn, pageOffset(BigInt(of.gva)), of.size) : 0n;
  return { kind: 'ok', error: 0, cr2: 0, value, entries };
}

export interface LegacyMismatch {
  readonly number: number;
  readonly case: LegacyCase;
  readonly engine: LegacyOutcome;
  readonly kvm: LegacyOutcome;
}

/** Runs cases on a helper that has loaded conform32.bin, and compares. @throws RspError when the guest does not come to its end */
export async function conformLegacy(
  client: RspClient,
  host: LegacyHost,
  mode: LegacyMode,
  seed: number,
  { first, count }: { readonly first: number; readonly count: number },
): Promise<{ readonly outcomes: ReadonlyMap<string, number>; readonly mismatches: readonly LegacyMismatch[] }> {
  await client.writePhysical(BigInt(DATA_FRAME) * 4096n, dataBytes());
  for (const [frame, entries] of ownTables()) {
    const bytes = new Uint8Array(4096);
    const view = new DataView(bytes.buffer);
    entries.forEach((value, index) => {
      if (frame === PD_32) view.setUint32(4 * index, Number(value), true);
      else view.setBigUint64(8 * index, value, true);
    });
    await client.writePhysical(frameToAddress(frame), bytes);
  }
  const cases = Array.from({ length: count }, (_, number) => makeLegacyCase(mode, seed, first + number, host));
  const amount = new Uint8Array(8);
  new DataView(amount.buffer).setUint32(0, count, true);
  await client.writePhysical(CASES, encode(cases));
  await client.writePhysical(COUNT, amount);
  const stopped = new Promise<string | undefined>((resolve, reject) => {
    client.onStop((event) => resolve(event.kind === 'exited' ? 'the machine has ended' : event.kvm?.reason));
    client.onLost(reject);
  });
  await client.resume('all');
  const reason = await stopped;
  if (reason !== undefined && reason !== 'port') throw new RspError(`the guest stopped within a batch: ${reason}`);
  const bytes = await client.readPhysical(RESULTS, count * RECORD);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const outcomes = new Map<string, number>();
  const mismatches: LegacyMismatch[] = [];
  cases.forEach((each, number) => {
    const kvm = observed(each, view, number);
    const engine = legacyVerdict(each, host);
    const name = kvm.kind === '#PF' ? `#PF ${errorCodeWords(kvm.error)}` : kvm.kind;
    outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
    const same =
      kvm.kind === engine.kind &&
      kvm.error === engine.error &&
      (kvm.kind !== '#PF' || kvm.cr2 === engine.cr2) &&
      kvm.value === engine.value &&
      kvm.entries.every((entry, at) => entry === engine.entries[at]);
    if (!same) mismatches.push({ number: first + number, case: each, engine, kvm });
  });
  return { outcomes, mismatches };
}
