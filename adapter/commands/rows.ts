import { USER } from '../../engine/formats/format.ts';
import { inputFrame, type Stage, tableFrame } from '../../engine/guest/regime.ts';
import type { PgtableError, Tables } from '../../engine/pgtable/tables.ts';
import { Leaves } from '../../engine/queries/leaves.ts';

/** What of the mappings is wanted. */
export interface Filter {
  /** Frames [start, end) of the input space. */
  readonly start: number;
  readonly end: number;
  /** Rights of which a mapping must have some of each, and those of which it must have none. */
  readonly wanted: readonly number[];
  readonly unwanted: number;
  /** Frames [first, end) of which a mapping must contain some. */
  readonly physical: { readonly first: number; readonly end: number } | undefined;
}

/** Rights by letters: r, w, x (the user's where `u` is among them), u, s (not the user's); `!` before those that must lack. */
export function readRights(letters: string): Pick<Filter, 'wanted' | 'unwanted'> | undefined {
  if (!/^(!?[rwxus])*$/.test(letters)) return undefined;
  const wanted: number[] = [];
  let unwanted = 0;
  const user = /(^|[^!])u/.test(letters);
  for (const [, not, letter] of letters.matchAll(/(!?)([rwxus])/g)) {
    const both = letter === 'r' ? 9 : letter === 'w' ? 18 : letter === 'x' ? 36 : USER;
    const mask = user && both !== USER ? both & USER : both;
    if ((not !== '') !== (letter === 's')) unwanted |= mask;
    else wanted.push(mask);
  }
  return { wanted, unwanted };
}

/** The parts of a stage's own space that lie in a range; those of a canonical space are two. */
function windows(stage: Stage, { start, end }: Filter): [number, number][] {
  const { inputFrames, spec } = stage.tree.format;
  const halves: readonly (readonly [number, number])[] = spec.canonical
    ? [
        [0, inputFrames / 2],
        [inputFrames / 2, inputFrames],
      ]
    : [[0, inputFrames]];
  return halves.flatMap(([low, high]): [number, number][] => {
    const first = inputFrame(stage, low);
    const from = Math.max(start, first);
    const to = Math.min(end, first + high - low);
    return from < to ? [[tableFrame(stage, from)!, tableFrame(stage, to - 1)! + 1]] : [];
  });
}

/**
 * Mappings of stages in the order of input addresses: a leaf each, or runs of leaves with equal rights that are contiguous on
 * both sides, or map the same page again and again. The current one is in the fields.
 */
export class Rows {
  stage: Stage;
  /** First frame of the 64-bit input space, and the frame it maps to. */
  frame = 0;
  target = 0;
  /** Frames. */
  span = 0;
  /** Frames of the one page that every leaf of the run maps; 0 for a run that is contiguous. */
  repeated = 0;
  rights = 0;
  /** Of the leaf; 0 for joined leaves of several levels. */
  level = 0;
  lo = 0;
  hi = 0;
  readonly #memory: Tables;
  readonly #filter: Filter;
  readonly #merge: boolean;
  readonly #skipped: (problem: PgtableError) => void;
  readonly #parts: [Stage, number, number][];
  #leaves: Leaves | undefined;
  /** A leaf has been read that begins the next run. */
  #ahead = false;

  constructor(
    memory: Tables,
    stages: readonly Stage[],
    filter: Filter,
    merge: boolean,
    skipped: (problem: PgtableError) => void,
  ) {
    this.#memory = memory;
    this.#filter = filter;
    this.#merge = merge;
    this.#skipped = skipped;
    this.stage = stages[0]!;
    this.#parts = stages.flatMap((stage) =>
      windows(stage, filter).map(([from, to]): [Stage, number, number] => [stage, from, to]),
    );
  }

  /** Goes to the next row. False at the end. */
  next(): boolean {
    if (!this.#ahead && !this.#nextLeaf()) return false;
    this.#ahead = false;
    const leaves = this.#leaves!;
    this.stage = leaves.stage;
    this.frame = leaves.frame;
    this.target = leaves.target;
    this.span = leaves.span;
    this.repeated = 0;
    this.rights = leaves.rights;
    this.level = leaves.level;
    this.lo = leaves.lo;
    this.hi = leaves.hi;
    while (this.#merge && this.#nextLeaf()) {
      if (!this.#continues()) {
        this.#ahead = true;
        break;
      }
      const { span, level, target } = this.#leaves!;
      if (target === this.target) this.repeated = span;
      this.span += span;
      if (level !== this.level) this.level = 0;
    }
    return true;
  }

  #continues(): boolean {
    const { stage, frame, target, span, rights } = this.#leaves!;
    if (stage !== this.stage || frame !== this.frame + this.span || rights !== this.rights) return false;
    // The second leaf decides which kind of run it is.
    const again = target === this.target && (this.repeated === 0 ? this.span === span : this.repeated === span);
    return again || (this.repeated === 0 && target === this.target + this.span);
  }

  #nextLeaf(): boolean {
    for (;;) {
      while (this.#leaves?.next()) if (this.#accepts(this.#leaves)) return true;
      const part = this.#parts.shift();
      if (!part) return false;
      const [stage, from, to] = part;
      this.#leaves = new Leaves(this.#memory, stage, from, to, this.#skipped);
    }
  }

  #accepts({ rights, target, span }: Leaves): boolean {
    const { unwanted, wanted, physical } = this.#filter;
    if ((rights & unwanted) !== 0) return false;
    for (const mask of wanted) if ((rights & mask) === 0) return false;
    return !physical || (target < physical.end && target + span > physical.first);
  }
}
