import { TraceError } from './errors.ts';

/** What a recording is read from: a file, or bytes. */
export interface ByteSource {
  /** In bytes. */
  readonly size: number;
  /**
   * Bytes from an offset; fewer than `length` only where the source ends. What is returned is the caller's.
   * @throws TraceError when they cannot be read
   */
  read(offset: number, length: number): Uint8Array;
}

/**
 * Undoes a compression; undefined when this host has not the algorithm. May throw anything when the bytes are damaged.
 * @param algorithm as trace-cmd calls it: `zlib`, `zstd`
 * @param size of the result, in bytes
 */
export type Decompress = (algorithm: string, bytes: Uint8Array, size: number) => Uint8Array | undefined;

export function bytesSource(bytes: Uint8Array): ByteSource {
  return { size: bytes.length, read: (offset, length) => bytes.subarray(offset, offset + length) };
}

/** A part of a source, as far as it goes. */
export function partOf(source: ByteSource, offset: number, size: number): ByteSource {
  const there = Math.max(0, Math.min(size, source.size - offset));
  return {
    size: there,
    read: (at, length) => source.read(offset + at, Math.max(0, Math.min(length, there - at))),
  };
}

export function hexOffset(offset: number): string {
  return `offset 0x${offset.toString(16)}`;
}

/** Reads a source from an offset on, in the order of its bytes; all numbers are little-endian. */
export class SourceReader {
  readonly #source: ByteSource;
  /** What the source is, for messages: `the file`, or `the uncompressed section 16`. */
  readonly #what: string;
  at: number;

  constructor(source: ByteSource, at = 0, what = 'the file') {
    this.#source = source;
    this.#what = what;
    this.at = at;
  }

  get left(): number {
    return this.#source.size - this.at;
  }

  /** @param what is being read, for the message @throws TraceError when the source ends before */
  bytes(length: number, what: string): Uint8Array {
    if (!(length >= 0 && length <= this.left)) {
      const lacks = `${this.#what} has ${Math.max(0, this.left)} bytes left`;
      throw new TraceError(`${what} at ${hexOffset(this.at)} should have ${length} bytes, but ${lacks}`);
    }
    const bytes = this.#source.read(this.at, length);
    this.at += length;
    return bytes;
  }

  /** What has not been read. */
  rest(): ByteSource {
    return partOf(this.#source, this.at, this.left);
  }

  skip(length: number, what: string): void {
    if (length > this.left) this.bytes(length, what);
    this.at += length;
  }

  number(size: 1 | 2 | 4 | 8, what: string): number {
    const at = this.at;
    const bytes = this.bytes(size, what);
    const view = new DataView(bytes.buffer, bytes.byteOffset, size);
    if (size === 1) return view.getUint8(0);
    if (size === 2) return view.getUint16(0, true);
    if (size === 4) return view.getUint32(0, true);
    const value = Number(view.getBigUint64(0, true));
    if (value > Number.MAX_SAFE_INTEGER)
      throw new TraceError(`${what} at ${hexOffset(at)} is 0x${value.toString(16)}, more than any file has`);
    return value;
  }

  /** Text up to a NUL, of at most `most` bytes. */
  string(most: number, what: string): string {
    const at = this.at;
    const bytes = this.#source.read(this.at, Math.min(most + 1, Math.max(0, this.left)));
    const length = bytes.indexOf(0);
    if (length < 0) throw new TraceError(`${what} at ${hexOffset(at)} has no end within ${bytes.length} bytes`);
    this.at += length + 1;
    return text(bytes.subarray(0, length));
  }

  text(length: number, what: string): string {
    return text(this.bytes(length, what));
  }
}

const decoder = new TextDecoder();

/** Bytes as text, up to a NUL if there is one. */
export function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end));
}
