import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { activePages } from './host.ts';
import { commitZap, prepareZap } from './zap.ts';

/** KVM_MIN_FREE_MMU_PAGES, and KVM_REFILL_PAGES: how many are free again after recycling. */
const MIN_FREE = 5;
const REFILL = 25;
/** KVM_PERMILLE_MMU_PAGES and KVM_MIN_ALLOC_MMU_PAGES */
const PERMILLE = 20;
const MIN_PAGES = 64;

/** kvm_mmu_calculate_default_mmu_pages: how many shadow pages there may be at most, for so much memory. */
export function maxShadowPages(machine: Machine): number {
  const pages = machine.slots.list.reduce((sum, slot) => sum + slot.pages, 0);
  return Math.max(MIN_PAGES, Math.floor((pages * PERMILLE) / 1000));
}

/** Whether as many shadow pages are free as a fault may need (kvm_mmu_available_pages). */
export function hasPagesLeft(machine: Machine): boolean {
  const most = maxShadowPages(machine);
  // So many cannot be exceeded while there are no more tables in all.
  return machine.pages.size + MIN_FREE <= most || most - activePages(machine).length > MIN_FREE;
}

/** make_mmu_pages_available: before a fault is handled, the oldest pages go where too few are left. Roots in use stay. */
export function makePagesAvailable(machine: Machine): void {
  const most = maxShadowPages(machine);
  // So many cannot be exceeded while there are no more tables in all.
  if (machine.pages.size + MIN_FREE <= most) return;
  const active = activePages(machine);
  const available = Math.max(0, most - active.length);
  if (available >= MIN_FREE) return;
  const invalid: Pfn[] = [];
  for (const { pfn, rootCount } of active) {
    if (invalid.length >= REFILL - available) break;
    if (rootCount > 0 || machine.page(pfn).invalid) continue;
    machine.count('tables.recycled');
    prepareZap(machine, pfn, invalid);
  }
  commitZap(machine, invalid);
}
