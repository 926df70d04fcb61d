import { deliverPageFault } from '../guest/access.ts';
import { finishWalk, startWalk, type Walk } from '../guest/walk.ts';
import { roleField } from '../kernel/role.ts';
import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame } from '../memory/words.ts';
import { call, defineFunction, type Flow, NEXT, returns, type Task } from '../operation.ts';
import { callNestedExit } from '../roots/nested.ts';
import { describeWalkFault, nestedReason } from '../tdp/explain-fault.ts';
import { type FaultInfo, type PageFault, PFN_NOSLOT, RET_PF } from '../tdp/fault.ts';
import { isWriteTracked, kvmMmuFaultinPfn, mustRetry } from '../tdp/page-fault.ts';
import { EMULATION_INJECTED } from '../tdp/results.ts';
import { shadowFetch } from './fetch.ts';
import { invalidateAddress } from './invalidate.ts';
import { makePagesAvailable } from './limits.ts';
import { clearWriteFlooding, isObsolete } from './pages.ts';
import { unsyncPage } from './sync.ts';

const PRESENT = 1;
const USER = 4;
const RSVD = 8;

export interface GuestWalk {
  walk: Walk;
  /** ACC_* bits of the leaf, with what CR0.WP lifts. */
  access: number;
}

interface Locals {
  readonly fault: PageFault;
  gw: GuestWalk | null;
}

/**
 * kvm_inject_emulated_page_fault: the guest will make its entry allow the access, and need not flush for that; what the TLB and an
 * unsync page have of the address goes.
 */
export function injectPageFault(machine: Machine, task: Task, fault: FaultInfo): void {
  const vcpu = machine.vcpu(task.vcpu);
  if ((fault.errorCode & (PRESENT | RSVD)) === PRESENT && !machine.isTdp) {
    machine.invalidatePage(vcpu, addressToFrame(fault.gva));
    if (vcpu.root >= 0 && roleField(vcpu.mmu.rootRole, 'direct') === 0)
      invalidateAddress(machine, vcpu, vcpu.root, fault.gva);
  }
  deliverPageFault(machine, task, fault, true);
}

/**
 * nested_ept_inject_page_fault, nested_svm_inject_npf_exit: L1's tables refuse an access of its guest, so that L1 gets a VM exit. What
 * an unsync page has of the address goes, below all roots of these tables.
 */
export function reflectFault(machine: Machine, task: Task, walk: Walk, info: FaultInfo): Flow {
  const address = info.gpa!;
  const vcpu = machine.vcpu(task.vcpu);
  const { mode, pgd } = vcpu.guestMode!.nested!;
  if ((walk.error & (PRESENT | RSVD)) === PRESENT) {
    const { root, prevRoots } = vcpu.mmu;
    const same = prevRoots.filter((each) => machine.config.second === 'ept' && each.pgd >> 12n === pgd >> 12n);
    for (const each of [root, ...same]) if (each.pfn >= 0) invalidateAddress(machine, vcpu, each.pfn, address);
  }
  const kind =
    machine.config.second !== 'ept'
      ? 'nested page fault'
      : (walk.error & RSVD) !== 0
        ? 'EPT misconfiguration'
        : 'EPT violation';
  const { level, lo, hi, index, gfn } = walk;
  const reason = `${nestedReason(walk, mode)} in L1’s tables, so that L1 gets the ${kind}`;
  return callNestedExit(machine, task, { ...info, kind: 'nested', level, lo, hi, index, table: gfn, reason });
}

/** Whether the fault's root is still the one to map into. */
function isRootStale(machine: Machine, root: number): boolean {
  const page = machine.pages.get(root);
  // A special root is stale when a request waits to free it.
  return page !== undefined && isObsolete(machine, page);
}

