import { ABSENT, MALFORMED } from '../formats/compile.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import { backingPfn } from '../memory/memslots.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { withRole } from '../roots/role.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { emptyEntry, isMmio, mmioGfn, spteFormat } from '../tdp/spte.ts';
import type { Vcpu } from '../vcpu.ts';
import {
  childOf,
  gfnOfEntry,
  indexOf,
  markUnsync,
  type ShadowPage,
  setTranslation,
  shadowPage,
  tableOf,
  tracePage,
  updateShadow,
} from './pages.ts';
import { dropSpte, writeProtectGfn } from './rmap.ts';
import { losesRights, makeShadowMmio, makeSpte } from './spte.ts';
import type { SpteAddress } from './state.ts';
import { commitZap, prepareZap } from './zap.ts';

/** What a role may differ in from the root's for its page to be synchronized. */
const SYNC_IGNORED = withRole(0, { level: 15, access: 7, quadrant: 3, passthrough: 1 });

/** A guest entry of the last level as it stands in memory, with where it is. */
export interface GuestEntry {
  readonly lo: number;
  readonly hi: number;
}

/** Reads an entry of a guest's table by its number from the beginning of the frame; undefined where there is no memory. */
export function readGuestEntry(machine: Machine, gfn: Gfn, number: number, bytes: number): GuestEntry | undefined {
  const pfn = machine.resolve(gfn);
  if (pfn < 0) return undefined;
  const page = machine.memory.page(pfn);
  return bytes === 8 ? { lo: page[2 * number]!, hi: page[2 * number + 1]! } : { lo: page[number]!, hi: 0 };
}

/** Number of the guest's entry that an entry of a last-level page shadows (get_level1_sp_gpa). */
export function guestNumber(role: number, index: number): number {
  return roleField(role, 'has_4_byte_gpte') ? roleField(role, 'quadrant') * 512 + index : index;
}

/** What a guest entry of the last level grants, in ACC_* bits: without D no writes, so that the first one is seen. */
export function guestAccess(vcpu: Vcpu, { lo, hi }: GuestEntry): number {
  const { format } = vcpu.walked;
  const access = format.access(1, lo, hi);
  return format.dirtyLo !== 0 && (lo & format.dirtyLo) === 0 ? access & ~2 : access;
}

/** prefetch_invalid_gpte: not present, not accessed or malformed. Such an entry maps nothing. */
export function isInvalidGuestEntry(vcpu: Vcpu, { lo, hi }: GuestEntry): boolean {
  const { format } = vcpu.walked;
  const judged = format.judge(1, lo, hi);
  return (judged & 3) === ABSENT || (lo & format.accessedLo) !== format.accessedLo || (judged & MALFORMED) !== 0;
}

/**
 * FNAME(sync_page): the entries of a page become what the guest's table says now.
 * @returns below 0: the page is of no use any more; above: a flush is needed
 */
export function syncPage(machine: Machine, vcpu: Vcpu, pfn: Pfn): number {
  const page = shadowPage(machine, pfn);
  if (((page.role ^ vcpu.mmu.rootRole) & ~SYNC_IGNORED) !== 0 || roleField(page.role, 'direct') === 1) {
    machine.warn(`FNAME(sync_page): the role of gfn 0x${page.gfn.toString(16)} is not of this vCPU's MMU`);
    return -1;
  }
  let flush = false;
  for (let index = 0; index < 512; index++) {
    const result = syncSpte(machine, vcpu, page, index);
    if (result < 0) return -1;
    if (result > 0) flush = true;
  }
  return flush ? 1 : 0;
}

/** FNAME(sync_spte): one entry. @returns as {@link syncPage} */
export function syncSpte(machine: Machine, vcpu: Vcpu, page: ShadowPage, index: number): number {
  const { pfn } = page;
  const [lo, hi] = machine.entryWords(pfn, index);
  if (lo === emptyEntry.lo && hi === emptyEntry.hi) return 0;
  const format = spteFormat(machine.tableFormat(pfn));
  const spte = pfn * 512 + index;
  const guest = readGuestEntry(machine, page.gfn, guestNumber(page.role, index), vcpu.walked.format.entryBytes);
  if (!guest) return -1;
  if (isInvalidGuestEntry(vcpu, guest)) {
    dropSpte(machine, spte);
    return 1;
  }
  const gfn = vcpu.walked.format.frame(1, guest.lo, guest.hi);
  const access = roleField(page.role, 'access') & guestAccess(vcpu, guest);
  if (isMmio(format, lo, hi)) {
    // sync_mmio_spte
    if (gfn === mmioGfn(format, lo, hi)) markMmio(machine, spte, gfn, access);
    else machine.clearSpte(pfn, index);
    return 0;
  }
  if (gfn !== gfnOfEntry(machine, page, index)) {
    dropSpte(machine, spte);
    return 1;
  }
  setTranslation(machine, page, index, gfn, access);
  if (!machine.slots.find(gfn)) return 0;
  const made = makeSpte(machine, page, {
    level: 1,
    gfn,
    pfn: format.format.frame(1, lo, hi),
    access,
    old: { lo, hi },
    isPrefetch: true,
    isSync: true,
    hostWritable: ((lo & format.hostWritable.lo) | (hi & format.hostWritable.hi)) !== 0,
  });
  if (made.lo === lo && made.hi === hi) return 0;
  machine.setSpte(pfn, index, made.lo, made.hi, false);
  return losesRights(format.format, { lo, hi }, made) ? 1 : 0;
}

