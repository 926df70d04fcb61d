import { Kind } from '../history/log.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { call, defineFunction, NEXT, returns, type Task } from '../operation.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { findEntry, type SpteRef } from '../tdp/iterate.ts';
import type { MmuPage } from '../tdp/mmu-page.ts';
import { makeLeaf, makeTable, spteFormat } from '../tdp/spte.ts';
import type { Vcpu } from '../vcpu.ts';
import { clearFrame } from './clear-frame.ts';

// TDX: private memory is mapped by the secure EPT, which the TDX module keeps and KVM only mirrors; shared memory by an EPT of KVM's own.

/** The shared bit of a guest-physical address, as a number of frames: bit 47 below a root of 4 levels, 51 below one of 5. */
export function sharedBit(machine: Machine): Gfn {
  return machine.secondFormat.rootLevel === 5 ? 2 ** 39 : 2 ** 35;
}

/** The frame of a guest-physical address, without the shared bit. */
export function frameOf(machine: Machine, gpa: bigint): Gfn {
  const gfn = Number(gpa >> 12n);
  return machine.vm === 'tdx' ? gfn % sharedBit(machine) : gfn;
}

/** `gfn_direct_bits`: what is added to a gfn to find it in the tables below a root. */
export function directBits(machine: Machine, root: Pfn): Gfn {
  return machine.vm === 'tdx' && !isMirror(machine, root) ? sharedBit(machine) : 0;
}

export function isMirror(machine: Machine, table: Pfn): boolean {
  const page = machine.pages.get(table);
  return page !== undefined && roleField(page.role, 'is_mirror') === 1;
}

/** tdp_mmu_get_root_for_fault: KVM's tables for memory of a kind. */
export function rootFor(machine: Machine, vcpu: Vcpu, isPrivate: boolean): Pfn {
  return machine.vm === 'tdx' && isPrivate ? vcpu.mmu.mirrorRoot : vcpu.root;
}

/** The tables that the processor walks for private memory: the module's. */
export function secureRoot(machine: Machine, mirrorRoot: Pfn): Pfn {
  return machine.page(mirrorRoot).external!;
}

/** The lock that a call of the module takes on its tables, or finds taken (TDX_OPERAND_BUSY). */
export function enterModule(machine: Machine, task: Task): boolean {
  if (machine.owners('sept_lock').length > 0) return false;
  return machine.acquire(task, 'sept_lock', 'write');
}

/** TDH.MEM.SEPT.ADD: a table of the secure EPT comes to stand where the mirror has one. */
export function septAdd(
  machine: Machine,
  { table, index, level }: Pick<SpteRef, 'table' | 'index' | 'level'>,
  child: Pfn,
): void {
  const { lo, hi } = makeTable(spteFormat(machine.secondFormat), level, machine.page(child).external!);
  store(machine, table, index, lo, hi);
}

/** TDH.MEM.PAGE.AUG: a page for the guest to accept; or TDH.MEM.PAGE.ADD: one that its launch has filled, and that is accepted. */
export function pageAug(machine: Machine, table: Pfn, index: number, pfn: Pfn): void {
  const { lo, hi } = makeLeaf(spteFormat(machine.secondFormat), 1, pfn, 'writable');
  const { launched, pending } = machine.attributes;
  if (launched.get(pfn)) launched.set(machine, pfn, undefined);
  else pending.set(machine, pfn, true);
  store(machine, table, index, lo, hi);
}

/** TDG.MEM.PAGE.ACCEPT of a page that a walk has found. @returns whether it was pending; where not, nothing is changed */
export function acceptPage(machine: Machine, pfn: Pfn): boolean {
  const { pending } = machine.attributes;
  if (!pending.get(pfn)) return false;
  pending.set(machine, pfn, undefined);
  // By stores of whole cache lines, which mend what the host has done to them.
  heal(machine, pfn);
  clearFrame(machine, pfn);
  return true;
}

