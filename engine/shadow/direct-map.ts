import { ACC_EXEC, ACC_USER, ACC_WRITE } from '../formats/compile.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn } from '../memory/words.ts';
import { AGAIN, defineFunction, NEXT, returns, type Step } from '../operation.ts';
import { type PageFault, PFN_NOSLOT, RET_PF } from '../tdp/fault.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { accountDisallowed, adjustDisallowed } from '../tdp/nx-huge-pages.ts';
import { hugepageAdjust } from './huge.ts';
import {
  childOf,
  childRole,
  clearWriteFlooding,
  dropParentPte,
  getShadowPage,
  indexOf,
  linkShadowPage,
  shadowPage,
  tableOf,
} from './pages.ts';
import { prefetch } from './prefetch.ts';
import { setShadowSpte } from './set-spte.ts';
import type { SpteAddress } from './state.ts';

const ACC_ALL = ACC_EXEC | ACC_WRITE | ACC_USER;

/** Where a fault's way through direct shadow pages stands. */
export interface DirectLocals {
  readonly fault: PageFault;
  /** ACC_* bits of the pages and of the leaf. */
  access: number;
  /** Level of the entry that the walk of the shadow tables has come to, and where it is. */
  level: number;
  spte: SpteAddress;
  /** First gfn of what the entry covers. */
  baseGfn: Gfn;
  result: number;
}

/** The entry for the address one level below, in the page that this one leads to. */
export function below(machine: Machine, spte: SpteAddress, level: number, addr: bigint): SpteAddress {
  return childOf(machine, spte) * 512 + Number((addr >> BigInt(12 + 9 * (level - 2))) & 511n);
}

const huge: Step<DirectLocals> = {
  name: 'huge',
  text: 'kvm_mmu_hugepage_adjust: the largest page that slot, alignment and host mapping allow; 4K while dirty-logging',
  run(machine, _task, { fault }) {
    hugepageAdjust(machine, fault);
    const within = fault.pfn === PFN_NOSLOT ? 0 : fault.gfn % 512 ** (fault.goalLevel - 1);
    machine.trace('kvm_mmu_spte_requested', { gfn: fault.gfn, pfn: fault.pfn + within, level: fault.goalLevel });
    return NEXT;
  },
};

const descend: Step<DirectLocals> = {
  name: 'direct',
  text: 'kvm_mmu_get_child_sp, link_shadow_page: a direct shadow page for each level on the way down to the goal; where NX huge pages had a large page replaced, one further',
  run(machine, task, locals) {
    const { fault, access, spte, level } = locals;
    clearWriteFlooding(machine, tableOf(spte));
    const [lo, hi] = machine.entryWords(tableOf(spte), indexOf(spte));
    adjustDisallowed(machine, fault, { level, table: tableOf(spte), index: indexOf(spte), lo, hi });
    locals.baseGfn = fault.gfn - (fault.gfn % 512 ** (level - 1));
    if (level === fault.goalLevel) return NEXT;
    // validate_direct_spte: a page for other rights does not do.
    const linked = childOf(machine, spte);
    if (linked >= 0 && roleField(shadowPage(machine, linked).role, 'access') !== access) {
      dropParentPte(machine, linked, spte);
      flushRemoteTlbs(machine);
    }
    if (childOf(machine, spte) < 0) {
      const parent = shadowPage(machine, tableOf(spte));
      const role = childRole(machine, parent, indexOf(spte), true, access, fault.addr);
      const page = getShadowPage(machine, machine.vcpu(task.vcpu), locals.baseGfn, role);
      linkShadowPage(machine, spte, page.pfn);
      if (fault.hugePageDisallowed) accountDisallowed(machine, page.pfn, fault.reqLevel >= level);
    }
    locals.spte = below(machine, spte, level, fault.addr);
    locals.level--;
    return AGAIN;
  },
};

const set: Step<DirectLocals> = {
  name: 'set',
  text: 'mmu_set_spte: install the leaf; a page that holds a table of the guest’s stays read-only',
  run(machine, task, locals) {
    const { fault, access } = locals;
    locals.result = setShadowSpte(machine, locals.spte, access, locals.baseGfn, fault.pfn, fault);
    return locals.result === RET_PF.SPURIOUS ? returns(task, locals.result) : NEXT;
  },
};

const prefetchStep: Step<DirectLocals> = {
  name: 'prefetch',
  text: 'direct_pte_prefetch: neighbours that the host has at hand are mapped at once',
  run(machine, task, locals) {
    if (locals.level === 1 && machine.invalidation.inProgress === 0)
      prefetch(machine, machine.vcpu(task.vcpu), locals.spte);
    return returns(task, locals.result);
  },
};

/** From a level on at which nothing of the guest's is shadowed any more: below its large page, or in tables that translate its gpas. */
export const DIRECT = { huge, descend, set, prefetch: prefetchStep };

export const directMap = defineFunction<DirectLocals>({
  name: 'direct_map',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'Installs a translation in direct shadow pages: chooses its level, takes or builds the pages above it.',
  steps: [
    huge,
    {
      name: 'root',
      text: 'start at the root',
      local: true,
      run(machine, task, locals) {
        const { root } = machine.vcpu(task.vcpu);
        const { level } = shadowPage(machine, root);
        locals.access = ACC_ALL;
        locals.level = level;
        locals.spte = root * 512 + Number((locals.fault.addr >> BigInt(12 + 9 * (level - 1))) & 511n);
        return NEXT;
      },
    },
    descend,
    set,
    prefetchStep,
  ],
});
