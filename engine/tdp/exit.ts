import { callRmpFault } from '../attributes/rmp-fault.ts';
import type { VmType } from '../attributes/state.ts';
import type { Machine } from '../machine.ts';
import { hex } from '../memory/words.ts';
import { call, defineFunction, type FunctionSpec, NEXT, RETURNED, returns, type Task } from '../operation.ts';
import { REQ_VM_DEAD } from '../vcpu.ts';
import { type FaultInfo, RET_PF } from './fault.ts';
import { kvmMmuPageFault } from './page-fault.ts';
import { EMULATION_DONE, EMULATION_INJECTED, EXIT_EMULATED, EXIT_INJECTED, EXIT_RESUME } from './results.ts';

interface ExitLocals {
  readonly info: FaultInfo;
}

/** `kvm_mmu_page_fault` leaves a RET_PF_*, an errno, or how emulation ended; the caller only resumes or gives up. */
function outcome(result: number): number {
  if (result < 0) return result;
  if (result === EMULATION_DONE) return EXIT_EMULATED;
  if (result === EMULATION_INJECTED) return EXIT_INJECTED;
  return EXIT_RESUME;
}

const finish = {
  name: 'finish',
  text: 'back to the run loop: resume the guest, or give KVM_RUN’s caller the error',
  local: true as const,
  run: (_machine: unknown, task: Task) => returns(task, outcome(task.result)),
};

export const handleEptViolation = defineFunction<ExitLocals>({
  name: 'handle_ept_violation',
  where: 'arch/x86/kvm/vmx/vmx.c',
  about: 'VMX exit 48: an EPT entry on the way was absent or forbade the access.',
  steps: [
    {
      name: 'translate',
      text: 'turn the exit qualification into an error code: R→U, W→W, X→F, any right granted→P; final address or guest table',
      local: true,
      run: (_machine, task, locals) => call(task, kvmMmuPageFault, { info: locals.info }),
    },
    finish,
  ],
});

export const handleEptMisconfig = defineFunction<ExitLocals>({
  name: 'handle_ept_misconfig',
  where: 'arch/x86/kvm/vmx/vmx.c',
  about: 'VMX exit 49: an EPT entry holds a combination that the processor refuses. KVM marks MMIO this way.',
  steps: [
    {
      name: 'fast-mmio',
      text: 'no in-kernel device claims the gpa: handle it as a reserved-bit fault',
      local: true,
      run: (_machine, task, locals) => call(task, kvmMmuPageFault, { info: locals.info }),
    },
    finish,
  ],
});

export const npfInterception = defineFunction<ExitLocals>({
  name: 'npf_interception',
  where: 'arch/x86/kvm/svm/svm.c',
  about: 'SVM exit 0x400: a nested page fault. EXITINFO1 is the error code, EXITINFO2 the gpa.',
  steps: [
    {
      name: 'handle',
      text: 'hand error code and gpa to the MMU',
      local: true,
      run: (_machine, task, locals) => call(task, kvmMmuPageFault, { info: locals.info }),
    },
    {
      ...finish,
      text: 'a fault with the RMP bit goes to SNP as well; then back to the run loop: resume the guest, or give the error',
      run(machine: Machine, task: Task, { info }: ExitLocals) {
        const resumes = outcome(task.result) === EXIT_RESUME;
        if (info.kind !== 'rmp' || !resumes) return finish.run(machine, task);
        const isSpurious = task.result === RET_PF.SPURIOUS;
        return callRmpFault(task, info, isSpurious);
      },
    },
  ],
});

export const pfInterception = defineFunction<ExitLocals>({
  name: 'pf_interception',
  where: 'arch/x86/kvm/svm/svm.c',
  about: 'SVM exit 0x4e: a #PF on shadow tables comes to KVM first. EXITINFO1 is the error code, EXITINFO2 the gva.',
  steps: [
    {
      name: 'handle',
      text: 'kvm_handle_page_fault: hand error code and gva to the MMU',
      local: true,
      run: (_machine, task, locals) => call(task, kvmMmuPageFault, { info: locals.info }),
    },
    finish,
  ],
});

export const tdxHandleEptViolation = defineFunction<ExitLocals>({
  name: 'tdx_handle_ept_violation',
  where: 'arch/x86/kvm/vmx/tdx.c',
  about: 'A TD exit for an EPT violation: in the shared EPT, or in the secure EPT, which the TDX module keeps.',
  steps: [
    {
      name: 'pending',
      text: 'tdx_is_sept_violation_unexpected_pending: a page that the guest uses before it has accepted it is the end of the VM',
      run(machine, task, { info }) {
        if (!info.isPending) return NEXT;
        for (const vcpu of machine.vcpus) machine.setRequests(vcpu, vcpu.requests | REQ_VM_DEAD);
        machine.fail(
          task,
          `guest access before accepting gpa ${hex(info.gpa!)} on vCPU ${info.vcpu}: KVM_RUN fails with -EIO, and the VM is dead`,
        );
        return RETURNED;
      },
    },
    {
      name: 'violation',
      text: '__vmx_handle_ept_violation; one of the secure EPT counts as a write, whatever it was',
      local: true,
      run(_machine, task, { info }) {
        const isWrite = info.isPrivate === true && info.access !== 'write';
        return call(task, kvmMmuPageFault, { info: isWrite ? { ...info, access: 'write' as const } : info });
      },
    },
    {
      ...finish,
      text: 'one of the secure EPT that must be tried again is, at once; else back to the run loop',
      run(machine: Machine, task: Task, locals: ExitLocals) {
        const { isPrivate } = locals.info;
        // Not where the vCPU has something else to do first (kvm_vcpu_has_events, kvm_test_request).
        if (isPrivate && task.result === RET_PF.RETRY && machine.vcpu(task.vcpu).requests === 0) return 'violation';
        return finish.run(machine, task);
      },
    },
  ],
});

/** Pushes the exit handler for a second-stage fault, or with shadow paging for any. */
export function handleExit({ config, vm }: Machine, task: Task, info: FaultInfo): number {
  return call(task, handlerOf(config.second, vm, info), { info });
}

function handlerOf(kind: 'ept' | 'npt' | 'shadow', vm: VmType, info: FaultInfo): FunctionSpec<ExitLocals> {
  if (kind === 'shadow') return pfInterception;
  if (kind === 'npt') return npfInterception;
  if (info.kind === 'misconfiguration') return handleEptMisconfig;
  return vm === 'tdx' ? tdxHandleEptViolation : handleEptViolation;
}
