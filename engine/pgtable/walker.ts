import { ABSENT, LEAF as FORMAT_LEAF, type Format, TABLE } from '../formats/compile.ts';
import { cycleError, type Tables } from './tables.ts';

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
  readonly #presentLo: number;
  /** Address bits of a 4K leaf. */
  readonly #pageLo: number;
  readonly #pageHi: number;
  #page: Uint32Array;
  #end: number;
  #start: number;
  #state = VISIT;
  /** In a page table: the index at which the table or the range ends. Meaningless above level 1. */
  #leafEnd = 0;

  /** Walks input frames [start, end) of the tree at `root`. */
  constructor(tables: Tables, format: Format, root: number, start: number, end: number, flags: number) {
    this.#tables = tables;
    this.#format = format;
    this.#flags = flags;
    this.#rootLevel = format.rootLevel;
    this.#presentLo = format.presentLo;
    this.#pageLo = format.addressLo[3]!;
    this.#pageHi = format.addressHi[3]!;
    const limit = format.span[format.rootLevel]! * 512;
    if (!(start >= 0 && start <= end && end <= limit))
      throw new RangeError(
        `frames 0x${start.toString(16)} … 0x${end.toString(16)} are not within 0 … 0x${limit.toString(16)}`,
      );
    this.#start = start;
    this.#end = end;
    this.level = format.rootLevel;
    this.table = root;
    this.#page = tables.page(root);
    this.index = format.indexOf(start, this.level);
    if (start === end) this.#state = FINISHED;
  }

  /** The entry's words. Read them before changing the entry. */
  get lo(): number {
    return this.#page[this.index << 1]!;
  }

  get hi(): number {
    return this.#page[(this.index << 1) + 1]!;
  }

  /** First input frame that the entry covers. */
  get frame(): number {
    return this.#base + this.index * this.#format.span[this.level]!;
  }

  /** The frame that the entry points to: the page's, or the next table's. */
  get target(): number {
    if (this.level > 1) return this.#format.frame(this.level, this.lo, this.hi);
    const word = this.index << 1;
    return ((this.#page[word]! & this.#pageLo) >>> 12) + (this.#page[word + 1]! & this.#pageHi) * 1048576;
  }

  next(): number {
    // The common case, kept small enough to be inlined: from one 4K leaf to the next in the same table.
    if (this.#state === NEXT_LEAF) {
      const index = this.index + 1;
      if (index < this.#leafEnd) {
        if ((this.#page[index << 1]! & this.#presentLo) !== 0) {
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
      const { lo } = this;
      if ((lo & this.#presentLo) === 0) {
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
      if (this.#format.classify(this.level, lo) === FORMAT_LEAF) {
        if ((flags & LEAF) !== 0) return LEAF;
      } else if ((flags & TABLE_PRE) !== 0) return TABLE_PRE;
    }
  }

  /** Reads the entry again and goes into its table, if it is one. */
  #descend(): boolean {
    if (this.level === 1) return false;
    if ((this.#flags & READ_ONLY) === 0) {
      this.#page = this.#tables.page(this.table);
    }
    if (this.#format.classify(this.level, this.lo) !== TABLE) return false;
    const child = this.#format.frame(this.level, this.lo, this.hi);
    this.#tableAt[this.level] = this.table;
    this.#indexAt[this.level] = this.index;
    this.#baseAt[this.level] = this.#base;
    for (let level = this.level; level <= this.#rootLevel; level++) {
      if (this.#tableAt[level] === child) throw cycleError(this.level, this.table, child);
    }
    const base = this.frame;
    this.#base = base;
    this.level--;
    this.table = child;
    this.#page = this.#tables.page(child);
    this.index = this.#format.indexOf(Math.max(base, this.#start), this.level);
    this.#leafEnd = this.#end - base >= 512 ? 512 : (this.#end - base) | 0;
    this.#state = VISIT;
    return true;
  }

  /** Moves to the next entry of the same table. False at the table's or the range's end. */
  #advance(): boolean {
    this.index++;
    this.#state = VISIT;
    return this.index < 512 && this.frame < this.#end;
  }

  #ascend(): void {
    this.level++;
    this.table = this.#tableAt[this.level]!;
    this.index = this.#indexAt[this.level]!;
    this.#base = this.#baseAt[this.level]!;
    this.#page = this.#tables.page(this.table);
    this.#state = ADVANCE;
  }
}

/** Whether every entry of a table is absent. */
export function isEmptyTable(tables: Tables, format: Format, level: number, table: number): boolean {
  const page = tables.page(table);
  for (let index = 0; index < 512; index++) {
    if (format.classify(level, page[2 * index]!) !== ABSENT) return false;
  }
  return true;
}
