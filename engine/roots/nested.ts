import { checkNested, guestModeOf } from '../guest/nested.ts';
import type { Registers } from '../guest/registers.ts';
import { Kind } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import { hex } from '../memory/words.ts';
import { call, defineFunction, NEXT, returns, type Step, type Task } from '../operation.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import { type GuestMode, REQ_MMU_SYNC, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST, type Vcpu } from '../vcpu.ts';
import { freeRoots, initMmu, loadPdptrs, needsPdptrs, switchPgd } from './context.ts';
import { vcpuEnterGuest } from './enter.ts';
import { tellInvalidation } from './invalidation.ts';
import { ROOT_CURRENT, ROOTS_ALL, rootPrevious } from './mmu.ts';
import { cpuRole, shadowEptRole, shadowNptRole } from './role.ts';

// L1 runs a guest of its own, by VMRESUME or VMRUN, and gets the processor back: both are KVM's work.

const isVmx = (machine: Machine): boolean => machine.config.second === 'ept';

/** Roles of guest_mmu for L1's tables of now: of EPT by EPTP alone, of NPT by L1's CR4 and EFER. */
function initGuestMmu(machine: Machine, vcpu: Vcpu): void {
  const { mode, pgd } = vcpu.guestMode!.nested!;
  if (isVmx(machine)) {
    const role = shadowEptRole(
      mode.format.rootLevel,
      mode.format.accessedLo !== 0,
      machine.cpu.features.has('execute-only'),
    );
    switchPgd(machine, vcpu, pgd, { cpu: role, rootRole: role.base });
  } else {
    const { l1 } = vcpu.guestMode!;
    const registers: Registers = { ...l1, cr0: 0x8000_0001n, cr4: l1.cr4 & ~(1n << 22n) };
    const role = cpuRole(registers, { guestMode: true, smm: false, is2022: machine.policies.roots !== 'today' });
    switchPgd(machine, vcpu, pgd, { cpu: role, rootRole: shadowNptRole(role, machine.secondFormat.rootLevel) });
  }
}

/** The processor goes from L1 to L2 or back. Its TLB keeps the two apart, which one TLB without such a tag can only by forgetting. */
function switchGuest(
  machine: Machine,
  vcpu: Vcpu,
  ...[mode, registers, saved]: [GuestMode | undefined, Registers, Readonly<Record<string, Registers>>]
): void {
  machine.setGuestMode(vcpu, mode, registers, saved);
  machine.flushTlb(vcpu);
}

/** nested_vmx_transition_tlb_flush without VPIDs, and SVM's, which flushes and synchronizes always. */
function flushTransition(machine: Machine, vcpu: Vcpu): void {
  const asked = isVmx(machine) ? REQ_TLB_FLUSH_GUEST : REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT;
  machine.setRequests(vcpu, vcpu.requests | asked);
}

/** nested_vmx_load_cr3, nested_svm_load_cr3: roles as the registers say, and a root for CR3 unless L1's own tables stand behind it. */
function loadCr3(machine: Machine, vcpu: Vcpu): void {
  if (needsPdptrs(machine, vcpu)) loadPdptrs(machine, vcpu);
  if (vcpu.guestMode?.nested) initMmu(machine, vcpu);
  else switchPgd(machine, vcpu, vcpu.registers.cr3);
}

const loadCr3Step = (text: string): Step<object> => ({
  name: 'load-cr3',
  text,
  run(machine, task) {
    loadCr3(machine, machine.vcpu(task.vcpu));
    return NEXT;
  },
});

const flush: Step<object> = {
  name: 'flush',
  text: 'nested_*_transition_tlb_flush: L2 shares L1’s TLB tag, so that what is cached must go; of shadowed tables SVM also synchronizes',
  run(machine, task) {
    flushTransition(machine, machine.vcpu(task.vcpu));
    return NEXT;
  },
};

const enter: Step<object> = {
  name: 'enter',
  text: 'enter the guest',
  run: (_machine, task) => call(task, vcpuEnterGuest, {}),
};

interface RunLocals {
  readonly guest: string;
}

