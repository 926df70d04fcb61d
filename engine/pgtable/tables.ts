import type { Format } from '../formats/compile.ts';
import { frameToAddress, hex } from '../memory/words.ts';

/**
 * Where tables lie, by frames of 4K: a table begins with its frame, and a large one goes on in the frames after it. A
 * format knows which words an entry is.
 */
export interface Tables {
  page(frame: number): Uint32Array;
  /** Whether there is such a frame. All are there where nobody says. */
  has?(frame: number): boolean;
}

/** Tables that an operation may change. Every store goes through here, so that an owner can log or order them. */
export interface TableStore extends Tables {
  /** Stores 8 bytes at `index` (0 … 511) of a frame. @param half of two entries of 4 bytes the one that is stored */
  store(frame: number, index: number, lo: number, hi: number, half?: 0 | 1): void;
  /** The first frame of an empty table of so many frames, aligned to them. @throws when there is none left. */
  allocate(frames: number): number;
  release(frame: number, frames: number): void;
}

/** The low word of an entry of a table. */
export function entryLo(tables: Tables, format: Format, table: number, index: number): number {
  return tables.page(table + (index >>> format.perFrameBits))[(index & format.perFrameMask) << format.wordShift]!;
}

/** The high word of an entry: 0 where entries have 4 bytes. */
export function entryHi(tables: Tables, format: Format, table: number, index: number): number {
  if (format.wordShift === 0) return 0;
  return tables.page(table + (index >>> format.perFrameBits))[((index & format.perFrameMask) << 1) + 1]!;
}

/** Stores an entry. Where entries have 4 bytes, its neighbour is stored again as it is. */
export function storeEntry(
  store: TableStore,
  format: Format,
  table: number,
  index: number,
  lo: number,
  hi: number,
): void {
  const frame = table + (index >>> format.perFrameBits);
  const within = index & format.perFrameMask;
  if (format.wordShift === 1) {
    store.store(frame, within, lo, hi);
    return;
  }
  const other = store.page(frame)[within ^ 1]!;
  if ((within & 1) === 0) store.store(frame, within >>> 1, lo, other, 0);
  else store.store(frame, within >>> 1, other, lo, 1);
}

/** What is wrong with tables, with the address of the table. */
export class PgtableError extends Error {}

/** A tree: where it begins and what it is made of. Small tables at the top need not begin with their frame. */
export interface Tree {
  readonly format: Format;
  readonly root: number;
  /** Entry of the frame at which the root table begins: 0 unless told. */
  readonly rootEntry?: number;
}

export function cycleError(format: Format, level: number, table: number, child: number): PgtableError {
  return new PgtableError(
    `the level-${format.number(level)} table at ${hex(frameToAddress(table))} has an entry that leads back to the table ` +
      `at ${hex(frameToAddress(child))} on its own path`,
  );
}

export function outsideError(format: Format, level: number, table: number, index: number, child: number): PgtableError {
  return new PgtableError(
    `${format.level(level).entry} ${index} of the level-${format.number(level)} table at ${hex(frameToAddress(table))} ` +
      `points to a table at ${hex(frameToAddress(child))}, where there is no memory`,
  );
}
