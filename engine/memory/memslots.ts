import { formatSize, type Gfn, hex, PAGE_SIZE, type Pfn } from './words.ts';

/**
 * Host memory behind a slot: `pages` frames that are contiguous from `pfn`, mapped by the host in pages of `pageLevel`
 * (1 = 4K, 2 = 2M, 3 = 1G), as a memfd on hugetlbfs or with THP would be.
 */
export interface Backing {
  readonly pfn: Pfn;
  readonly pages: number;
  readonly pageLevel: number;
  /** Pages the host migrated: index in the backing → its frame now. A 2M or 1G page that holds one is mapped in 4K. */
  readonly moved: Readonly<Record<number, Pfn>>;
  /** Numbers of the 2M and of the 1G blocks that hold a moved page. */
  readonly broken: { readonly 2: ReadonlySet<number>; readonly 3: ReadonlySet<number> };
}

/** Host memory as it is first mapped. */
export function newBacking(pfn: Pfn, pages: number, pageLevel: number): Backing {
  return { pfn, pages, pageLevel, moved: {}, broken: { 2: new Set(), 3: new Set() } };
}

/** The same memory with pages in other frames: index in the backing → frame. */
export function withMoved(backing: Backing, moves: ReadonlyMap<number, Pfn>): Backing {
  const moved = { ...backing.moved };
  const broken = { 2: new Set(backing.broken[2]), 3: new Set(backing.broken[3]) };
  for (const [index, pfn] of moves) {
    moved[index] = pfn;
    broken[2].add(Math.floor(index / 512));
    broken[3].add(Math.floor(index / 512 ** 2));
  }
  return { ...backing, moved, broken };
}

/** One guest-physical range, as KVM_SET_USER_MEMORY_REGION takes it. Slots are values: a change makes a new one. */
export interface Memslot {
  readonly id: number;
  readonly base: Gfn;
  readonly pages: number;
  readonly readonly: boolean;
  readonly logDirty: boolean;
  /** KVM_MEMSLOT_INVALID: being deleted or moved; a fault in it retries. */
  readonly invalid: boolean;
  readonly backing: Backing;
  /** Frames of the guest_memfd bound to it (KVM_MEM_GUEST_MEMFD), where its private pages lie. */
  readonly gmem?: Backing;
}

/** KVM's limit: an id is 16 bits, of which the kernel keeps a few to itself (KVM_USER_MEM_SLOTS). */
export const MAX_SLOT_ID = 32763;

export class MemslotError extends Error {}

export function describeSlot(slot: Memslot): string {
  const start = slot.base * PAGE_SIZE;
  return `slot ${slot.id} (gpa ${hex(start)} +${formatSize(slot.pages * PAGE_SIZE)})`;
}

/** The slots of one address space, sorted by base and disjoint. Immutable, as KVM's two copies are for their readers. */
export class Memslots {
  readonly list: readonly Memslot[];
  readonly generation: number;
  #last: Memslot | undefined;

  constructor(list: readonly Memslot[] = [], generation = 0) {
    this.list = list;
    this.generation = generation;
  }

