import { ACC_EXEC, ACC_USER, ACC_WRITE, type Format } from '../formats/compile.ts';
import type { Entry } from '../formats/encode.ts';
import { encodeLeaf } from '../formats/encode.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { makeMmio, spteFormat } from '../tdp/spte.ts';
import { pagesOf, type ShadowPage } from './pages.ts';
import { unsyncPage } from './sync.ts';

export interface SpteWish {
  readonly level: number;
  readonly gfn: Gfn;
  readonly pfn: Pfn;
  /** ACC_* bits that the guest's tables grant. */
  readonly access: number;
  readonly old: Entry;
  readonly isPrefetch: boolean;
  readonly isSync: boolean;
  readonly hostWritable: boolean;
}

const MMU_PRESENT = 1 << 11;

/**
 * make_spte, of shadow tables. What may be written is, unless a table of the guest's lies there: such a page is made unsync, or stays
 * write-protected.
 */
export function makeSpte(machine: Machine, page: ShadowPage, wish: SpteWish): Entry & { readonly wrprot: boolean } {
  const { level, gfn, pfn, old, isPrefetch, isSync, hostWritable } = wish;
  const format = spteFormat(machine.tableFormat(page.pfn));
  const { writeLo, dirtyLo, accessedLo } = format.format;
  let { access } = wish;
  if (!hostWritable) access &= ~ACC_WRITE;
  const rights = { write: false, execute: (access & ACC_EXEC) !== 0, user: (access & ACC_USER) !== 0 };
  const leaf = encodeLeaf(format.format, level, pfn, rights, {});
  let lo = (leaf.lo | MMU_PRESENT) & ~accessedLo & ~dirtyLo;
  if (!isPrefetch || isSync) lo |= accessedLo;
  if (hostWritable) lo |= format.hostWritable.lo;
  let wrprot = false;
  if ((access & ACC_WRITE) !== 0) {
    lo |= writeLo | format.mmuWritable.lo;
    // What was writable already has been looked at.
    if (level === 1 && (old.lo & writeLo) !== 0) return { lo: lo >>> 0, hi: leaf.hi, wrprot };
    if (tryToUnsync(machine, gfn, !isSync, isPrefetch)) lo |= dirtyLo;
    else {
      wrprot = true;
      lo &= ~(writeLo | format.mmuWritable.lo);
    }
  }
  return { lo: lo >>> 0, hi: leaf.hi, wrprot };
}

/**
 * mmu_try_to_unsyncpages: whether a page may be mapped writable. Where it is a last-level table of the guest's its shadow pages
 * become unsync; upper ones stay write-protected.
 */
function tryToUnsync(machine: Machine, gfn: Gfn, canUnsync: boolean, isPrefetch: boolean): boolean {
  if ((machine.shadow.writeTracked.get(gfn) ?? 0) > 0) return false;
  for (const page of pagesOf(machine, gfn)) {
    if (!canUnsync) return false;
    if (page.shadow.unsync) continue;
    if (isPrefetch) return false;
    if (machine.injects('unsync-late')) machine.small.lateUnsync.push(page.pfn);
    else unsyncPage(machine, page.pfn);
  }
  return true;
}

/** make_mmio_spte: the marker keeps what the guest's tables grant, but for execution. */
export function makeShadowMmio(machine: Machine, format: Format, gfn: Gfn, access: number): Entry {
  const { lo, hi } = makeMmio(spteFormat(format), gfn, machine.slots.generation);
  return { lo: ((lo & ~6) | (access & (ACC_WRITE | ACC_USER))) >>> 0, hi };
}
