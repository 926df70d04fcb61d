import type { Machine } from '../machine.ts';
import { frameToAddress, type Gfn, hex, type Pfn } from '../memory/words.ts';
import { AGAIN, defineFunction, NEXT, returns } from '../operation.ts';
import { EFAULT } from '../tdp/fault.ts';
import { splitDirectMap } from './direct-map.ts';
import { type Busy, findsBusy, RMP_RESULTS, rmpUpdate } from './rmp.ts';

interface RmpUpdateLocals extends Busy {
  readonly pfn: Pfn;
  readonly level: 1 | 2;
  readonly to: { readonly gfn: Gfn; readonly asid: number } | undefined;
}

/** What a hypervisor may do at any time, by mistake or out of malice. */
export const rmpUpdateByHost = defineFunction<RmpUpdateLocals>({
  name: 'rmpupdate',
  where: 'arch/x86/virt/svm/sev.c',
  about: 'The RMP’s entry of a frame is changed, and nothing of KVM’s: neither attributes nor tables.',
  steps: [
    {
      name: 'direct-map',
      text: 'adjust_direct_map: for 4K the kernel’s own mapping is split to 4K',
      run(machine: Machine, task, { pfn, level }) {
        if (level === 1) {
          splitDirectMap(machine, pfn);
          return NEXT;
        }
        if (pfn % 512 === 0) return NEXT;
        machine.warn(
          `${task.name}: rmpupdate of hpa ${hex(frameToAddress(pfn))} is refused (-EINVAL): 2M do not begin there`,
        );
        return returns(task, EFAULT);
      },
    },
    {
      name: 'rmpupdate',
      spins: true,
      text: 'RMPUPDATE; while entries of another size overlap (FAIL_OVERLAP) the kernel does nothing but try again',
      run(machine, task, locals) {
        const { pfn, level, to } = locals;
        if (findsBusy(machine, task, locals, 'RMPUPDATE', pfn)) return AGAIN;
        const result = rmpUpdate(machine, pfn, level, to);
        if (result === 'FAIL_OVERLAP') return AGAIN;
        if (result === 'SUCCESS') return returns(task, 0);
        machine.warn(
          `${task.name}: RMPUPDATE of hpa ${hex(frameToAddress(pfn))} fails with ${result} (${RMP_RESULTS[result]})`,
        );
        return returns(task, EFAULT);
      },
    },
  ],
});
