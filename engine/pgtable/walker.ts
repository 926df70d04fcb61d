import { ABSENT, LEAF as FORMAT_LEAF, type Format, TABLE } from '../formats/compile.ts';
import { cycleError, entryLo, outsideError, type PgtableError, type Tables, type Tree } from './tables.ts';

/** What `next` came to, and at the same time the flag that asks for such visits. */
export const DONE = 0;
export const LEAF = 1;
export const TABLE_PRE = 2;
export const TABLE_POST = 4;
/** Flag: absent entries are visited as LEAF too, as arm64's `kvm_pgtable` does. */
export const ABSENT_TOO = 8;
/** Flag: the caller changes nothing between visits, so entries need not be read again. */
export const READ_ONLY = 16;

/** The current entry has not been looked at. */
const VISIT = 0;
/** It was visited, and may have become a table. */
const AFTER_ENTRY = 1;
/** Nothing more is to be done with it. */
const ADVANCE = 2;
/** The same for a 4K leaf in a walk that changes nothing. */
const NEXT_LEAF = 3;
const FINISHED = 4;

/**
 * A cursor over a tree of tables, in the order of input addresses. `next` stops at
 *
 * - LEAF: an entry that maps a page (or, on request, nothing),
 * - TABLE_PRE: an entry that points to a table, before the table's entries,
 * - TABLE_POST: the same entry after them.
 *
 * As in `kvm_pgtable`, the entry is read again after LEAF and TABLE_PRE, and descended into if it is a table by then.
 * The current entry is in the public fields until the next call.
 */
export class Walker {
  level = 0;
  /** Index of the entry in its table. */
  index = 0;
  /** Frame of the table that holds the entry. */
  table = 0;

  readonly #tables: Tables;
  readonly #format: Format;
  readonly #flags: number;
  readonly #rootLevel: number;
  readonly #tableAt: number[] = [];
  readonly #indexAt: number[] = [];
  /** First input frame of the current table, and of those above it. */
  #base = 0;
  readonly #baseAt: number[] = [];
  /** An entry of level 1 maps a page when these bits of it are at least that. */
  readonly #pageMask: number;
  readonly #pageLeast: number;
  /** The level whose targets are put together here; none in formats whose address bits stand apart. */
  readonly #plainLevel: number;
  /** Address bits of a leaf of level 1, in formats that keep them together. */
  readonly #pageLo: number;
  readonly #pageHi: number;
  readonly #wordShift: number;
  readonly #rootEntry: number;
  /** The frame of the table that holds the entry, and the index of the entry at its word 0. */
  #page: Uint32Array;
  #first = 0;
  #end: number;
  #start: number;
  #state = VISIT;
  /** In a page table: the index at which the frame, the table or the range ends. Meaningless above level 1. */
  #leafEnd = 0;
  readonly #skipped: ((problem: PgtableError) => void) | undefined;

  /**
   * Walks input frames [start, end) of a tree. An entry that leads back to a table on its own path, or out of memory, is
   * passed over and told to `skipped`.
   * @throws PgtableError at such an entry where there is no `skipped`.
   */
  constructor(
    tables: Tables,
    tree: Tree,
    start: number,
    end: number,
    flags: number,
    skipped?: (problem: PgtableError) => void,
  ) {
    const { format, root, rootEntry = 0 } = tree;
    this.#tables = tables;
    this.#format = format;
    this.#flags = flags;
    this.#skipped = skipped;
    this.#rootLevel = format.rootLevel;
    this.#rootEntry = rootEntry;
    this.#pageMask = format.presentLo | format.pageLo;
    this.#pageLeast = format.pageLo === 0 ? 1 : this.#pageMask;
    this.#plainLevel = format.isPlain ? 1 : 0;
    this.#pageLo = format.addressLo[3]!;
    this.#pageHi = format.addressHi[3]!;
    this.#wordShift = format.wordShift;
    const limit = format.inputFrames;
    if (!(start >= 0 && start <= end && end <= limit))
      throw new RangeError(
        `frames 0x${start.toString(16)} … 0x${end.toString(16)} are not within 0 … 0x${limit.toString(16)}`,
      );
    this.#start = start;
    this.#end = end;
    this.level = format.rootLevel;
    this.table = root;
    this.index = format.indexOf(start, this.level);
    this.#page = tables.page(root);
    this.#load();
    if (start === end) this.#state = FINISHED;
  }

  /** The entry's words. Read them before changing the entry. */
  get lo(): number {
    return this.#page[(this.index - this.#first) << this.#wordShift]!;
  }

  get hi(): number {
    return this.#wordShift === 0 ? 0 : this.#page[((this.index - this.#first) << 1) + 1]!;
  }

