import { hex } from '../../engine/memory/words.ts';
import type { SlotConfig } from '../../engine/program.ts';
import type { Problems } from '../diagnostics.ts';
import type * as Ast from '../generated/ast.ts';
import { sizeWords } from '../number.ts';
import { constant } from './expression.ts';

export interface Range {
  readonly base: bigint;
  readonly size: bigint;
}

/** A start and a size that are constants and multiples of 4K, the size not 0. `start` names the address in messages. */
export function lowerRange(
  base: Ast.Expression,
  size: Ast.Expression,
  start: string,
  problems: Problems,
): Range | undefined {
  const from = constant(base, start, problems);
  const length = constant(size, 'a size', problems);
  if (from === undefined || length === undefined) return undefined;
  if (!aligned(base, start, from, problems)) return undefined;
  if (length % 4096n !== 0n || length === 0n)
    return problems.error(size, `size ${sizeWords(length)} is not a multiple of 4K, at least 4K`);
  if (from + length > 1n << 64n)
    return problems.error(size, `${start} ${hex(from)} +${sizeWords(length)} ends beyond 64 bits`);
  return { base: from, size: length };
}

export function aligned(node: Ast.Expression, what: string, value: bigint, problems: Problems): boolean {
  if (value % 4096n === 0n) return true;
  problems.error(node, `${what} ${hex(value)} is not a multiple of 4K`);
  return false;
}

const LOW_END = 1n << 47n;
const HIGH_START = (1n << 64n) - LOW_END;

/** Whether a range of guest-virtual addresses has bits 63:48 equal to bit 47 throughout. */
export function canonical(node: Ast.Expression, { base, size }: Range, problems: Problems): boolean {
  if (base + size <= LOW_END || base >= HIGH_START) return true;
  const halves = `0 … ${hex(LOW_END - 1n)} and ${hex(HIGH_START)} …`;
  const end = base < LOW_END ? ` +${sizeWords(size)}` : '';
  problems.error(node, `gva ${hex(base)}${end} is not canonical; 4-level paging translates ${halves}`);
  return false;
}

/** Whether memory slots hold all of a range: of the machine, or that some host task adds. */
export class Coverage {
  readonly #pieces: { base: bigint; end: bigint }[] = [];

  constructor(slots: readonly SlotConfig[]) {
    const sorted = slots.map(({ base, size }) => ({ base, end: base + size }));
    sorted.sort((a, b) => (a.base < b.base ? -1 : 1));
    for (const piece of sorted) {
      const last = this.#pieces.at(-1);
      if (!last || piece.base > last.end) this.#pieces.push({ ...piece });
      else if (piece.end > last.end) last.end = piece.end;
    }
  }

  get empty(): boolean {
    return this.#pieces.length === 0;
  }

  /** The first address of a range that no slot holds. */
  firstOutside({ base, size }: Range): bigint | undefined {
    let low = 0;
    let high = this.#pieces.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#pieces[middle]!.base <= base) low = middle + 1;
      else high = middle;
    }
    const piece = this.#pieces[low - 1];
    if (!piece || piece.end <= base) return base;
    return piece.end >= base + size ? undefined : piece.end;
  }
}
