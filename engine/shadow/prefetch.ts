import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { isPresent } from '../tdp/spte.ts';
import type { Vcpu } from '../vcpu.ts';
import { accessOfEntry, gfnOfEntry, indexOf, type ShadowPage, shadowPage, tableOf } from './pages.ts';
import { dropSpte } from './rmap.ts';
import { setShadowSpte } from './set-spte.ts';
import type { SpteAddress } from './state.ts';
import { frameAtOnce, guestAccess, guestNumber, isInvalidGuestEntry, readGuestEntry } from './sync.ts';

/** PTE_PREFETCH_NUM */
const PREFETCHED = 8;
const ACC_WRITE = 2;

/** FNAME(pte_prefetch), direct_pte_prefetch: the neighbours of an entry of the last level that nothing has to be waited for. */
export function prefetch(machine: Machine, vcpu: Vcpu, spte: SpteAddress): void {
  const page = shadowPage(machine, tableOf(spte));
  // Without accessed bits nobody could tell what was prefetched from what was used.
  if (roleField(page.role, 'ad_disabled') === 1) return;
  const first = indexOf(spte) - (indexOf(spte) % PREFETCHED);
  if (roleField(page.role, 'direct') === 1) prefetchDirect(machine, page, first, indexOf(spte));
  else prefetchIndirect(machine, vcpu, page, first, indexOf(spte));
}

const isThere = (machine: Machine, { pfn }: ShadowPage, index: number): boolean =>
  isPresent(machine.entryWords(pfn, index)[0]);

/** __direct_pte_prefetch: entries that follow each other at a time; where the first of them cannot be mapped, what comes after is left alone. */
function prefetchDirect(machine: Machine, page: ShadowPage, first: number, own: number): void {
  let start = -1;
  for (let index = first; index <= first + PREFETCHED; index++) {
    const isOpen = index < first + PREFETCHED && index !== own && !isThere(machine, page, index);
    if (isOpen && start < 0) start = index;
    if (isOpen || start < 0) continue;
    if (!prefetchRun(machine, page, start, index)) return;
    start = -1;
  }
}

/** direct_pte_prefetch_many, up to the first frame that is not at hand. A slot must have all of the pages. */
function prefetchRun(machine: Machine, page: ShadowPage, start: number, end: number): boolean {
  const gfn = gfnOfEntry(machine, page, start);
  const access = accessOfEntry(machine, page, start);
  const slot = machine.slots.find(gfn);
  if (!slot || !mayMap(machine, gfn, access) || gfn + end - start > slot.base + slot.pages) return false;
  let mapped = 0;
  for (; start + mapped < end; mapped++) {
    const pfn = frameAtOnce(machine, gfn + mapped);
    if (pfn < 0) break;
    setShadowSpte(machine, page.pfn * 512 + start + mapped, access, gfn + mapped, pfn, undefined);
  }
  return mapped > 0;
}

/** gfn_to_memslot_dirty_bitmap, gfn_to_hva_many: what is logged is not made writable ahead of the write, nor what nobody may write. */
function mayMap(machine: Machine, gfn: Gfn, access: number): boolean {
  const slot = machine.slots.find(gfn);
  const writes = (access & ACC_WRITE) !== 0;
  return slot !== undefined && !(slot.logDirty && writes) && !(slot.readonly && writes);
}

function prefetchIndirect(machine: Machine, vcpu: Vcpu, page: ShadowPage, first: number, own: number): void {
  for (let index = first; index < first + PREFETCHED; index++)
    if (index !== own && !isThere(machine, page, index) && !prefetchGuest(machine, vcpu, page.pfn, index)) return;
}

/** FNAME(prefetch_gpte) */
function prefetchGuest(machine: Machine, vcpu: Vcpu, table: Pfn, index: number): boolean {
  const page = shadowPage(machine, table);
  const guest = readGuestEntry(machine, page.gfn, guestNumber(page.role, index), vcpu.walked.format.entryBytes);
  if (!guest) return false;
  if (isInvalidGuestEntry(vcpu, guest)) {
    dropSpte(machine, table * 512 + index);
    return false;
  }
  const access = roleField(page.role, 'access') & guestAccess(vcpu, guest);
  const gfn = vcpu.walked.format.frame(1, guest.lo, guest.hi);
  const pfn = frameAtOnce(machine, gfn);
  if (pfn < 0 || !mayMap(machine, gfn, access)) return false;
  setShadowSpte(machine, table * 512 + index, access, gfn, pfn, undefined);
  return true;
}
