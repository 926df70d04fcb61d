/** A file that is not what it should be; the message says where. */
export class ElfError extends Error {}

/** The longest name: as long as paths may be. Symbols of more, which a compiler may make, are cut. */
const LONGEST_NAME = 4096;
/** Letters of all names of a file. Names may share their bytes, so that a small file could ask for any amount. */
const MOST_LETTERS = 1 << 26;

/** How much the names of a file may still take. */
export class NameBudget {
  #left = MOST_LETTERS;

  /** @throws ElfError */
  take(letters: number): void {
    this.#left -= letters;
    if (this.#left < 0) throw new ElfError(`its names have more than ${MOST_LETTERS} letters`);
  }
}

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

  /** Text that a zero ends. @throws ElfError where it is longer than names are */
  text(budget: NameBudget): string {
    const text = this.#upToZero(budget);
    if (this.#view.getUint8(this.at - 1) !== 0)
      throw new ElfError(`${this.#what} has a name of more than ${LONGEST_NAME} letters before ${this.at}`);
    return text;
  }

  /** The same, cut where it is longer; what follows cannot be read then. */
  cutText(budget: NameBudget): string {
    return this.#upToZero(budget);
  }

  #upToZero(budget: NameBudget): string {
    const start = this.at;
    let length = 0;
    while (this.u8() !== 0 && length < LONGEST_NAME) length++;
    budget.take(length);
    return new TextDecoder().decode(new Uint8Array(this.#view.buffer, this.#view.byteOffset + start, length));
  }
}
