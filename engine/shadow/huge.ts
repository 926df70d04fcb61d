import type { Machine } from '../machine.ts';
import type { PageFault } from '../tdp/fault.ts';
import { maxMappingLevel } from '../tdp/map.ts';
import { hasNxHugePages } from '../tdp/nx-huge-pages.ts';

/**
 * kvm_mmu_hugepage_adjust, after the guest's tables on the way have been shadowed: a large page that holds one of the guest's
 * tables is not mapped as such.
 */
export function hugepageAdjust(machine: Machine, fault: PageFault): void {
  fault.hugePageDisallowed = fault.exec && hasNxHugePages(machine);
  const slot = machine.slots.find(fault.gfn);
  if (!slot || fault.slot < 0 || slot.logDirty || fault.maxLevel <= 1) return;
  const level = maxMappingLevel(machine, slot, fault.gfn, fault.maxLevel, fault.isPrivate);
  fault.reqLevel = level;
  if (fault.hugePageDisallowed) return;
  fault.goalLevel = level;
  fault.pfn -= fault.pfn % 512 ** (level - 1);
}
