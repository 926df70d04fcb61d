/** A file that is not what it should be; the message says where. */
export class ElfError extends Error {}

/** Little-endian fields, one after the other. */
export class Reader {
  readonly #view: DataView;
  readonly #what: string;
  readonly end: number;
  at: number;

  /** `what` names the bytes in messages. */
  constructor(bytes: Uint8Array, what: string, at = 0, end = bytes.length) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#what = what;
    this.at = at;
    this.end = Math.min(end, bytes.length);
  }

  get more(): boolean {
    return this.at < this.end;
  }

  #take(size: number): number {
    const at = this.at;
    if (size < 0 || at + size > this.end)
      throw new ElfError(`${this.#what} ends at ${this.end}, in the middle of a field at ${at}`);
    this.at += size;
    return at;
  }

  skip(size: number): void {
    this.#take(size);
  }

  u8(): number {
    return this.#view.getUint8(this.#take(1));
  }

  i8(): number {
    return this.#view.getInt8(this.#take(1));
  }

  u16(): number {
    return this.#view.getUint16(this.#take(2), true);
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  u64(): bigint {
    return this.#view.getBigUint64(this.#take(8), true);
  }

  /** A number that must be an offset or a count. */
  word(size: 4 | 8): number {
    const value = size === 4 ? this.u32() : Number(this.u64());
    if (!Number.isSafeInteger(value)) throw new ElfError(`${this.#what} has the offset ${value} at ${this.at - size}`);
    return value;
  }

  /** LEB128, of at most 64 bits. */
  uleb(): number {
    let value = 0;
    for (let scale = 1, length = 0; ; scale *= 128, length++) {
      const byte = this.u8();
      value += (byte % 128) * scale;
      if (byte < 128) return value;
      if (length === 9) throw new ElfError(`${this.#what} has a number of more than 64 bits at ${this.at}`);
    }
  }

  sleb(): number {
    let value = 0;
    for (let scale = 1, length = 0; ; scale *= 128, length++) {
      const byte = this.u8();
      value += (byte % 128) * scale;
      if (byte < 128) return byte >= 64 ? value - 128 * scale : value;
      if (length === 9) throw new ElfError(`${this.#what} has a number of more than 64 bits at ${this.at}`);
    }
  }

  /** Text that a zero ends. */
  text(): string {
    const start = this.at;
    while (this.u8() !== 0);
    return new TextDecoder().decode(
      new Uint8Array(this.#view.buffer, this.#view.byteOffset + start, this.at - 1 - start),
    );
  }
}
