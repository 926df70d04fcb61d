import type { PagingMode } from '../guest/registers.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { defineFunction, NEXT, returns } from '../operation.ts';
import { RET_PF } from '../tdp/fault.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import type { Vcpu } from '../vcpu.ts';
import { below, DIRECT, type DirectLocals } from './direct-map.ts';
import type { GuestWalk } from './page-fault.ts';
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
import type { SpteAddress } from './state.ts';
import { readGuestEntry, syncChildren } from './sync.ts';

interface Locals extends DirectLocals {
  readonly gw: GuestWalk;
  child: Pfn;
}

/** Whether an entry of the guest's is no longer what the walk read (FNAME(gpte_changed)). */
function gpteChanged(machine: Machine, mode: PagingMode, { walk }: GuestWalk, level: number): boolean {
  const { format } = mode;
  const number = format.indexOf(walk.vfn, level) + (level === format.rootLevel ? mode.rootEntry : 0);
  const now = readGuestEntry(machine, walk.entryGfn[level]!, number, format.entryBytes);
  if (!now) return true;
  // The walk itself may have set A and D.
  const own = format.accessedLo | format.dirtyLo;
  return ((now.lo ^ walk.entryLo[level]!) & ~own) !== 0 || now.hi !== walk.entryHi[level];
}

/** shadow_walk_init: the first entry below the root that is a shadow page's. */
function firstSpte(machine: Machine, vcpu: Vcpu, gva: bigint): { level: number; spte: SpteAddress } | undefined {
  const path = machine.shadowPath(vcpu, gva, true);
  const [first] = path.filter(({ table }) => machine.pages.get(table)?.shadow);
  return first && { level: first.level, spte: first.table * 512 + first.index };
}

export const shadowFetch = defineFunction<Locals>({
  name: 'FNAME(fetch)',
  where: 'arch/x86/kvm/mmu/paging_tmpl.h',
  about:
    'Builds shadow pages for each of the guest’s tables on the way, direct ones below a large page, and installs the leaf.',
  steps: [
    {
      name: 'root',
      text: 'the entry of the guest’s top table is still the one that was walked; start at the root',
      run(machine, task, locals) {
        const vcpu = machine.vcpu(task.vcpu);
        const { walked: mode } = vcpu;
        // Of PAE the PDPTEs were loaded with CR3: the directory is the top.
        const top = mode.format.rootLevel === 3 ? 2 : mode.format.rootLevel;
        if (mode.paging && top >= locals.gw.walk.leafLevel && gpteChanged(machine, mode, locals.gw, top))
          return returns(task, RET_PF.RETRY);
        const first = firstSpte(machine, vcpu, locals.fault.addr);
        if (!first) return returns(task, RET_PF.RETRY);
        locals.level = first.level;
        locals.spte = first.spte;
        return NEXT;
      },
    },
    {
      name: 'get',
      text: 'kvm_mmu_get_child_sp: the shadow page of the guest’s next table, in the role that follows from its parent’s',
      run(machine, task, locals) {
        const vcpu = machine.vcpu(task.vcpu);
        const { gw, spte, level } = locals;
        const leafLevel = vcpu.walked.paging ? gw.walk.leafLevel : level;
        if (level <= leafLevel) return 'huge';
        clearWriteFlooding(machine, tableOf(spte));
        const gfn = gw.walk.entryGfn[level - 1]!;
        const parent = shadowPage(machine, tableOf(spte));
        const role = childRole(
          machine,
          parent,
          indexOf(spte),
          false,
          gw.walk.tableAccess[level - 1]!,
          locals.fault.addr,
        );
        const linked = childOf(machine, spte);
        if (linked >= 0) {
          const there = shadowPage(machine, linked);
          // Before Linux 7 a child of the right gfn was taken whatever its role.
          const same = there.gfn === gfn && (there.role === role || machine.injects('child-by-gfn'));
          if (same) {
            locals.child = -1;
            return NEXT;
          }
        }
        const page = getShadowPage(machine, vcpu, gfn, role);
        if (page.shadow.unsyncChildren.length > 0) syncChildren(machine, vcpu, page.pfn);
        locals.child = page.pfn;
        return NEXT;
      },
    },
    {
      name: 'recheck',
      text: 'the guest’s entry has not changed while its table was not write-protected yet; else retry',
      run: (machine, task, locals) =>
        gpteChanged(machine, machine.vcpu(task.vcpu).walked, locals.gw, locals.level - 1)
          ? returns(task, RET_PF.RETRY)
          : NEXT,
    },
    {
      name: 'link',
      text: 'link_shadow_page: let the entry lead to it, and go down',
      run(machine, _task, locals) {
        if (locals.child >= 0) {
          const linked = childOf(machine, locals.spte);
          if (linked >= 0) {
            dropParentPte(machine, linked, locals.spte);
            flushRemoteTlbs(machine);
          }
          linkShadowPage(machine, locals.spte, locals.child);
        }
        locals.spte = below(machine, locals.spte, locals.level, locals.fault.addr);
        locals.level--;
        return 'get';
      },
    },
    {
      ...DIRECT.huge,
      text: 'kvm_mmu_hugepage_adjust: the largest page that the guest’s leaf, slot, host mapping and shadowed tables allow',
    },
    {
      ...DIRECT.descend,
      text: 'below the guest’s large page, direct shadow pages with its rights lead down to the goal; where NX huge pages had a large page replaced, one further',
    },
    DIRECT.set,
    {
      ...DIRECT.prefetch,
      text: 'pte_prefetch: neighbours that the guest maps, and has accessed before, are mapped at once',
    },
  ],
});