export const shadowPageFault = defineFunction<Locals>({
  name: 'FNAME(page_fault)',
  where: 'arch/x86/kvm/mmu/paging_tmpl.h',
  about:
    'A fault on shadow tables: the guest’s own tables say whether the fault is the guest’s, or which page KVM has yet to map.',
  steps: [
    {
      name: 'walk',
      text: 'walk_addr: walk the guest’s tables in software; a fault of theirs is injected; A and D are set in the guest’s entries',
      run(machine, task, locals) {
        const { fault } = locals;
        const vcpu = machine.vcpu(task.vcpu);
        for (const pfn of machine.small.lateUnsync.splice(0))
          if (machine.pages.get(pfn)?.shadow?.unsync === false) unsyncPage(machine, pfn);
        const walk = startWalk(vcpu.walked, undefined, Math.floor(Number(fault.addr >> 12n)), {
          bits: fault.info.errorCode & ~RSVD & 0x1f & ~1,
          implicit: fault.info.implicit && !machine.injects('smap-ac-implicit'),
        });
        finishWalk(walk, vcpu.walked, undefined, machine.walkMemory);
        if (walk.status === 'guest-fault' && fault.prefetch) return returns(task, RET_PF.RETRY);
        if (walk.status === 'guest-fault' && vcpu.active === 'guest')
          return reflectFault(machine, task, walk, fault.info);
        if (walk.status === 'guest-fault') {
          injectPageFault(
            machine,
            task,
            describeWalkFault(vcpu.id, walk, vcpu.walked, undefined, task.access!, vcpu.guestMode?.guest),
          );
          return returns(task, EMULATION_INJECTED);
        }
        fault.gfn = walk.gfn;
        fault.slot = machine.slots.find(walk.gfn)?.id ?? -1;
        const large = Math.max(1, ...[2, 3].filter((level) => machine.shadowLarge(level)));
        fault.maxLevel = Math.min(vcpu.walked.paging ? walk.leafLevel : large, large);
        locals.gw = { walk, access: walk.leafDirty ? walk.access : walk.access & ~2 };
        return NEXT;
      },
    },
    {
      name: 'walked',
      text: 'where L1’s tables did not allow the access of a nested guest, L1 has got its VM exit',
      run: (_machine, task, { gw }) => (gw === null ? returns(task, EMULATION_INJECTED) : NEXT),
    },
    {
      name: 'track',
      text: 'page_fault_handle_page_track: a write to an upper-level table of the guest’s is emulated',
      run(machine, task, { fault }) {
        if (!isWriteTracked(machine, fault)) return NEXT;
        // shadow_page_table_clear_flood: whoever walks to the table is no flood.
        const vcpu = machine.vcpu(task.vcpu);
        for (const { table } of machine.shadowPath(vcpu, fault.addr))
          if (machine.pages.get(table)?.shadow) clearWriteFlooding(machine, table);
        return returns(task, RET_PF.WRITE_PROTECTED);
      },
    },
    {
      name: 'faultin',
      text: 'kvm_mmu_faultin_pfn: find the host frame, remembering mmu_invalidate_seq first',
      run: (_machine, task, { fault }) => call(task, kvmMmuFaultinPfn, { fault }),
    },
    {
      name: 'faultin-result',
      text: 'no frame: retry or emulate',
      run: (_machine, task) => (task.result === RET_PF.CONTINUE ? NEXT : returns(task, task.result)),
    },
    {
      name: 'wp',
      text: 'the supervisor writes to a read-only page with CR0.WP=0: map it writable, but no longer for the user, nor executable with SMEP',
      run(machine, task, { fault, gw }) {
        const vcpu = machine.vcpu(task.vcpu);
        const user = (fault.info.errorCode & USER) !== 0;
        if (fault.write && (gw!.access & 2) === 0 && !vcpu.walked.wp && !user && fault.pfn !== PFN_NOSLOT) {
          gw!.access = (gw!.access | 2) & ~4;
          if (vcpu.walked.smep) gw!.access &= ~1;
        }
        return NEXT;
      },
    },
    lockStep('mmu_lock', 'write'),
    {
      name: 'stale',
      text: 'is_page_fault_stale: the root is obsolete, or memory was invalidated since the sequence was read: retry',
      run(machine, task, { fault }) {
        const { root } = machine.vcpu(task.vcpu);
        if (!isRootStale(machine, root) && (fault.slot < 0 || !mustRetry(machine, fault.mmuSeq, fault.gfn)))
          return NEXT;
        task.result = RET_PF.RETRY;
        return 'unlock';
      },
    },
    {
      name: 'available',
      text: 'make_mmu_pages_available: where too few shadow pages are left the oldest go',
      run(machine) {
        makePagesAvailable(machine);
        return NEXT;
      },
    },
    {
      name: 'fetch',
      text: 'FNAME(fetch): shadow the guest’s tables down to the page',
      run: (_machine, task, { fault, gw }) =>
        call(task, shadowFetch, {
          fault,
          gw: gw!,
          access: gw!.access,
          level: 0,
          spte: 0,
          child: -1,
          baseGfn: 0,
          result: 0,
        }),
    },
    unlockStep('mmu_lock'),
  ],
});
