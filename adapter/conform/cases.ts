import { frameToAddress } from '../../engine/memory/words.ts';
import { DATA_FRAME, DATA_FRAMES, TABLE_FRAMES, TAG_OFFSET } from './layout.ts';
import { Random } from './random.ts';

/** Levels of a case's four entries, in their order. */
export const LEVELS = [4, 3, 2, 1] as const;

/** One access through tables of its own. */
export interface ConformCase {
  /** CR0.WP, EFER.NXE, CR4.SMEP, CR4.SMAP, RFLAGS.AC. */
  readonly wp: boolean;
  readonly nxe: boolean;
  readonly smep: boolean;
  readonly smap: boolean;
  readonly ac: boolean;
  /** At CPL3, else at CPL0. */
  readonly user: boolean;
  readonly kind: 'read' | 'write' | 'fetch';
  /** Bytes; within one page. 1 for a fetch. */
  readonly size: 1 | 2 | 4 | 8;
  readonly gva: bigint;
  /** PML4E, PDPTE, PDE, PTE: also those that the walk does not reach. */
  readonly entries: readonly bigint[];
}

/** What the machine has, so that cases need not leave it out. Found out by `probe.ts`. */
export interface Host {
  /** Bits of a physical address. */
  readonly maxPhyAddr: number;
  readonly nx: boolean;
  readonly smep: boolean;
  readonly smap: boolean;
  readonly oneGigPages: boolean;
  /** AMD's rule: bit 8 of a PML4E is reserved. */
  readonly amd: boolean;
  /** Root entries through which code at CPL3 reaches its pages; at CPL0 it is all but 0. */
  readonly userRoots: readonly number[];
}

const bit = (at: number): bigint => 1n << BigInt(at);
const P = bit(0);
const W = bit(1);
const U = bit(2);
const PS = bit(7);
const NX = bit(63);
/** Bits of an entry that say where in the guest's memory a frame lies: not drawn, nor cleared, but chosen. */
const PLACE = bit(26) - bit(12);

/** The index of an address at a level. */
export function indexAt(gva: bigint, level: number): number {
  return Number((gva >> BigInt(3 + 9 * level)) & 511n);
}

/** Guest-physical address of the entry that an address selects at a level. */
export function slotOf(gva: bigint, level: number): bigint {
  return frameToAddress(TABLE_FRAMES[level]!, 8 * indexAt(gva, level));
}

/** The case of a seed and a number. Most walks go deep; each rule decides many. */
export function makeCase(seed: number, number: number, host: Host): ConformCase {
  const random = new Random(seed, number);
  const kind = random.pick(['read', 'write', 'fetch'] as const);
  const size = kind === 'fetch' ? 1 : random.pick([1, 2, 4, 8] as const);
  const nxe = host.nx && !random.once(4);
  const entries = LEVELS.map((level) => makeEntry(random, level, nxe, host));
  const user = random.once(2);
  const ac = random.once(2);
  // Entry 0 of the root is the guest program's.
  const edge = random.pick([1, 255, 256, 511]);
  const drawn = random.once(4) ? edge : 1 + random.below(511);
  const root = user && !host.userRoots.includes(drawn) ? random.pick(host.userRoots) : drawn;
  const gva = makeAddress(random, root, kind, size, (entries[1]! & PS) !== 0n);
  return {
    wp: random.once(2),
    nxe,
    smep: host.smep && random.once(2),
    smap: host.smap && random.once(2),
    ac,
    user,
    kind,
    size,
    // Where KVM runs CPL3 without virtualising CR0 (PVM), the host's CR0.AM decides about #AC.
    gva: user && ac ? gva - (gva % BigInt(size)) : gva,
    entries,
  };
}

/** Bits that a machine reserves are rare, so that walks go on. */
const RARELY = 50;

function makeEntry(random: Random, level: number, nxe: boolean, host: Host): bigint {
  // An absent entry: nothing of it counts.
  if (random.once(32)) return random.bits(64) & ~P;
  let entry = P;
  if (!random.once(6)) entry |= W;
  if (!random.once(random.once(3) ? 2 : 12)) entry |= U;
  // PWT and PCD.
  if (random.once(8)) entry |= random.bits(2) << 3n;
  // A and D.
  entry |= random.bits(2) << 5n;
  // PS; in a PTE the bit is PAT.
  if (random.once(level <= 2 ? 3 : level === 3 && host.oneGigPages ? 5 : RARELY)) entry |= PS;
  // G; in a PML4E AMD reserves the bit.
  if (random.once(level === 4 && host.amd ? RARELY : 4)) entry |= bit(8);
  entry |= random.bits(3) << 9n;
  // Available bits, and a protection key where there is a page.
  if (random.once(3)) entry |= random.bits(11) << 52n;
  if (random.once(nxe ? 8 : RARELY)) entry |= NX;
  const large = (level === 2 || level === 3) && (entry & PS) !== 0n;
  if (large && random.once(2)) entry |= bit(12);
  if (large && random.once(RARELY)) entry |= bit(13 + random.below(level === 2 ? 8 : 17));
  if (host.maxPhyAddr < 52 && random.once(RARELY)) entry |= bit(host.maxPhyAddr + random.below(52 - host.maxPhyAddr));
  return entry | placeFor(level, entry, random.below(DATA_FRAMES));
}

