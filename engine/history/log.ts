/**
 * What can happen to a machine. Every change of state is one entry; views, breakpoints, costs and the timeline are
 * readings of the entries. `address`, `old` and `new` mean:
 */
export const Kind = {
  /** Guest or host data. address: hpa / 8; object: of two entries of 4 bytes the one that a guest stores, 0 or 1. */
  MEMORY: 0,
  /** Accessed or dirty bits set by a hardware walk, in a guest or second-stage entry. address: hpa / 8. */
  ENTRY_BITS: 1,
  /** An entry of KVM's tables. address: hpa / 8. */
  SPTE: 2,
  /** The same, where the kernel has no tracepoint: the pieces of a split page, a fast fault’s write. */
  SPTE_UNTRACED: 3,
  /** address: vCPU * 16 + register number. */
  REGISTER: 4,
  /** object: the memslots before and after. */
  SLOTS: 5,
  /** address: vCPU; object: {set, index, old, new}. */
  TLB_FILL: 6,
  /** address: vCPU; object: {set, index, old}. */
  TLB_DROP: 7,
  /** address: vCPU; object: all entries, before and after. */
  TLB_FLUSH: 8,
  /** address: lock number; old and new: owner words. */
  LOCK: 9,
  UNLOCK: 10,
  /** object: the invalidation state before and after. */
  INVALIDATE: 11,
  /** A kvm_mmu_page is allocated. address: its pfn; object: the page record. */
  TABLE_ALLOC: 12,
  /** A kvm_mmu_page is freed. address: its pfn; object: record and content. */
  TABLE_FREE: 13,
  /** A kvm_mmu_page record changes (reference counts, invalid). address: pfn; object: before and after. */
  TABLE_STATE: 14,
  /** A vCPU's MMU: roles, root, previous roots. address: vCPU; object: before and after. */
  MMU: 15,
  /** vCPU's pending requests. address: vCPU; old, new: the bits. */
  REQUESTS: 16,
  /** VM exit; object: the fault. */
  EXIT: 17,
  /** VM entry. address: vCPU. */
  ENTRY: 18,
  /** A guest page fault is delivered; object: the fault. old: 1 where KVM injects it rather than the processor. */
  GUEST_FAULT: 19,
  /** How a second-stage fault ended. new: RET_PF_*; object: the fault. */
  FAULT_RESULT: 20,
  /** An access that userspace completes; object: the fault. old: its size; new: the value written. */
  MMIO: 21,
  /** An expectation failed; object: its text and place. */
  EXPECT_FAILED: 22,
  /** A diagnostic as the kernel would print it; object: text. */
  WARNING: 23,
  /** What a tracepoint would say beyond the state change; object: {event, fields}. */
  TRACE: 24,
  /** An entry of `shadowed_translation`, which no processor reads. address: hpa / 8. */
  TRANSLATION: 25,
  /** An index beside KVM's tables (reverse maps, hash, counts). object: the map, its key and the value before. */
  INDEX: 26,
  /** A host frame for KVM's own use that is no table. address: pfn; object, where it is freed: the content. */
  FRAME_ALLOC: 27,
  FRAME_FREE: 28,
  /** What the guests' processors offer (CPUID). object: before and after. */
  CPUID: 29,
  /** A vCPU goes into a nested guest, or comes out. address: vCPU; object: before and after. */
  GUEST_MODE: 30,
  /** KVM makes a nested guest exit to L1. address: vCPU; object: the fault that L1's tables made, or the instruction. */
  NESTED_EXIT: 31,
  /** A vCPU goes into system-management mode, or comes out. address: vCPU; object: before and after. */
  SMM: 32,
  /** The guest invalidates translations. address: vCPU; object: the instruction, in words. */
  INVALIDATION: 33,
  /** A task ends where it should not. address: task; object: {text, line}. */
  FAILURE: 34,
  /** A guest uses a page that it has not accepted (#VC). address: vCPU; object: text. */
  NOT_VALIDATED: 35,
  /** Guest frames become private or shared. object: the range, what it is now, and the runs that it was. */
  ATTRIBUTES: 36,
  /** Something that must not happen did. address: task; object: {hazard, text, gfn}. */
  HAZARD: 37,
  /** KVM_EXIT_MEMORY_FAULT. address: vCPU; object: the fault. */
  MEMORY_FAULT: 38,
} as const;
export type Kind = (typeof Kind)[keyof typeof Kind];
/** Whether an entry of this kind changes eight bytes of memory at `address`. */
export function isMemoryKind(kind: Kind): boolean {
  return kind <= Kind.SPTE_UNTRACED;
}

