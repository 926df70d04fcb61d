import { ABSENT, LEAF, MALFORMED } from '../formats/compile.ts';
import { ALL_RIGHTS } from '../formats/format.ts';
import type { Tables, Tree } from './tables.ts';

/** An entry on the way down. */
export interface DescentStep {
  readonly level: number;
  /** First frame of the table. */
  readonly table: number;
  readonly index: number;
  /** The frame that holds the entry, and where in it, in bytes. */
  readonly frame: number;
  readonly offset: number;
  readonly lo: number;
  readonly hi: number;
}

export interface Descent {
  /** How it ended. `outside`: the table that was next lies where there is no memory. */
  readonly end: 'leaf' | 'absent' | 'malformed' | 'outside';
  /** Level of the last entry; for `outside` that of the table which could not be read. */
  readonly level: number;
  /** First frame of the last table, or of the one that could not be read. */
  readonly table: number;
  readonly index: number;
  readonly lo: number;
  readonly hi: number;
  /** Rights (SUPER_*, USER_*) that all entries together leave, and those that the entries above the last leave. */
  readonly rights: number;
  readonly above: number;
  /** 4K frame that the leaf gives for the input frame; −1 without a leaf. */
  readonly target: number;
}

/** One input frame down to its leaf. It judges form, not access: that is for the architecture's rules. */
export function descend(tables: Tables, tree: Tree, frame: number, steps?: { push(step: DescentStep): void }): Descent {
  const { format, rootEntry = 0 } = tree;
  let table = tree.root;
  let rights = ALL_RIGHTS;
  for (let level = format.rootLevel; ; level--) {
    const index = format.indexOf(frame, level);
    const place = level === format.rootLevel ? index + rootEntry : index;
    const holder = table + (place >>> format.perFrameBits);
    const last = { level, table, index, above: rights };
    if (tables.has?.(holder) === false) return { end: 'outside', ...last, lo: 0, hi: 0, rights, target: -1 };
    const page = tables.page(holder);
    const word = (place & format.perFrameMask) << format.wordShift;
    const lo = page[word]!;
    const hi = format.wordShift === 0 ? 0 : page[word + 1]!;
    steps?.push({ level, table, index, frame: holder, offset: 4 * word, lo, hi });
    const judged = format.judge(level, lo, hi);
    if ((judged & 3) === ABSENT) return { end: 'absent', ...last, lo, hi, rights, target: -1 };
    if ((judged & MALFORMED) !== 0 && level !== format.spec.loadedLevel)
      return { end: 'malformed', ...last, lo, hi, rights, target: -1 };
    rights &= format.rights(level, lo, hi);
    const target = format.frame(level, lo, hi);
    if ((judged & 3) === LEAF) {
      const within = frame % format.span[level]!;
      return { end: 'leaf', ...last, lo, hi, rights: format.effective(rights), target: target + within };
    }
    table = target;
  }
}