/** Where an entry leads: to the next table, or to the data. */
function placeFor(level: number, entry: bigint, frame: number): bigint {
  if (level === 1) return frameToAddress(DATA_FRAME + frame);
  if ((entry & PS) === 0n || level === 4) return frameToAddress(TABLE_FRAMES[level - 1]!);
  if (level === 2) return frameToAddress(DATA_FRAME + frame - (frame % 512));
  // A 1G page from address 0: the address selects the data in it.
  return 0n;
}

function makeAddress(random: Random, root: number, kind: ConformCase['kind'], size: number, gig: boolean): bigint {
  const index = (): number => (random.once(4) ? random.pick([0, 511]) : random.below(512));
  let gva = BigInt(root);
  gva = (gva << 9n) | BigInt(index());
  gva = (gva << 9n) | BigInt(gig ? DATA_FRAME / 512 + random.below(DATA_FRAMES / 512) : index());
  gva = (gva << 9n) | BigInt(index());
  gva = (gva << 12n) | BigInt(makeOffset(random, kind, size));
  const canonical = BigInt.asUintN(64, BigInt.asIntN(48, gva));
  return random.once(40) ? canonical ^ (random.bits(16) << 48n) : canonical;
}

/** Within the page, and off its tag where the access must find `ret` or may not change what it writes. */
function makeOffset(random: Random, kind: ConformCase['kind'], size: number): number {
  if (kind !== 'read') return random.below(TAG_OFFSET - size + 1);
  return random.once(3) ? 4096 - 8 + random.below(9 - size) : random.below(4096 - size + 1);
}

/**
 * Cases that are like this one but for one thing that is simpler: a bit less, a whole entry less, a plainer access. None is
 * the same, and steps of this kind end.
 */
export function simpler(from: ConformCase): ConformCase[] {
  const found: ConformCase[] = [];
  const { entries } = from;
  entries.forEach((entry, at) => {
    if (entry !== 0n) found.push({ ...from, entries: entries.with(at, 0n) });
  });
  for (const flag of ['ac', 'smap', 'smep', 'nxe', 'wp', 'user'] as const) {
    if (from[flag]) found.push({ ...from, [flag]: false });
  }
  if (from.kind !== 'read') found.push({ ...from, kind: 'read', size: 1 });
  if (from.size !== 1) found.push({ ...from, size: 1 });
  const plain = plainAddress(from);
  if (plain !== from.gva) found.push({ ...from, gva: plain });
  const low = (from.gva >> 12n) << 12n;
  if (low !== from.gva) found.push({ ...from, gva: low });
  entries.forEach((entry, at) => {
    const level = LEVELS[at]!;
    for (let n = 63; n >= 0; n--) {
      if ((entry & bit(n) & ~PLACE) === 0n) continue;
      const rest = entry & ~bit(n) & ~PLACE;
      const value =
        rest === 0n || (rest & P) === 0n
          ? rest
          : rest | placeFor(level, rest, 0) | (entry & reservedPlace(level, rest));
      found.push({ ...from, entries: entries.with(at, value) });
    }
    const bare = entry & ~PLACE;
    const first = bare | placeFor(level, entry, 0) | (entry & reservedPlace(level, entry));
    if ((entry & P) !== 0n && first !== entry) found.push({ ...from, entries: entries.with(at, first) });
    const unreserved = entry & ~reservedPlace(level, entry);
    if ((entry & P) !== 0n && unreserved !== entry) found.push({ ...from, entries: entries.with(at, unreserved) });
  });
  return found;
}

/** Low address bits of a large page's entry: PAT and reserved bits. */
function reservedPlace(level: number, entry: bigint): bigint {
  if ((entry & PS) === 0n || (level !== 2 && level !== 3)) return 0n;
  return PLACE & (bit(level === 2 ? 21 : 30) - bit(12));
}

/** The first address of the cases' half of the address space that reaches the data just as well. */
function plainAddress({ gva, entries }: ConformCase): bigint {
  const gig = (entries[1]! & PS) !== 0n;
  return (1n << 39n) | (gig ? frameToAddress(DATA_FRAME) : 0n) | (gva & 0xfffn);
}
