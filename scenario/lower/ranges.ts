import type { PagingName } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
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
  const length = lowerSize(size, problems);
  if (from === undefined || length === undefined) return undefined;
  if (!aligned(base, start, from, problems)) return undefined;
  if (from + length > 1n << 64n)
    return problems.error(size, `${start} ${hex(from)} +${sizeWords(length)} ends beyond 64 bits`);
  return { base: from, size: length };
}

export function lowerSize(size: Ast.Expression, problems: Problems): bigint | undefined {
  const length = constant(size, 'a size', problems);
  if (length === undefined || (length % 4096n === 0n && length !== 0n)) return length;
  return problems.error(size, `size ${sizeWords(length)} is not a multiple of 4K, at least 4K`);
}

export function aligned(node: Ast.Expression, what: string, value: bigint, problems: Problems): boolean {
  if (value % 4096n === 0n) return true;
  problems.error(node, `${what} ${hex(value)} is not a multiple of 4K`);
  return false;
}

/** Bits of an address up to the one that is extended to the rest; none is outside of long mode. */
const LOW_BITS: Readonly<Record<PagingName, bigint>> = { '32-bit': 32n, pae: 32n, '4-level': 47n, '5-level': 56n };

/** Whether a paging mode translates a range of guest-virtual addresses throughout. */
export function canonical(
  node: Ast.Expression,
  { base, size }: Range,
  paging: PagingName,
  problems: Problems,
): boolean {
  const lowEnd = 1n << LOW_BITS[paging];
  if (base + size <= lowEnd) return true;
  if (paging === '32-bit' || paging === 'pae') {
    problems.error(node, `gva ${hex(base)} +${sizeWords(size)} ends beyond 4G, which ${paging} paging does not reach`);
    return false;
  }
  const highStart = (1n << 64n) - lowEnd;
  if (base >= highStart) return true;
  const halves = `0 … ${hex(lowEnd - 1n)} and ${hex(highStart)} …`;
  const end = base < lowEnd ? ` +${sizeWords(size)}` : '';
  problems.error(node, `gva ${hex(base)}${end} is not canonical; ${paging} paging translates ${halves}`);
  return false;
}

/** Whether memory slots hold all of a range: of the machine, or that some host task adds. */
export class Coverage {
  readonly #pieces: { base: bigint; end: bigint }[] = [];

  constructor(slots: readonly Range[]) {
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
