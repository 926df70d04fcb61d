import type { Pfn } from '../memory/words.ts';
import type { LoggedMap } from '../shadow/logged-map.ts';

const PAGES_2M = 512;
const PAGES_1G = 512 * 512;

/** Pages of 1G that are counted, by 2M block of it. */
interface Gigabyte {
  total: number;
  readonly blocks: Uint16Array;
}

/**
 * How many host frames of each 2M and 1G have some property. What has it in single pages only is asked page by page, and only in the blocks
 * of which a part has it.
 */
export class PageCounts {
  readonly #gigabytes: Map<number, Gigabyte>;
  /** Gigabytes that are not another's; all are where there is no other. */
  readonly #own: Set<number> | undefined;

  constructor(from?: PageCounts) {
    this.#gigabytes = new Map(from ? from.#gigabytes : []);
    this.#own = from ? new Set() : undefined;
  }

  /** Adds frames, or takes them out where `by` is −1; they lie within one 2M block. */
  add(pfn: Pfn, pages: number, by: 1 | -1): void {
    const number = Math.floor(pfn / PAGES_1G);
    let gigabyte = this.#gigabytes.get(number);
    if (!gigabyte || (this.#own && !this.#own.has(number))) {
      gigabyte = { total: gigabyte?.total ?? 0, blocks: gigabyte?.blocks.slice() ?? new Uint16Array(512) };
      this.#gigabytes.set(number, gigabyte);
      this.#own?.add(number);
    }
    gigabyte.total += by * pages;
    gigabyte.blocks[Math.floor(pfn / PAGES_2M) % 512]! += by * pages;
    if (gigabyte.total === 0) this.#gigabytes.delete(number);
  }

  /** How many of the frames [start, end) have it. @param has asked of single frames of blocks of which a part has it */
  count(start: Pfn, end: Pfn, has: (pfn: Pfn) => boolean): number {
    let found = 0;
    for (let pfn = start; pfn < end; ) {
      const number = Math.floor(pfn / PAGES_1G);
      const stop = Math.min(end, (number + 1) * PAGES_1G);
      const gigabyte = this.#gigabytes.get(number);
      if (gigabyte) {
        if (stop - pfn === PAGES_1G) found += gigabyte.total;
        else found += countWithin(gigabyte, pfn, stop, has);
      }
      pfn = stop;
    }
    return found;
  }
}

function countWithin({ total, blocks }: Gigabyte, start: Pfn, end: Pfn, has: (pfn: Pfn) => boolean): number {
  if (total === PAGES_1G) return end - start;
  let found = 0;
  for (let pfn = start; pfn < end; ) {
    const stop = Math.min(end, (Math.floor(pfn / PAGES_2M) + 1) * PAGES_2M);
    const count = blocks[Math.floor(pfn / PAGES_2M) % 512]!;
    if (count === PAGES_2M) found += stop - pfn;
    else if (stop - pfn === PAGES_2M) found += count;
    else if (count > 0) for (let each = pfn; each < stop; each++) if (has(each)) found++;
    pfn = stop;
  }
  return found;
}

/** The frames that a key and its value of a map speak of: [first, how many], within one 2M block; undefined: none. */
export type Frames<V> = (key: number, value: V) => readonly [pfn: Pfn, pages: number] | undefined;

const known = new WeakMap<LoggedMap<unknown>, Map<Frames<never>, PageCounts>>();

/** Counts of what is in a map. They are made once, and follow its changes from then on. */
export function countsOf<V>(map: LoggedMap<V>, frames: Frames<V>): PageCounts {
  const ofMap = known.get(map as LoggedMap<unknown>) ?? new Map<Frames<never>, PageCounts>();
  known.set(map as LoggedMap<unknown>, ofMap);
  const found = ofMap.get(frames);
  if (found) return found;
  const counts = new PageCounts();
  for (const [key, value] of map.entries()) apply(counts, frames(key, value), 1);
  map.observe((key, before, after) => change(counts, frames, key, before, after));
  ofMap.set(frames, counts);
  return counts;
}

/** Counts after another value has come in a value's place. */
export function change<V>(
  counts: PageCounts,
  frames: Frames<V>,
  key: number,
  before: V | undefined,
  after: V | undefined,
): void {
  if (before !== undefined) apply(counts, frames(key, before), -1);
  if (after !== undefined) apply(counts, frames(key, after), 1);
}

function apply(counts: PageCounts, frames: ReturnType<Frames<never>>, by: 1 | -1): void {
  if (frames) counts.add(frames[0], frames[1], by);
}
