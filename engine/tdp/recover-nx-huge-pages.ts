import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { AGAIN, BLOCKED, defineFunction, NEXT } from '../operation.ts';
import { commitZap, prepareZap } from '../shadow/zap.ts';
import { flushRemoteTlbs } from './flush.ts';
import { unaccountDisallowed } from './nx-huge-pages.ts';
import { freeRemovedTable } from './removed-table.ts';
import { emptyEntry } from './spte.ts';

interface RecoverLocals {
  /** nx_huge_pages_recovery_ratio: 1 of so many goes, rounded up; 1 … */
  readonly ratio: number;
  /** Whether the TDP MMU's tables are recovered now; shadow pages are first. */
  tdp: boolean;
  /** Tables that are still to go. */
  left: number;
  /** Shadow pages that wait to be freed. */
  invalid: Pfn[];
  flush: boolean;
}

export function recoverNxLocals(ratio: number): RecoverLocals {
  return { ratio, tdp: false, left: 0, invalid: [], flush: false };
}

const possibleOf = (machine: Machine, tdp: boolean): Pfn[] =>
  machine.small.possibleNxHugePages.filter((pfn) => (machine.page(pfn).shadow === undefined) === tdp);

export const recoverNxHugePages = defineFunction<RecoverLocals>({
  name: 'kvm_recover_nx_huge_pages',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about:
    'The worker of NX huge pages: a part of the tables that stand for the mitigation’s sake goes, the oldest first, for perhaps nobody executes there any more.',
  steps: [
    {
      name: 'count',
      text: 'how many go: their number divided by the ratio, rounded up',
      run(machine, _task, locals) {
        locals.left = Math.ceil(possibleOf(machine, locals.tdp).length / locals.ratio);
        return NEXT;
      },
    },
    {
      name: 'lock',
      text: 'take mmu_lock: for writing while it is about shadow pages, for reading while about the TDP MMU’s tables',
      run: (machine, task, { tdp }) => (machine.acquire(task, 'mmu_lock', tdp ? 'read' : 'write') ? NEXT : BLOCKED),
    },
    {
      name: 'table',
      text: 'the oldest: where the slot is being logged it is only forgotten, else zapped; the next fault maps a large page, not executable',
      run(machine, _task, locals) {
        const [table] = possibleOf(machine, locals.tdp);
        if (table === undefined || locals.left === 0) return NEXT;
        locals.left--;
        const page = machine.page(table);
        if (machine.slots.find(page.gfn)?.logDirty) unaccountDisallowed(machine, table);
        else if (page.shadow) prepareZap(machine, table, locals.invalid);
        else {
          machine.setSpte(page.parent, page.parentIndex, emptyEntry.lo, emptyEntry.hi);
          freeRemovedTable(machine, table);
          locals.flush = true;
        }
        return AGAIN;
      },
    },
    {
      name: 'flush',
      text: 'kvm_mmu_remote_flush_or_zap: flush the TLBs if anything went, and free the shadow pages',
      run(machine, _task, locals) {
        if (locals.invalid.length > 0) commitZap(machine, locals.invalid.splice(0));
        else if (locals.flush) flushRemoteTlbs(machine);
        return NEXT;
      },
    },
    {
      name: 'unlock',
      text: 'drop mmu_lock; after the shadow pages come the tables of the TDP MMU',
      run(machine, task, locals) {
        machine.release(task, 'mmu_lock');
        task.result = 0;
        if (locals.tdp || !machine.hasTdpMmu) return NEXT;
        locals.tdp = true;
        return 'count';
      },
    },
  ],
});
