/**
 * A recording of KVM's tracepoints, whatever it was read from: columns of numbers, in time order. An event is its time, CPU,
 * thread, and a shape, which says what tracepoint it is of and which of its fields are there; the fields' words lie in a
 * heap of their own. Columns grow by chunks, so that growing copies nothing.
 */
import { fieldIndex, TRACEPOINTS, type Tracepoint } from './tracepoints.ts';

/** What a recording was read from. */
export type RecordingSource = 'pages' | 'trace.dat' | 'trace-cmd report' | 'perf script' | 'tracefs text';

/** What events have in common that were recorded alike. */
export interface Shape {
  readonly index: number;
  readonly kind: number;
  readonly tracepoint: Tracepoint;
  /** Where each field's words begin, from the event's first; −1 where the field is unknown. */
  readonly slots: Int8Array;
  /** A bit for each field that has two words. */
  readonly wide: number;
  /**
   * Which bits of the field `role` were recorded, in the layout of Linux 7.1 (kvm_mmu_page_role); the others are 0. Text
   * omits some; 0 where there is no role.
   */
  readonly roleKnown: number;
  /** Words of an event. */
  readonly words: number;
}

/** Events that the kernel recorded and that are not there any more, or that could not be read. */
export interface Loss {
  /** Nothing is known to be missing before this time; undefined when nothing is known. In the recording's unit, as all times. */
  readonly after: number | undefined;
  /** Nothing is missing from this time on. */
  readonly time: number;
  /** Undefined when the recording does not say. */
  readonly cpu: number | undefined;
  /** Undefined when they were not counted. */
  readonly count: number | undefined;
  /** The index of the first event that is not earlier than `time`. */
  readonly beforeIndex: number;
}

const CHUNK_BITS = 16;
const CHUNK = 1 << CHUNK_BITS;
const CHUNK_MASK = CHUNK - 1;
const HEAP_BITS = 18;
const HEAP = 1 << HEAP_BITS;
const HEAP_MASK = HEAP - 1;

interface Chunk {
  readonly time: Float64Array;
  readonly offset: Uint32Array;
  readonly pid: Int32Array;
  readonly cpu: Uint16Array;
  readonly shape: Uint16Array;
}

const newChunk = (): Chunk => ({
  time: new Float64Array(CHUNK),
  offset: new Uint32Array(CHUNK),
  pid: new Int32Array(CHUNK),
  cpu: new Uint16Array(CHUNK),
  shape: new Uint16Array(CHUNK),
});

const TWO_32 = 2 ** 32;

/** Bits of a role that every kernel's text prints: level to efer_nx, and ad_disabled. */
export const ROLE_IN_TEXT = 0x00011fff;

export class Recording {
  readonly source: RecordingSource;
  /** The kernel that recorded, as uname says it, if the recording tells. */
  kernel: string | undefined;
  /** The trace clock, such as `local` or `mono`, if the recording tells. Unless it is `counter` or `x86-tsc`, times are nanoseconds. */
  clock: string | undefined;
  /** The clock's value at time 0, which is that of the event stored first. */
  base = 0n;
  /** What is wrong with the recording, in sentences; what could be used was used. */
  readonly problems: string[] = [];
  /** How many events there were of the tracepoints that are not understood, by name. */
  readonly unknown = new Map<string, number>();

  readonly #chunks: Chunk[] = [];
  readonly #heaps: Uint32Array[] = [];
  readonly #shapes: Shape[] = [];
  readonly #shapeKeys = new Map<string, Shape>();
  readonly #comms = new Map<number, string>();
  readonly #losses: Omit<Loss, 'beforeIndex'>[] = [];
  #length = 0;
  /** Events up to here are in order. */
  #settled = 0;
  #latest = Number.NEGATIVE_INFINITY;
  /** The earliest time that was appended behind a later one. */
  #late = Number.POSITIVE_INFINITY;
  #lateCount = 0;
  #nextWord = 0;

  #leftOut = 0;
  readonly #wordsMost: number;

  /** @param wordsMost words of fields that are stored: what comes behind is counted and left out. 4 bytes each; by default 12 GiB */
  constructor(source: RecordingSource, wordsMost = 3 * 2 ** 30) {
    this.source = source;
    this.#wordsMost = wordsMost;
  }

  // ---------------------------------------------------------------------------------------------------------- reading

  /** How many events there are. */
  get length(): number {
    return this.#length;
  }

  /** When, since time 0: nanoseconds unless the {@link clock} counts something else. Negative where a later batch brought earlier events. */
  time(index: number): number {
    return this.#chunks[index >>> CHUNK_BITS]!.time[index & CHUNK_MASK]!;
  }

  cpu(index: number): number {
    return this.#chunks[index >>> CHUNK_BITS]!.cpu[index & CHUNK_MASK]!;
  }

  /** The thread, by the number that the first PID namespace has for it. */
  pid(index: number): number {
    return this.#chunks[index >>> CHUNK_BITS]!.pid[index & CHUNK_MASK]!;
  }

