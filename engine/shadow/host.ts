import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Memslot } from '../memory/memslots.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { maxMappingLevel } from '../tdp/map.ts';
import { isObsolete, type ShadowPage, shadowPage, tableOf } from './pages.ts';
import { dropSpte, rmapOf, rmapWriteProtect, zapRmap } from './rmap.ts';
import { commitZap, prepareZap } from './zap.ts';

// What the host does to guest memory, to shadow pages: by reverse maps.

const LEVELS = [1, 2, 3] as const;

/** Gfns of a range, a large page's first one where `level` is above 1. */
export function* gfnsOf(start: Gfn, end: Gfn, level: number): Generator<Gfn> {
  const span = 512 ** (level - 1);
  for (let gfn = start - (start % span); gfn < end; gfn += span) yield gfn;
}

/** kvm_unmap_gfn_range, kvm_rmap_zap_gfn_range: drops all that maps the range. @returns how many gfns that was */
export function zapRange(machine: Machine, start: Gfn, end: Gfn): number {
  let zapped = 0;
  for (const slot of machine.slots.overlapping(start, end))
    for (const level of LEVELS)
      for (const gfn of gfnsOf(Math.max(start, slot.base), Math.min(end, slot.base + slot.pages), level))
        if (zapRmap(machine, gfn, level)) zapped++;
  return zapped;
}

/** kvm_mmu_slot_remove_write_access: every write to the slot faults from now on. */
export function removeWriteAccess(machine: Machine, { base, pages }: Memslot): void {
  for (const level of LEVELS)
    for (const gfn of gfnsOf(base, base + pages, level)) rmapWriteProtect(machine, gfn, level, false);
}

/** kvm_rmap_zap_collapsible_sptes: small pages of direct shadow pages go where a large one would do. */
export function zapCollapsible(machine: Machine, slot: Memslot): boolean {
  let flush = false;
  for (const level of [1, 2])
    for (const gfn of gfnsOf(slot.base, slot.base + slot.pages, level))
      for (const spte of rmapOf(machine, gfn, level)) {
        const page = shadowPage(machine, tableOf(spte));
        if (roleField(page.role, 'direct') === 0 || maxMappingLevel(machine, slot, page.gfn, 3) <= page.level) continue;
        dropSpte(machine, spte);
        flush = true;
      }
  return flush;
}

/** The shadow pages in use, the oldest first (`active_mmu_pages`). */
export function activePages(machine: Machine): ShadowPage[] {
  const pages = [...machine.pages.values()].filter((page): page is ShadowPage => page.shadow !== undefined);
  return pages.filter((page) => !page.invalid).sort((a, b) => a.shadow.age - b.shadow.age);
}

/** kvm_zap_obsolete_pages */
export function zapObsoletePages(machine: Machine): void {
  const invalid: Pfn[] = [];
  for (const { pfn } of activePages(machine)) {
    const page = machine.pages.get(pfn);
    // One that was unsync may have gone with a page above it.
    if (!page || page.invalid || !isObsolete(machine, page)) continue;
    prepareZap(machine, pfn, invalid);
  }
  commitZap(machine, invalid);
}

/** Every shadow page of now is obsolete from here on (kvm_mmu_zap_all_fast). */
export function makePagesObsolete(machine: Machine): void {
  machine.small.mmuValidGen = 1 - machine.small.mmuValidGen;
}
