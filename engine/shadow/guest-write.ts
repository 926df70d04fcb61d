import type { Machine, Vcpu } from '../machine.ts';
import { frameToAddress, type Gfn } from '../memory/words.ts';
import { clearWriteFlooding, pagesOf } from './pages.ts';
import { unsyncPage } from './sync.ts';
import { trackWrite } from './track-write.ts';

/**
 * The guest's kernel stores an entry of a table of its own, through a mapping that the scenario does not show. A table that is
 * shadowed is write-protected there: of upper levels KVM emulates the store, a last-level one becomes unsync, and is written freely
 * from then on.
 */
export function guestStoresEntry(
  machine: Machine,
  vcpu: Vcpu,
  gfn: Gfn,
  index: number,
  entryBytes: number,
  store: () => void,
): void {
  const isTracked = (machine.shadow.writeTracked.get(gfn) ?? 0) > 0;
  const synced = isTracked ? [] : pagesOf(machine, gfn).filter(({ shadow }) => !shadow.unsync);
  if (isTracked || synced.length > 0) {
    machine.count('exits');
    machine.count('faults.second');
  }
  for (const { pfn } of synced) unsyncPage(machine, pfn);
  const pfn = machine.resolve(gfn);
  const before = machine.entryWords(pfn, index);
  if (isTracked) clearOwnFlood(machine, vcpu);
  store();
  if (!isTracked) return;
  machine.count('emulated');
  const gpa = frameToAddress(gfn, index * 8);
  if (entryBytes === 8) {
    trackWrite(machine, gpa, 8);
    return;
  }
  // Two entries share 8 bytes: the guest has stored what has changed.
  const after = machine.entryWords(pfn, index);
  for (const half of [0, 1] as const) if (before[half] !== after[half]) trackWrite(machine, gpa + BigInt(4 * half), 4);
}

/**
 * shadow_page_table_clear_flood, on the way of the store itself: it leads through the root, and in a 32-bit guest through the last
 * quarter of its directory, where kernels have their memory mapped. Of PAE it is a directory that the scenario does not show.
 */
function clearOwnFlood(machine: Machine, { mmu, mode }: Vcpu): void {
  const root = mode.format.rootLevel === 3 ? undefined : machine.rootTables(mmu).at(-1);
  if (root !== undefined && machine.pages.get(root)?.shadow) clearWriteFlooding(machine, root);
}
