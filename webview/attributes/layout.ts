import type { AttributesAnswer, CellFacts } from '../../engine/queries/answers.ts';
import type { Viewport } from '../kit/viewport.ts';

/** Cells of a tile. */
const TILE_CELLS = 1024;
const PAGE = 4096;

/** A part of memory that is asked for and kept as one: cells of so many bytes, the number of the tile among those of that size. */
export interface TileKey {
  readonly cell: number;
  readonly index: number;
}

export const tileStart = ({ cell, index }: TileKey): number => index * TILE_CELLS * cell;
export const tileEnd = ({ cell, index }: TileKey): number => (index + 1) * TILE_CELLS * cell;

/** Bytes of a cell, so that it is at least a CSS pixel wide, and less than two unless it is a page. */
export function cellSize(view: Viewport, width: number): number {
  return Math.max(PAGE, 2 ** Math.ceil(Math.log2(view.size / Math.max(1, width))));
}

/** The tiles that show what is on screen best. */
export function tilesFor(view: Viewport, width: number): TileKey[] {
  const cell = cellSize(view, width);
  const across = TILE_CELLS * cell;
  const first = Math.max(0, Math.floor(view.start / across));
  const last = Math.max(first, Math.ceil((view.start + view.size) / across) - 1);
  return Array.from({ length: last - first + 1 }, (_, each) => ({ cell, index: first + each }));
}

/** Cells that look alike in a band: bytes from the start of guest-physical memory. */
export interface Span<L> {
  readonly start: number;
  readonly end: number;
  readonly look: L;
}

/** A tile's answer as it is drawn: for each band, what looks alike joined. */
export interface Tile<L> extends TileKey {
  readonly bands: readonly (readonly Span<L>[])[];
  /** Facts by cell, as runs: where each ends. */
  readonly facts: readonly Span<CellFacts>[];
}

/** @param looks how a cell looks in each band; undefined: there is nothing to draw */
export function makeTile<L extends { readonly key: string }>(
  key: TileKey,
  { runs, facts, start, cellSize: size }: AttributesAnswer,
  looks: readonly ((facts: CellFacts) => L | undefined)[],
): Tile<L> {
  const first = Number(start);
  const all: Span<CellFacts>[] = [];
  for (let at = 0, cell = 0; at < runs.length; at += 2) {
    const end = cell + runs[at]!;
    all.push({ start: first + cell * size, end: first + end * size, look: facts[runs[at + 1]!]! });
    cell = end;
  }
  const bands = looks.map((look) => {
    const known = new Map(facts.map((each) => [each, look(each)]));
    const spans: Span<L>[] = [];
    for (const { start: from, end, look: of } of all) {
      const looks = known.get(of);
      if (!looks) continue;
      const last = spans.at(-1);
      if (last?.end === from && last.look.key === looks.key) spans[spans.length - 1] = { ...last, end };
      else spans.push({ start: from, end, look: looks });
    }
    return spans;
  });
  return { ...key, bands, facts: all };
}

/** A part of a tile to draw: bytes. */
export interface Piece<T> {
  readonly tile: T;
  readonly start: number;
  readonly end: number;
}

/**
 * What to draw of the tiles that there are, in this order: the best where it has come, and where it has not, what is known of the place at
 * other scales, the coarsest first.
 */
export function coverView<T extends TileKey>(view: Viewport, width: number, tiles: Iterable<T>): Piece<T>[] {
  const all = [...tiles];
  const pieces: Piece<T>[] = [];
  for (const wanted of tilesFor(view, width)) {
    const start = Math.max(view.start, tileStart(wanted));
    const end = Math.min(view.start + view.size, tileEnd(wanted));
    const best = all.find(({ cell, index }) => cell === wanted.cell && index === wanted.index);
    const others = best ? [best] : all.sort((a, b) => b.cell - a.cell);
    for (const tile of others) {
      const [from, to] = [Math.max(start, tileStart(tile)), Math.min(end, tileEnd(tile))];
      if (from < to) pieces.push({ tile, start: from, end: to });
    }
  }
  return pieces;
}

/** Number of the first span that ends behind a place. */
export function firstSpan(spans: readonly Span<unknown>[], at: number): number {
  let [low, high] = [0, spans.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (spans[middle]!.end > at) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** What is known of the cell at a place, at the finest scale that is there. */
export function factsAt<L>(
  tiles: Iterable<Tile<L>>,
  at: number,
): { readonly facts: CellFacts; readonly cell: number } | undefined {
  let best: Tile<L> | undefined;
  for (const tile of tiles)
    if (tileStart(tile) <= at && at < tileEnd(tile) && (!best || tile.cell < best.cell)) best = tile;
  const span = best?.facts[firstSpan(best.facts, at)];
  return best && span && span.start <= at ? { facts: span.look, cell: best.cell } : undefined;
}