  /** The entry counted from the beginning of the table's frame: where to store it. */
  get place(): number {
    return this.index + (this.level === this.#rootLevel ? this.#rootEntry : 0);
  }

  /** First input frame that the entry covers. */
  get frame(): number {
    return this.#base + this.index * this.#format.span[this.level]!;
  }

  /** The frame that the entry points to: the page's, or the next table's. */
  get target(): number {
    if (this.level !== this.#plainLevel) return this.#format.frame(this.level, this.lo, this.hi);
    const word = (this.index - this.#first) << 1;
    return ((this.#page[word]! & this.#pageLo) >>> 12) + (this.#page[word + 1]! & this.#pageHi) * 1048576;
  }

  next(): number {
    // The common case, kept small enough to be inlined: from one leaf to the next in the same page table.
    if (this.#state === NEXT_LEAF) {
      const index = this.index + 1;
      if (index < this.#leafEnd) {
        const lo = this.#page[(index - this.#first) << this.#wordShift]!;
        if ((lo & this.#pageMask) >= this.#pageLeast) {
          this.index = index;
          return LEAF;
        }
      }
    }
    return this.#nextSlowly();
  }

  #nextSlowly(): number {
    const flags = this.#flags;
    for (;;) {
      if (this.#state !== VISIT) {
        if (this.#state === FINISHED) return DONE;
        if (this.#state === AFTER_ENTRY && this.#descend()) continue;
        if (!this.#advance()) {
          if (this.level === this.#rootLevel) {
            this.#state = FINISHED;
            return DONE;
          }
          this.#ascend();
          if ((flags & TABLE_POST) !== 0) return TABLE_POST;
          continue;
        }
      }
      const kind = this.#format.classify(this.level, this.lo);
      if (kind === ABSENT) {
        this.#state = ADVANCE;
        if ((flags & ABSENT_TOO) === 0) continue;
        this.#state = AFTER_ENTRY;
        return LEAF;
      }
      if (this.level === 1) {
        this.#state = (flags & READ_ONLY) !== 0 ? NEXT_LEAF : ADVANCE;
        if ((flags & LEAF) !== 0) return LEAF;
        this.#state = ADVANCE;
        continue;
      }
      this.#state = AFTER_ENTRY;
      if (kind === FORMAT_LEAF) {
        if ((flags & LEAF) !== 0) return LEAF;
      } else if ((flags & TABLE_PRE) !== 0) return TABLE_PRE;
    }
  }

  /** Reads the entry again and goes into its table, if it is one. */
  #descend(): boolean {
    if (this.level === 1) return false;
    if ((this.#flags & READ_ONLY) === 0) this.#load();
    if (this.#format.classify(this.level, this.lo) !== TABLE) return false;
    const child = this.#format.frame(this.level, this.lo, this.hi);
    this.#tableAt[this.level] = this.table;
    for (let level = this.level; level <= this.#rootLevel; level++) {
      if (this.#tableAt[level] === child && (level < this.#rootLevel || this.#rootEntry === 0))
        return this.#skip(cycleError(this.#format, this.level, this.table, child));
    }
    if (this.#tables.has?.(child) === false)
      return this.#skip(outsideError(this.#format, this.level, this.table, this.index, child));
    this.#indexAt[this.level] = this.index;
    this.#baseAt[this.level] = this.#base;
    const base = this.frame;
    this.#base = base;
    this.level--;
    this.table = child;
    this.index = this.#format.indexOf(Math.max(base, this.#start), this.level);
    this.#load();
    this.#state = VISIT;
    return true;
  }

  #skip(problem: PgtableError): false {
    if (!this.#skipped) throw problem;
    this.#skipped(problem);
    return false;
  }

  /** Finds the frame that holds the current entry. */
  #load(): void {
    const { perFrameBits, perFrameMask, entries, span } = this.#format;
    const { place } = this;
    this.#page = this.#tables.page(this.table + (place >>> perFrameBits));
    this.#first = this.index - (place & perFrameMask);
    if (this.level > 1) return;
    const inRange = (this.#end - this.#base) / span[1]!;
    this.#leafEnd = Math.ceil(Math.min(entries[1]!, this.#first + perFrameMask + 1, inRange));
  }

  /** Moves to the next entry of the same table. False at the table's or the range's end. */
  #advance(): boolean {
    this.index++;
    this.#state = VISIT;
    if (this.index >= this.#format.entries[this.level]! || this.frame >= this.#end) return false;
    if (this.index - this.#first > this.#format.perFrameMask) this.#load();
    return true;
  }

  #ascend(): void {
    this.level++;
    this.table = this.#tableAt[this.level]!;
    this.index = this.#indexAt[this.level]!;
    this.#base = this.#baseAt[this.level]!;
    this.#load();
    this.#state = ADVANCE;
  }
}

/** Whether every entry of a table is absent. */
export function isEmptyTable(tables: Tables, format: Format, level: number, table: number): boolean {
  for (let index = 0; index < format.entries[level]!; index++) {
    if (format.classify(level, entryLo(tables, format, table, index)) !== ABSENT) return false;
  }
  return true;
}
