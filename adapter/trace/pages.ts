/**
 * Pages of the kernel's ring buffer, as `per_cpu/cpuN/trace_pipe_raw` gives them and trace.dat keeps them, into a recording
 * (Documentation/trace/ring-buffer-design.rst; tracefs's events/header_page and header_event).
 */
import type { Recording, Shape } from '../../engine/history/recording.ts';
import { COMMON, type EventFormat, eventPlan, type FieldPlan } from './format.ts';
import { type PageLayout, USUAL_LAYOUT } from './layout.ts';

/** In the upper half of a page's commit word, below which lie the bytes in use. */
const MISSED_EVENTS = 2 ** 31;
/** The number of the events missed stands behind the data. */
const MISSED_STORED = 1 << 30;
const COMMIT_BYTES = (1 << 27) - 1;
/** Kinds of a record, in the lower 5 bits of its first word; 1 to 28 are its length in words. */
const TYPE_PADDING = 29;
const TYPE_TIME_EXTEND = 30;
const TYPE_TIME_STAMP = 31;
const TWO_27 = 2 ** 27;
const TWO_32 = 2 ** 32;

/** How records of one id are read. */
interface Decoder {
  readonly name: string;
  /** Undefined: the event is not understood, and only counted. */
  readonly shape: Shape | undefined;
  readonly fields: readonly FieldPlan[];
  readonly bytes: number;
  count: number;
}

/** The events of a kernel, by their ids, read into one recording. */
export class Decoders {
  readonly recording: Recording;
  /** Where records have the thread; every kernel has it at byte 4, of 4 bytes. */
  readonly pid: number = 4;
  readonly #byId: (Decoder | undefined)[] = [];
  #short = 0;

  constructor(recording: Recording, formats: readonly EventFormat[]) {
    this.recording = recording;
    for (const format of formats) {
      const plan = eventPlan(format);
      const common = format.fields.find((field) => field.name === COMMON.pid);
      if (common && common.size === 4) this.pid = common.offset;
      const shape = plan && recording.shapeOf(plan.kind, plan.known, plan.wide);
      this.#byId[format.id] = {
        name: format.name,
        shape,
        fields: plan?.fields ?? [],
        bytes: Math.max(plan?.bytes ?? 0, this.pid + 4),
        count: 0,
      };
    }
  }

  /** The decoder of a record that begins at `at` and has `length` bytes; undefined when it is not to be stored. */
  find(view: DataView, at: number, length: number): Decoder | undefined {
    if (length < 2) {
      this.#short++;
      return undefined;
    }
    const id = view.getUint16(at, true);
    let decoder = this.#byId[id];
    if (decoder === undefined) {
      decoder = { name: `id ${id}`, shape: undefined, fields: [], bytes: 0, count: 0 };
      this.#byId[id] = decoder;
    }
    if (decoder.shape === undefined) {
      decoder.count++;
      return undefined;
    }
    if (decoder.bytes > length) {
      this.#short++;
      return undefined;
    }
    return decoder;
  }

  store(view: DataView, at: number, time: number, cpu: number, decoder: Decoder): void {
    const { recording } = this;
    const shape = decoder.shape!;
    recording.append(time, cpu, view.getInt32(at + this.pid, true), shape);
    const { words } = recording;
    let to = recording.wordAt;
    const { fields } = decoder;
    for (let i = 0; i < fields.length; i++) {
      const plan = fields[i]!;
      const from = at + plan.offset;
      let word: number;
      switch (plan.size) {
        case 8:
          word = view.getUint32(from, true);
          if (plan.equals === undefined) {
            words[to++] = word;
            words[to++] = view.getUint32(from + 4, true);
            continue;
          }
          break;
        case 4:
          word = view.getUint32(from, true);
          break;
        case 2:
          word = plan.signed ? view.getInt16(from, true) : view.getUint16(from, true);
          break;
        default:
          word = plan.signed ? view.getInt8(from) : view.getUint8(from);
      }
      if (plan.equals !== undefined) word = word === plan.equals ? 1 : 0;
      words[to++] = word ^ plan.invert;
    }
  }

  /** Puts what was counted since the last time into the recording's `unknown` and `problems`. */
  report(): void {
    for (const decoder of this.#byId) {
      if (!decoder || decoder.count === 0) continue;
      this.recording.skip(decoder.name, decoder.count);
      decoder.count = 0;
    }
    if (this.#short > 0)
      this.recording.problems.push(`${this.#short} records are shorter than their format says, and were left out`);
    this.#short = 0;
  }
}