function runFunction(name: string, where: string, instruction: string) {
  return defineFunction<RunLocals>({
    name,
    where,
    about: `${instruction} of L1, which KVM emulates: the processor is to run L1’s guest, on tables that KVM makes of L1’s.`,
    steps: [
      {
        name: 'state',
        text: 'the instruction exits; enter_guest_mode: L2’s registers take the place of L1’s, which are kept for the VM exit',
        run(machine, task, { guest }) {
          const vcpu = machine.vcpu(task.vcpu);
          machine.count('exits');
          machine.count('nested.entries');
          const { mode, registers } = guestModeOf(machine, vcpu, guest);
          switchGuest(machine, vcpu, mode, registers, vcpu.saved);
          return NEXT;
        },
      },
      {
        name: 'guest-mmu',
        text: 'nested_*_init_mmu_context: from now on mmu is guest_mmu, whose role follows from L1’s tables; kvm_mmu_new_pgd looks for a root of theirs',
        run(machine, task) {
          const vcpu = machine.vcpu(task.vcpu);
          if (vcpu.guestMode!.nested) initGuestMmu(machine, vcpu);
          return NEXT;
        },
      },
      loadCr3Step(
        'nested_*_load_cr3: nested_mmu takes L2’s role; without L1’s own second stage root_mmu does, with guest_mode in its role',
      ),
      flush,
      enter,
    ],
  });
}

const nestedVmxRun = runFunction('nested_vmx_run', 'arch/x86/kvm/vmx/nested.c', 'VMLAUNCH or VMRESUME');
const nestedSvmVmrun = runFunction('nested_svm_vmrun', 'arch/x86/kvm/svm/nested.c', 'VMRUN');

/** L1 runs a guest of its own. @throws RangeError where its tables are not what its processor would walk */
export function callNestedRun(machine: Machine, task: Task, guest: string): void {
  checkNested(machine, machine.vcpu(task.vcpu), guest);
  call(task, isVmx(machine) ? nestedVmxRun : nestedSvmVmrun, { guest });
}

/** What made L2 exit: an instruction of its own, or a fault that is L1's to handle. */
export type NestedExit = 'VMCALL' | FaultInfo;

interface ExitLocals {
  readonly why: NestedExit;
}

function exitFunction(name: string, where: string) {
  return defineFunction<ExitLocals>({
    name,
    where,
    about: 'A VM exit that is L1’s to handle: KVM gives L1 its registers and its tables back.',
    steps: [
      {
        name: 'why',
        text: 'the reason for the exit, for L1 to see: an instruction of L2’s, or what L1’s tables refuse',
        run(machine, task, { why }) {
          machine.count('nested.exits');
          // A fault has been counted as it came.
          if (why === 'VMCALL') machine.count('exits');
          machine.append(Kind.NESTED_EXIT, task.vcpu, 0, 0, 0, 0, why);
          return NEXT;
        },
      },
      {
        name: 'state',
        text: 'leave_guest_mode: L2’s registers are kept for L1 to see, L1’s come back; mmu is root_mmu again',
        run(machine, task) {
          const vcpu = machine.vcpu(task.vcpu);
          const { guest, l1 } = vcpu.guestMode!;
          switchGuest(machine, vcpu, undefined, l1, { ...vcpu.saved, [guest]: vcpu.registers });
          return NEXT;
        },
      },
      loadCr3Step('nested_*_load_cr3: L1’s role, and its root, which is mostly still there'),
      flush,
      enter,
    ],
  });
}

const nestedVmxVmexit = exitFunction('nested_vmx_vmexit', 'arch/x86/kvm/vmx/nested.c');
const nestedSvmVmexit = exitFunction('nested_svm_vmexit', 'arch/x86/kvm/svm/nested.c');

/** L2 exits to L1. */
export function callNestedExit(machine: Machine, task: Task, why: NestedExit) {
  return call(task, isVmx(machine) ? nestedVmxVmexit : nestedSvmVmexit, { why });
}

export const handleInvept = defineFunction<{ readonly pgd: bigint | null }>({
  name: 'handle_invept',
  where: 'arch/x86/kvm/vmx/nested.c',
  about: 'L1 invalidates what is cached of its second-stage tables: the roots that shadow them are given up.',
  steps: [
    {
      name: 'free',
      text: 'kvm_mmu_free_roots of guest_mmu: those of the EPTP, or all; the next entry into L2 loads and synchronizes a root',
      run(machine, task, { pgd }) {
        machine.count('exits');
        const vcpu = machine.vcpu(task.vcpu);
        tellInvalidation(machine, vcpu, `invept ${pgd === null ? 'all' : hex(pgd)}`);
        const { root, prevRoots } = vcpu.mmus.guest;
        const isOf = (each: { readonly pgd: bigint; readonly pfn: number }): boolean =>
          each.pfn >= 0 && each.pgd === pgd;
        let which = pgd === null ? ROOTS_ALL : isOf(root) ? ROOT_CURRENT : 0;
        for (const [index, each] of prevRoots.entries()) if (isOf(each)) which |= rootPrevious(index);
        freeRoots(machine, vcpu, which, 'guest');
        return returns(task, 0);
      },
    },
  ],
});