export interface LogEntry {
  readonly position: number;
  readonly task: number;
  readonly step: number;
  readonly kind: Kind;
  readonly address: number;
  readonly oldLo: number;
  readonly oldHi: number;
  readonly newLo: number;
  readonly newHi: number;
  readonly object: unknown;
}

const CHUNK = 1 << 15;

class Chunk {
  readonly task = new Uint16Array(CHUNK);
  readonly kind = new Uint8Array(CHUNK);
  readonly step = new Float64Array(CHUNK);
  readonly address = new Float64Array(CHUNK);
  readonly words = new Uint32Array(4 * CHUNK);
  readonly objects: unknown[] = [];
}

/**
 * An append-only log in columns. Positions are absolute; beyond `limit` entries the oldest are forgotten, and
 * `first` is the oldest position that is still known.
 */
export class Log {
  #chunks: (Chunk | undefined)[] = [];
  #length = 0;
  #first = 0;
  readonly #limit: number;

  constructor(limit: number) {
    this.#limit = limit;
  }

  get length(): number {
    return this.#length;
  }

  get first(): number {
    return this.#first;
  }

  append(
    task: number,
    step: number,
    kind: Kind,
    address: number,
    oldLo: number,
    oldHi: number,
    newLo: number,
    newHi: number,
    object?: unknown,
  ): void {
    const position = this.#length++;
    const i = position % CHUNK;
    const number = Math.floor(position / CHUNK);
    let chunk = this.#chunks[number];
    if (chunk === undefined) {
      chunk = this.#recycle() ?? new Chunk();
      this.#chunks[number] = chunk;
    }
    chunk.task[i] = task;
    chunk.kind[i] = kind;
    chunk.step[i] = step;
    chunk.address[i] = address;
    const word = 4 * i;
    chunk.words[word] = oldLo;
    chunk.words[word + 1] = oldHi;
    chunk.words[word + 2] = newLo;
    chunk.words[word + 3] = newHi;
    chunk.objects[i] = object;
  }

  /** Takes the oldest chunk out of use once the log is longer than its limit. */
  #recycle(): Chunk | undefined {
    if (this.#length - this.#first <= this.#limit) return undefined;
    const number = Math.floor(this.#first / CHUNK);
    const chunk = this.#chunks[number];
    this.#chunks[number] = undefined;
    this.#first = (number + 1) * CHUNK;
    if (chunk) chunk.objects.length = 0;
    return chunk;
  }

  at(position: number): LogEntry {
    const chunk = this.#chunks[Math.floor(position / CHUNK)];
    if (position < this.#first || position >= this.#length || !chunk)
      throw new RangeError(`log position ${position} is not within ${this.#first} … ${this.#length}`);
    const i = position % CHUNK;
    const word = 4 * i;
    return {
      position,
      task: chunk.task[i]!,
      step: chunk.step[i]!,
      kind: chunk.kind[i]! as Kind,
      address: chunk.address[i]!,
      oldLo: chunk.words[word]!,
      oldHi: chunk.words[word + 1]!,
      newLo: chunk.words[word + 2]!,
      newHi: chunk.words[word + 3]!,
      object: chunk.objects[i],
    };
  }

  kindAt(position: number): Kind {
    return this.#chunks[Math.floor(position / CHUNK)]!.kind[position % CHUNK]! as Kind;
  }

  /** Forgets the entries from `length` on; their effects must have been undone. */
  truncate(length: number): void {
    const keep = Math.ceil(length / CHUNK);
    this.#chunks.length = Math.min(this.#chunks.length, keep);
    const last = this.#chunks[keep - 1];
    if (last && length % CHUNK !== 0) last.objects.length = Math.min(last.objects.length, length % CHUNK);
    this.#length = length;
  }
}
