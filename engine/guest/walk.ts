import { ABSENT, ACC_EXEC, ACC_USER, ACC_WRITE, type Format, LEAF, MALFORMED } from '../formats/compile.ts';
import type { Gfn, Pfn, Vfn } from '../memory/words.ts';
import {
  type AccessKind,
  PFERR_FETCH,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
  permissionFault,
} from './permission.ts';
import type { PagingMode } from './registers.ts';

/** Second-stage tables as the hardware walks them. */
export interface SecondStage {
  readonly kind: 'ept' | 'npt';
  readonly format: Format;
  readonly root: Pfn;
}

/** What a walk reads and writes. */
export interface WalkMemory {
  page(pfn: Pfn): Uint32Array;
  /** Sets accessed or dirty bits in an entry, as a locked store. */
  setBits(pfn: Pfn, index: number, lo: number, hi: number): void;
  /** Without second-stage tables (KVM's own walk): the frame behind a guest frame, or −1 when there is no slot. */
  resolve(gfn: Gfn): Pfn;
  /** Whether KVM's own walk may set bits in this guest frame: not in a read-only slot. */
  mayUpdate(gfn: Gfn): boolean;
}

export type WalkStatus = 'running' | 'done' | 'guest-fault' | 'violation' | 'misconfiguration';

/** One memory reference of a walk, in the order in which the hardware makes them. */
export interface Reference {
  readonly stage: 'guest' | 'second';
  /** Level of the entry that is read. */
  readonly level: number;
  /** What is being located: a guest table of this level, or (0) the page itself. */
  readonly forLevel: number;
  /** The table that holds the entry: guest frame in the guest stage, host frame in the second. */
  readonly table: number;
  readonly index: number;
  /** Where the entry lies in the frame, in bytes. */
  readonly offset: number;
  /** Host frame that is read. */
  readonly pfn: Pfn;
  readonly lo: number;
  readonly hi: number;
}

/**
 * A two-dimensional translation in progress: plain values, advanced by one memory reference at a time. The guest's
 * tables are found through the second stage, so a cold walk of 4 by 4 levels makes 24 references (SDM vol. 3, 29.3.2).
 *
 * Accessed and dirty bits of guest entries are set once the guest's part has succeeded, and none when it faults: KVM's
 * rule (`FNAME(walk_addr_generic)`), stricter than the processor's.
 */
export interface Walk {
  status: WalkStatus;
  readonly vfn: Vfn;
  readonly bits: number;
  readonly implicit: boolean;
  /** Through second-stage tables, or KVM's own walk through memslots. */
  readonly second: boolean;
  /** Guest level whose entry is read next; 0 when only the page itself remains to be located. */
  level: number;
  /** Rights accumulated over guest entries, ACC_* bits. */
  access: number;
  /** Level of the entry that took each right away; 0 where none did. */
  withoutWrite: number;
  withoutUser: number;
  withoutExec: number;
  key: number;
  global: boolean;
  /** What the guest's leaf says of its page, where guests tell private from shared memory. */
  isPrivate: boolean | undefined;
  /** Level of the guest leaf; the top level + 1 while paging is off. */
  leafLevel: number;
  leafDirty: boolean;
  /** The guest frame being located: a table's, at last the page's. */
  gfn: Gfn;
  tablePfn: Pfn;
  /** Second-stage level to be read next; 0: the guest entry is next. */
  secondLevel: number;
  secondTable: Pfn;
  secondIndex: number;
  secondAccess: number;
  /** Accessed bits that entries of this stage lack so far: nothing is to be set while it is 0. */
  unset: number;
  secondUnset: number;
  /** Second-stage leaf of the page: level, rights, dirty. */
  secondLeafLevel: number;
  secondDirty: boolean;
  pfn: Pfn;
  /** Guest faults: error code; violations: the access as PFERR bits and what the entries allow. */
  error: number;
  /** The entry at which the walk ended. */
  lo: number;
  hi: number;
  index: number;
  references: number;
  readonly entryGfn: number[];
  readonly entryPfn: number[];
  /** By level, the guest entries that were read and the rights that the ones above them leave: of KVM's own walks, which shadow. */
  readonly entryLo: number[];
  readonly entryHi: number[];
  readonly tableAccess: number[];
}

/** Where walks put what nobody reads of them. */
const UNUSED = [0, 0, 0, 0, 0, 0];