/** One CPU's pages, one after another; what gives them reads ahead as it likes. */
export interface PageSource {
  /** The next page, or less where the recording ends within one; undefined behind the last. Its bytes may be reused at the next call. */
  next(): Uint8Array | undefined;
  /** Where the page given last lies, for messages: `offset 0x1000`. */
  place(): string;
}

/** Most problems that one CPU's pages report one by one. */
const PROBLEMS_MOST = 5;

/** Goes through one CPU's records that are understood, in their order. */
export class PageCursor {
  readonly cpu: number;
  /** Of the record at hand, since the origin. */
  time = 0;
  readonly #source: PageSource;
  readonly #decoders: Decoders;
  readonly #layout: PageLayout;
  #originLo = 0;
  #originHi = 0;
  #view: DataView = new DataView(new ArrayBuffer(0));
  #at = 0;
  #end = 0;
  /** The time of the page's last record, understood or not. */
  #now = 0;
  #pageHi = 0;
  /** The time of the last record before this page. */
  #before: number | undefined;
  #recordAt = 0;
  #decoder: Decoder | undefined;
  #problems = 0;
  #lost: { count: number | undefined } | undefined;

  constructor(cpu: number, source: PageSource, decoders: Decoders, layout: PageLayout = USUAL_LAYOUT) {
    this.cpu = cpu;
    this.#source = source;
    this.#decoders = decoders;
    this.#layout = layout;
  }

  /** Reads the first page's header; its time, or undefined when there is no page. To be called once, before {@link begin}. */
  open(): bigint | undefined {
    while (this.#nextPage()) {
      if (this.#end > this.#at) return this.#view.getBigUint64(0, true);
    }
    return undefined;
  }

  /** Goes to the first record. @param origin the clock's value at time 0 */
  begin(origin: bigint): boolean {
    this.#originLo = Number(origin & 0xffffffffn);
    this.#originHi = Number(origin >> 32n);
    this.#startPage();
    return this.advance();
  }

  /** Goes to the next record that is understood; false behind the last. */
  advance(): boolean {
    for (;;) {
      while (this.#at < this.#end) {
        if (this.#step()) return true;
      }
      this.#before = this.#now;
      if (!this.#nextPage()) return false;
      this.#startPage();
    }
  }

  /** The time of the last record that was gone through, since the origin. */
  get now(): number {
    return this.#now;
  }

  /** Stores the record at hand. @param shift is taken off its time */
  store(shift: number): void {
    this.#decoders.store(this.#view, this.#recordAt, this.time - shift, this.cpu, this.#decoder!);
  }

  #problem(words: string): void {
    const { problems } = this.#decoders.recording;
    if (this.#problems < PROBLEMS_MOST) problems.push(`CPU ${this.cpu}, ${this.#source.place()}: ${words}`);
    else if (this.#problems === PROBLEMS_MOST) problems.push(`CPU ${this.cpu}: more of its pages are damaged`);
    this.#problems++;
  }

  #nextPage(): boolean {
    const page = this.#source.next();
    if (page === undefined) return false;
    this.#view = new DataView(page.buffer, page.byteOffset, page.byteLength);
    this.#at = this.#layout.data;
    this.#end = this.#at;
    this.#lost = undefined;
    if (page.length < this.#layout.data) {
      this.#problem(`the recording ends after ${page.length} bytes of a page`);
      return true;
    }
    const commit = this.#view.getUint32(8, true);
    const used = commit & COMMIT_BYTES;
    const room = page.length - this.#layout.data;
    if (used > room) {
      this.#problem(
        page.length < this.#layout.pageSize
          ? `the recording ends after ${page.length} bytes of a page`
          : `a page says that ${used} of its ${room} bytes are in use`,
      );
    }
    this.#end += Math.min(used, room);
    if (commit >= MISSED_EVENTS) {
      const behind = this.#layout.data + used;
      const stored = (commit & MISSED_STORED) !== 0 && behind + 8 <= page.length;
      this.#lost = { count: stored ? Number(this.#view.getBigUint64(behind, true)) : undefined };
    }
    return true;
  }

  #startPage(): void {
    if (this.#view.byteLength < this.#layout.data) return;
    this.#pageHi = this.#view.getUint32(4, true);
    this.#now = this.#since(this.#view.getUint32(0, true), this.#pageHi);
    if (this.#lost) {
      const count = this.#lost.count;
      this.#decoders.recording.lose({
        after: this.#before,
        time: this.#now,
        cpu: this.cpu,
        // A damaged page may say anything.
        count: count !== undefined && Number.isSafeInteger(count) ? count : undefined,
      });
      this.#lost = undefined;
    }
  }

