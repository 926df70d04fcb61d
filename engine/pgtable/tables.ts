import { hex } from '../memory/words.ts';

/** Where tables lie: a table is a frame, an entry is words 2i and 2i+1 of its page. */
export interface Tables {
  page(frame: number): Uint32Array;
}

/** Tables that an operation may change. Every store goes through here, so that an owner can log or order them. */
export interface TableStore extends Tables {
  store(frame: number, index: number, lo: number, hi: number): void;
  /** An empty table's frame. @throws when there is no frame left. */
  allocate(): number;
  release(frame: number): void;
}

/** A tree of tables: a root and what it is made of is all an operation needs. */
export class PgtableError extends Error {}

export function cycleError(level: number, table: number, child: number): PgtableError {
  return new PgtableError(
    `the level-${level} table at ${hex(BigInt(table) << 12n)} has an entry that leads back to the table at ` +
      `${hex(BigInt(child) << 12n)} on its own path`,
  );
}
