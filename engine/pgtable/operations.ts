import { ABSENT, LEAF as FORMAT_LEAF, type Format, TABLE } from '../formats/compile.ts';
import { type Entry, encodeLeaf, encodeTable, moveLeaf, type Rights, rightsFields } from '../formats/encode.ts';
import { formatSize } from '../memory/words.ts';
import { entryHi, entryLo, storeEntry, type TableStore, type Tree } from './tables.ts';
import { ABSENT_TOO, DONE, isEmptyTable, LEAF, TABLE_POST, TABLE_PRE, Walker } from './walker.ts';

/** A tree of tables that operations work on. */
export interface Pgtable extends Tree {
  readonly store: TableStore;
}

/** What a leaf says besides its address. */
export interface Attributes {
  readonly rights: Rights;
  /** Further fields by name, for every level that has them. */
  readonly fields?: Readonly<Record<string, number>>;
}

/** Largest level whose span divides both frames and does not exceed `pages`. */
function fittingLevel(format: Format, pages: number, limit: number, from: number, to: number): number {
  for (let level = Math.min(limit, format.rootLevel); level > 1; level--) {
    const span = format.span[level]!;
    if (
      format.isLargeLevel(level) &&
      pages >= span &&
      from % span === 0 &&
      to % span === 0 &&
      to <= format.lastFrame[level]!
    )
      return level;
  }
  if (to > format.lastFrame[1]!)
    throw new RangeError(`${format.level(1).entry} cannot map frame 0x${to.toString(16)}: it has too few address bits`);
  return 1;
}

/** Operations work on whole pages. @throws RangeError */
function checkWhole(format: Format, ...frames: number[]): void {
  for (const frame of frames) {
    if (frame % format.span[1]! !== 0)
      throw new RangeError(
        `frame 0x${frame.toString(16)} is not a multiple of the ${formatSize(format.pageSize)} page`,
      );
  }
}

/** A leaf template per level: its address bits are zero, and are added for each page. */
function leafTemplates(format: Format, attributes: Attributes): Entry[] {
  return Array.from({ length: format.rootLevel + 1 }, (_, level) => {
    if (level === 0 || !format.isLargeLevel(level)) return { lo: 0, hi: 0 };
    const names = new Set(format.fields(level, 'leaf').map((field) => field.name));
    const extra = Object.fromEntries(Object.entries(attributes.fields ?? {}).filter(([name]) => names.has(name)));
    return encodeLeaf(format, level, 0, attributes.rights, extra);
  });
}

/** A leaf of `template`'s attributes. */
function storeLeaf(table: Pgtable, parent: number, place: number, template: Entry, frame: number): void {
  const { format, store } = table;
  const lo = (template.lo | format.frameLo(frame)) >>> 0;
  storeEntry(store, format, parent, place, lo, (template.hi | format.frameHi(frame)) >>> 0);
}

function storeTable(table: Pgtable, level: number, parent: number, place: number, child: number): void {
  const { lo, hi } = encodeTable(table.format, level, child);
  storeEntry(table.store, table.format, parent, place, lo, hi);
}

/** Frees the tables below a detached table entry, and the table of this level that it points to. */
function freeSubtree(table: Pgtable, level: number, frame: number): void {
  const { store, format } = table;
  if (level > 1) {
    for (let index = 0; index < format.entries[level]!; index++) {
      const lo = entryLo(store, format, frame, index);
      if (format.classify(level, lo) === TABLE)
        freeSubtree(table, level - 1, format.frame(level, lo, entryHi(store, format, frame, index)));
    }
  }
  store.release(frame, format.tableFrames[level]!);
}

/** Puts leaves of the next level, with the same attributes, in place of the leaf under the cursor. */
function splitLeaf(table: Pgtable, walker: Walker): void {
  const { store, format } = table;
  const { level, lo, hi } = walker;
  const below = level - 1;
  const child = store.allocate(format.tableFrames[below]!);
  const span = format.span[below]!;
  const base = format.frame(level, lo, hi);
  const template = moveLeaf(format, level, below, lo, hi);
  for (let i = 0; i < format.entries[below]!; i++) storeLeaf(table, child, i, template, base + i * span);
  storeTable(table, level, walker.table, walker.place, child);
}

/**
 * Maps input frames [frame, frame+pages) to output frames from `target`, in the largest pages that alignment and
 * `maxLevel` allow. What was mapped there is replaced; tables that a large page covers are freed.
 * @throws RangeError for parts of a page, and for frames that an entry cannot point to.
 */
export function map(
  table: Pgtable,
  frame: number,
  pages: number,
  target: number,
  attributes: Attributes,
  maxLevel = table.format.rootLevel,
): void {
  const { store, format } = table;
  checkWhole(format, frame, pages, target);
  const templates = leafTemplates(format, attributes);
  const end = frame + pages;
  const walker = new Walker(store, table, frame, end, LEAF | ABSENT_TOO | TABLE_PRE);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    const { level } = walker;
    const from = Math.max(walker.frame, frame);
    const fits = fittingLevel(format, end - from, maxLevel, from, target + (from - frame));
    if (fits >= level) {
      const { lo, hi } = walker;
      storeLeaf(table, walker.table, walker.place, templates[level]!, target + (walker.frame - frame));
      if (visit === TABLE_PRE) freeSubtree(table, level - 1, format.frame(level, lo, hi));
    } else if (visit === LEAF) {
      if (format.classify(level, walker.lo) === ABSENT)
        storeTable(table, level, walker.table, walker.place, store.allocate(format.tableFrames[level - 1]!));
      else splitLeaf(table, walker);
    }
  }
}

