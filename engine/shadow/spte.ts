import { ACC_EXEC, ACC_USER, ACC_WRITE, type Format } from '../formats/compile.ts';
import type { Entry } from '../formats/encode.ts';
import { encodeLeaf } from '../formats/encode.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { hasNxHugePages } from '../tdp/nx-huge-pages.ts';
import { AD_DISABLED_HI, makeMmio, spteFormat } from '../tdp/spte.ts';
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
/** EPT's memory type of ordinary memory. */
const WRITE_BACK = 6;

/**
 * make_spte, of shadow tables. What may be written is, unless a table of the guest's lies there: such a page is made unsync, or stays
 * write-protected.
 */
export function makeSpte(machine: Machine, page: ShadowPage, wish: SpteWish): Entry & { readonly wrprot: boolean } {
  const { level, gfn, pfn, old, isPrefetch, isSync, hostWritable } = wish;
  const format = spteFormat(machine.tableFormat(page.pfn));
  const { writeLo } = format.format;
  const withoutBits = roleField(page.role, 'ad_disabled') === 1;
  const [accessedLo, dirtyLo] = withoutBits ? [0, 0] : [format.format.accessedLo, format.format.dirtyLo];
  let { access } = wish;
  if (!hostWritable) access &= ~ACC_WRITE;
  if (level > 1 && hasNxHugePages(machine) && !machine.injects('nx-huge-executable')) access &= ~ACC_EXEC;
  const rights = { write: false, execute: (access & ACC_EXEC) !== 0, user: (access & ACC_USER) !== 0 };
  const memoryType = format.format.tellsUsers ? {} : { 'memory type': WRITE_BACK };
  const leaf = encodeLeaf(format.format, level, pfn, rights, memoryType);
  let lo = (leaf.lo | MMU_PRESENT) & ~accessedLo & ~dirtyLo;
  let { hi } = leaf;
  // shadow_user_mask of EPT is R, and shadow_present_mask where nothing can be executed without being read.
  if (!format.format.tellsUsers && !rights.user && format.format.options.features.has('execute-only')) lo &= ~1;
  if (withoutBits) hi |= AD_DISABLED_HI;
  if (!isPrefetch || isSync) lo |= accessedLo;
  const allow = (bits: Entry): void => {
    lo |= bits.lo;
    hi |= bits.hi;
  };
  if (hostWritable) allow(format.hostWritable);
  let wrprot = false;
  if ((access & ACC_WRITE) !== 0) {
    // What was writable already has been looked at.
    const wasWritable = level === 1 && (old.lo & writeLo) !== 0;
    if (wasWritable || tryToUnsync(machine, gfn, !isSync, isPrefetch)) {
      allow(format.mmuWritable);
      lo |= writeLo | (wasWritable ? 0 : dirtyLo);
    } else wrprot = true;
  }
  return { lo: lo >>> 0, hi: hi >>> 0, wrprot };
}

/**
 * mmu_try_to_unsyncpages: whether a page may be mapped writable. Where it is a last-level table of the guest's its shadow pages
 * become unsync; upper ones stay write-protected.
 */
export function tryToUnsync(machine: Machine, gfn: Gfn, canUnsync: boolean, isPrefetch: boolean): boolean {
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

/** mmu_spte_update: an entry that could be written without a lock, or was accessed or dirty, and is no more, may be cached. */
export function losesRights(format: Format, before: Entry, after: Entry): boolean {
  const { mmuWritable } = spteFormat(format);
  const lo = mmuWritable.lo | format.accessedLo | format.dirtyLo;
  return (before.lo & ~after.lo & lo) !== 0 || (before.hi & ~after.hi & mmuWritable.hi) !== 0;
}

/** make_mmio_spte: the marker keeps what the guest's tables grant, but for execution. */
export function makeShadowMmio(machine: Machine, format: Format, gfn: Gfn, access: number): Entry {
  const { lo, hi } = makeMmio(spteFormat(format), gfn, machine.slots.generation);
  if (!format.tellsUsers) return { lo, hi };
  return { lo: ((lo & ~6) | (access & (ACC_WRITE | ACC_USER))) >>> 0, hi };
}
