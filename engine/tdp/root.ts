import { TABLE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import { flushRemoteTlbs } from './flush.ts';
import type { MmuPage } from './mmu-page.ts';
import { freeRemovedTable } from './removed-table.ts';
import { emptyEntry, isPresent } from './spte.ts';

/** Whether a root outlives its vCPUs: until Linux 5.18 the MMU held no reference of its own to it. */
export function mmuHoldsRoots(machine: Machine): boolean {
  return machine.policies.roots === 'today';
}

/** kvm_tdp_mmu_put_root: with its last reference a root goes, and where the MMU holds none, all that hangs below it. */
export function putTdpRoot(machine: Machine, root: MmuPage): void {
  machine.updatePage(root.pfn, { rootCount: root.rootCount - 1 });
  if (root.rootCount > 1) return;
  if (!mmuHoldsRoots(machine)) {
    const { level, pfn } = root;
    const page = machine.memory.page(pfn).slice();
    for (let index = 0; index < 512; index++) {
      const [lo, hi] = [page[2 * index]!, page[2 * index + 1]!];
      if (!isPresent(lo)) continue;
      machine.setSpte(pfn, index, emptyEntry.lo, emptyEntry.hi);
      if (machine.secondFormat.classify(level, lo) === TABLE)
        freeRemovedTable(machine, machine.secondFormat.frame(level, lo, hi), 'write');
    }
    flushRemoteTlbs(machine);
  }
  machine.freeTable(root.pfn);
}