export function startWalk(mode: PagingMode, second: SecondStage | undefined, vfn: Vfn, kind: AccessKind): Walk {
  const walk: Walk = {
    status: 'running',
    vfn,
    bits: kind.bits,
    implicit: kind.implicit,
    second: second !== undefined,
    level: mode.paging ? mode.format.rootLevel : 0,
    access: ACC_EXEC | ACC_WRITE | ACC_USER,
    withoutWrite: 0,
    withoutUser: 0,
    withoutExec: 0,
    key: 0,
    global: false,
    isPrivate: undefined,
    leafLevel: mode.format.rootLevel + 1,
    leafDirty: true,
    gfn: mode.paging ? mode.rootGfn : Number(vfn),
    tablePfn: 0,
    secondLevel: 0,
    secondTable: 0,
    secondIndex: 0,
    secondAccess: 7,
    unset: 0,
    secondUnset: 0,
    secondLeafLevel: 0,
    secondDirty: false,
    pfn: 0,
    error: 0,
    lo: 0,
    hi: 0,
    index: 0,
    references: 0,
    entryGfn: [0, 0, 0, 0, 0, 0],
    entryPfn: [0, 0, 0, 0, 0, 0],
    entryLo: second ? UNUSED : [0, 0, 0, 0, 0, 0],
    entryHi: second ? UNUSED : [0, 0, 0, 0, 0, 0],
    tableAccess: second ? UNUSED : [0, 0, 0, 0, 0, 0],
  };
  if (second) {
    walk.secondLevel = second.format.rootLevel;
    walk.secondTable = second.root;
  }
  return walk;
}

/** Whether the bits of an address from its highest translated one (47 or 56) up agree. */
export function isCanonical(vfn: Vfn, addressBits: number): boolean {
  const top = Math.floor(vfn / 2 ** (addressBits - 13));
  return top === 0 || top === 2 ** (65 - addressBits) - 1;
}

/** What the second stage checks for a guest-table reference: with A/D bits of its own a table is read as if written (SDM vol. 3, 29.3.3.2). */
const tableAccess = ({ format }: SecondStage): number => PFERR_USER | (format.accessedLo === 0 ? 0 : PFERR_WRITE);

/** Makes one memory reference. Call while `status` is `running`. */
export function stepWalk(
  walk: Walk,
  mode: PagingMode,
  second: SecondStage | undefined,
  memory: WalkMemory,
  trace?: Reference[],
): void {
  if (second === undefined) {
    if (walk.level === 0) {
      walk.pfn = memory.resolve(walk.gfn);
      walk.status = 'done';
      return;
    }
    walk.tablePfn = memory.resolve(walk.gfn);
    if (walk.tablePfn < 0) {
      guestFault(walk, mode, 0);
      return;
    }
    guestReference(walk, mode, second, memory, trace);
  } else if (walk.secondLevel > 0) secondReference(walk, second, memory, trace);
  else guestReference(walk, mode, second, memory, trace);
}

/** Runs a walk to its end. */
export function finishWalk(
  walk: Walk,
  mode: PagingMode,
  second: SecondStage | undefined,
  memory: WalkMemory,
  trace?: Reference[],
): Walk {
  while (walk.status === 'running') stepWalk(walk, mode, second, memory, trace);
  return walk;
}

function secondReference(walk: Walk, second: SecondStage, memory: WalkMemory, trace: Reference[] | undefined): void {
  const { format } = second;
  const level = walk.secondLevel;
  const index = format.indexOf(walk.gfn, level);
  const page = memory.page(walk.secondTable);
  const lo = page[2 * index]!;
  const hi = page[2 * index + 1]!;
  walk.references++;
  trace?.push({
    stage: 'second',
    level,
    forLevel: walk.level,
    table: walk.secondTable,
    index,
    offset: 8 * index,
    pfn: walk.secondTable,
    lo,
    hi,
  });
  const judged = format.judge(level, lo, hi);
  const state = judged & 3;
  // A guest-physical address beyond what the tables translate has no entry.
  if (state === ABSENT || walk.gfn >= format.inputFrames) {
    secondFault(walk, second, 'violation', 0, index, lo, hi);
    return;
  }
  if ((judged & MALFORMED) !== 0) {
    secondFault(walk, second, second.kind === 'ept' ? 'misconfiguration' : 'violation', PFERR_RSVD, index, lo, hi);
    return;
  }
  walk.secondAccess &= judged >>> 2;
  walk.secondUnset |= ~lo & format.accessedLo;
  if (state !== LEAF) {
    walk.secondTable = format.frame(level, lo, hi);
    walk.secondLevel = level - 1;
    return;
  }
  const bits = walk.level === 0 ? walk.bits : tableAccess(second);
  const need = (bits & PFERR_FETCH) !== 0 ? ACC_EXEC : (bits & PFERR_WRITE) !== 0 ? ACC_WRITE : 0;
  // An EPT fetch needs X alone; NPT makes every access as a user.
  const read = (bits & PFERR_FETCH) !== 0 && format.userLo === 0 ? 0 : ACC_USER;
  if ((walk.secondAccess & (need | read)) !== (need | read)) {
    secondFault(walk, second, 'violation', PFERR_PRESENT, index, lo, hi);
    return;
  }
  const write = (bits & PFERR_WRITE) !== 0;
  if (walk.secondUnset !== 0 || (write && (lo & format.dirtyLo) === 0))
    setSecondBits(walk, second, memory, level, write);
  const span = format.span[level]!;
  const pfn = format.frame(level, lo, hi) + (level === 1 ? 0 : walk.gfn % span);
  if (walk.level === 0) {
    walk.pfn = pfn;
    walk.secondLeafLevel = level;
    walk.secondDirty = (lo & format.dirtyLo) !== 0 || (bits & PFERR_WRITE) !== 0;
    walk.lo = lo;
    walk.hi = hi;
    walk.index = index;
    walk.secondIndex = index;
    walk.status = 'done';
    return;
  }
  walk.tablePfn = pfn;
  walk.secondLevel = 0;
}

