import type { CpuPages } from './dat-contents.ts';
import type { Undo } from './dat7.ts';
import { TraceError } from './errors.ts';
import type { PageSource } from './pages.ts';
import { type ByteSource, hexOffset, partOf, SourceReader } from './source.ts';

/** A CPU's pages as they lie in a file, read many at a time. */
export class FilePages implements PageSource {
  readonly #part: ByteSource;
  readonly #offset: number;
  readonly #pageSize: number;
  readonly #ahead: number;
  #block: Uint8Array = new Uint8Array(0);
  #blockAt = 0;
  #next = 0;

  /** @param ahead bytes to read at once @param problems told when the file ends before the pages do */
  constructor(source: ByteSource, pages: CpuPages, pageSize: number, ahead: number, problems: string[]) {
    this.#part = partOf(source, pages.offset, pages.size);
    this.#offset = pages.offset;
    this.#pageSize = pageSize;
    this.#ahead = Math.max(1, Math.floor(ahead / pageSize)) * pageSize;
    if (this.#part.size < pages.size)
      problems.push(
        `the file ends ${pages.size - this.#part.size} bytes before the pages of CPU ${pages.cpu} do, which begin at ${hexOffset(pages.offset)}`,
      );
  }

  next(): Uint8Array | undefined {
    if (this.#next >= this.#part.size) return undefined;
    if (this.#next >= this.#blockAt + this.#block.length) {
      this.#blockAt = this.#next;
      this.#block = this.#part.read(this.#next, this.#ahead);
      if (this.#block.length === 0) return undefined;
    }
    const from = this.#next - this.#blockAt;
    this.#next += this.#pageSize;
    return this.#block.subarray(from, from + this.#pageSize);
  }

  place(): string {
    return `${hexOffset(this.#offset + this.#next - this.#pageSize)} of the file`;
  }
}

/** Of a chunk, uncompressed: trace-cmd makes them of 10 pages. */
const CHUNK_MOST = 1 << 24;

/** A CPU's pages in compressed chunks. */
export class ChunkedPages implements PageSource {
  readonly #reader: SourceReader;
  readonly #cpu: number;
  readonly #pageSize: number;
  readonly #undo: Undo;
  readonly #problems: string[];
  #left = 0;
  #chunk: Uint8Array = new Uint8Array(0);
  #next = 0;

  constructor(source: ByteSource, pages: CpuPages, pageSize: number, undo: Undo, problems: string[]) {
    // The size that trace-cmd writes leaves out the number of chunks: that number alone says where they end.
    this.#reader = new SourceReader(source, pages.offset);
    this.#cpu = pages.cpu;
    this.#pageSize = pageSize;
    this.#undo = undo;
    this.#problems = problems;
    this.#try(() => {
      this.#left = this.#reader.number(4, 'the number of chunks');
    });
  }

  next(): Uint8Array | undefined {
    while (this.#next >= this.#chunk.length) {
      if (this.#left === 0) return undefined;
      this.#left--;
      this.#next = 0;
      this.#chunk = new Uint8Array(0);
      this.#try(() => {
        const packed = this.#reader.number(4, 'the size of a chunk');
        const size = this.#reader.number(4, 'the uncompressed size of a chunk');
        if (size > CHUNK_MOST)
          throw new TraceError(`a chunk would have ${size} bytes, more than the ${CHUNK_MOST} accepted`);
        this.#chunk = this.#undo(this.#reader.bytes(packed, 'a chunk'), size);
      });
    }
    const page = this.#chunk.subarray(this.#next, this.#next + this.#pageSize);
    this.#next += this.#pageSize;
    return page;
  }

  place(): string {
    return `byte ${Math.max(0, this.#next - this.#pageSize)} of the chunk before ${hexOffset(this.#reader.at)} of the file`;
  }

  /** Where a chunk cannot be read, the CPU's pages end. */
  #try(run: () => void): void {
    try {
      run();
    } catch (error) {
      if (!(error instanceof TraceError)) throw error;
      this.#problems.push(`the pages of CPU ${this.#cpu} end early: ${error.message}`);
      this.#left = 0;
    }
  }
}
