import { LEAF } from '../formats/compile.ts';
import { kvmZapGfnRange } from '../host/notifier.ts';
import type { Machine } from '../machine.ts';
import { backingPfn } from '../memory/memslots.ts';
import type { Pfn } from '../memory/words.ts';
import { AGAIN, call, defineFunction, NEXT, returns, type Task } from '../operation.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import { findEntry } from '../tdp/iterate.ts';
import { EXIT_RESUME } from '../tdp/results.ts';
import { type Busy, findsBusy, psmash, rmpEntry } from './rmp.ts';
import { checkRmp } from './rmp-check.ts';

const PAGES_2M = 512;
const frameOf = ({ gpa }: FaultInfo): number => Number(gpa! >> 12n);

/** The private frame of the page, if it is private and its slot has one. */
function gmemFrame(machine: Machine, info: FaultInfo): Pfn | undefined {
  const slot = machine.slots.find(frameOf(info));
  return slot?.gmem && machine.attributes.store.isPrivate(frameOf(info))
    ? backingPfn(slot, frameOf(info), slot.gmem)
    : undefined;
}

/** Whether nothing has changed meanwhile that could have the access fare otherwise: the tables still let it through, and the RMP does not. */
function isRefusedStill(machine: Machine, { access }: Task, info: FaultInfo): boolean {
  const gfn = frameOf(info);
  const { level, lo, hi } = findEntry(machine, machine.vcpu(info.vcpu).root, gfn);
  if (access === null || machine.secondFormat.classify(level, lo) !== LEAF) return false;
  const pfn = machine.secondFormat.frame(level, lo, hi) + (gfn % PAGES_2M ** (level - 1));
  const { page: _, ...read } = { ...access, kind: 'read' as const };
  const asked = { ...(info.target === 'table' ? read : access), isPrivate: info.isPrivate === true };
  const problem = checkRmp(machine, info.vcpu, asked, gfn, pfn, level);
  return problem !== undefined && problem.kind !== 'not-validated';
}

interface RmpFaultLocals extends Busy {
  readonly info: FaultInfo;
  readonly isSpurious: boolean;
  /** The page's frame, as it was looked up: whatever becomes of the page, it is this that is split. */
  pfn: Pfn;
}

export function callRmpFault(task: Task, info: FaultInfo, isSpurious: boolean): number {
  return call(task, sevHandleRmpFault, { info, isSpurious, pfn: -1 });
}

/** sev_handle_rmp_fault: it mends sizes that differ, and nothing else. */
const sevHandleRmpFault = defineFunction<RmpFaultLocals>({
  name: 'sev_handle_rmp_fault',
  where: 'arch/x86/kvm/svm/sev.c',
  about: 'An #NPF with the RMP bit that the usual handling has not ended: it can be mended where page sizes differ.',
  steps: [
    {
      name: 'lookup',
      text: 'snp_lookup_rmpentry: a page that is private now and assigned as a part of 2M is split; all else is taken for a fault that is over',
      run(machine, task, locals) {
        const { info, isSpurious } = locals;
        const pfn = gmemFrame(machine, info);
        const entry = pfn === undefined ? undefined : rmpEntry(machine, pfn);
        if (entry) locals.pfn = pfn!;
        if (entry?.level === 2) return NEXT;
        if (entry) trace(machine, info, pfn!, 1);
        if (isSpurious && isRefusedStill(machine, task, info)) {
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
        const { info, pfn } = locals;
        if (findsBusy(machine, task, locals, 'PSMASH', pfn)) return AGAIN;
        // Somebody else may have split it meanwhile, or taken it.
        if (rmpEntry(machine, pfn)?.level === 2) psmash(machine, pfn);
        trace(machine, info, pfn, 2);
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

function trace(machine: Machine, info: FaultInfo, pfn: Pfn, level: number): void {
  machine.trace('kvm_rmp_fault', {
    vcpu_id: info.vcpu,
    gpa: info.gpa,
    pfn,
    error_code: info.errorCode,
    rmp_level: level,
    psmash_ret: 0,
  });
}
