import { callRemove, directBits, isMirror } from '../attributes/tdx.ts';
import { TABLE } from '../formats/compile.ts';
import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { AGAIN, call, defineFunction, NEXT, returns } from '../operation.ts';
import { ABSENT_TOO, DONE, LEAF, READ_ONLY, TABLE_PRE, Walker } from '../pgtable/walker.ts';
import { makePagesObsolete, zapObsoletePages } from '../shadow/host.ts';
import { REQ_MMU_FREE_OBSOLETE_ROOTS } from '../vcpu.ts';
import { flushRemoteTlbs } from './flush.ts';
import { freeRemovedTable } from './removed-table.ts';
import { emptyEntry, isPresent } from './spte.ts';

/** The first leaf at or after a gfn, below `end`. MMIO markers are not present to KVM, and stay. */
function nextLeaf(machine: Machine, root: Pfn, from: Gfn, end: Gfn): Walker | undefined {
  const bits = directBits(machine, root);
  const walker = new Walker(
    machine.memory,
    { format: machine.secondFormat, root },
    from + bits,
    end + bits,
    LEAF | ABSENT_TOO | READ_ONLY,
  );
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    if (isPresent(walker.lo)) return walker;
  }
  return undefined;
}

/** Which roots: all, or of TDX those for shared (`direct`) or for private memory (`mirror`). */
export type RootTypes = 'all' | 'direct' | 'mirror';

interface ZapLeafsLocals {
  readonly start: Gfn;
  readonly end: Gfn;
  /** Roots still to be visited; the first is being zapped. */
  readonly roots: Pfn[];
  next: Gfn;
  zapped: number;
}

/** @param zapped how many have been already, by reverse maps */
export function zapLeafsLocals(
  machine: Machine,
  start: Gfn,
  end: Gfn,
  zapped = 0,
  types: RootTypes = 'all',
): ZapLeafsLocals {
  const isWanted = (root: Pfn): boolean =>
    machine.vm !== 'tdx' || types === 'all' || isMirror(machine, root) === (types === 'mirror');
  return {
    start,
    end,
    roots: machine
      .roots()
      .filter((root) => !root.invalid && isWanted(root.pfn))
      .map((root) => root.pfn),
    next: start,
    zapped,
  };
}

/** Returns the number of leaves zapped: the caller flushes if there was any. */
export const tdpMmuZapLeafs = defineFunction<ZapLeafsLocals>({
  name: 'tdp_mmu_zap_leafs',
  where: 'arch/x86/kvm/mmu/tdp_mmu.c',
  about:
    'Clears the leaf entries of a gfn range in every valid root; tables stay. The caller holds mmu_lock for writing and flushes.',
  steps: [
    {
      name: 'leaf',
      text: 'clear the next leaf in the range',
      run(machine, task, locals) {
        const root = locals.roots[0];
        if (root === undefined) return returns(task, locals.zapped);
        const limit = machine.secondFormat.inputFrames;
        const end = Math.min(locals.end, limit);
        // A large page that was cleared may reach beyond.
        const walker = locals.next < end ? nextLeaf(machine, root, locals.next, end) : undefined;
        if (!walker) {
          locals.roots.shift();
          locals.next = locals.start;
          return AGAIN;
        }
        machine.setSpte(walker.table, walker.index, emptyEntry.lo, emptyEntry.hi);
        locals.zapped++;
        locals.next = walker.frame - directBits(machine, root) + machine.secondFormat.span[walker.level]!;
        return isMirror(machine, root) ? callRemove(task, walker.table, walker.index) : AGAIN;
      },
    },
    { name: 'removed', text: 'of TDX, the module has removed the page: on with the next', run: () => 'leaf' },
  ],
});

interface ZapRootLocals {
  root: Pfn;
  level: number;
  next: Gfn;
}

/** The next entry at exactly `level` that holds something. */
function nextAtLevel(machine: Machine, root: Pfn, from: Gfn, level: number): Walker | undefined {
  const format = machine.secondFormat;
  const walker = new Walker(
    machine.memory,
    { format, root },
    from,
    format.inputFrames,
    LEAF | TABLE_PRE | ABSENT_TOO | READ_ONLY,
  );
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    if (walker.level === level && isPresent(walker.lo)) return walker;
  }
  return undefined;
}

/** A root's entries are zapped at 4K, 2M and 1G, so that little is under a table when it goes, and then at the root itself. */
const passAfter = (level: number, rootLevel: number): number =>
  level < 3 ? level + 1 : level < rootLevel ? rootLevel : rootLevel + 1;

