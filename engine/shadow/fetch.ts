import type { PagingMode } from '../guest/registers.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { AGAIN, defineFunction, NEXT, returns } from '../operation.ts';
import { type PageFault, PFN_NOSLOT, RET_PF } from '../tdp/fault.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { accountDisallowed, adjustDisallowed } from '../tdp/nx-huge-pages.ts';
import { isPresent } from '../tdp/spte.ts';
import type { Vcpu } from '../vcpu.ts';
import { hugepageAdjust } from './huge.ts';
import type { GuestWalk } from './page-fault.ts';
import {
  accessOfEntry,
  childOf,
  childRole,
  clearWriteFlooding,
  dropParentPte,
  getShadowPage,
  gfnOfEntry,
  indexOf,
  linkShadowPage,
  shadowPage,
  tableOf,
} from './pages.ts';
import { dropSpte } from './rmap.ts';
import { setShadowSpte } from './set-spte.ts';
import type { SpteAddress } from './state.ts';
import { frameAtOnce, guestAccess, guestNumber, isInvalidGuestEntry, readGuestEntry, syncChildren } from './sync.ts';

/** PTE_PREFETCH_NUM */
const PREFETCHED = 8;

interface Locals {
  readonly fault: PageFault;
  readonly gw: GuestWalk;
  /** Level of the entry that the walk of the shadow tables has come to, and where it is. */
  level: number;
  spte: SpteAddress;
  child: Pfn;
  baseGfn: Gfn;
  result: number;
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

/** The entry for the address one level below, in the page that this one leads to. */
function below(machine: Machine, { spte, level, fault }: Locals): SpteAddress {
  const child = childOf(machine, spte);
  return child * 512 + Number((fault.addr >> BigInt(12 + 9 * (level - 2))) & 511n);
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
        locals.spte = below(machine, locals);
        locals.level--;
        return 'get';
      },
    },
    {
      name: 'huge',
      text: 'kvm_mmu_hugepage_adjust: the largest page that the guest’s leaf, slot, host mapping and shadowed tables allow',
      run(machine, _task, { fault }) {
        hugepageAdjust(machine, fault);
        const within = fault.pfn === PFN_NOSLOT ? 0 : fault.gfn % 512 ** (fault.goalLevel - 1);
        machine.trace('kvm_mmu_spte_requested', { gfn: fault.gfn, pfn: fault.pfn + within, level: fault.goalLevel });
        return NEXT;
      },
    },
    {
      name: 'direct',
      text: 'below the guest’s large page, direct shadow pages with its rights lead down to the goal; where NX huge pages had a large page replaced, one further',
      run(machine, task, locals) {
        const { fault, gw, spte, level } = locals;
        clearWriteFlooding(machine, tableOf(spte));
        const [lo, hi] = machine.entryWords(tableOf(spte), indexOf(spte));
        adjustDisallowed(machine, fault, { level, table: tableOf(spte), index: indexOf(spte), lo, hi });
        locals.baseGfn = fault.gfn - (fault.gfn % 512 ** (level - 1));
        if (level === fault.goalLevel) return NEXT;
        // validate_direct_spte: a page for other rights does not do.
        const linked = childOf(machine, spte);
        if (linked >= 0 && roleField(shadowPage(machine, linked).role, 'access') !== gw.access) {
          dropParentPte(machine, linked, spte);
          flushRemoteTlbs(machine);
        }
        if (childOf(machine, spte) < 0) {
          const parent = shadowPage(machine, tableOf(spte));
          const role = childRole(machine, parent, indexOf(spte), true, gw.access, fault.addr);
          const page = getShadowPage(machine, machine.vcpu(task.vcpu), locals.baseGfn, role);
          linkShadowPage(machine, spte, page.pfn);
          if (fault.hugePageDisallowed) accountDisallowed(machine, page.pfn, fault.reqLevel >= level);
        }
        locals.spte = below(machine, locals);
        locals.level--;
        return AGAIN;
      },
    },
    {
      name: 'set',
      text: 'mmu_set_spte: install the leaf; a page that holds a table of the guest’s stays read-only',
      run(machine, task, locals) {
        const { fault, gw } = locals;
        locals.result = setShadowSpte(machine, locals.spte, gw.access, locals.baseGfn, fault.pfn, fault);
        return locals.result === RET_PF.SPURIOUS ? returns(task, locals.result) : NEXT;
      },
    },
    {
      name: 'prefetch',
      text: 'pte_prefetch: neighbours that the guest maps, and has accessed before, are mapped at once',
      run(machine, task, locals) {
        if (locals.level === 1 && machine.invalidation.inProgress === 0)
          prefetch(machine, machine.vcpu(task.vcpu), locals.spte);
        return returns(task, locals.result);
      },
    },
  ],
});

function prefetch(machine: Machine, vcpu: Vcpu, spte: SpteAddress): void {
  const page = shadowPage(machine, tableOf(spte));
  // Without accessed bits nobody could tell what was prefetched from what was used.
  if (roleField(page.role, 'ad_disabled') === 1) return;
  const first = indexOf(spte) - (indexOf(spte) % PREFETCHED);
  const isDirect = roleField(page.role, 'direct') === 1;
  for (let index = first; index < first + PREFETCHED; index++) {
    const [lo] = machine.entryWords(page.pfn, index);
    if (page.pfn * 512 + index === spte || isPresent(lo)) continue;
    const done = isDirect ? prefetchDirect(machine, page.pfn, index) : prefetchGuest(machine, vcpu, page.pfn, index);
    if (!done && !isDirect) break;
  }
}

/** direct_pte_prefetch_many, of one entry. */
function prefetchDirect(machine: Machine, table: Pfn, index: number): boolean {
  const page = shadowPage(machine, table);
  return install(machine, table, index, gfnOfEntry(machine, page, index), accessOfEntry(machine, page, index));
}

/** FNAME(prefetch_gpte) */
function prefetchGuest(machine: Machine, vcpu: Vcpu, table: Pfn, index: number): boolean {
  const page = shadowPage(machine, table);
  const guest = readGuestEntry(machine, page.gfn, guestNumber(page.role, index), vcpu.walked.format.entryBytes);
  if (!guest) return false;
  if (isInvalidGuestEntry(vcpu, guest)) {
    dropSpte(machine, table * 512 + index);
    return false;
  }
  const access = roleField(page.role, 'access') & guestAccess(vcpu, guest);
  return install(machine, table, index, vcpu.walked.format.frame(1, guest.lo, guest.hi), access);
}

function install(machine: Machine, table: Pfn, index: number, gfn: Gfn, access: number): boolean {
  const slot = machine.slots.find(gfn);
  const pfn = frameAtOnce(machine, gfn);
  // gfn_to_memslot_dirty_bitmap: what is logged is not made writable ahead of the write.
  if (!slot || pfn < 0 || (slot.logDirty && (access & 2) !== 0) || (slot.readonly && (access & 2) !== 0)) return false;
  setShadowSpte(machine, table * 512 + index, access, gfn, pfn, undefined);
  return true;
}