/** Whether a leaf under the cursor sticks out of [start, end); such a leaf is split before it is changed in part. */
function sticksOut(format: Format, walker: Walker, start: number, end: number): boolean {
  return walker.frame < start || walker.frame + format.span[walker.level]! > end;
}

/** Unmaps [frame, frame+pages) and frees the tables that become empty. @throws RangeError for parts of a page. */
export function unmap(table: Pgtable, frame: number, pages: number): void {
  const { store, format } = table;
  checkWhole(format, frame, pages);
  const end = frame + pages;
  const walker = new Walker(store, table, frame, end, LEAF | TABLE_POST);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    if (visit === LEAF) {
      if (sticksOut(format, walker, frame, end)) splitLeaf(table, walker);
      else storeEntry(store, format, walker.table, walker.place, 0, 0);
    } else {
      const child = format.frame(walker.level, walker.lo, walker.hi);
      if (isEmptyTable(store, format, walker.level - 1, child)) {
        storeEntry(store, format, walker.table, walker.place, 0, 0);
        store.release(child, format.tableFrames[walker.level - 1]!);
      }
    }
  }
}

/**
 * Sets the rights of every leaf in [frame, frame+pages); all else in the leaves stays.
 * @throws RangeError for parts of a page.
 */
export function protect(table: Pgtable, frame: number, pages: number, rights: Rights): void {
  const { store, format } = table;
  checkWhole(format, frame, pages);
  const end = frame + pages;
  const masks = leafTemplates(format, { rights }).map((_, level) => rightsFields(format, level));
  const wanted = leafTemplates(format, { rights });
  const walker = new Walker(store, table, frame, end, LEAF);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    const { level } = walker;
    if (sticksOut(format, walker, frame, end)) {
      splitLeaf(table, walker);
      continue;
    }
    const mask = masks[level]!;
    const lo = ((walker.lo & ~mask.lo) | (wanted[level]!.lo & mask.lo)) >>> 0;
    const hi = ((walker.hi & ~mask.hi) | (wanted[level]!.hi & mask.hi)) >>> 0;
    if (lo !== walker.lo || hi !== walker.hi) storeEntry(store, format, walker.table, walker.place, lo, hi);
  }
}

/** Splits every leaf in [frame, frame+pages) that is larger than `level`. */
export function split(table: Pgtable, frame: number, pages: number, level: number): void {
  const walker = new Walker(table.store, table, frame, frame + pages, LEAF);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    if (walker.level > level) splitLeaf(table, walker);
  }
}

/**
 * Puts one leaf in place of each table in [frame, frame+pages) whose leaves are contiguous, aligned and equal but for
 * accessed and dirty bits, which the large leaf takes over if any of them had it set.
 */
export function collapse(table: Pgtable, frame: number, pages: number): void {
  const { store, format } = table;
  const walker = new Walker(store, table, frame, frame + pages, TABLE_POST);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    const { level } = walker;
    if (sticksOut(format, walker, frame, frame + pages) || !format.isLargeLevel(level)) continue;
    const child = format.frame(level, walker.lo, walker.hi);
    const leaf = collapsedLeaf(store, format, level, child);
    if (!leaf) continue;
    storeLeaf(table, walker.table, walker.place, leaf.template, leaf.frame);
    store.release(child, format.tableFrames[level - 1]!);
  }
}

function collapsedLeaf(
  store: TableStore,
  format: Format,
  level: number,
  child: number,
): { readonly template: Entry; readonly frame: number } | undefined {
  const below = level - 1;
  const first = entryLo(store, format, child, 0);
  const firstHi = entryHi(store, format, child, 0);
  if (format.classify(below, first) !== FORMAT_LEAF) return undefined;
  const frame = format.frame(below, first, firstHi);
  if (frame % format.span[level]! !== 0 || frame > format.lastFrame[level]!) return undefined;
  const ignored = format.accessedLo | format.dirtyLo;
  const addressLo = format.anyAddressLo[2 * below + 1]!;
  const addressHi = format.addressHi[2 * below + 1]!;
  let accessedDirty = 0;
  for (let index = 0; index < format.entries[below]!; index++) {
    const lo = entryLo(store, format, child, index);
    const hi = entryHi(store, format, child, index);
    if (format.classify(below, lo) !== FORMAT_LEAF) return undefined;
    if (format.frame(below, lo, hi) !== frame + index * format.span[below]!) return undefined;
    if (((lo ^ first) & ~addressLo & ~ignored) !== 0 || ((hi ^ firstHi) & ~addressHi) !== 0) return undefined;
    accessedDirty |= lo & ignored;
  }
  return { template: moveLeaf(format, below, level, first | accessedDirty, firstHi), frame };
}
