/**
 * Framing of the GDB remote serial protocol: `$content#checksum`, notifications `%content#checksum`, the acknowledgements `+`
 * and `-`, escapes and run lengths (GDB manual, E.1 "Overview" and E.8 "Notification Packets"). Content is bytes.
 */

/** What a peer sent or left out against the protocol, or an error that it answered. */
export class RspError extends Error {}

/** The connection has ended: nothing more can be asked. */
export class LostError extends RspError {}

/** What a stream of bytes holds, in its order. */
export type RspEvent =
  | { readonly kind: 'packet' | 'notification'; readonly content: Uint8Array }
  | { readonly kind: 'ack' | 'nak' }
  /** A frame that was damaged on its way; nothing of its content counts. */
  | { readonly kind: 'damaged'; readonly error: RspError };

const DOLLAR = 0x24;
const HASH = 0x23;
const PERCENT = 0x25;
const PLUS = 0x2b;
const MINUS = 0x2d;
const STAR = 0x2a;
const ESCAPE = 0x7d;
/** What an escaped byte is combined with. */
const ESCAPE_XOR = 0x20;
/** A run's count is written as the character of count + 29, so that it can be printed: 3 more at least. */
const RUN_BASE = 29;
/**
 * Bytes of a frame, escaped and not: stubs announce far smaller packets. Without a limit a stream of noise, or a few runs,
 * would fill memory.
 */
export const LONGEST = 1 << 24;

/** Bytes of text whose characters are below 256. */
export function latin1(text: string): Uint8Array {
  return Uint8Array.from(text, (char) => char.charCodeAt(0));
}

/** Words of a stub's for people: UTF-8, in an answer that was read as bytes. */
export function wordsOf(answer: string): string {
  return new TextDecoder().decode(latin1(answer));
}

/** Text of bytes, a character each. */
export function fromLatin1(bytes: Uint8Array): string {
  let text = '';
  // Arguments of one call are limited.
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return text;
}

/** Two hexadecimal digits a byte. */
export function toHex(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += byte.toString(16).padStart(2, '0');
  return text;
}

/** @throws RspError when the text is not pairs of hexadecimal digits */
export function fromHex(text: string): Uint8Array {
  if (text.length % 2 !== 0 || !/^[0-9a-f]*$/i.test(text))
    throw new RspError(`${quote(text)} is not pairs of hexadecimal digits`);
  const bytes = new Uint8Array(text.length / 2);
  for (let at = 0; at < bytes.length; at++) bytes[at] = Number.parseInt(text.slice(2 * at, 2 * at + 2), 16);
  return bytes;
}

/** What a peer sent, short enough for a message. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}…` : text);
}

/** A frame around content, with what must be escaped escaped. */
export function encodePacket(content: Uint8Array, kind: 'packet' | 'notification' = 'packet'): Uint8Array {
  let escapes = 0;
  for (const byte of content) if (isEscaped(byte)) escapes++;
  const frame = new Uint8Array(content.length + escapes + 4);
  let at = 0;
  let sum = 0;
  const put = (byte: number): void => {
    frame[at++] = byte;
    sum += byte;
  };
  frame[at++] = kind === 'packet' ? DOLLAR : PERCENT;
  for (const byte of content) {
    if (isEscaped(byte)) {
      put(ESCAPE);
      put(byte ^ ESCAPE_XOR);
    } else put(byte);
  }
  const digits = (sum % 256).toString(16).padStart(2, '0');
  frame[at++] = HASH;
  frame[at++] = digits.charCodeAt(0);
  frame[at++] = digits.charCodeAt(1);
  return frame;
}

function isEscaped(byte: number): boolean {
  return byte === DOLLAR || byte === HASH || byte === ESCAPE || byte === STAR;
}

/** The value of a hexadecimal digit, or −1. */
function digit(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  if (byte >= 0x61 && byte <= 0x66) return byte - 0x61 + 10;
  if (byte >= 0x41 && byte <= 0x46) return byte - 0x41 + 10;
  return -1;
}

