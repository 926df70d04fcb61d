import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { withRole } from '../roots/role.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import type { MmuPage } from '../tdp/mmu-page.ts';
import { unaccountDisallowed } from '../tdp/nx-huge-pages.ts';
import { isMmio, isPresent, spteFormat } from '../tdp/spte.ts';
import { REQ_MMU_FREE_OBSOLETE_ROOTS } from '../vcpu.ts';
import {
  childOf,
  dropParentPte,
  hasGptes,
  indexOf,
  isObsolete,
  shadowPage,
  tableOf,
  tracePage,
  unaccountShadowed,
  updateShadow,
} from './pages.ts';
import { dropSpte } from './rmap.ts';
import type { SpteAddress } from './state.ts';
import { unlinkUnsync, unsyncPagesBelow } from './sync.ts';

/**
 * mmu_page_zap_pte: a leaf, a link or a marker goes. Of nested tables a page goes with its last parent: nobody is likely to use it again.
 * @param invalid where pages are zapped, those that wait to be freed
 * @returns whether it was present
 */
export function zapPte(machine: Machine, spte: SpteAddress, invalid?: Pfn[]): boolean {
  const [table, index] = [tableOf(spte), indexOf(spte)];
  const [lo, hi] = machine.entryWords(table, index);
  if (isPresent(lo)) {
    const child = childOf(machine, spte);
    if (child < 0) dropSpte(machine, spte);
    else {
      dropParentPte(machine, child, spte);
      if (invalid && isForlorn(machine, child)) prepareZap(machine, child, invalid);
    }
    return true;
  }
  if (isMmio(spteFormat(machine.tableFormat(table)), lo, hi)) machine.clearSpte(table, index);
  return false;
}

/** A page of guest_mmu's to which nothing leads any more. */
function isForlorn(machine: Machine, pfn: Pfn): boolean {
  if (machine.config.second === 'shadow') return false;
  const { role, rootCount, shadow } = shadowPage(machine, pfn);
  return roleField(role, 'guest_mode') === 1 && rootCount === 0 && shadow.parents.length === 0;
}

/**
 * __kvm_mmu_prepare_zap_page: takes a shadow page out of use. Whoever calls commits, with a flush before anything is freed.
 * @param invalid pages that wait to be freed
 * @returns whether the list of pages has changed beyond this one
 */
export function prepareZap(machine: Machine, pfn: Pfn, invalid: Pfn[]): boolean {
  tracePage(machine, 'kvm_mmu_prepare_zap_page', shadowPage(machine, pfn));
  machine.count('tables.zapped');
  const unsync = zapUnsyncChildren(machine, pfn, invalid);
  const before = invalid.length;
  for (let index = 0; index < 512; index++) zapPte(machine, pfn * 512 + index, invalid);
  const hasZapped = unsync || invalid.length > before;
  for (const parent of shadowPage(machine, pfn).shadow.parents) dropParentPte(machine, pfn, parent);
  let page = shadowPage(machine, pfn);
  if (roleField(page.role, 'invalid') === 0 && hasGptes(page)) unaccountShadowed(machine, page);
  if (page.shadow.unsync) unlinkUnsync(machine, pfn);
  unaccountDisallowed(machine, pfn);
  page = shadowPage(machine, pfn);
  const wasObsolete = isObsolete(machine, page);
  machine.replacePage({ ...page, invalid: true, role: withRole(page.role, { invalid: 1 }) });
  if (page.rootCount === 0) invalid.push(pfn);
  else if (!wasObsolete)
    for (const vcpu of machine.vcpus) machine.setRequests(vcpu, vcpu.requests | REQ_MMU_FREE_OBSOLETE_ROOTS);
  return hasZapped;
}

/** mmu_zap_unsync_children */
function zapUnsyncChildren(machine: Machine, pfn: Pfn, invalid: Pfn[]): boolean {
  if (shadowPage(machine, pfn).level === 1) return false;
  const below = unsyncPagesBelow(machine, pfn);
  for (const child of below) {
    prepareZap(machine, child, invalid);
  }
  if (below.length > 0) updateShadow(machine, pfn, { unsyncChildren: [] });
  return below.length > 0;
}

/** kvm_mmu_commit_zap_page: nobody may still be translating by these pages when they are freed. */
export function commitZap(machine: Machine, invalid: readonly Pfn[]): void {
  if (invalid.length === 0) return;
  if (!machine.injects('unflushed-free')) flushRemoteTlbs(machine);
  for (const pfn of invalid) freeShadowPage(machine, pfn);
}

function freeShadowPage(machine: Machine, pfn: Pfn): void {
  const page = shadowPage(machine, pfn);
  const { hash } = machine.shadow;
  const others = (hash.get(page.gfn) ?? []).filter((each) => each !== pfn);
  hash.set(machine, page.gfn, others.length > 0 ? others : undefined);
  if (page.shadow.wasRoot) machine.count('roots.freed');
  if (page.shadow.translations >= 0) machine.freeFrameOfTables(page.shadow.translations);
  machine.freeTable(pfn);
}

/** mmu_free_root_page: a root that is invalid goes with its last reference. */
export function putShadowRoot(machine: Machine, page: MmuPage): void {
  machine.replacePage({ ...page, rootCount: page.rootCount - 1 });
  if (page.rootCount > 1 || roleField(page.role, 'invalid') === 0) return;
  const invalid: Pfn[] = [];
  prepareZap(machine, page.pfn, invalid);
  commitZap(machine, invalid);
}