  shape(index: number): Shape {
    return this.#shapes[this.#chunks[index >>> CHUNK_BITS]!.shape[index & CHUNK_MASK]!]!;
  }

  /** Index into TRACEPOINTS. */
  kind(index: number): number {
    return this.shape(index).kind;
  }

  /** Whether the recording tells a field of an event; unknown fields read as 0. */
  known(index: number, field: number): boolean {
    return (this.shape(index).slots[field] ?? -1) >= 0;
  }

  /** The lower 32 bits of a field, unsigned. */
  lo(index: number, field: number): number {
    const chunk = this.#chunks[index >>> CHUNK_BITS]!;
    const slot = this.#shapes[chunk.shape[index & CHUNK_MASK]!]!.slots[field]!;
    if (!(slot >= 0)) return 0;
    const at = chunk.offset[index & CHUNK_MASK]! + slot;
    return this.#heaps[at >>> HEAP_BITS]![at & HEAP_MASK]!;
  }

  /** The upper 32 bits of a field, unsigned; of a negative field of 32 bits its sign. */
  hi(index: number, field: number): number {
    const chunk = this.#chunks[index >>> CHUNK_BITS]!;
    const shape = this.#shapes[chunk.shape[index & CHUNK_MASK]!]!;
    const slot = shape.slots[field]!;
    if (!(slot >= 0)) return 0;
    const at = chunk.offset[index & CHUNK_MASK]! + slot;
    const heap = this.#heaps[at >>> HEAP_BITS]!;
    if ((shape.wide >>> field) & 1) return heap[(at & HEAP_MASK) + 1]!;
    return shape.tracepoint.fields[field]!.signed && heap[at & HEAP_MASK]! > 0x7fffffff ? 0xffffffff : 0;
  }

  /** A field as a number, with its sign; exact up to 2⁵³. */
  number(index: number, field: number): number {
    const hi = this.hi(index, field);
    const signed = this.shape(index).tracepoint.fields[field]?.signed;
    return (signed ? hi | 0 : hi) * TWO_32 + this.lo(index, field);
  }

  /** A field with its sign, exactly. */
  value(index: number, field: number): bigint {
    const value = (BigInt(this.hi(index, field)) << 32n) | BigInt(this.lo(index, field));
    return this.shape(index).tracepoint.fields[field]?.signed ? BigInt.asIntN(64, value) : value;
  }

  /** A thread's name, if the recording tells. */
  comm(pid: number): string | undefined {
    return this.#comms.get(pid);
  }

  /** All names of threads, by number. */
  get comms(): ReadonlyMap<number, string> {
    return this.#comms;
  }

  /** In order of their times. */
  get losses(): Loss[] {
    return this.#losses
      .map((loss) => ({ ...loss, beforeIndex: this.at(loss.time) }))
      .sort((left, right) => left.time - right.time);
  }

  /** The index of the first event that is not earlier than a time; `length` when there is none. The recording must be settled. */
  at(time: number): number {
    return this.#bound(time, this.#length, false);
  }

  /** Bytes that the columns occupy. */
  get bytes(): number {
    return this.#chunks.length * CHUNK * (8 + 4 + 4 + 2 + 2) + this.#heaps.length * HEAP * 4;
  }

  // ---------------------------------------------------------------------------------------------------------- writing

