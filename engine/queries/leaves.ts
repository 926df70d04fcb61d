import type { Format } from '../formats/compile.ts';
import { ALL_RIGHTS } from '../formats/format.ts';
import { inputFrame, type Stage } from '../guest/regime.ts';
import { descend } from '../pgtable/descend.ts';
import type { PgtableError, Tables, Tree } from '../pgtable/tables.ts';
import { DONE, LEAF, READ_ONLY, TABLE_PRE, Walker } from '../pgtable/walker.ts';

/** What a stage maps, leaf by leaf in the order of input addresses; the current leaf is in the fields. */
export class Leaves {
  readonly stage: Stage;
  /** First frame of the leaf in the 64-bit input space. */
  frame = 0;
  /** First frame that it maps to. */
  target = 0;
  level = 0;
  lo = 0;
  hi = 0;
  /** Frames that the leaf covers. */
  span = 0;
  /** Rights (SUPER_*, USER_*) that it and the entries above it leave. */
  rights = 0;
  readonly #walker: Walker;
  readonly #format: Format;
  /** What is added to a frame of the tables: more from the middle of a canonical space on. */
  readonly #base: number;
  readonly #middle: number;
  readonly #extension: number;
  /** Rights that the entries above a level leave. */
  readonly #above: number[];

  /**
   * Lists frames [start, end) of the tables' own space. `skipped` hears of entries that lead nowhere or back to their own path.
   */
  constructor(tables: Tables, stage: Stage, start: number, end: number, skipped: (problem: PgtableError) => void) {
    this.stage = stage;
    const { format } = stage.tree;
    this.#format = format;
    this.#base = stage.base;
    this.#middle = format.spec.canonical ? format.inputFrames / 2 : Number.POSITIVE_INFINITY;
    this.#extension = inputFrame(stage, format.inputFrames - 1) - (format.inputFrames - 1) - stage.base;
    this.#above = new Array(format.rootLevel + 1).fill(ALL_RIGHTS);
    this.#walker = new Walker(tables, stage.tree, start, end, LEAF | TABLE_PRE | READ_ONLY, skipped);
  }

  /** Goes to the next leaf. False at the end. */
  next(): boolean {
    const walker = this.#walker;
    const format = this.#format;
    for (;;) {
      const visit = walker.next();
      if (visit === DONE) return false;
      const { level, lo, hi } = walker;
      const rights = this.#above[level]! & format.rights(level, lo, hi);
      if (visit === TABLE_PRE) {
        this.#above[level - 1] = rights;
        continue;
      }
      this.level = level;
      this.lo = lo;
      this.hi = hi;
      this.span = format.span[level]!;
      const { frame } = walker;
      this.frame = frame + this.#base + (frame < this.#middle ? 0 : this.#extension);
      this.target = walker.target;
      this.rights = format.effective(rights);
      return true;
    }
  }
}

/** Memory as a guest sees it: its frames are found through second-stage tables. */
export class NestedMemory implements Tables {
  readonly #host: Tables;
  readonly #second: Tree;
  readonly #known = new Map<number, number>();

  constructor(host: Tables, second: Tree) {
    this.#host = host;
    this.#second = second;
  }

  /** The host frame behind a guest frame; −1 where the second stage maps none, or to no memory. */
  resolve(gfn: number): number {
    let pfn = this.#known.get(gfn);
    if (pfn === undefined) {
      pfn = gfn < this.#second.format.inputFrames ? descend(this.#host, this.#second, gfn).target : -1;
      if (pfn >= 0 && this.#host.has?.(pfn) === false) pfn = -1;
      this.#known.set(gfn, pfn);
    }
    return pfn;
  }

  has(gfn: number): boolean {
    return this.resolve(gfn) >= 0;
  }

  page(gfn: number): Uint32Array {
    return this.#host.page(this.resolve(gfn));
  }
}