  #since(lo: number, hi: number): number {
    return (hi - this.#originHi) * TWO_32 + (lo - this.#originLo);
  }

  /** One record; whether it is to be stored. */
  #step(): boolean {
    const view = this.#view;
    const at = this.#at;
    const left = this.#end - at;
    if (left < 4) return this.#broken('ends within a record');
    const header = view.getUint32(at, true);
    const type = header & 31;
    const delta = header >>> 5;
    let from = at + 4;
    let length = type * 4;
    if (type === 0 || type >= TYPE_PADDING) {
      // Nothing follows on this page.
      if (type === TYPE_PADDING && delta === 0) {
        this.#at = this.#end;
        return false;
      }
      if (left < 8) return this.#broken('ends within a record');
      const next = view.getUint32(from, true);
      from += 4;
      if (type === TYPE_TIME_EXTEND) {
        this.#now += next * TWO_27 + delta;
        this.#at = from;
        return false;
      }
      if (type === TYPE_TIME_STAMP) {
        // 59 bits; those above are the page's.
        this.#now = this.#since(((next << 27) | delta) >>> 0, ((this.#pageHi & 0xf8000000) | (next >>> 5)) >>> 0);
        this.#at = from;
        return false;
      }
      // A long record, or one that was taken back: its length counts the word that says it.
      if (next < 4 || next % 4 !== 0) return this.#broken(`has a record of ${next} bytes`);
      length = next - 4;
    }
    if (from + length > this.#end)
      return this.#broken(`has a record of ${length} bytes where ${this.#end - from} are left`);
    this.#now += delta;
    this.#at = from + length;
    if (type === TYPE_PADDING) return false;
    this.#decoder = this.#decoders.find(view, from, length);
    this.#recordAt = from;
    this.time = this.#now;
    return this.#decoder !== undefined;
  }

  /** The rest of the page cannot be read. */
  #broken(words: string): false {
    this.#problem(`at byte ${this.#at} the page ${words}`);
    this.#decoders.recording.lose({ after: this.#now, time: this.#now, cpu: this.cpu, count: undefined });
    this.#at = this.#end;
    return false;
  }
}

/**
 * Stores the records of all CPUs in order of their times; of those of one time, those of the CPU that is listed first.
 * @param until records from this time on stay in their cursors
 * @returns the cursors that have records left
 */
export function merge(
  cursors: readonly PageCursor[],
  store: (cursor: PageCursor) => void,
  until = Number.POSITIVE_INFINITY,
): PageCursor[] {
  const left = [...cursors];
  const waiting: PageCursor[] = [];
  while (left.length > 0) {
    let first = 0;
    let second = -1;
    for (let i = 1; i < left.length; i++) {
      const { time } = left[i]!;
      if (time < left[first]!.time) {
        second = first;
        first = i;
      } else if (second < 0 || time < left[second]!.time) second = i;
    }
    const cursor = left[first]!;
    // Records of a CPU come in bursts, through which the others need not be looked at.
    const limit = second < 0 ? Number.POSITIVE_INFINITY : left[second]!.time;
    const beforeEqual = first < second;
    let more = true;
    while (
      more &&
      cursor.time < until &&
      (cursor.time < limit || (beforeEqual && cursor.time === limit) || second < 0)
    ) {
      store(cursor);
      more = cursor.advance();
    }
    if (more && cursor.time < until) continue;
    left.splice(first, 1);
    if (more) waiting.push(cursor);
  }
  return waiting;
}

/** Reads the pages of all CPUs into their recording, which must be empty. */
export function readPages(cursors: readonly PageCursor[], decoders: Decoders): void {
  const { recording } = decoders;
  let origin: bigint | undefined;
  const opened = cursors.filter((cursor) => {
    const time = cursor.open();
    if (time !== undefined && (origin === undefined || time < origin)) origin = time;
    return time !== undefined;
  });
  if (origin === undefined) return;
  const start = origin;
  let shift = 0;
  merge(
    opened.filter((cursor) => cursor.begin(start)),
    (cursor) => {
      if (recording.length === 0) {
        shift = cursor.time;
        recording.base = start + BigInt(shift);
      }
      cursor.store(shift);
    },
  );
}
