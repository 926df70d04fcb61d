import { LEAF as FORMAT_LEAF } from '../formats/compile.ts';
import { unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { AGAIN, BLOCKED, defineFunction, NEXT, returns, type Step } from '../operation.ts';
import { DONE, LEAF, READ_ONLY, TABLE_PRE, Walker } from '../pgtable/walker.ts';
import { removeWriteAccess, zapCollapsible } from '../shadow/host.ts';
import { splitHugePages } from '../shadow/split.ts';
import { flushRemoteTlbs } from './flush.ts';
import { maxMappingLevel } from './map.ts';
import { limitExecute } from './nx-huge-pages.ts';
import { freeRemovedTable } from './removed-table.ts';
import { splitHugePage } from './split.ts';
import { isPresent, makeLeaf, makeTable, spteFormat, withWrite } from './spte.ts';

interface DirtyLogLocals {
  readonly slot: number;
  /** First gfn not yet visited in this phase; −1: the phase has not begun. */
  next: Gfn;
  phase: 'split' | 'protect';
  /** The TDP MMU's roots still to be visited in this phase; the first is under way. */
  roots: Pfn[];
}

/** Where starting the dirty log begins. */
export function dirtyLogLocals(machine: Machine, slot: number): DirtyLogLocals {
  const phase = machine.policies['page-split'] === 'lazy' ? 'protect' : 'split';
  return { slot, next: -1, phase, roots: validRoots(machine) };
}

/** Shadow pages are changed by one at a time. */
const lockTables: Step<object> = {
  name: 'lock',
  text: 'take mmu_lock: of the TDP MMU’s tables for reading, of shadow pages for writing',
  local: true,
  run: (machine, task) => (machine.acquire(task, 'mmu_lock', machine.hasTdpMmu ? 'read' : 'write') ? NEXT : BLOCKED),
};

const validRoots = (machine: Machine): Pfn[] =>
  machine
    .roots()
    .filter(({ invalid }) => !invalid)
    .map(({ pfn }) => pfn);

export const startDirtyLog = defineFunction<DirtyLogLocals>({
  name: 'kvm_mmu_slot_apply_flags',
  where: 'arch/x86/kvm/x86.c',
  about:
    'Dirty logging starts for a slot: large pages are split to 4K and every entry loses W, but stays MMU-writable.',
  steps: [
    lockTables,
    {
      name: 'entry',
      text: 'first kvm_mmu_slot_try_split_huge_pages, then kvm_mmu_slot_remove_write_access: the next entry of the slot',
      run(machine, _task, locals) {
        const slot = machine.slots.require(locals.slot);
        const [root] = locals.roots;
        if (root === undefined) {
          if (locals.phase === 'protect') {
            if (machine.shadow.rmaps.size > 0) removeWriteAccess(machine, slot);
            return NEXT;
          }
          if (machine.shadow.rmaps.size > 0) splitHugePages(machine, slot);
          locals.phase = 'protect';
          locals.roots = validRoots(machine);
          return AGAIN;
        }
        const from = locals.next < 0 ? slot.base : locals.next;
        const end = slot.base + slot.pages;
        const format = machine.secondFormat;
        const walker =
          from < end ? new Walker(machine.memory, { format, root }, from, end, LEAF | READ_ONLY) : undefined;
        if (!walker || walker.next() === DONE) {
          locals.roots.shift();
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

interface RecoverLocals {
  readonly slot: number;
  next: Gfn;
  /** As above. */
  roots: Pfn[];
}

/** Where ending the dirty log begins. */
export function recoverLocals(machine: Machine, slot: number): RecoverLocals {
  return { slot, next: 0, roots: validRoots(machine) };
}

export const recoverHugePages = defineFunction<RecoverLocals>({
  name: 'kvm_tdp_mmu_recover_huge_pages',
  where: 'arch/x86/kvm/mmu/tdp_mmu.c',
  about: 'Dirty logging ends for a slot: a large page comes back wherever slot and host allow one.',
  steps: [
    lockTables,
    {
      name: 'table',
      text: 'the next table whose range may be one page: put the page, made from any present entry of it, in its place',
      run(machine, _task, locals) {
        const slot = machine.slots.require(locals.slot);
        const [root] = locals.roots;
        if (root === undefined) {
          if (machine.shadow.rmaps.size > 0) zapCollapsible(machine, slot);
          return NEXT;
        }
        const from = Math.max(locals.next, slot.base);
        const end = slot.base + slot.pages;
        const format = machine.secondFormat;
        const walker =
          from < end ? new Walker(machine.memory, { format, root }, from, end, TABLE_PRE | READ_ONLY) : undefined;
        while (walker && walker.next() !== DONE) {
          const { level, table, index, frame, target } = walker;
          if (frame < from || !format.isLargeLevel(level) || maxMappingLevel(machine, slot, frame, level) < level)
            continue;
          const leaf = firstLeaf(machine, level - 1, target);
          if (leaf === undefined) continue;
          const pfn = leaf.pfn - (leaf.pfn % format.span[level]!);
          const leafEntry = makeLeaf(spteFormat(format), level, pfn, slot.readonly ? 'read-only' : 'writable');
          const entry = limitExecute(machine, level, leafEntry);
          machine.setSpte(table, index, entry.lo, entry.hi);
          freeRemovedTable(machine, target);
          locals.next = frame + format.span[level]!;
          return AGAIN;
        }
        locals.roots.shift();
        locals.next = 0;
        return AGAIN;
      },
    },
    unlockStep('mmu_lock'),
    {
      name: 'flush',
      text: 'flush every TLB: cached 4K translations must not outlive their table',
      run(machine, task) {
        flushRemoteTlbs(machine);
        return returns(task, 0);
      },
    },
  ],
});

/** The frame of a table's first present leaf, moved back to the table's first entry. */
function firstLeaf(machine: Machine, level: number, table: Pfn): { readonly pfn: Pfn } | undefined {
  const format = machine.secondFormat;
  const page = machine.memory.page(table);
  for (let index = 0; index < 512; index++) {
    const lo = page[2 * index]!;
    const hi = page[2 * index + 1]!;
    if (isPresent(lo) && format.classify(level, lo) === FORMAT_LEAF)
      return { pfn: format.frame(level, lo, hi) - index * format.span[level]! };
  }
  return undefined;
}
