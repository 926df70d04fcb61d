import type { Gfn } from '../memory/words.ts';

const PAGES_2M = 512;
const PAGES_1G = 512 * 512;
const WORDS = PAGES_2M / 32;

/** Frames of a 2M block whose pages differ: a bit a page, 1 where it is private. */
type Pages = Uint32Array;
/** 2M blocks of 1G that are not all alike. */
type Blocks = (boolean | Pages)[];

/** Frames [start, end) that are of one kind. */
export interface AttributeRun {
  readonly start: Gfn;
  readonly end: Gfn;
  readonly isPrivate: boolean;
}

/** How many private pages a block has: none, all, or some. */
export type Mix = 'shared' | 'private' | 'mixed';

/**
 * `mem_attr_array`: of each guest frame whether it is private (KVM_MEMORY_ATTRIBUTE_PRIVATE), shared unless told. Kept as tables would
 * be, 1G over 2M over 4K, so that what is alike costs nothing, however much it is, and a block tells at once whether it is mixed.
 */
export class AttributeStore {
  readonly #gigabytes = new Map<number, true | Blocks>();

  isPrivate(gfn: Gfn): boolean {
    const gigabyte = this.#gigabytes.get(Math.floor(gfn / PAGES_1G));
    if (gigabyte === undefined) return false;
    if (gigabyte === true) return true;
    const block = gigabyte[Math.floor(gfn / PAGES_2M) % 512]!;
    return typeof block === 'boolean' ? block : isSet(block, gfn % PAGES_2M);
  }

  /** What the 2M (level 2) or 1G (level 3) block around a frame holds. */
  mix(gfn: Gfn, level: 2 | 3): Mix {
    const gigabyte = this.#gigabytes.get(Math.floor(gfn / PAGES_1G));
    if (gigabyte === undefined) return 'shared';
    if (gigabyte === true) return 'private';
    if (level === 3) return 'mixed';
    const block = gigabyte[Math.floor(gfn / PAGES_2M) % 512]!;
    return typeof block === 'boolean' ? kind(block) : 'mixed';
  }

  /** Sets [start, end), as frames. */
  set(start: Gfn, end: Gfn, isPrivate: boolean): void {
    for (let gfn = start; gfn < end; ) {
      const number = Math.floor(gfn / PAGES_1G);
      const stop = Math.min(end, (number + 1) * PAGES_1G);
      if (stop - gfn === PAGES_1G) this.#setGigabyte(number, isPrivate);
      else this.#setWithin(number, gfn, stop, isPrivate);
      gfn = stop;
    }
  }

  #setGigabyte(number: number, isPrivate: boolean): void {
    if (isPrivate) this.#gigabytes.set(number, true);
    else this.#gigabytes.delete(number);
  }

  #setWithin(number: number, start: Gfn, end: Gfn, isPrivate: boolean): void {
    const before = this.#gigabytes.get(number);
    if ((before ?? false) === isPrivate) return;
    const blocks: Blocks = Array.isArray(before) ? before : new Array(512).fill(before ?? false);
    if (blocks !== before) this.#gigabytes.set(number, blocks);
    for (let gfn = start; gfn < end; ) {
      const index = Math.floor(gfn / PAGES_2M) % 512;
      const stop = Math.min(end, (Math.floor(gfn / PAGES_2M) + 1) * PAGES_2M);
      if (stop - gfn === PAGES_2M) blocks[index] = isPrivate;
      else setPages(blocks, index, gfn % PAGES_2M, stop - gfn, isPrivate);
      gfn = stop;
    }
    if (blocks.every((block) => block === isPrivate)) this.#setGigabyte(number, isPrivate);
  }

  /** The runs within [start, end), each as long as it can be. */
  *runs(start: Gfn, end: Gfn): Generator<AttributeRun> {
    let from = start;
    let value = this.isPrivate(start);
    for (let gfn = start; gfn < end; ) {
      const next = this.#alikeUntil(gfn);
      const isPrivate = this.isPrivate(gfn);
      if (isPrivate !== value) {
        yield { start: from, end: gfn, isPrivate: value };
        from = gfn;
        value = isPrivate;
      }
      gfn = next;
    }
    if (from < end) yield { start: from, end, isPrivate: value };
  }

  /** First frame behind `gfn` that may be of another kind. */
  #alikeUntil(gfn: Gfn): Gfn {
    const number = Math.floor(gfn / PAGES_1G);
    const gigabyte = this.#gigabytes.get(number);
    if (!Array.isArray(gigabyte)) return (number + 1) * PAGES_1G;
    const block = gigabyte[Math.floor(gfn / PAGES_2M) % 512]!;
    const first = Math.floor(gfn / PAGES_2M) * PAGES_2M;
    if (typeof block === 'boolean') return first + PAGES_2M;
    const value = isSet(block, gfn - first);
    let next = gfn + 1;
    for (; next < first + PAGES_2M && isSet(block, next - first) === value; next++) {
      const word = Math.floor((next - first) / 32);
      // Whole words that are alike are passed at once.
      if ((next - first) % 32 === 0 && block[word] === (value ? 0xffff_ffff : 0)) next += 31;
    }
    return next;
  }
}

const kind = (isPrivate: boolean): Mix => (isPrivate ? 'private' : 'shared');

function isSet(pages: Pages, index: number): boolean {
  return ((pages[Math.floor(index / 32)]! >>> (index % 32)) & 1) !== 0;
}

function setPages(blocks: Blocks, index: number, first: number, count: number, isPrivate: boolean): void {
  const before = blocks[index]!;
  if (before === isPrivate) return;
  const pages = typeof before === 'boolean' ? new Uint32Array(WORDS).fill(before ? 0xffff_ffff : 0) : before;
  blocks[index] = pages;
  for (let page = first; page < first + count; page++) {
    const word = Math.floor(page / 32);
    if (page % 32 === 0 && page + 32 <= first + count) {
      pages[word] = isPrivate ? 0xffff_ffff : 0;
      page += 31;
    } else if (isPrivate) pages[word]! |= 1 << (page % 32);
    else pages[word]! &= ~(1 << (page % 32));
  }
  const whole = isPrivate ? 0xffff_ffff : 0;
  if (pages.every((word) => word === whole)) blocks[index] = isPrivate;
}