  /**
   * The shape of events of a kind with some of its fields.
   * @param known a bit for each field that is there
   * @param wide a bit for each field of two words; by default what the tracepoint says
   * @param roleKnown see {@link Shape.roleKnown}; by default all bits, where there is a role
   */
  shapeOf(kind: number, known: number, wide?: number, roleKnown?: number): Shape {
    const tracepoint = TRACEPOINTS[kind]!;
    const role = fieldIndex(kind, 'role');
    const bits = role < 0 || !((known >>> role) & 1) ? 0 : (roleKnown ?? 0xffffffff) >>> 0;
    const double = (wide ?? wideFields(tracepoint)) & known;
    const key = `${kind} ${known} ${double} ${bits}`;
    const found = this.#shapeKeys.get(key);
    if (found) return found;
    const slots = new Int8Array(tracepoint.fields.length).fill(-1);
    let words = 0;
    for (let field = 0; field < slots.length; field++) {
      if (!((known >>> field) & 1)) continue;
      slots[field] = words;
      words += (double >>> field) & 1 ? 2 : 1;
    }
    const shape = { index: this.#shapes.length, kind, tracepoint, slots, wide: double, roleKnown: bits, words };
    this.#shapes.push(shape);
    this.#shapeKeys.set(key, shape);
    return shape;
  }

  /** Where the words of the event appended last are to be put: from `wordAt` on, in the order of its shape's slots. */
  words: Uint32Array = new Uint32Array(0);
  wordAt = 0;

  /**
   * Appends an event, whose words the caller then writes into {@link words}. Order need not be kept: {@link settle} sorts.
   * @param time since {@link base}
   */
  append(time: number, cpu: number, pid: number, shape: Shape): void {
    if (this.#nextWord >= this.#wordsMost) {
      this.#leaveOut();
      return;
    }
    const index = this.#length++;
    const chunkNumber = index >>> CHUNK_BITS;
    if (chunkNumber === this.#chunks.length) this.#chunks.push(newChunk());
    const chunk = this.#chunks[chunkNumber]!;
    const row = index & CHUNK_MASK;
    // An event's words are never cut in two.
    if (HEAP - (this.#nextWord & HEAP_MASK) < shape.words) this.#nextWord = (this.#nextWord | HEAP_MASK) + 1;
    const heapNumber = this.#nextWord >>> HEAP_BITS;
    if (heapNumber === this.#heaps.length) this.#heaps.push(new Uint32Array(HEAP));
    this.words = this.#heaps[heapNumber]!;
    this.wordAt = this.#nextWord & HEAP_MASK;
    chunk.time[row] = time;
    chunk.cpu[row] = cpu;
    chunk.pid[row] = pid;
    chunk.shape[row] = shape.index;
    chunk.offset[row] = this.#nextWord;
    this.#nextWord += shape.words;
    if (time >= this.#latest) this.#latest = time;
    else {
      this.#lateCount++;
      if (time < this.#late) this.#late = time;
    }
  }

  /** Behind the last word that an offset can name, events are counted and their words go nowhere. */
  #leaveOut(): void {
    this.words = new Uint32Array(64);
    this.wordAt = 0;
    this.#leftOut++;
  }

  /** Names a thread; the first name stays, unless it stood for an unknown one. */
  name(pid: number, comm: string): void {
    const known = this.#comms.get(pid);
    if (known === undefined || known === '<...>') this.#comms.set(pid, comm);
  }

  lose(loss: Omit<Loss, 'beforeIndex'>): void {
    this.#losses.push(loss);
  }

  /** Counts an event that is not understood. */
  skip(name: string, count = 1): void {
    this.unknown.set(name, (this.unknown.get(name) ?? 0) + count);
  }

  /**
   * Puts what was appended in order of time; of events of one time, the one appended first stays first.
   * @returns the lowest index that is not what it was, and how many events came behind a later one
   */
  settle(): { from: number; late: number } {
    const late = this.#lateCount;
    let from = this.#settled;
    if (late > 0) {
      from = Math.min(from, this.#bound(this.#late, this.#settled, true));
      this.#sort(from);
    }
    if (this.#leftOut > 0) {
      this.problems.push(`${this.#leftOut} events were left out: the recording is larger than fits into memory here`);
      this.#leftOut = 0;
    }
    this.#settled = this.#length;
    this.#late = Number.POSITIVE_INFINITY;
    this.#lateCount = 0;
    return { from, late };
  }

  /** Turns times of a cycle counter into nanoseconds: ns = cycles × multiplier / 2^shift, as perf's mmap page defines them. */
  rescale(multiplier: number, shift: number): void {
    const factor = multiplier / 2 ** shift;
    this.base = (this.base * BigInt(multiplier)) >> BigInt(shift);
    for (const { time } of this.#chunks) for (let i = 0; i < CHUNK; i++) time[i] = Math.round(time[i]! * factor);
    for (const [i, loss] of this.#losses.entries()) {
      const after = loss.after === undefined ? undefined : Math.round(loss.after * factor);
      this.#losses[i] = { ...loss, after, time: Math.round(loss.time * factor) };
    }
    this.#latest = Math.round(this.#latest * factor);
    this.#late = Math.round(this.#late * factor);
  }

  /** The first index below `end` whose time is not less than a time, or is more. */
  #bound(time: number, end: number, more: boolean): number {
    let low = 0;
    let high = end;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const there = this.time(middle);
      if (there < time || (more && there === time)) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #sort(from: number): void {
    const count = this.#length - from;
    const times = Float64Array.from({ length: count }, (_, i) => this.time(from + i));
    const order = Uint32Array.from({ length: count }, (_, i) => i);
    // A stable sort: what has one time stays as it was appended.
    order.sort((left, right) => times[left]! - times[right]!);
    for (const name of ['time', 'offset', 'pid', 'cpu', 'shape'] as const) {
      const column = Float64Array.from(
        order,
        (i) => this.#chunks[(from + i) >>> CHUNK_BITS]![name][(from + i) & CHUNK_MASK]!,
      );
      column.forEach((value, i) => {
        this.#chunks[(from + i) >>> CHUNK_BITS]![name][(from + i) & CHUNK_MASK] = value;
      });
    }
  }
}

/** A bit for each field that needs two words. */
function wideFields(tracepoint: Tracepoint): number {
  return tracepoint.fields.reduce((bits, field, i) => (field.wide ? bits | (1 << i) : bits), 0);
}