  /** The slot that holds `gfn`, as `gfn_to_memslot`. */
  find(gfn: Gfn): Memslot | undefined {
    const last = this.#last;
    if (last !== undefined && gfn >= last.base && gfn < last.base + last.pages) return last;
    let low = 0;
    let high = this.list.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.list[middle]!.base <= gfn) low = middle + 1;
      else high = middle;
    }
    const slot = this.list[low - 1];
    if (slot === undefined || gfn >= slot.base + slot.pages) return undefined;
    this.#last = slot;
    return slot;
  }

  byId(id: number): Memslot | undefined {
    return this.list.find((slot) => slot.id === id);
  }

  /** Slots that share a frame with [start, end). */
  overlapping(start: Gfn, end: Gfn): Memslot[] {
    return this.list.filter((slot) => slot.base < end && start < slot.base + slot.pages);
  }

  /**
   * These slots with `slot` added, or put in place of the one with its id.
   * @throws MemslotError when it overlaps another slot, is empty, or has an id or a base out of range.
   */
  with(slot: Memslot): Memslots {
    if (!Number.isInteger(slot.id) || slot.id < 0 || slot.id > MAX_SLOT_ID)
      throw new MemslotError(`slot id ${slot.id} is out of range: 0 … ${MAX_SLOT_ID}`);
    if (!Number.isInteger(slot.base) || slot.base < 0 || !Number.isInteger(slot.pages) || slot.pages <= 0)
      throw new MemslotError(`slot ${slot.id} must start and end on a 4K boundary and hold at least one page`);
    if (slot.base + slot.pages > 2 ** 40)
      throw new MemslotError(`${describeSlot(slot)} ends beyond guest-physical bit 51`);
    const others = this.list.filter((other) => other.id !== slot.id);
    const clash = others.find((other) => other.base < slot.base + slot.pages && slot.base < other.base + other.pages);
    if (clash) throw new MemslotError(`${describeSlot(slot)} overlaps ${describeSlot(clash)}`);
    const list = [...others, slot].sort((a, b) => a.base - b.base);
    return new Memslots(list, this.generation + 1);
  }

  /** The same layout with one slot's backing changed: guest and generation do not notice. */
  replaced(slot: Memslot): Memslots {
    return new Memslots(
      this.list.map((other) => (other.id === slot.id ? slot : other)),
      this.generation,
    );
  }

  /** @throws MemslotError when there is no such slot. */
  without(id: number): Memslots {
    this.require(id);
    return new Memslots(
      this.list.filter((slot) => slot.id !== id),
      this.generation + 1,
    );
  }

  require(id: number): Memslot {
    const slot = this.byId(id);
    if (!slot)
      throw new MemslotError(`there is no slot ${id}; slots: ${this.list.map((s) => s.id).join(', ') || 'none'}`);
    return slot;
  }
}

/** A guest-physical range in bytes as frames. @throws MemslotError when either end is not on a 4K boundary. */
export function frameRange(what: string, start: bigint, size: bigint): { base: Gfn; pages: number } {
  for (const [name, value] of [
    ['start', start],
    ['size', size],
  ] as const) {
    if (value % 4096n !== 0n) throw new MemslotError(`${what}: ${name} ${hex(value)} is not a multiple of 4K`);
  }
  if (size <= 0n) throw new MemslotError(`${what}: size must be at least 4K`);
  return { base: Number(start >> 12n), pages: Number(size >> 12n) };
}

/** The frame that backs `gfn`, as `hva_to_pfn` would find it. */
export function backingPfn(slot: Memslot, gfn: Gfn, backing = slot.backing): Pfn {
  const index = gfn - slot.base;
  return backing.moved[index] ?? backing.pfn + index;
}

/**
 * The largest level at which the host maps the page behind `gfn`, as `host_pfn_mapping_level`: the backing's page size,
 * unless the host migrated a part of that page.
 */
export function hostMappingLevel(slot: Memslot, gfn: Gfn, backing = slot.backing): number {
  const index = gfn - slot.base;
  const { broken, pageLevel, pages } = backing;
  for (const level of [3, 2] as const) {
    const span = 512 ** (level - 1);
    const block = Math.floor(index / span);
    if (level <= pageLevel && (block + 1) * span <= pages && !broken[level].has(block)) return level;
  }
  return 1;
}

/**
 * Whether KVM's `lpage_info` forbids a page of `level` at `gfn`: the aligned range sticks out of the slot, or guest and
 * host are not aligned alike (`kvm_alloc_memslot_metadata`).
 */
export function disallowsHugePage(slot: Memslot, gfn: Gfn, level: number): boolean {
  const span = 512 ** (level - 1);
  const start = gfn - (gfn % span);
  if (start < slot.base || start + span > slot.base + slot.pages) return true;
  return slot.base % span !== slot.backing.pfn % span;
}