/** Whether the module has given a frame to the guest: it stands in the secure EPT, blocked or not, or was launched and will. */
export function isModules(machine: Machine, pfn: Pfn): boolean {
  const { folios, launched } = machine.attributes;
  const gfn = folios.get(pfn);
  if (machine.vm !== 'tdx' || gfn === undefined) return false;
  if (launched.get(pfn)) return true;
  const mirror = machine.roots().find((root) => isMirror(machine, root.pfn));
  if (!mirror) return false;
  const { level, lo, hi } = findEntry(machine, secureRoot(machine, mirror.pfn), gfn);
  return level === 1 && machine.secondFormat.frame(level, lo, hi) === pfn;
}

/** The host has written to a frame of the guest's: it has no key, and what the guest reads there is a machine check. */
export function poison(machine: Machine, pfn: Pfn): void {
  if (isModules(machine, pfn)) machine.attributes.poisoned.set(machine, pfn, true);
}

/** What a launch has put into a page is no more once it has been shared, or freed: the next is added empty. */
export function forgetLaunched(machine: Machine, start: Gfn, end: Gfn): void {
  const { launched, folios } = machine.attributes;
  if (launched.size === 0) return;
  for (const [pfn] of [...launched.entries()]) {
    const gfn = folios.get(pfn);
    if (gfn !== undefined && gfn >= start && gfn < end) launched.set(machine, pfn, undefined);
  }
}

function heal(machine: Machine, pfn: Pfn): void {
  const { poisoned } = machine.attributes;
  if (poisoned.get(pfn)) poisoned.set(machine, pfn, undefined);
}

function store(machine: Machine, mirror: Pfn, index: number, lo: number, hi: number): void {
  machine.storeEntry(Kind.SPTE_UNTRACED, (machine.page(mirror) as MmuPage).external!, index, lo, hi);
}

interface RemoveLocals {
  /** The mirror's table and the index of its entry. */
  readonly table: Pfn;
  readonly index: number;
}

/** tdx_sept_remove_private_spte, in which no vCPU may use what is about to go. */
export const septRemove = defineFunction<RemoveLocals>({
  name: 'tdx_sept_remove_private_spte',
  where: 'arch/x86/kvm/vmx/tdx.c',
  about:
    'Takes a page out of the secure EPT: blocked first, then forgotten by every TLB, and then removed. The caller holds mmu_lock for writing.',
  steps: [
    {
      name: 'block',
      text: 'TDH.MEM.RANGE.BLOCK: no walk finds the page any more; what TLBs have of it stays',
      run(machine, _task, { table, index }) {
        const external = machine.page(table).external!;
        const [lo, hi] = machine.entryWords(external, index);
        const { accessedLo } = machine.secondFormat;
        // Its rights go; whose frame it is stays until it is removed.
        store(machine, table, index, (lo & ~7 & ~accessedLo) >>> 0, hi);
        return NEXT;
      },
    },
    {
      name: 'track',
      text: 'TDH.MEM.TRACK, and every vCPU is kicked out of the guest: whoever enters again has flushed',
      run(machine) {
        flushRemoteTlbs(machine);
        return NEXT;
      },
    },
    {
      name: 'remove',
      text: 'TDH.MEM.PAGE.REMOVE: the page is the host’s again',
      run(machine, task, { table, index }) {
        const [lo, hi] = machine.entryWords(machine.page(table).external!, index);
        const pfn = machine.secondFormat.frame(1, lo, hi);
        const { pending } = machine.attributes;
        if (pending.get(pfn)) pending.set(machine, pfn, undefined);
        // Whoever takes a page back clears it by whole cache lines (tdx_clear_page).
        heal(machine, pfn);
        store(machine, table, index, 0, 0);
        return returns(task, task.result);
      },
    },
  ],
});

/** Removes a page of the secure EPT whose mirror entry has just been cleared. */
export function callRemove(task: Task, table: Pfn, index: number): number {
  return call(task, septRemove, { table, index });
}
