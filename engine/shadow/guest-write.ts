import type { Machine } from '../machine.ts';
import { frameToAddress, type Gfn } from '../memory/words.ts';
import type { Vcpu } from '../vcpu.ts';
import { clearWriteFlooding, pagesOf } from './pages.ts';
import { unsyncPage } from './sync.ts';
import { trackWrite } from './track-write.ts';

/** A store of 8 bytes to a frame; of two entries of 4 bytes the one that is stored. */
interface Store {
  readonly gfn: Gfn;
  readonly index: number;
  readonly half: 0 | 1 | undefined;
}

/**
 * The guest's kernel stores an entry of a table of its own, through a mapping that the scenario does not show. A table that is
 * shadowed is write-protected there: of upper levels KVM emulates the store, a last-level one becomes unsync, and is written freely
 * from then on.
 */
export function guestStoresEntry(machine: Machine, vcpu: Vcpu, { gfn, index, half }: Store, store: () => void): void {
  const isTracked = (machine.shadow.writeTracked.get(gfn) ?? 0) > 0;
  const synced = isTracked ? [] : pagesOf(machine, gfn).filter(({ shadow }) => !shadow.unsync);
  if (isTracked || synced.length > 0) {
    machine.count('exits');
    machine.count('faults.second');
    clearOwnFlood(machine, vcpu);
  }
  for (const { pfn } of synced) unsyncPage(machine, pfn);
  store();
  if (!isTracked) return;
  machine.count('emulated');
  const gpa = frameToAddress(gfn, index * 8);
  if (half === undefined) trackWrite(machine, gpa, 8);
  else trackWrite(machine, gpa + BigInt(4 * half), 4);
}

/**
 * A fault clears the floods on its way (shadow_page_table_clear_flood, FNAME(fetch)). A store's leads through the root, and in a
 * 32-bit guest through the last quarter of its directory, where kernels have their memory mapped. Of PAE it is a directory that the
 * scenario does not show.
 */
function clearOwnFlood(machine: Machine, { mmu, mode }: Vcpu): void {
  const root = mode.format.rootLevel === 3 ? undefined : machine.rootTables(mmu).at(-1);
  if (root !== undefined && machine.pages.get(root)?.shadow) clearWriteFlooding(machine, root);
}
