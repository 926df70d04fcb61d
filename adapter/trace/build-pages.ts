/** Pages of a ring buffer as the kernel makes them, for tests and measurements: pages.ts read backwards. */
import type { EventFormat } from './format.ts';
import { type PageLayout, USUAL_LAYOUT } from './layout.ts';

const DELTA_MOST = 1n << 27n;
const WORDS_IN_HEADER = 28;
const TYPE_TIME_EXTEND = 30;

/** A record of an event, with some of its fields; the others are 0. */
export function buildRecord(format: EventFormat, values: Readonly<Record<string, bigint | number>>): Uint8Array {
  const bytes = new Uint8Array(Math.max(...format.fields.map((field) => field.offset + field.size)));
  for (const [name, value] of Object.entries({ common_type: format.id, ...values })) {
    const field = format.fields.find((each) => each.name === name);
    if (!field) throw new RangeError(`${format.name} has no field ${name}`);
    const word = BigInt(value);
    for (let i = 0; i < field.size; i++) bytes[field.offset + i] = Number((word >> BigInt(8 * i)) & 0xffn);
  }
  return bytes;
}

/** Puts one CPU's records into pages. */
export class PageBuilder {
  readonly pages: Uint8Array[] = [];
  readonly #layout: PageLayout;
  #at = 0;
  #time = 0n;

  constructor(layout: PageLayout = USUAL_LAYOUT) {
    this.#layout = layout;
  }

  /** @param time of the clock, not before that of the last record */
  record(time: bigint, bytes: Uint8Array): void {
    const words = Math.ceil(bytes.length / 4);
    const delta = time - this.#time;
    const extend = delta >= DELTA_MOST;
    const length = (extend ? 8 : 0) + (words > WORDS_IN_HEADER ? 8 : 4) + 4 * words;
    if (this.pages.length === 0 || this.#at + length > this.#layout.pageSize) {
      this.newPage(time);
      this.record(time, bytes);
      return;
    }
    if (extend)
      this.#words(Number(((delta % DELTA_MOST) << 5n) | BigInt(TYPE_TIME_EXTEND)), Number(delta / DELTA_MOST));
    const rest = extend ? 0 : Number(delta);
    if (words > WORDS_IN_HEADER) this.#words(rest * 32, 4 * words + 4);
    else this.#words(rest * 32 + words);
    this.#page.set(bytes, this.#at);
    this.#at += 4 * words;
    this.#time = time;
    this.#commit();
  }

  /** Begins a page. */
  newPage(time: bigint): void {
    this.pages.push(new Uint8Array(this.#layout.pageSize));
    this.#view.setBigUint64(0, time, true);
    this.#at = this.#layout.data;
    this.#time = time;
  }

  /** Words as they are, of which the reader must make something. */
  raw(...words: number[]): void {
    this.#words(...words);
    this.#commit();
  }

  /** Marks the page as following a gap. @param count stored where the page has room for it */
  missed(count?: number): void {
    const view = this.#view;
    const used = this.#at - this.#layout.data;
    view.setUint32(8, (used | 0x80000000 | (count === undefined ? 0 : 1 << 30)) >>> 0, true);
    if (count !== undefined) view.setBigUint64(this.#at, BigInt(count), true);
  }

  /** All pages, one behind the other. */
  bytes(): Uint8Array {
    const all = new Uint8Array(this.pages.length * this.#layout.pageSize);
    this.pages.forEach((page, i) => {
      all.set(page, i * this.#layout.pageSize);
    });
    return all;
  }

  get #page(): Uint8Array {
    return this.pages.at(-1)!;
  }

  get #view(): DataView {
    return new DataView(this.#page.buffer);
  }

  #words(...words: number[]): void {
    for (const word of words) {
      this.#view.setUint32(this.#at, word >>> 0, true);
      this.#at += 4;
    }
  }

  #commit(): void {
    this.#view.setUint32(8, this.#at - this.#layout.data, true);
  }
}