/** mark_mmio_spte */
export function markMmio(machine: Machine, spte: SpteAddress, gfn: Gfn, access: number): void {
  const table = tableOf(spte);
  const entry = makeShadowMmio(machine, machine.tableFormat(table), gfn, access);
  machine.trace('mark_mmio_spte', {
    sptep: table * 4096 + indexOf(spte) * 8,
    gfn,
    access,
    gen: machine.slots.generation,
  });
  machine.setSpte(table, indexOf(spte), entry.lo, entry.hi, false);
}

/** kvm_unlink_unsync_page: the page is as its guest's table, and write-protected, from now on. */
export function unlinkUnsync(machine: Machine, pfn: Pfn): void {
  const page = shadowPage(machine, pfn);
  if (!page.shadow.unsync) machine.warn(`kvm_unlink_unsync_page: gfn 0x${page.gfn.toString(16)} is not unsync`);
  tracePage(machine, 'kvm_mmu_sync_page', page);
  updateShadow(machine, pfn, { unsync: false });
}

/** kvm_unsync_page */
export function unsyncPage(machine: Machine, pfn: Pfn): void {
  tracePage(machine, 'kvm_mmu_unsync_page', shadowPage(machine, pfn));
  updateShadow(machine, pfn, { unsync: true });
  for (const parent of shadowPage(machine, pfn).shadow.parents) markUnsync(machine, parent);
}

/** mmu_unsync_walk: the unsync pages below one, in the order of its entries. Marks that lead nowhere are taken away. */
export function unsyncPagesBelow(machine: Machine, pfn: Pfn): Pfn[] {
  const found: Pfn[] = [];
  const { unsyncChildren } = shadowPage(machine, pfn).shadow;
  const kept: number[] = [];
  for (const index of unsyncChildren) {
    const child = childOf(machine, pfn * 512 + index);
    if (child < 0) continue;
    const { shadow } = shadowPage(machine, child);
    const below = shadow.unsync ? [child] : unsyncPagesBelow(machine, child);
    if (below.length === 0) continue;
    found.push(...below.filter((each) => !found.includes(each)));
    kept.push(index);
  }
  if (kept.length !== unsyncChildren.length) updateShadow(machine, pfn, { unsyncChildren: kept });
  return found;
}

/** mmu_sync_children: everything unsync below a page is write-protected and made as the guest's tables are. */
export function syncChildren(machine: Machine, vcpu: Vcpu, parent: Pfn): void {
  const invalid: Pfn[] = [];
  let flush = false;
  for (let pages = unsyncPagesBelow(machine, parent); pages.length > 0; pages = unsyncPagesBelow(machine, parent)) {
    let isProtected = false;
    for (const pfn of pages) if (writeProtectGfn(machine, shadowPage(machine, pfn).gfn)) isProtected = true;
    if (isProtected) {
      if (!machine.injects('unflushed-protection')) flushRemoteTlbs(machine);
      flush = false;
    }
    for (const pfn of pages) {
      unlinkUnsync(machine, pfn);
      const result = syncPage(machine, vcpu, pfn);
      if (result < 0) prepareZap(machine, pfn, invalid);
      if (result > 0) flush = true;
    }
  }
  if (invalid.length > 0) commitZap(machine, invalid);
  else if (flush) flushRemoteTlbs(machine);
}

/** Roots below which something is unsync (is_unsync_root). */
function isUnsyncRoot(machine: Machine, pfn: Pfn): boolean {
  const page = machine.pages.get(pfn);
  return page?.shadow !== undefined && (page.shadow.unsync || page.shadow.unsyncChildren.length > 0);
}

/** kvm_mmu_sync_roots */
export function syncRoots(machine: Machine, vcpu: Vcpu): void {
  if (vcpu.root < 0 || roleField(vcpu.mmu.rootRole, 'direct') === 1) return;
  for (const root of machine.rootTables(vcpu.mmu)) if (isUnsyncRoot(machine, root)) syncChildren(machine, vcpu, root);
}

/** kvm_mmu_sync_prev_roots: what is unsync below a previous root would have to be synchronized; it is given up. */
export function unsyncPrevious(machine: Machine, vcpu: Vcpu): number[] {
  return vcpu.mmu.prevRoots.flatMap(({ pfn }, index) => (isUnsyncRoot(machine, pfn) ? [index] : []));
}

/** The frame behind a gfn, for one who does not wait (gfn_to_pfn_memslot_atomic); −1 where there is none. */
export function frameAtOnce(machine: Machine, gfn: Gfn): Pfn {
  const slot = machine.slots.find(gfn);
  return slot && !slot.invalid && !machine.shadow.unmapped.get(gfn) ? backingPfn(slot, gfn) : -1;
}
