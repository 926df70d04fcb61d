import { kvmZapGfnRange } from '../host/notifier.ts';
import type { Machine } from '../machine.ts';
import { backingPfn } from '../memory/memslots.ts';
import { AGAIN, call, defineFunction, NEXT, returns } from '../operation.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import { EXIT_RESUME } from '../tdp/results.ts';
import { type Busy, findsBusy, psmash, RMP_RESULTS, rmpEntry } from './rmp.ts';

const PAGES_2M = 512;
const frameOf = ({ gpa }: FaultInfo): number => Number(gpa! >> 12n);

/** The frame that the RMP was asked about: the private page's, if the slot has one. */
function gmemFrame(machine: Machine, info: FaultInfo): number | undefined {
  const slot = machine.slots.find(frameOf(info));
  return slot?.gmem && machine.attributes.store.isPrivate(frameOf(info))
    ? backingPfn(slot, frameOf(info), slot.gmem)
    : undefined;
}

interface RmpFaultLocals extends Busy {
  readonly info: FaultInfo;
  readonly isSpurious: boolean;
}

/** sev_handle_rmp_fault: it mends sizes that differ, and nothing else. */
export const sevHandleRmpFault = defineFunction<RmpFaultLocals>({
  name: 'sev_handle_rmp_fault',
  where: 'arch/x86/kvm/svm/sev.c',
  about: 'An #NPF with the RMP bit that the usual handling has not ended: it can be mended where page sizes differ.',
  steps: [
    {
      name: 'lookup',
      text: 'snp_lookup_rmpentry: a page that is private now and assigned as a part of 2M is split; all else is taken for a fault that is over',
      run(machine, task, { info, isSpurious }) {
        const pfn = gmemFrame(machine, info);
        const entry = pfn === undefined ? undefined : rmpEntry(machine, pfn);
        if (entry?.level === 2) return NEXT;
        trace(machine, info, pfn ?? -1, 1, 0);
        if (isSpurious) {
          const where = `vCPU ${info.vcpu}'s RMP fault at gpa 0x${info.gpa!.toString(16)}`;
          machine.hazard('rmp-fault-loop', `${where} is left as it is: ${info.reason}`, frameOf(info));
        }
        return returns(task, EXIT_RESUME);
      },
    },
    {
      name: 'psmash',
      text: 'PSMASH: the entry of 2M becomes 512 of 4K; while another processor is at it (FAIL_INUSE) again',
      run(machine, task, locals) {
        const { info } = locals;
        const pfn = gmemFrame(machine, info)!;
        const what = `${task.name}: PSMASH of hpa 0x${(pfn * 4096).toString(16)} returns FAIL_INUSE (${RMP_RESULTS.FAIL_INUSE})`;
        if (findsBusy(machine, locals, what)) return AGAIN;
        // Somebody else may have split it meanwhile.
        if (rmpEntry(machine, pfn)?.level === 2) psmash(machine, pfn);
        trace(machine, info, pfn, 2, 0);
        return NEXT;
      },
    },
    {
      name: 'zap',
      text: 'kvm_zap_gfn_range, for 2M from the page that faulted: what maps it is made anew, as the RMP has it now',
      run: (_machine, task, { info }) =>
        call(task, kvmZapGfnRange, { start: frameOf(info), end: frameOf(info) + PAGES_2M }),
    },
    {
      name: 'return',
      text: 'nothing is returned: the guest tries again',
      local: true,
      run: (_machine, task) => returns(task, EXIT_RESUME),
    },
  ],
});

function trace(machine: Machine, info: FaultInfo, pfn: number, level: number, result: number): void {
  machine.trace('kvm_rmp_fault', {
    vcpu_id: info.vcpu,
    gpa: info.gpa,
    pfn: Math.max(pfn, 0),
    error_code: info.errorCode,
    rmp_level: level,
    psmash_ret: result,
  });
}
