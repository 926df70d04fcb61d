import type { EntryRun, RootAnswer, TableQuery } from '../../engine/queries/answers.ts';
import type { Viewport } from '../kit/viewport.ts';
import { type EntryPath, type GetTable, totalSize } from './model.ts';

/** A run of entries as drawn: one row a level, across the addresses that it covers. */
export interface Box {
  readonly path: EntryPath;
  readonly run: EntryRun;
  /** 0: the root table's entries. */
  readonly row: number;
  /** CSS pixels; may reach past both edges. */
  readonly x: number;
  readonly width: number;
  /** Bytes from the start of the address space, and bytes covered. */
  readonly start: number;
  readonly size: number;
}

/** A table is asked for once it is so wide, CSS pixels. */
const OPEN_WIDTH = 16;
/** Something present is never narrower than this. */
export const MIN_WIDTH = 2;

/** The boxes that are on screen, from the root down; `need` hears of each table that they are made from or lack. */
export function layout(
  root: RootAnswer,
  get: GetTable,
  view: Viewport,
  width: number,
  need: (query: TableQuery) => void,
): Box[] {
  const boxes: Box[] = [];
  const scale = width / view.size;
  /** What each row has drawn last, to join what falls into the same pixels. */
  const ends: number[] = [];
  const visit = (query: TableQuery, path: EntryPath, base: number): void => {
    need(query);
    const table = get(query);
    if (table?.kind !== 'table') return;
    const row = path.length;
    for (const run of table.runs) {
      const start = base + run.index * run.size;
      const size = run.size * run.count;
      const x = (start - view.start) * scale;
      const across = size * scale;
      if (x + across < 0 || x > width) continue;
      const absent = run.entry.state === 'absent';
      const marked = run.faulting || run.was !== undefined;
      const drawn = Math.max(across, absent && !marked ? 0 : MIN_WIDTH);
      if (marked || x + drawn > (ends[row] ?? -1) + 0.5) {
        boxes.push({ path: [...path, run.index], run, row, x, width: drawn, start, size });
        if (!absent) ends[row] = x + drawn;
      }
      if (run.child && !run.recursive && across >= OPEN_WIDTH) visit(run.child, [...path, run.index], start);
    }
  };
  visit(root.table, [], 0);
  return boxes;
}

/** The box at a place: the one with the narrowest entry, marked ones first. */
export function boxAt(boxes: readonly Box[], row: number, x: number): Box | undefined {
  let best: Box | undefined;
  for (const box of boxes) {
    if (box.row !== row || x < box.x - 1 || x > box.x + Math.max(box.width, 3)) continue;
    const better = !best || (best.run.entry.state === 'absent' && !best.run.faulting) || box.run.faulting;
    if (better && (box.run.entry.state !== 'absent' || box.run.faulting || !best)) best = box;
  }
  return best;
}

export function wholeSpace(root: RootAnswer): Viewport {
  return { start: 0, size: totalSize(root) };
}
