import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Gfn } from '../memory/words.ts';
import { AGAIN, defineFunction, NEXT, returns } from '../operation.ts';
import { DONE, LEAF, READ_ONLY, Walker } from '../pgtable/walker.ts';
import { flushRemoteTlbs } from './flush.ts';
import { splitHugePage } from './split.ts';
import { makeTable, spteFormat, withWrite } from './spte.ts';

interface DirtyLogLocals {
  readonly slot: number;
  /** First gfn not yet visited in this phase; −1: the phase has not begun. */
  next: Gfn;
  phase: 'split' | 'protect';
}

export const startDirtyLog = defineFunction<DirtyLogLocals>({
  name: 'kvm_mmu_slot_apply_flags',
  where: 'arch/x86/kvm/x86.c',
  about:
    'Dirty logging starts for a slot: large pages are split to 4K and every entry loses W, but stays MMU-writable.',
  steps: [
    lockStep('mmu_lock', 'read'),
    {
      name: 'entry',
      text: 'first kvm_mmu_slot_try_split_huge_pages, then kvm_mmu_slot_remove_write_access: the next entry of the slot',
      run(machine, _task, locals) {
        const slot = machine.slots.require(locals.slot);
        const root = machine.roots().find((candidate) => !candidate.invalid);
        if (!root) return NEXT;
        const from = locals.next < 0 ? slot.base : locals.next;
        const end = slot.base + slot.pages;
        const format = machine.secondFormat;
        const walker =
          from < end ? new Walker(machine.memory, format, root.pfn, from, end, LEAF | READ_ONLY) : undefined;
        if (!walker || walker.next() === DONE) {
          if (locals.phase === 'protect') return NEXT;
          locals.phase = 'protect';
          locals.next = -1;
          return AGAIN;
        }
        const { level, table, index, lo, hi, frame } = walker;
        if (locals.phase === 'split' && level > 1) {
          const child = splitHugePage(machine, { level, table, index, lo, hi }, frame);
          const entry = makeTable(spteFormat(format), level, child);
          machine.setSpte(table, index, entry.lo, entry.hi);
          locals.next = frame;
          return AGAIN;
        }
        if (locals.phase === 'protect') {
          const entry = withWrite(spteFormat(format), { lo, hi }, false);
          if (entry.lo !== lo) machine.setSpte(table, index, entry.lo, entry.hi);
        }
        locals.next = frame + format.span[level]!;
        return AGAIN;
      },
    },
    unlockStep('mmu_lock'),
    {
      name: 'flush',
      text: 'flush every TLB: a cached writable translation would hide a write from the log',
      run(machine, task) {
        flushRemoteTlbs(machine);
        return returns(task, 0);
      },
    },
  ],
});
