import { writeSync } from 'node:fs';

/** Bytes gathered before they are written. */
const SIZE = 1 << 18;
/** No row is longer. */
const LONGEST_ROW = 1 << 12;

const encoder = new TextEncoder();

/** Three hexadecimal digits of each number below 4096, one after the other. */
const DIGITS = new Uint8Array(3 * 4096);
for (let value = 0; value < 4096; value++) DIGITS.set(encoder.encode(value.toString(16).padStart(3, '0')), 3 * value);

/** Standard output for millions of rows: bytes are gathered, and strings that come often are kept as bytes. */
export class Output {
  readonly #buffer = new Uint8Array(SIZE);
  #used = 0;

  /** A string as bytes, for `bytes`. */
  static encode(text: string): Uint8Array {
    return encoder.encode(text);
  }

  bytes(bytes: Uint8Array): void {
    // A loop: `set` costs more than such short runs.
    for (let i = 0; i < bytes.length; i++) this.#buffer[this.#used++] = bytes[i]!;
  }

  /** The address of a frame in 16 hexadecimal digits. */
  frame(frame: number): void {
    const high = Math.floor(frame / 2 ** 24);
    const low = frame - high * 2 ** 24;
    this.#buffer[this.#used++] = DIGITS[3 * (high >>> 24) + 2]!;
    this.#three((high >>> 12) & 4095);
    this.#three(high & 4095);
    this.#three(low >>> 12);
    this.#three(low & 4095);
    this.#three(0);
  }

  #three(value: number): void {
    const at = 3 * value;
    const buffer = this.#buffer;
    buffer[this.#used] = DIGITS[at]!;
    buffer[this.#used + 1] = DIGITS[at + 1]!;
    buffer[this.#used + 2] = DIGITS[at + 2]!;
    this.#used += 3;
  }

  text(text: string): void {
    this.#used += encoder.encodeInto(text, this.#buffer.subarray(this.#used)).written;
  }

  endRow(): void {
    this.#buffer[this.#used++] = 0x0a;
    if (this.#used > SIZE - LONGEST_ROW) this.flush();
  }

  flush(): void {
    for (let done = 0; done < this.#used; ) {
      try {
        done += writeSync(1, this.#buffer, done, this.#used - done);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === 'EAGAIN') continue;
        // Whoever read has read enough.
        if (code === 'EPIPE') process.exit(0);
        throw error;
      }
    }
    this.#used = 0;
  }
}
