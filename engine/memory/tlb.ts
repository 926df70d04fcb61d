import type { Gfn, Pfn, Vfn } from './words.ts';

/** A cached translation of one page, guest and second stage combined. */
export interface TlbEntry {
  readonly vfn: Vfn;
  readonly gfn: Gfn;
  readonly pfn: Pfn;
  /** Level of the smaller of the two pages. */
  readonly level: number;
  /** Guest rights, ACC_* bits. */
  readonly access: number;
  readonly key: number;
  readonly global: boolean;
  /** The address space it is of (PCID): nothing to global entries. */
  readonly pcid: number;
  /** Second-stage rights, ACC_* bits with ACC_USER for readable. */
  readonly secondAccess: number;
  /** Both stages' dirty bits were set when the entry was filled: a write needs no walk. */
  readonly dirty: boolean;
  /** Whether it was made by an access to private memory, where guests tell the two apart. */
  readonly isPrivate?: boolean;
}

const SETS = 1024;
const SPANS = [1, 512, 512 * 512];

/**
 * A vCPU's TLB: direct-mapped, 1024 entries for each page size, so that what it evicts depends on the addresses alone.
 * It only answers; `Machine` changes it, through the log.
 */
export class Tlb {
  entries: (TlbEntry | undefined)[] = new Array(SETS * SPANS.length);
  count = 0;

  slotOf(vfn: Vfn, level: number): number {
    const page = Math.floor(vfn / SPANS[level - 1]!);
    // Pages at the same place of different page tables must not share a slot: strides of 2M and 1G are common.
    return (level - 1) * SETS + ((page + Math.floor(page / 512)) % SETS);
  }

  find(vfn: Vfn, pcid = 0): TlbEntry | undefined {
    if (this.count === 0) return undefined;
    for (let level = 1; level <= SPANS.length; level++) {
      const entry = this.entries[this.slotOf(vfn, level)];
      if (
        entry !== undefined &&
        Math.floor(entry.vfn / SPANS[level - 1]!) === Math.floor(vfn / SPANS[level - 1]!) &&
        (entry.pcid === pcid || entry.global)
      )
        return entry;
    }
    return undefined;
  }

  set(slot: number, entry: TlbEntry | undefined): void {
    const old = this.entries[slot];
    if (old !== undefined) this.count--;
    if (entry !== undefined) this.count++;
    this.entries[slot] = entry;
  }

  /** Entries in use, in slot order. */
  list(): TlbEntry[] {
    return this.entries.filter((entry) => entry !== undefined);
  }
}

/** Frames that an entry of this level covers. */
export function tlbSpan(level: number): number {
  return SPANS[level - 1]!;
}
