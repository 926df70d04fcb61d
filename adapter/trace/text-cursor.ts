/** A place in bytes of text, and the 64-bit number read last. No method makes a string or an object. */
export class TextCursor {
  bytes: Uint8Array = new Uint8Array(0);
  at = 0;
  /** Behind the last byte of the line. */
  end = 0;
  /** The number read last, in two's complement. */
  lo = 0;
  hi = 0;

  spaces(): void {
    const { bytes, end } = this;
    let { at } = this;
    while (at < end && isSpace(bytes[at]!)) at++;
    this.at = at;
  }

  /** Goes over a literal, in which a space stands for any number of them; false, and no further, where it is not there. */
  literal(text: Uint8Array): boolean {
    const { bytes, end } = this;
    let { at } = this;
    for (let i = 0; i < text.length; i++) {
      const byte = text[i]!;
      if (byte === SPACE) {
        while (at < end && isSpace(bytes[at]!)) at++;
      } else if (at < end && bytes[at] === byte) at++;
      else return false;
    }
    this.at = at;
    return true;
  }

  /** A hexadecimal number of up to 64 bits, with or without 0x. */
  hex(): boolean {
    const { bytes, end } = this;
    let { at } = this;
    if (bytes[at] === ZERO && at + 1 < end && (bytes[at + 1]! | 0x20) === LETTER_X) at += 2;
    const first = at;
    let lo = 0;
    let hi = 0;
    for (; at < end; at++) {
      const value = HEX_DIGITS[bytes[at]!]!;
      if (value < 0) break;
      hi = (hi << 4) | (lo >>> 28);
      lo = (lo << 4) | value;
    }
    if (at === first || at - first > 16) return false;
    this.lo = lo >>> 0;
    this.hi = hi >>> 0;
    this.at = at;
    return true;
  }

  /** A decimal number of up to 64 bits, perhaps negative. */
  decimal(): boolean {
    const { bytes, end } = this;
    let { at } = this;
    const negative = bytes[at] === MINUS;
    if (negative) at++;
    const first = at;
    // In two halves, each of which a number holds exactly.
    let low = 0;
    let high = 0;
    for (; at < end; at++) {
      const value = bytes[at]! - ZERO;
      if (value < 0 || value > 9) break;
      if (at - first < 9) low = low * 10 + value;
      else {
        low = low * 10 + value;
        high = high * 10 + Math.floor(low / TWO_32);
        low %= TWO_32;
      }
    }
    if (at === first || at - first > 20) return false;
    this.at = at;
    this.lo = low >>> 0;
    this.hi = high >>> 0;
    if (negative) {
      this.lo = -this.lo >>> 0;
      this.hi = (this.lo === 0 ? -this.hi : ~this.hi) >>> 0;
    }
    return true;
  }

  /** Goes over decimal digits and gives their value; −1 where there are none, or more than `most`. */
  count(most: number): number {
    const { bytes, end } = this;
    let { at } = this;
    const first = at;
    let value = 0;
    for (; at < end; at++) {
      const digit = bytes[at]! - ZERO;
      if (digit < 0 || digit > 9) break;
      value = value * 10 + digit;
    }
    if (at === first || at - first > most) return -1;
    this.at = at;
    return value;
  }

  /** What is left, for messages. */
  rest(): string {
    return new TextDecoder().decode(this.bytes.subarray(this.at, this.end));
  }
}

const TWO_32 = 2 ** 32;
const ZERO = 0x30;
const MINUS = 0x2d;
const LETTER_X = 0x78;
export const SPACE = 0x20;

/** Tracefs puts a NUL behind a page's text (KVM_MMU_PAGE_PRINTK ends in one), which some tools keep. */
export function isSpace(byte: number): boolean {
  return byte <= SPACE && (byte === SPACE || byte === 9 || byte === 0);
}

/** Values by bytes; −1 of those that are no hexadecimal digits. */
const HEX_DIGITS = Int8Array.from({ length: 256 }, (_, byte) =>
  '0123456789abcdef'.indexOf(String.fromCharCode(byte).toLowerCase()),
);

export function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39;
}
