import type { SecondStageKind } from '../kernel/tables.ts';
import type { Certainty } from '../queries/answers.ts';

/** Entries of a table, and its words. */
export const ENTRIES = 512;
/** SPTE_MMU_PRESENT_MASK, and the bit of a large page: the same in EPT, NPT and shadow entries (KVM: `spte.h`). */
export const PRESENT = 1 << 11;
const LARGE = 1 << 7;
/** X of EPT entries, and XD of the others, in the upper word. */
const EPT_EXECUTE = 1 << 2;
const NO_EXECUTE_HI = 1 << 31;
/** FROZEN_SPTE without bit 63, which only newer kernels set. */
export const FROZEN_LO = 0x5a0;
/** Frames of tables whose address no event tells: beyond any memory, and still an address that an entry can hold. */
const UNTOLD_FRAMES = 2 ** 39;

/** A table as events tell of it. Plain data, so that a moment can be kept. */
export interface InferredTable {
  readonly id: number;
  frame: number;
  readonly level: number;
  /** Of the TDP MMU the first gfn that it maps; of a shadow page the guest's table. */
  readonly gfn: number;
  role: number;
  roleKnown: number;
  readonly entries: Uint32Array;
  readonly doubtful: Map<number, Certainty>;
  /** Ids of the tables that entries lead to. */
  readonly children: Map<number, number>;
  /** Where it hangs, if anywhere is known. */
  parent: { readonly id: number; readonly index: number } | undefined;
  unsync: boolean;
}

/** A tree of tables, from a root down. */
export interface InferredRoot {
  readonly table: number;
  readonly asId: number;
  /** Threads that have loaded it, of shadow roots; the TDP MMU's are everybody's. */
  readonly threads: Set<number>;
  invalid: boolean;
  /** That it was given up may have been said of another machine's. */
  guessed: boolean;
}

/** A table that was taken out of a tree, and the entries that events have yet to tell of. */
export interface RemovedTable {
  readonly id: number;
  /** The table that it hung in. */
  readonly under: number;
  left: number;
}

export function newTable(
  id: number,
  { level, gfn, frame }: { level: number; gfn: number; frame?: number },
  emptyHi: number,
): InferredTable {
  const entries = new Uint32Array(2 * ENTRIES);
  if (emptyHi !== 0) for (let index = 0; index < ENTRIES; index++) entries[2 * index + 1] = emptyHi;
  return {
    id,
    frame: frame ?? UNTOLD_FRAMES + id,
    level,
    gfn,
    role: level,
    roleKnown: 0,
    entries,
    doubtful: new Map(),
    children: new Map(),
    parent: undefined,
    unsync: false,
  };
}

export const isTold = ({ frame }: InferredTable): boolean => frame < UNTOLD_FRAMES;

export function copyTable(table: InferredTable): InferredTable {
  return {
    ...table,
    entries: table.entries.slice(),
    doubtful: new Map(table.doubtful),
    children: new Map(table.children),
  };
}

/** Whether an entry of a level leads to another table. */
export function leadsToTable(level: number, lo: number): boolean {
  return level > 1 && (lo & PRESENT) !== 0 && (lo & LARGE) === 0;
}

export function isLeaf(level: number, lo: number): boolean {
  return (lo & PRESENT) !== 0 && (level === 1 || (lo & LARGE) !== 0);
}

/** Indices of a table's entries that map pages. */
export function leavesOf({ level, entries }: InferredTable): number[] {
  return [...Array(ENTRIES).keys()].filter((index) => isLeaf(level, entries[2 * index]!));
}

/** The frame that an entry has (bits 51:12). */
export function frameOf(lo: number, hi: number): number {
  return (hi & 0xf_ffff) * 2 ** 20 + (lo >>> 12);
}

/** Index of a gfn, or of the frame of an address, in a table of a level. */
export const indexOf = (frame: number, level: number): number => Math.floor(frame / 512 ** (level - 1)) % 512;

/** A table's place in a tree of the TDP MMU. */
export const placeKey = (level: number, gfn: number): string => `${level} ${Math.floor(gfn / 512 ** level)}`;

/** Whether a table has no entry that is present. */
export function isEmpty({ entries, children }: InferredTable): boolean {
  if (children.size > 0) return false;
  for (let index = 0; index < ENTRIES; index++) if ((entries[2 * index]! & PRESENT) !== 0) return false;
  return true;
}

/**
 * EPT and NPT differ in where the accessed bit is, and KVM sets it in every entry that it makes; where EPT has none, bits 53:52
 * say so. Of an entry that is not present nothing follows.
 */
export function secondStageOf(lo: number, hi: number): SecondStageKind | undefined {
  if ((lo & PRESENT) === 0) return undefined;
  return (lo & 0x100) !== 0 || ((hi >>> 20) & 3) === 1 ? 'ept' : 'npt';
}

/** Bits that the processor sets without a word: accessed and dirty. */
export function silentBits(kind: SecondStageKind): number {
  return kind === 'ept' ? 0x300 : 0x60;
}

/**
 * The pieces of a large page that the TDP MMU splits, which no event tells (make_huge_page_split_spte): the same rights, each its own
 * frames; those of 4K are not large, and executable, for it withholds that from large pages alone (NX huge pages).
 */
export function fillSplit(child: InferredTable, lo: number, hi: number, kind: SecondStageKind): void {
  const step = 512 ** (child.level - 1);
  const first = frameOf(lo, hi);
  const isPage = child.level === 1;
  const keepLo = (isPage ? (lo & ~LARGE) | (kind === 'ept' ? EPT_EXECUTE : 0) : lo) & 0xfff;
  const keepHi = hi & 0xfff0_0000 & (isPage && kind !== 'ept' ? ~NO_EXECUTE_HI : -1);
  for (let index = 0; index < ENTRIES; index++) {
    const frame = first + index * step;
    child.entries[2 * index] = ((frame % 2 ** 20) * 4096 + keepLo) >>> 0;
    child.entries[2 * index + 1] = (keepHi | Math.floor(frame / 2 ** 20)) >>> 0;
  }
}

/** What KVM writes where a table hangs below another (make_nonleaf_spte): the address, present, W, U, A and KVM's own bit. */
export function writeLink(table: InferredTable, index: number, child: InferredTable): void {
  table.entries[2 * index] = ((child.frame % 2 ** 20) * 4096 + 0x827) >>> 0;
  table.entries[2 * index + 1] = Math.floor(child.frame / 2 ** 20);
}

/** The same above page directories, whose entries have nothing but the address and that they are present. */
export function writePointer(table: InferredTable, index: number, child: InferredTable): void {
  writeLink(table, index, child);
  table.entries[2 * index]! &= ~0xfff;
  table.entries[2 * index]! |= 1;
}
