import { Kind } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, frameToAddress, type Gfn, hex } from '../memory/words.ts';
import { call, defineFunction, NEXT, RETURNED, returns } from '../operation.ts';
import { vcpuEnterGuest } from '../roots/enter.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import { callConvert } from './convert.ts';
import { frameOf } from './tdx.ts';

/** Whether a page of the gpa can be of either kind, so that a conversion would help. */
export function canConvert(machine: Machine, gpa: bigint, isPrivate: boolean): boolean {
  return !isPrivate || machine.slots.find(addressToFrame(gpa))?.gmem !== undefined;
}

/** Why a vCPU cannot go on after KVM_EXIT_MEMORY_FAULT; undefined where the VMM can convert the page, and does. */
export function memoryFaultWords(machine: Machine, gpa: bigint, isPrivate: boolean): string | undefined {
  const where = `KVM_EXIT_MEMORY_FAULT: gpa ${hex(gpa)}`;
  const slot = machine.slots.find(addressToFrame(gpa));
  if (!canConvert(machine, gpa, isPrivate))
    return `${where} was accessed as private memory, and ${slot ? 'its slot has no guest_memfd' : 'no memslot holds it'}`;
  if (machine.config.memoryFault !== 'stop') return undefined;
  return `${where} is not ${isPrivate ? 'private' : 'shared'} memory, as the access was`;
}

/** The vCPU’s thread in userspace, after KVM_RUN has returned KVM_EXIT_MEMORY_FAULT. */
export const vmmMemoryFault = defineFunction<{ readonly info: FaultInfo }>({
  name: 'vmm_memory_fault',
  where: 'the VMM',
  about: 'The guest wants a page to be of the other kind: the VMM converts it, and runs the vCPU again.',
  steps: [
    {
      name: 'exit',
      text: 'KVM_RUN returns -EFAULT with KVM_EXIT_MEMORY_FAULT: gpa, size, and whether the access was private',
      local: true,
      run(machine, task, { info }) {
        machine.count('exits.memory_fault');
        machine.append(Kind.MEMORY_FAULT, task.vcpu, 0, 0, 0, 0, info);
        const [gpa, isPrivate] = [frameToAddress(frameOf(machine, info.gpa!)), info.isPrivate === true];
        const words = memoryFaultWords(machine, gpa, isPrivate);
        if (words === undefined) return NEXT;
        machine.fail(task, words, canConvert(machine, gpa, isPrivate));
        return RETURNED;
      },
    },
    {
      name: 'convert',
      text: 'KVM_SET_MEMORY_ATTRIBUTES: the page becomes what the guest takes it for',
      run(machine, task, { info }) {
        const gfn = frameOf(machine, info.gpa!);
        return callConvert(machine, task, gfn, gfn + 1, info.isPrivate === true);
      },
    },
    { name: 'run', text: 'KVM_RUN again', local: true, run: (_machine, task) => returns(task, 0) },
  ],
});

/** The guest asks for a conversion: GHCB page state change, or TDVMCALL<MapGPA>. */
export const pageStateChange = defineFunction<{ readonly start: Gfn; readonly end: Gfn; readonly isPrivate: boolean }>({
  name: 'page_state_change',
  where: 'the guest, KVM and the VMM',
  about: 'The guest asks that memory become private or shared: KVM_EXIT_HYPERCALL, and the VMM does as it is asked.',
  steps: [
    {
      name: 'exit',
      text: 'VMGEXIT or TDVMCALL: KVM_RUN returns with KVM_EXIT_HYPERCALL',
      local: true,
      run(machine) {
        machine.count('exits');
        return NEXT;
      },
    },
    {
      name: 'convert',
      text: 'KVM_SET_MEMORY_ATTRIBUTES, in the VMM',
      run: (machine, task, { start, end, isPrivate }) => callConvert(machine, task, start, end, isPrivate),
    },
    {
      name: 'run',
      text: 'KVM_RUN again: back in the guest, behind the instruction',
      local: true,
      run: (_machine, task) => call(task, vcpuEnterGuest, {}),
    },
  ],
});
