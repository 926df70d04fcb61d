import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { ImageError } from './errors.ts';

/** Bytes read at once: tables lie near each other, but not so near that many of their neighbours would be wanted. */
const BLOCK = 1 << 13;
/** Blocks kept: 256 MiB. What is larger is read again. */
const KEPT = 1 << 15;

/** A file read by blocks, so that it may be larger than memory. */
export class BlockFile {
  readonly path: string;
  readonly size: number;
  readonly #fd: number;
  readonly #blocks = new Map<number, Uint8Array>();
  #last = -1;
  #lastBlock: Uint8Array = new Uint8Array(0);

  /** @throws ImageError */
  constructor(path: string) {
    this.path = path;
    try {
      this.#fd = openSync(path, 'r');
    } catch (error) {
      throw new ImageError(`cannot read ${path}: ${(error as Error).message}`);
    }
    const stat = fstatSync(this.#fd);
    if (!stat.isFile()) {
      closeSync(this.#fd);
      throw new ImageError(`${path} is not a file`);
    }
    this.size = stat.size;
  }

  #block(number: number): Uint8Array {
    if (number === this.#last) return this.#lastBlock;
    let block = this.#blocks.get(number);
    if (block === undefined) {
      block = new Uint8Array(BLOCK);
      this.read(number * BLOCK, block);
      if (this.#blocks.size >= KEPT) this.#blocks.delete(this.#blocks.keys().next().value!);
      this.#blocks.set(number, block);
    }
    this.#last = number;
    this.#lastBlock = block;
    return block;
  }

  /** Fills `into` from an offset; what lies behind the end of the file is zero. @throws ImageError */
  read(offset: number, into: Uint8Array): void {
    let done = 0;
    while (done < into.length) {
      let count: number;
      try {
        count = readSync(this.#fd, into, done, into.length - done, offset + done);
      } catch (error) {
        throw new ImageError(`cannot read ${this.path} at offset ${offset + done}: ${(error as Error).message}`);
      }
      if (count === 0) break;
      done += count;
    }
    into.fill(0, done);
  }

  bytes(offset: number, length: number): Uint8Array {
    const into = new Uint8Array(length);
    this.read(offset, into);
    return into;
  }

  /** The 4096 bytes at an offset as words: not to be written, nor kept for long. */
  page(offset: number): Uint32Array {
    const within = offset % BLOCK;
    if (within + 4096 <= BLOCK && within % 4 === 0) {
      const block = this.#block((offset - within) / BLOCK);
      return new Uint32Array(block.buffer, block.byteOffset + within, 1024);
    }
    return new Uint32Array(this.bytes(offset, 4096).buffer);
  }

  close(): void {
    closeSync(this.#fd);
  }
}
