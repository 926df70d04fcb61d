import { ABSENT, LEAF as FORMAT_LEAF, type Format, TABLE } from '../formats/compile.ts';
import { type Entry, encodeLeaf, encodeTable, type Rights } from '../formats/encode.ts';
import { frameHi, frameLo } from '../memory/words.ts';
import type { TableStore } from './tables.ts';
import { ABSENT_TOO, DONE, isEmptyTable, LEAF, TABLE_POST, TABLE_PRE, Walker } from './walker.ts';

/** A tree of tables that operations work on. */
export interface Pgtable {
  readonly store: TableStore;
  readonly format: Format;
  readonly root: number;
}

/** What a leaf says besides its address. */
export interface Attributes {
  readonly rights: Rights;
  /** Further fields by name, for every level that has them. */
  readonly fields?: Readonly<Record<string, number>>;
}

/** Largest level whose span divides every number given and does not exceed `pages`. */
function fittingLevel(format: Format, pages: number, limit: number, ...aligned: number[]): number {
  for (let level = limit; level > 1; level--) {
    const span = format.span[level]!;
    if (format.isLargeLevel(level) && pages >= span && aligned.every((frame) => frame % span === 0)) return level;
  }
  return 1;
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

function storeLeaf(table: Pgtable, walker: Walker, template: Entry, frame: number): void {
  table.store.store(
    walker.table,
    walker.index,
    (template.lo | frameLo(frame)) >>> 0,
    (template.hi | frameHi(frame)) >>> 0,
  );
}

/** Frees the tables below a detached table entry. */
export function freeSubtree(table: Pgtable, level: number, frame: number): void {
  if (level > 1) {
    const page = table.store.page(frame);
    for (let index = 0; index < 512; index++) {
      const lo = page[2 * index]!;
      if (table.format.classify(level, lo) === TABLE)
        freeSubtree(table, level - 1, table.format.frame(level, lo, page[2 * index + 1]!));
    }
  }
  table.store.release(frame);
}

/** Puts 512 leaves of the next level, with the same attributes, in place of the leaf under the cursor. */
export function splitLeaf(table: Pgtable, level: number, parent: number, index: number, lo: number, hi: number): void {
  const { store, format } = table;
  const child = store.allocate();
  const span = format.span[level - 1]!;
  const base = format.frame(level, lo, hi);
  const below = leafBelow(format, level, lo, hi);
  for (let i = 0; i < 512; i++) {
    const frame = base + i * span;
    store.store(child, i, (below.lo | frameLo(frame)) >>> 0, (below.hi | frameHi(frame)) >>> 0);
  }
  const entry = encodeTable(format, level, child);
  store.store(parent, index, entry.lo, entry.hi);
}

/** The attributes of a leaf carried one level down, without its address. */
export function leafBelow(format: Format, level: number, lo: number, hi: number): Entry {
  const slot = 2 * level + 1;
  let nextLo = lo & ~format.addressLo[slot]!;
  const nextHi = hi & ~format.addressHi[slot]!;
  if (level - 1 === 1) nextLo &= ~format.largeLo[level]!;
  // The PAT bit moves: bit 12 in a large page, bit 7 in a 4K page.
  const pat = format.spec.fields.some((field) => field.name === 'PAT');
  if (pat && level - 1 === 1 && (lo & 0x1000) !== 0) nextLo = (nextLo & ~0x1000) | 0x80;
  return { lo: nextLo >>> 0, hi: nextHi >>> 0 };
}

/**
 * Maps input frames [frame, frame+pages) to output frames from `target`, in the largest pages that alignment and
 * `maxLevel` allow. What was mapped there is replaced; tables that a large page covers are freed.
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
  const templates = leafTemplates(format, attributes);
  const end = frame + pages;
  const walker = new Walker(store, format, table.root, frame, end, LEAF | ABSENT_TOO | TABLE_PRE);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    const from = Math.max(walker.frame, frame);
    const fits = fittingLevel(format, end - from, maxLevel, from, target + (from - frame));
    if (fits >= walker.level) {
      const { level, lo, hi } = walker;
      storeLeaf(table, walker, templates[level]!, target + (walker.frame - frame));
      if (visit === TABLE_PRE) freeSubtree(table, level - 1, format.frame(level, lo, hi));
    } else if (visit === LEAF) {
      if (format.classify(walker.level, walker.lo) === ABSENT) {
        const entry = encodeTable(format, walker.level, store.allocate());
        store.store(walker.table, walker.index, entry.lo, entry.hi);
      } else splitLeaf(table, walker.level, walker.table, walker.index, walker.lo, walker.hi);
    }
  }
}

/** Whether a leaf under the cursor sticks out of [start, end); such a leaf is split before it is changed in part. */
function sticksOut(format: Format, walker: Walker, start: number, end: number): boolean {
  return walker.frame < start || walker.frame + format.span[walker.level]! > end;
}

/** Unmaps [frame, frame+pages) and frees the tables that become empty. */
export function unmap(table: Pgtable, frame: number, pages: number): void {
  const { store, format } = table;
  const end = frame + pages;
  const walker = new Walker(store, format, table.root, frame, end, LEAF | TABLE_POST);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    if (visit === LEAF) {
      if (sticksOut(format, walker, frame, end))
        splitLeaf(table, walker.level, walker.table, walker.index, walker.lo, walker.hi);
      else store.store(walker.table, walker.index, 0, 0);
    } else {
      const child = format.frame(walker.level, walker.lo, walker.hi);
      if (isEmptyTable(store, format, walker.level - 1, child)) {
        store.store(walker.table, walker.index, 0, 0);
        store.release(child);
      }
    }
  }
}

