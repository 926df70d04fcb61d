import type { Registers } from '../guest/registers.ts';
import type { Machine } from '../machine.ts';
import { call, defineFunction, NEXT, type Step } from '../operation.ts';
import { loadPdptrs, needsPdptrs, resetContext } from './context.ts';
import { mustEnter, vcpuEnterGuest } from './enter.ts';

// System-management mode: another address space of KVM's, and a role of its own. The slots are the same here in both.

/** CR0.PE, EM, TS and PG: off in the handler (enter_smm). */
const CR0_OFF = 0x8000_000dn;

const enter: Step<object> = {
  name: 'enter',
  text: 'enter the guest again',
  run: (machine, task) => (mustEnter(machine.vcpu(task.vcpu)) ? call(task, vcpuEnterGuest, {}) : NEXT),
};

const changed: Step<object> = {
  name: 'changed',
  text: 'kvm_smm_changed: smm is in the role, so kvm_mmu_reset_context',
  run(machine, task) {
    const vcpu = machine.vcpu(task.vcpu);
    if (needsPdptrs(machine, vcpu)) loadPdptrs(machine, vcpu);
    resetContext(machine, vcpu);
    machine.flushTlb(vcpu);
    return NEXT;
  },
};

const stateStep = (text: string, next: (registers: Registers) => Registers | undefined): Step<object> => ({
  name: 'state',
  text,
  run(machine: Machine, task) {
    const vcpu = machine.vcpu(task.vcpu);
    machine.count('exits');
    const inside = next(vcpu.registers);
    if (inside) machine.setSmm(vcpu, vcpu.registers, inside);
    else machine.setSmm(vcpu, undefined, vcpu.smm!);
    return NEXT;
  },
});

export const enterSmm = defineFunction<object>({
  name: 'enter_smm',
  where: 'arch/x86/kvm/smm.c',
  about: 'A system-management interrupt: the handler runs without paging, in an address space of its own.',
  steps: [
    stateStep('save the registers in SMRAM; CR0.PE and PG, CR4 and EFER are off', (registers) => ({
      ...registers,
      cr0: registers.cr0 & ~CR0_OFF,
      cr4: 0n,
      efer: 0n,
      cpl: 0n,
    })),
    changed,
    enter,
  ],
});

export const emulatorLeaveSmm = defineFunction<object>({
  name: 'emulator_leave_smm',
  where: 'arch/x86/kvm/smm.c',
  about: 'RSM: the interrupted code gets its registers and its address space back.',
  steps: [stateStep('load the registers from SMRAM', () => undefined), changed, enter],
});
