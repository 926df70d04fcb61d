import type { CstNode } from 'langium';
import type { Span } from '../engine/program.ts';

export interface Diagnostic {
  readonly severity: 'error' | 'warning';
  readonly message: string;
  readonly span: Span;
}

/** Something that has a place in the source. */
export interface Placed {
  readonly $cstNode?: CstNode | undefined;
}

const NOWHERE: Span = { line: 1, column: 1, endLine: 1, endColumn: 1 };

export function spanOf(node: Placed | undefined): Span {
  const range = node?.$cstNode?.range;
  if (!range) return NOWHERE;
  return {
    line: range.start.line + 1,
    column: range.start.character + 1,
    endLine: range.end.line + 1,
    endColumn: range.end.character + 1,
  };
}

/** From the start of a node to the end of the last of `parts` that is there: a block's first line. */
export function headerSpan(node: Placed, keyword: string, ...parts: (Placed | undefined)[]): Span {
  const { line, column } = spanOf(node);
  const last = parts.findLast((part) => part?.$cstNode !== undefined);
  if (!last) return { line, column, endLine: line, endColumn: column + keyword.length };
  const { endLine, endColumn } = spanOf(last);
  return { line, column, endLine, endColumn };
}

/** What is wrong with a scenario, as it is found. */
export class Problems {
  readonly list: Diagnostic[] = [];

  error(where: Placed | Span | undefined, message: string): undefined {
    this.#add('error', where, message);
  }

  warning(where: Placed | Span | undefined, message: string): undefined {
    this.#add('warning', where, message);
  }

  #add(severity: Diagnostic['severity'], where: Placed | Span | undefined, message: string): void {
    this.list.push({ severity, message, span: where && 'line' in where ? where : spanOf(where) });
  }
}

/** Of `words` the one that `word` was probably meant to be. */
export function nearest(word: string, words: readonly string[]): string | undefined {
  if (word.length > 40) return undefined;
  let best: string | undefined;
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const candidate of words) {
    if (Math.abs(candidate.length - word.length) >= bestDistance) continue;
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

/** Insertions, deletions, substitutions and swaps of neighbours that make `a` into `b`. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let above = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = above[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(above[j]! + 1, row[j - 1]! + 1, substitution);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        row[j] = Math.min(row[j]!, before[j - 2]! + 1);
    }
    before = above;
    above = row;
  }
  return above[b.length]!;
}

/** ` (did you mean x?)`, or nothing. */
export function didYouMean(word: string, words: readonly string[]): string {
  const near = nearest(word, words);
  return near === undefined ? '' : ` (did you mean ${near}?)`;
}