export const zapInvalidatedRoots = defineFunction<ZapRootLocals>({
  name: 'kvm_tdp_mmu_zap_invalidated_roots',
  where: 'arch/x86/kvm/mmu/tdp_mmu.c',
  about: 'Empties every invalidated root, in passes from 4K entries up, and drops the MMU’s own reference to it.',
  steps: [
    lockStep('mmu_lock', 'read'),
    {
      name: 'root',
      text: 'take the next invalid root that nobody else is zapping',
      run(machine, _task, locals) {
        const root = machine.roots().find((candidate) => candidate.scheduledToZap);
        if (!root) return 'unlock';
        machine.updatePage(root.pfn, { scheduledToZap: false });
        locals.root = root.pfn;
        locals.level = 1;
        locals.next = 0;
        return NEXT;
      },
    },
    {
      name: 'entry',
      text: 'tdp_mmu_zap_root: clear the next entry of this pass’s level; a table that hung there is taken apart',
      run(machine, _task, locals) {
        const format = machine.secondFormat;
        const walker = nextAtLevel(machine, locals.root, locals.next, locals.level);
        if (!walker) {
          locals.level = passAfter(locals.level, format.rootLevel);
          locals.next = 0;
          return locals.level > format.rootLevel ? NEXT : AGAIN;
        }
        const { level, lo, hi } = walker;
        machine.setSpte(walker.table, walker.index, emptyEntry.lo, emptyEntry.hi);
        if (level > 1 && format.classify(level, lo) === TABLE) freeRemovedTable(machine, format.frame(level, lo, hi));
        locals.next = walker.frame + format.span[level]!;
        return locals.next >= format.inputFrames ? 'entry-end' : AGAIN;
      },
    },
    {
      name: 'entry-end',
      text: 'the pass reached the last gfn: on with the next level',
      run(machine, _task, locals) {
        locals.level = passAfter(locals.level, machine.secondFormat.rootLevel);
        locals.next = 0;
        return locals.level > machine.secondFormat.rootLevel ? NEXT : 'entry';
      },
    },
    {
      name: 'flush',
      text: 'flush the TLBs: the root’s translations may still be cached',
      run(machine) {
        flushRemoteTlbs(machine);
        return NEXT;
      },
    },
    {
      name: 'put',
      text: 'drop the MMU’s reference; with the last one the root is freed',
      run(machine, _task, locals) {
        const root = machine.page(locals.root);
        machine.updatePage(root.pfn, { rootCount: root.rootCount - 1 });
        if (root.rootCount === 1) machine.freeTable(root.pfn);
        return 'root';
      },
    },
    unlockStep('mmu_lock'),
  ],
});

export const kvmMmuZapAllFast = defineFunction<object>({
  name: 'kvm_mmu_zap_all_fast',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about:
    'Makes every root obsolete at once, so that vCPUs start on fresh ones, and takes the old ones apart afterwards.',
  steps: [
    lockStep('mmu_lock', 'write'),
    {
      name: 'invalidate',
      text: 'toggle mmu_valid_gen, which makes every shadow page obsolete; kvm_tdp_mmu_invalidate_roots: mark every root invalid',
      run(machine) {
        machine.trace('kvm_mmu_zap_all_fast', { valid_gen: machine.small.mmuValidGen, used_pages: machine.pages.size });
        makePagesObsolete(machine);
        // The module's tables cannot be made anew: their mirror stays.
        for (const root of machine.roots())
          if (!root.invalid && !isMirror(machine, root.pfn))
            machine.updatePage(root.pfn, { invalid: true, scheduledToZap: true });
        return NEXT;
      },
    },
    {
      name: 'request',
      text: 'ask every vCPU to free its obsolete root before it enters the guest again',
      run(machine) {
        for (const vcpu of machine.vcpus) machine.setRequests(vcpu, vcpu.requests | REQ_MMU_FREE_OBSOLETE_ROOTS);
        return NEXT;
      },
    },
    {
      name: 'obsolete',
      text: 'kvm_zap_obsolete_pages: shadow pages go, the oldest first; a root stays until its vCPUs have let it go',
      run(machine) {
        zapObsoletePages(machine);
        return NEXT;
      },
    },
    unlockStep('mmu_lock'),
    {
      name: 'zap',
      text: 'kvm_tdp_mmu_zap_invalidated_roots: now take the old roots apart',
      run(machine, task) {
        if (!machine.hasTdpMmu) return returns(task, 0);
        return call(task, zapInvalidatedRoots, { root: -1, level: 1, next: 0 });
      },
    },
  ],
});
