import { TABLE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { unaccountDisallowed } from './nx-huge-pages.ts';
import { frozenEntry, isPresent } from './spte.ts';

/**
 * handle_removed_pt: every entry of a detached table is exchanged for FROZEN, so that a walker still inside it retries; the tables below go the
 * same way; then the table is freed. With mmu_lock held for writing there is no such walker, and what is not present stays as it is.
 */
export function freeRemovedTable(machine: Machine, table: Pfn, lock: 'read' | 'write' = 'read'): void {
  unaccountDisallowed(machine, table);
  const { level } = machine.page(table);
  const page = machine.memory.page(table).slice();
  for (let index = 0; index < 512; index++) {
    const lo = page[2 * index]!;
    const hi = page[2 * index + 1]!;
    if (lock === 'write' && !isPresent(lo)) continue;
    machine.setSpte(table, index, frozenEntry.lo, frozenEntry.hi);
    if (isPresent(lo) && machine.secondFormat.classify(level, lo) === TABLE)
      freeRemovedTable(machine, machine.secondFormat.frame(level, lo, hi), lock);
  }
  machine.freeTable(table);
}
