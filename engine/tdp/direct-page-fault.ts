import { lockStep, unlockStep } from '../lock-steps.ts';
import { call, defineFunction, NEXT, returns, type Step } from '../operation.ts';
import { directMap } from '../shadow/direct-map.ts';
import { makePagesAvailable } from '../shadow/limits.ts';
import { isObsolete } from '../shadow/pages.ts';
import { fastPageFault } from './fast-page-fault.ts';
import { type PageFault, RET_PF } from './fault.ts';
import { kvmTdpMmuMap } from './map.ts';
import { isWriteTracked, kvmMmuFaultinPfn, mustRetry } from './page-fault.ts';

// Faults on tables that translate guest-physical addresses: the TDP MMU's, or direct shadow pages.

interface FaultLocals {
  readonly fault: PageFault;
}

/** What both do before they take mmu_lock. */
const findFrame: readonly Step<FaultLocals>[] = [
  {
    name: 'track',
    text: 'page_fault_handle_page_track: a write to an upper-level table that L1 keeps for a guest of its own is emulated',
    run: (machine, task, { fault }) => (isWriteTracked(machine, fault) ? returns(task, RET_PF.WRITE_PROTECTED) : NEXT),
  },
  {
    name: 'fast',
    text: 'fast_page_fault: perhaps setting a bit without any lock is enough',
    local: true,
    run: (_machine, task, { fault }) =>
      call(task, fastPageFault, { fault, tries: 0, lo: 0, hi: 0, newLo: 0, newHi: 0, table: 0, index: 0, level: 0 }),
  },
  {
    name: 'fast-result',
    text: 'fixed or spurious: done; else the slow way',
    local: true,
    run: (_machine, task) => (task.result === RET_PF.INVALID ? NEXT : returns(task, task.result)),
  },
  {
    name: 'faultin',
    text: 'kvm_mmu_faultin_pfn: find the host frame, remembering mmu_invalidate_seq first',
    local: true,
    run: (_machine, task, { fault }) => call(task, kvmMmuFaultinPfn, { fault }),
  },
  {
    name: 'faultin-result',
    text: 'no frame: retry or emulate',
    local: true,
    run: (_machine, task) => (task.result === RET_PF.CONTINUE ? NEXT : returns(task, task.result)),
  },
];

const stale: Step<FaultLocals> = {
  name: 'stale',
  text: 'is_page_fault_stale: the root is obsolete, or memory behind a slot was invalidated since the sequence was read: retry',
  run(machine, task, { fault }) {
    const root = machine.page(machine.vcpu(task.vcpu).root);
    if (!isObsolete(machine, root) && (fault.slot < 0 || !mustRetry(machine, fault.mmuSeq, fault.gfn))) return NEXT;
    task.result = RET_PF.RETRY;
    return 'unlock';
  },
};

export const kvmTdpMmuPageFault = defineFunction<FaultLocals>({
  name: 'kvm_tdp_mmu_page_fault',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'The TDP MMU’s fault handler: many vCPUs may be in it at once, with mmu_lock held for reading.',
  steps: [
    ...findFrame,
    lockStep('mmu_lock', 'read'),
    stale,
    {
      name: 'map',
      text: 'kvm_tdp_mmu_map: install the translation',
      local: true,
      run: (_machine, task, { fault }) =>
        call(task, kvmTdpMmuMap, {
          fault,
          bits: 0,
          final: null,
          child: -1,
          level: 0,
          table: 0,
          index: 0,
          lo: 0,
          hi: 0,
        }),
    },
    { ...unlockStep('mmu_lock'), text: 'kvm_mmu_finish_page_fault: mark the frame accessed and drop mmu_lock' },
  ],
});

export const directPageFault = defineFunction<FaultLocals>({
  name: 'direct_page_fault',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about:
    'The fault handler without the TDP MMU (kvm_tdp_page_fault): one vCPU at a time, with mmu_lock held for writing.',
  steps: [
    ...findFrame,
    lockStep('mmu_lock', 'write'),
    stale,
    {
      name: 'available',
      text: 'make_mmu_pages_available: where too few shadow pages are left the oldest go',
      run(machine) {
        makePagesAvailable(machine);
        return NEXT;
      },
    },
    {
      name: 'map',
      text: 'direct_map: install the translation',
      local: true,
      run: (_machine, task, { fault }) =>
        call(task, directMap, { fault, access: 0, level: 0, spte: 0, baseGfn: 0, result: 0 }),
    },
    { ...unlockStep('mmu_lock'), text: 'kvm_mmu_finish_page_fault: mark the frame accessed and drop mmu_lock' },
  ],
});
