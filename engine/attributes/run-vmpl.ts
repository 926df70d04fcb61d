import { call, defineFunction, NEXT } from '../operation.ts';
import { vcpuEnterGuest } from '../roots/enter.ts';

/** The guest asks to go on at another VMPL (GHCB: run VMPL). */
export const runVmpl = defineFunction<{ readonly vmpl: number }>({
  name: 'run_vmpl',
  where: 'the guest and KVM',
  about: 'The guest goes on at another VMPL: VMGEXIT, and KVM enters it again with the save area of that level.',
  steps: [
    {
      name: 'exit',
      text: 'VMGEXIT: run VMPL',
      local: true,
      run(machine) {
        machine.count('exits');
        return NEXT;
      },
    },
    {
      name: 'switch',
      text: 'the save area of the other VMPL, and nothing of this one’s in the TLB (unverified)',
      run(machine, task, { vmpl }) {
        const { vmpls } = machine.attributes;
        vmpls.set(machine, task.vcpu, vmpl === 0 ? undefined : vmpl);
        machine.flushTlb(machine.vcpu(task.vcpu));
        return NEXT;
      },
    },
    {
      name: 'run',
      text: 'VMRUN: in the guest again, behind the instruction',
      local: true,
      run: (_machine, task) => call(task, vcpuEnterGuest, {}),
    },
  ],
});
