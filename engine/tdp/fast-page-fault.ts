import { directBits, rootFor } from '../attributes/tdx.ts';
import { LEAF } from '../formats/compile.ts';
import { defineFunction, NEXT, returns } from '../operation.ts';
import { type PageFault, RET_PF } from './fault.ts';
import { findEntry } from './iterate.ts';
import { allows, isMmuWritable, isPresent, spteFormat, withWrite } from './spte.ts';

interface FastLocals {
  readonly fault: PageFault;
  tries: number;
  table: number;
  index: number;
  level: number;
  lo: number;
  hi: number;
  newLo: number;
  newHi: number;
}

/** The kernel gives up after this many lost races and takes the slow way. */
const MAX_TRIES = 5;

export const fastPageFault = defineFunction<FastLocals>({
  name: 'fast_page_fault',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'Fixes, without a lock, a write to a present entry that is only write-protected for the dirty log.',
  steps: [
    {
      name: 'eligible',
      text: 'only a write to a present entry can be fixed this way, no reserved-bit fault, and no page of the other kind',
      run(machine, task, { fault }) {
        const isPrivate = machine.vm !== 'ordinary' && machine.attributes.store.isPrivate(fault.gfn);
        if (fault.isPrivate !== isPrivate) return returns(task, RET_PF.INVALID);
        return !fault.rsvd && fault.present && fault.write ? NEXT : returns(task, RET_PF.INVALID);
      },
    },
    {
      name: 'read',
      text: 'walk down without a lock to the last entry; if it allows the access by now, the fault is spurious',
      run(machine, task, locals) {
        const { fault } = locals;
        const spte = spteFormat(machine.secondFormat);
        const root = rootFor(machine, machine.vcpu(task.vcpu), fault.isPrivate);
        const entry = findEntry(machine, root, fault.gfn + directBits(machine, root));
        Object.assign(locals, {
          table: entry.table,
          index: entry.index,
          level: entry.level,
          lo: entry.lo,
          hi: entry.hi,
        });
        if (!isPresent(entry.lo) || machine.secondFormat.classify(entry.level, entry.lo) !== LEAF) {
          trace(machine, fault, locals, RET_PF.INVALID);
          return returns(task, RET_PF.INVALID);
        }
        if (allows(spte, entry.lo, entry.hi, fault.needs)) {
          trace(machine, fault, locals, RET_PF.SPURIOUS);
          return returns(task, RET_PF.SPURIOUS);
        }
        return NEXT;
      },
    },
    {
      name: 'decide',
      text: 'W comes back only if the MMU lets it, and not on a large page of a slot that is being logged',
      run(machine, task, locals) {
        const spte = spteFormat(machine.secondFormat);
        const slot = machine.slots.find(locals.fault.gfn);
        if (!isMmuWritable(spte, locals.lo, locals.hi) || (locals.level > 1 && slot?.logDirty)) {
          trace(machine, locals.fault, locals, RET_PF.INVALID);
          return returns(task, RET_PF.INVALID);
        }
        const next = withWrite(spte, locals, true);
        locals.newLo = (next.lo | machine.secondFormat.dirtyLo) >>> 0;
        locals.newHi = next.hi;
        return NEXT;
      },
    },
    {
      name: 'exchange',
      text: 'compare-and-exchange the entry; if somebody changed it meanwhile, look again',
      run(machine, task, locals) {
        const page = machine.memory.page(locals.table);
        if (page[2 * locals.index] !== locals.lo || page[2 * locals.index + 1] !== locals.hi) {
          return ++locals.tries >= MAX_TRIES ? returns(task, RET_PF.INVALID) : 'read';
        }
        machine.setSpte(locals.table, locals.index, locals.newLo, locals.newHi, false);
        machine.count('faults.fast');
        trace(machine, locals.fault, locals, RET_PF.FIXED);
        return returns(task, RET_PF.FIXED);
      },
    },
  ],
});

function trace(machine: Parameters<typeof findEntry>[0], fault: PageFault, locals: FastLocals, result: number): void {
  machine.trace('fast_page_fault', {
    vcpu_id: fault.vcpu,
    gpa: fault.addr,
    error_code: fault.info.errorCode,
    sptep: locals.table * 4096 + locals.index * 8,
    old: { lo: locals.lo, hi: locals.hi },
    new: { lo: locals.newLo, hi: locals.newHi },
    spurious: result === RET_PF.SPURIOUS,
    fixed: result === RET_PF.FIXED,
  });
}