/** Sets the rights of every leaf in [frame, frame+pages); all else in the leaves stays. */
export function protect(table: Pgtable, frame: number, pages: number, rights: Rights): void {
  const { store, format } = table;
  const end = frame + pages;
  const all = leafTemplates(format, { rights: { write: true, execute: true, user: true } });
  const none = leafTemplates(format, { rights: { write: false, execute: false, user: false } });
  const wanted = leafTemplates(format, { rights });
  const walker = new Walker(store, format, table.root, frame, end, LEAF);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    const { level } = walker;
    if (sticksOut(format, walker, frame, end)) {
      splitLeaf(table, level, walker.table, walker.index, walker.lo, walker.hi);
      continue;
    }
    const maskLo = all[level]!.lo ^ none[level]!.lo;
    const maskHi = all[level]!.hi ^ none[level]!.hi;
    const lo = ((walker.lo & ~maskLo) | (wanted[level]!.lo & maskLo)) >>> 0;
    const hi = ((walker.hi & ~maskHi) | (wanted[level]!.hi & maskHi)) >>> 0;
    if (lo !== walker.lo || hi !== walker.hi) store.store(walker.table, walker.index, lo, hi);
  }
}

/** Splits every leaf in [frame, frame+pages) that is larger than `level`. */
export function split(table: Pgtable, frame: number, pages: number, level: number): void {
  const walker = new Walker(table.store, table.format, table.root, frame, frame + pages, LEAF);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    if (walker.level > level) splitLeaf(table, walker.level, walker.table, walker.index, walker.lo, walker.hi);
  }
}

/**
 * Puts one leaf in place of each table in [frame, frame+pages) whose 512 leaves are contiguous, aligned and equal but
 * for accessed and dirty bits, which the large leaf takes over if any of them had it set.
 */
export function collapse(table: Pgtable, frame: number, pages: number): void {
  const { store, format } = table;
  const walker = new Walker(store, format, table.root, frame, frame + pages, TABLE_POST);
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    if (sticksOut(format, walker, frame, frame + pages) || !format.isLargeLevel(walker.level)) continue;
    const child = format.frame(walker.level, walker.lo, walker.hi);
    const leaf = collapsedLeaf(store, format, walker.level, child);
    if (!leaf) continue;
    store.store(walker.table, walker.index, leaf.lo, leaf.hi);
    store.release(child);
  }
}

function collapsedLeaf(store: TableStore, format: Format, level: number, child: number): Entry | undefined {
  const page = store.page(child);
  const first = page[0]!;
  const base = format.frame(level - 1, first, page[1]!);
  if (format.classify(level - 1, first) !== FORMAT_LEAF || base % format.span[level]! !== 0) return undefined;
  const ignored = format.accessedLo | format.dirtyLo;
  const attributes = leafBelow(format, level, 0, 0);
  let accessedDirty = attributes.lo;
  const addressLo = format.addressLo[2 * (level - 1) + 1]!;
  const addressHi = format.addressHi[2 * (level - 1) + 1]!;
  for (let index = 0; index < 512; index++) {
    const lo = page[2 * index]!;
    const hi = page[2 * index + 1]!;
    if (format.classify(level - 1, lo) !== FORMAT_LEAF) return undefined;
    if (format.frame(level - 1, lo, hi) !== base + index * format.span[level - 1]!) return undefined;
    if (((lo ^ first) & ~addressLo & ~ignored) !== 0 || ((hi ^ page[1]!) & ~addressHi) !== 0) return undefined;
    accessedDirty |= lo & ignored;
  }
  let lo = (first & ~addressLo) | accessedDirty | format.largeLo[level]!;
  const pat = format.spec.fields.some((field) => field.name === 'PAT');
  if (pat && level === 2) {
    const set = (first & 0x80) !== 0;
    lo = (lo & ~0x1000) | (set ? 0x1000 : 0) | format.largeLo[level]!;
  }
  const hi = page[1]! & ~addressHi;
  return { lo: (lo | frameLo(base)) >>> 0, hi: (hi | frameHi(base)) >>> 0 };
}
