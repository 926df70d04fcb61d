import type { Pfn } from './words.ts';

const CHUNK_SHIFT = 12;
const FRAMES_PER_CHUNK = 4096;
/** Frames below this one (1 TiB) are found through an array, the rest through a map. Bit operators are safe on them. */
const DENSE_FRAMES = 2 ** 28;
const DENSE_CHUNKS = DENSE_FRAMES / FRAMES_PER_CHUNK;

interface Chunk {
  pages: (Uint32Array | undefined)[];
  /** 1 where this memory, and no clone, owns the page and may write it in place. */
  owned: Uint8Array;
}

/** Pages are cut from slabs: an ArrayBuffer of its own for each would cost more than the page. */
const SLAB_PAGES = 128;
let slab = new ArrayBuffer(0);
let slabUsed = 0;

function newPage(): Uint32Array {
  if (slabUsed === slab.byteLength) {
    slab = new ArrayBuffer(SLAB_PAGES * 4096);
    slabUsed = 0;
  }
  const page = new Uint32Array(slab, slabUsed, 1024);
  slabUsed += 4096;
  return page;
}

/** Memory that is elsewhere, an image's for example. Its pages are not to be written. */
export interface FrameSource {
  page(pfn: Pfn): Uint32Array;
}

/** An absent page reads as zeroes. Nobody may write it. */
const ZERO_PAGE = new Uint32Array(1024);

/**
 * Sparse physical memory in pages of 1024 words. `clone` is cheap: pages are shared until one side writes them.
 * Addresses are (frame, word index); a word is 32 bits, an 8-byte entry is words 2i and 2i+1.
 */
export class PhysicalMemory {
  /** Where frames come from that were never written here; zeroes without. */
  readonly #source: FrameSource | undefined;
  #dense: (Chunk | undefined)[] = [];
  #sparse = new Map<number, Chunk>();

  constructor(source?: FrameSource) {
    this.#source = source;
  }

  #chunk(pfn: Pfn): Chunk | undefined {
    const number = Math.floor(pfn / FRAMES_PER_CHUNK);
    return number < DENSE_CHUNKS ? this.#dense[number] : this.#sparse.get(number);
  }

  /** The page to read from: never undefined, never to be written. */
  page(pfn: Pfn): Uint32Array {
    if (pfn < DENSE_FRAMES) {
      // biome-ignore lint/plugin: the frame has at most 28 bits here, and this is the hottest line of all.
      return this.#dense[pfn >>> CHUNK_SHIFT]?.pages[pfn & (FRAMES_PER_CHUNK - 1)] ?? this.#absent(pfn);
    }
    return this.#chunk(pfn)?.pages[pfn % FRAMES_PER_CHUNK] ?? this.#absent(pfn);
  }

  #absent(pfn: Pfn): Uint32Array {
    return this.#source === undefined ? ZERO_PAGE : this.#source.page(pfn);
  }

  /** Whether anything was ever written to the frame. */
  isWritten(pfn: Pfn): boolean {
    return this.#chunk(pfn)?.pages[pfn % FRAMES_PER_CHUNK] !== undefined;
  }

  /** The page to write to, made private to this memory first. */
  writable(pfn: Pfn): Uint32Array {
    const number = Math.floor(pfn / FRAMES_PER_CHUNK);
    let chunk = number < DENSE_CHUNKS ? this.#dense[number] : this.#sparse.get(number);
    if (chunk === undefined) {
      chunk = { pages: new Array(FRAMES_PER_CHUNK), owned: new Uint8Array(FRAMES_PER_CHUNK) };
      if (number < DENSE_CHUNKS) this.#dense[number] = chunk;
      else this.#sparse.set(number, chunk);
    }
    const index = pfn % FRAMES_PER_CHUNK;
    let page = chunk.pages[index];
    if (page === undefined) {
      page = newPage();
      if (this.#source) page.set(this.#source.page(pfn));
      chunk.pages[index] = page;
      chunk.owned[index] = 1;
    } else if (chunk.owned[index] === 0) {
      const copy = newPage();
      copy.set(page);
      page = copy;
      chunk.pages[index] = page;
      chunk.owned[index] = 1;
    }
    return page;
  }

  /** Forgets a frame: it reads as zeroes again. */
  drop(pfn: Pfn): void {
    const chunk = this.#chunk(pfn);
    if (chunk) chunk.pages[pfn % FRAMES_PER_CHUNK] = undefined;
  }

  clone(): PhysicalMemory {
    const copy = new PhysicalMemory(this.#source);
    const share = (chunk: Chunk): Chunk => {
      chunk.owned.fill(0);
      return { pages: chunk.pages.slice(), owned: new Uint8Array(FRAMES_PER_CHUNK) };
    };
    this.#dense.forEach((chunk, number) => {
      if (chunk) copy.#dense[number] = share(chunk);
    });
    for (const [number, chunk] of this.#sparse) copy.#sparse.set(number, share(chunk));
    return copy;
  }

  /** Frames that hold a page, ascending. */
  *frames(): Generator<Pfn> {
    const numbers = [...Object.keys(this.#dense).map(Number), ...[...this.#sparse.keys()].sort((a, b) => a - b)];
    for (const number of numbers) {
      const chunk = number < DENSE_CHUNKS ? this.#dense[number] : this.#sparse.get(number);
      if (!chunk) continue;
      for (let index = 0; index < FRAMES_PER_CHUNK; index++) {
        if (chunk.pages[index]) yield number * FRAMES_PER_CHUNK + index;
      }
    }
  }
}