/** Content of a frame: escapes and run lengths resolved. @throws RspError */
export function decodeContent(raw: Uint8Array): Uint8Array {
  if (!raw.includes(ESCAPE) && !raw.includes(STAR)) return raw.slice();
  let length = 0;
  for (let pass = 0; ; pass++) {
    const into = pass === 0 ? undefined : new Uint8Array(length);
    let at = 0;
    let last = -1;
    for (let from = 0; from < raw.length; from++) {
      let byte = raw[from]!;
      if (byte === STAR) {
        const count = (raw[++from] ?? 0) - RUN_BASE;
        if (last < 0 || count < 3)
          throw new RspError(`byte ${from} of a packet ends a run that has ${last < 0 ? 'no character' : 'no length'}`);
        into?.fill(last, at, at + count);
        at += count;
        continue;
      }
      if (byte === ESCAPE) {
        const escaped = raw[++from];
        if (escaped === undefined) throw new RspError('a packet ends within an escape');
        byte = escaped ^ ESCAPE_XOR;
      }
      last = byte;
      if (into) into[at] = byte;
      at++;
    }
    if (into) return into;
    if (at > LONGEST)
      throw new RspError(`a packet has ${at} bytes with its runs, more than the ${LONGEST} that are accepted`);
    length = at;
  }
}

/** Takes bytes as they come, in chunks of any size, and tells what they hold. Bytes between frames are noise. */
export class PacketReader {
  #state: 'outside' | 'content' | 'checksum' | 'checksum-2' = 'outside';
  #kind: 'packet' | 'notification' = 'packet';
  #raw = new Uint8Array(1 << 12);
  #length = 0;
  #tooLong = false;
  #sum = 0;
  #wanted = 0;

  feed(chunk: Uint8Array): RspEvent[] {
    const events: RspEvent[] = [];
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at]!;
      switch (this.#state) {
        case 'outside':
          if (byte === PLUS) events.push({ kind: 'ack' });
          else if (byte === MINUS) events.push({ kind: 'nak' });
          else if (byte === DOLLAR || byte === PERCENT) this.#begin(byte);
          break;
        case 'content':
          if (byte === HASH) this.#state = 'checksum';
          // A frame never holds these: the one that began has lost its end.
          else if (byte === DOLLAR) {
            events.push({ kind: 'damaged', error: new RspError('a packet began within another') });
            this.#begin(byte);
          } else at = this.#take(chunk, at) - 1;
          break;
        case 'checksum':
          this.#wanted = digit(byte);
          this.#state = 'checksum-2';
          break;
        case 'checksum-2':
          this.#state = 'outside';
          events.push(this.#end(this.#wanted < 0 || digit(byte) < 0 ? -1 : this.#wanted * 16 + digit(byte)));
          break;
      }
    }
    return events;
  }

  #begin(byte: number): void {
    this.#state = 'content';
    this.#kind = byte === DOLLAR ? 'packet' : 'notification';
    this.#length = 0;
    this.#sum = 0;
    this.#tooLong = false;
  }

  /** Takes content up to the next byte that ends it, or to the end of the chunk; where that is. */
  #take(chunk: Uint8Array, from: number): number {
    let to = from;
    let sum = 0;
    for (; to < chunk.length; to++) {
      const byte = chunk[to]!;
      if (byte === HASH || byte === DOLLAR) break;
      sum += byte;
    }
    const length = this.#length + to - from;
    if (length > LONGEST) {
      this.#tooLong = true;
      return to;
    }
    if (length > this.#raw.length) {
      const larger = new Uint8Array(Math.max(length, 2 * this.#raw.length));
      larger.set(this.#raw);
      this.#raw = larger;
    }
    this.#raw.set(chunk.subarray(from, to), this.#length);
    this.#length = length;
    this.#sum += sum;
    return to;
  }

  #end(wanted: number): RspEvent {
    if (this.#tooLong)
      return { kind: 'damaged', error: new RspError(`a packet has more than the ${LONGEST} bytes that are accepted`) };
    const sum = this.#sum % 256;
    if (sum !== wanted) {
      const said = wanted < 0 ? 'none' : `0x${wanted.toString(16)}`;
      return {
        kind: 'damaged',
        error: new RspError(`a packet’s checksum is 0x${sum.toString(16)}, its frame says ${said}`),
      };
    }
    try {
      return { kind: this.#kind, content: decodeContent(this.#raw.subarray(0, this.#length)) };
    } catch (error) {
      if (error instanceof RspError) return { kind: 'damaged', error };
      throw error;
    }
  }
}
