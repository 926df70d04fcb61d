import type { LoggedMap } from '../logged-map.ts';
import type { Pfn } from '../memory/words.ts';

const PAGES_2M = 512;
const PAGES_1G = 512 * 512;

/** Pages of 1G that are counted: by 2M block, and, once a part of a block is among them, by a bit a page. */
interface Gigabyte {
  total: number;
  readonly blocks: Uint16Array;
  pages: Uint32Array | undefined;
}

/** Which host frames have some property, kept so that any number of them is counted by blocks. */
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
      gigabyte = {
        total: gigabyte?.total ?? 0,
        blocks: gigabyte?.blocks.slice() ?? new Uint16Array(512),
        pages: gigabyte?.pages?.slice(),
      };
      this.#gigabytes.set(number, gigabyte);
      this.#own?.add(number);
    }
    const block = Math.floor(pfn / PAGES_2M) % 512;
    if (pages < PAGES_2M) gigabyte.pages ??= bitsOfBlocks(gigabyte.blocks);
    const bits = gigabyte.pages;
    if (bits) for (let page = pfn % PAGES_1G, end = page + pages; page < end; page++) setBit(bits, page, by === 1);
    gigabyte.total += by * pages;
    gigabyte.blocks[block]! += by * pages;
    if (gigabyte.total === 0) this.#gigabytes.delete(number);
  }

  /** How many of the frames [start, end) have it. */
  count(start: Pfn, end: Pfn): number {
    let found = 0;
    for (let pfn = start; pfn < end; ) {
      const number = Math.floor(pfn / PAGES_1G);
      const stop = Math.min(end, (number + 1) * PAGES_1G);
      const gigabyte = this.#gigabytes.get(number);
      if (gigabyte)
        found +=
          stop - pfn === PAGES_1G ? gigabyte.total : countWithin(gigabyte, pfn % PAGES_1G, stop - number * PAGES_1G);
      pfn = stop;
    }
    return found;
  }
}

/** Bits of a gigabyte of which so far whole blocks are counted. */
function bitsOfBlocks(blocks: Uint16Array): Uint32Array {
  const bits = new Uint32Array(PAGES_1G / 32);
  blocks.forEach((count, block) => {
    if (count > 0) bits.fill(0xffff_ffff, block * 16, (block + 1) * 16);
  });
  return bits;
}

function setBit(bits: Uint32Array, page: number, isSet: boolean): void {
  if (isSet) bits[page >>> 5]! |= 1 << (page & 31);
  else bits[page >>> 5]! &= ~(1 << (page & 31));
}

/** Of pages of a gigabyte. */
function countWithin({ total, blocks, pages }: Gigabyte, start: number, end: number): number {
  if (total === PAGES_1G) return end - start;
  let found = 0;
  for (let page = start; page < end; ) {
    const block = Math.floor(page / PAGES_2M);
    const stop = Math.min(end, (block + 1) * PAGES_2M);
    const count = blocks[block]!;
    if (count === PAGES_2M) found += stop - page;
    else if (stop - page === PAGES_2M) found += count;
    else if (count > 0) found += countBits(pages!, page, stop);
    page = stop;
  }
  return found;
}

function countBits(bits: Uint32Array, start: number, end: number): number {
  let found = 0;
  for (let page = start; page < end; ) {
    const first = page & 31;
    const count = Math.min(32 - first, end - page);
    found += ones((bits[page >>> 5]! >>> first) & (count === 32 ? 0xffff_ffff : (1 << count) - 1));
    page += count;
  }
  return found;
}

/** Bits of a word that are 1. */
function ones(word: number): number {
  const pairs = word - ((word >>> 1) & 0x5555_5555);
  const fours = (pairs & 0x3333_3333) + ((pairs >>> 2) & 0x3333_3333);
  return Math.imul((fours + (fours >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
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