/** Sets the bits that the entries down to the leaf lack; they are found again from the root. */
function setSecondBits(walk: Walk, second: SecondStage, memory: WalkMemory, leaf: number, write: boolean): void {
  const { format } = second;
  let table = second.root;
  for (let level = format.rootLevel; level >= leaf; level--) {
    const index = format.indexOf(walk.gfn, level);
    const page = memory.page(table);
    const lo = page[2 * index]!;
    const hi = page[2 * index + 1]!;
    const wanted = (lo | format.accessedLo | (write && level === leaf ? format.dirtyLo : 0)) >>> 0;
    if (wanted !== lo) memory.setBits(table, index, wanted, hi);
    table = format.frame(level, lo, hi);
  }
}

function secondFault(
  walk: Walk,
  second: SecondStage,
  status: 'violation' | 'misconfiguration',
  error: number,
  index: number,
  lo: number,
  hi: number,
): void {
  walk.status = status;
  if (error === 0) walk.secondAccess = 0;
  walk.error = error | (walk.level === 0 ? walk.bits : tableAccess(second));
  walk.secondIndex = index;
  walk.lo = lo;
  walk.hi = hi;
}

function guestReference(
  walk: Walk,
  mode: PagingMode,
  second: SecondStage | undefined,
  memory: WalkMemory,
  trace: Reference[] | undefined,
): void {
  const { format } = mode;
  const { level } = walk;
  const index = format.indexOf(walk.vfn, level);
  const word = placeOf(mode, level, index) << format.wordShift;
  const page = memory.page(walk.tablePfn);
  const { pdptrs } = mode;
  const isLoaded = pdptrs !== undefined && level === format.spec.loadedLevel;
  const lo = isLoaded ? pdptrs[2 * index]! : page[word]!;
  const hi = isLoaded ? pdptrs[2 * index + 1]! : format.wordShift === 0 ? 0 : page[word + 1]!;
  walk.references++;
  trace?.push({
    stage: 'guest',
    level,
    forLevel: level,
    table: walk.gfn,
    index,
    offset: 4 * word,
    pfn: walk.tablePfn,
    lo,
    hi,
  });
  walk.lo = lo;
  walk.hi = hi;
  walk.index = index;
  const judged = format.judge(level, lo, hi);
  const state = judged & 3;
  if (state === ABSENT) {
    guestFault(walk, mode, 0);
    return;
  }
  // PDPTEs of PAE paging were judged when CR3 was loaded.
  if ((judged & MALFORMED) !== 0 && level !== format.spec.loadedLevel) {
    guestFault(walk, mode, PFERR_PRESENT | PFERR_RSVD);
    return;
  }
  walk.entryLo[level] = lo;
  walk.entryHi[level] = hi;
  walk.tableAccess[level] = walk.access;
  const lost = walk.access & ~(judged >>> 2);
  if (lost !== 0) noteLost(walk, lost, level);
  walk.access &= judged >>> 2;
  walk.unset |= ~lo & format.accessedAt[level]!;
  walk.entryGfn[level] = walk.gfn;
  walk.entryPfn[level] = walk.tablePfn;
  if (state === LEAF) {
    walk.leafLevel = level;
    walk.key = format.keyOf(hi);
    walk.global = (lo & format.globalLo) !== 0;
    if (format.privacyHi !== 0) walk.isPrivate = ((hi & format.privacyHi) !== 0) === format.setIsPrivate;
    const refused = permissionFault(mode.permissions, mode, walk.access, walk.key, walk);
    if (refused !== 0) {
      guestFault(walk, mode, refused);
      return;
    }
    walk.leafDirty = (lo & format.dirtyLo) === format.dirtyLo || (walk.bits & PFERR_WRITE) !== 0;
    if (walk.unset !== 0 || ((walk.bits & PFERR_WRITE) !== 0 && (lo & format.dirtyLo) === 0)) {
      if (second && second.format.accessedLo === 0 && refusesBits(walk, mode, second, memory)) return;
      setGuestBits(walk, mode, memory);
    }
    const span = format.span[level]!;
    walk.gfn = format.frame(level, lo, hi) + (level === 1 ? 0 : walk.vfn % span);
    walk.level = 0;
  } else {
    walk.gfn = format.frame(level, lo, hi);
    walk.level = level - 1;
  }
  if (second) {
    walk.secondLevel = second.format.rootLevel;
    walk.secondTable = second.root;
    walk.secondAccess = 7;
    walk.secondUnset = 0;
  }
}

/** An entry's number counted from the beginning of its frame. */
function placeOf(mode: PagingMode, level: number, index: number): number {
  return level === mode.format.rootLevel ? index + mode.rootEntry : index;
}

/** Where the guest entry that is read next, or was read last, lies in its frame, in bytes. */
export function entryOffset(walk: Walk, mode: PagingMode): number {
  return placeOf(mode, walk.level, mode.format.indexOf(walk.vfn, walk.level)) * mode.format.entryBytes;
}

function noteLost(walk: Walk, lost: number, level: number): void {
  if ((lost & ACC_WRITE) !== 0) walk.withoutWrite = level;
  if ((lost & ACC_USER) !== 0) walk.withoutUser = level;
  if ((lost & ACC_EXEC) !== 0) walk.withoutExec = level;
}

/** The entry of a level with the bits that the walk sets. */
function withBits(walk: Walk, { format }: PagingMode, level: number, lo: number): number {
  const dirty = level === walk.leafLevel && (walk.bits & PFERR_WRITE) !== 0 ? format.dirtyLo : 0;
  return (lo | format.accessedAt[level]! | dirty) >>> 0;
}

/** A second stage without A/D bits sees a guest's table written only where bits are set there: whether it refuses that. */
function refusesBits(walk: Walk, mode: PagingMode, second: SecondStage, memory: WalkMemory): boolean {
  const { format } = second;
  for (let level = mode.format.rootLevel; level >= walk.leafLevel; level--) {
    const word = placeOf(mode, level, mode.format.indexOf(walk.vfn, level)) << mode.format.wordShift;
    const entry = memory.page(walk.entryPfn[level]!)[word]!;
    if (withBits(walk, mode, level, entry) === entry) continue;
    let table = second.root;
    let access = 7;
    for (let at = format.rootLevel; ; at--) {
      const index = format.indexOf(walk.entryGfn[level]!, at);
      const page = memory.page(table);
      const [lo, hi] = [page[2 * index]!, page[2 * index + 1]!];
      const judged = format.judge(at, lo, hi);
      access &= judged >>> 2;
      if ((judged & 3) !== LEAF) {
        table = format.frame(at, lo, hi);
        continue;
      }
      if ((access & ACC_WRITE) !== 0) break;
      Object.assign(walk, {
        level,
        gfn: walk.entryGfn[level],
        secondLevel: at,
        secondTable: table,
        secondAccess: access,
      });
      secondFault(walk, second, 'violation', PFERR_PRESENT, index, lo, hi);
      walk.error |= PFERR_WRITE;
      return true;
    }
  }
  return false;
}

function setGuestBits(walk: Walk, mode: PagingMode, memory: WalkMemory): void {
  const { format } = mode;
  for (let level = format.rootLevel; level >= walk.leafLevel; level--) {
    const pfn = walk.entryPfn[level]!;
    const word = placeOf(mode, level, format.indexOf(walk.vfn, level)) << format.wordShift;
    const page = memory.page(pfn);
    const lo = page[word]!;
    const wanted = withBits(walk, mode, level, lo);
    if (wanted === lo || !(walk.second || memory.mayUpdate(walk.entryGfn[level]!))) continue;
    // Entries of 4 bytes are stored with the neighbour that shares their 8.
    if ((word & 1) === 0) memory.setBits(pfn, word >>> 1, wanted, page[word + 1]!);
    else memory.setBits(pfn, word >>> 1, page[word - 1]!, wanted);
  }
}

function guestFault(walk: Walk, mode: PagingMode, error: number): void {
  walk.status = 'guest-fault';
  const reported = walk.bits & (PFERR_WRITE | PFERR_USER | (mode.reportsFetch ? PFERR_FETCH : 0));
  walk.error = error | reported;
}
