import { isConverting, reportMixed } from '../attributes/check.ts';
import { gmemLevel } from '../attributes/gmem.ts';
import { isMixed } from '../attributes/mixed.ts';
import { directBits, enterModule, isMirror, pageAug, rootFor, septAdd } from '../attributes/tdx.ts';
import { LEAF, TABLE } from '../formats/compile.ts';
import type { Entry } from '../formats/encode.ts';
import type { Machine } from '../machine.ts';
import { disallowsHugePage, hostMappingLevel, type Memslot } from '../memory/memslots.ts';
import type { Gfn } from '../memory/words.ts';
import { defineFunction, NEXT, returns } from '../operation.ts';
import { hugepageAdjust } from '../shadow/huge.ts';
import { tryToUnsync } from '../shadow/spte.ts';
import { rmapKey } from '../shadow/state.ts';
import { type PageFault, RET_PF } from './fault.ts';
import { flushRemoteTlbs } from './flush.ts';
import { readSpte } from './iterate.ts';
import { childRole } from './mmu-page.ts';
import { adjustDisallowed, limitExecute, trackPossible } from './nx-huge-pages.ts';
import { freeRemovedTable } from './removed-table.ts';
import { splitHugePage } from './split.ts';
import {
  allows,
  frozenEntry,
  isFrozen,
  isMmio,
  isPresent,
  makeLeaf,
  makeMmio,
  makeTable,
  spteFormat,
  type Writability,
} from './spte.ts';

interface MapLocals {
  readonly fault: PageFault;
  /** What a gfn has beyond itself in these tables: TDX's shared bit, in frames. */
  bits: number;
  /** The entry of a mirror that is frozen until the TDX module has done the same: what it will be, and the table it leads to, or −1. */
  final: Entry | null;
  child: number;
  level: number;
  table: number;
  index: number;
  lo: number;
  hi: number;
}

/** kvm_mmu_max_mapping_level: the largest page that slot, host mapping, processor and shadowed tables allow at a gfn. */
export function maxMappingLevel(
  machine: Machine,
  slot: Memslot,
  gfn: Gfn,
  maxLevel: number,
  isPrivate = false,
): number {
  const { disallowLpage } = machine.shadow;
  const backed = isPrivate ? gmemLevel(machine, gfn) : hostMappingLevel(slot, gfn);
  for (let level = Math.min(maxLevel, backed); level > 1; level--) {
    const shadowed = disallowLpage.get(rmapKey(level, gfn - (gfn % 512 ** (level - 1)))) ?? 0;
    if (shadowed === 0 && !disallowsHugePage(slot, gfn, level) && !isMixed(machine, gfn, level)) return level;
  }
  return 1;
}

export const kvmTdpMmuMap = defineFunction<MapLocals>({
  name: 'kvm_tdp_mmu_map',
  where: 'arch/x86/kvm/mmu/tdp_mmu.c',
  about: 'Installs a translation: chooses its level, builds the tables above it, exchanges the entry.',
  steps: [
    {
      name: 'level',
      text: 'kvm_mmu_hugepage_adjust: the largest page that slot, alignment and host mapping allow; 4K while dirty-logging',
      run(machine, _task, { fault }) {
        hugepageAdjust(machine, fault);
        // The event names the faulting page's own frame, even where a larger page is about to be mapped.
        const within = fault.gfn % machine.secondFormat.span[fault.goalLevel]!;
        machine.trace('kvm_mmu_spte_requested', { gfn: fault.gfn, pfn: fault.pfn + within, level: fault.goalLevel });
        return NEXT;
      },
    },
    {
      name: 'root',
      text: 'start at the root',
      local: true,
      run(machine, task, locals) {
        locals.level = machine.secondFormat.rootLevel;
        const root = rootFor(machine, machine.vcpu(task.vcpu), locals.fault.isPrivate);
        locals.table = root;
        locals.bits = directBits(machine, root);
        return NEXT;
      },
    },
    {
      name: 'visit',
      text: 'read the entry: frozen is retried; at the goal, which NX huge pages may lower, it is set; a table is entered; else one is needed',
      run(machine, task, locals) {
        const { fault } = locals;
        // A table that was taken out meanwhile has nothing but frozen entries.
        if (!machine.pages.has(locals.table)) return returns(task, RET_PF.RETRY);
        const entry = readSpte(machine, locals.table, locals.level, fault.gfn + locals.bits);
        locals.index = entry.index;
        locals.lo = entry.lo;
        locals.hi = entry.hi;
        adjustDisallowed(machine, fault, entry);
        if (isFrozen(entry.lo, entry.hi)) return returns(task, RET_PF.RETRY);
        if (locals.level === fault.goalLevel) return 'target';
        if (isPresent(entry.lo) && machine.secondFormat.classify(locals.level, entry.lo) === TABLE) {
          locals.table = machine.page(machine.secondFormat.frame(locals.level, entry.lo, entry.hi)).pfn;
          locals.level--;
          return 'visit';
        }
        return NEXT;
      },
    },
    {
      name: 'link',
      text: 'allocate a table and exchange it in: empty, or holding the pieces of the large page that stood here; a lost race retries',
      run(machine, task, locals) {
        const { fault } = locals;
        if (changed(machine, locals)) return returns(task, RET_PF.RETRY);
        const span = machine.secondFormat.span[locals.level]!;
        const first = fault.gfn - (fault.gfn % span);
        const child = isPresent(locals.lo)
          ? splitHugePage(machine, locals, first, fault.hugePageDisallowed)
          : machine.allocateTable({
              gfn: first,
              level: locals.level - 1,
              role: childRole(machine, locals.table),
              parent: locals.table,
              parentIndex: locals.index,
              nxHugePageDisallowed: fault.hugePageDisallowed,
            }).pfn;
        const entry = makeTable(spteFormat(machine.secondFormat), locals.level, child);
        if (isMirror(machine, locals.table)) return freeze(machine, locals, entry, child);
        machine.setSpte(locals.table, locals.index, entry.lo, entry.hi);
        if (isPresent(locals.lo)) flushRemoteTlbs(machine);
        if (fault.hugePageDisallowed && fault.reqLevel >= locals.level) trackPossible(machine, child);
        locals.table = child;
        locals.level--;
        return 'visit';
      },
    },
    {
      name: 'target',
      text: 'the entry allows the access by now: another vCPU was faster, and the fault is spurious',
      local: true,
      run(machine, task, locals) {
        const spte = spteFormat(machine.secondFormat);
        const leaf = machine.secondFormat.classify(locals.level, locals.lo) === LEAF;
        return isPresent(locals.lo) && leaf && allows(spte, locals.lo, locals.hi, locals.fault.needs)
          ? returns(task, RET_PF.SPURIOUS)
          : NEXT;
      },
    },
    {
      name: 'set',
      text: 'make_spte and exchange it in: the frame with its rights, or the MMIO marker; a lost race retries',
      run(machine, task, locals) {
        const { fault } = locals;
        const spte = spteFormat(machine.secondFormat);
        if (changed(machine, locals)) return returns(task, RET_PF.RETRY);
        let entry =
          fault.slot < 0
            ? makeMmio(spte, fault.gfn, machine.slots.generation)
            : limitExecute(
                machine,
                locals.level,
                makeLeaf(spte, locals.level, fault.pfn, writability(machine, locals), locals),
              );
        // Nobody has accessed it yet.
        if (fault.prefetch && fault.slot >= 0)
          entry = { ...entry, lo: (entry.lo & ~machine.secondFormat.accessedLo) >>> 0 };
        const same = entry.lo === locals.lo && entry.hi === locals.hi;
        if (same && fault.slot >= 0) return returns(task, RET_PF.SPURIOUS);
        if (isMirror(machine, locals.table)) return freeze(machine, locals, entry, -1);
        if (!same) machine.setSpte(locals.table, locals.index, entry.lo, entry.hi);
        if (locals.level > 1) checkMixed(machine, locals.level, fault.gfn);
        const wasTable = isPresent(locals.lo) && machine.secondFormat.classify(locals.level, locals.lo) === TABLE;
        if (wasTable) {
          freeRemovedTable(machine, machine.secondFormat.frame(locals.level, locals.lo, locals.hi));
          flushRemoteTlbs(machine);
        }
        if (isMmio(spte, entry.lo, entry.hi)) {
          machine.trace('mark_mmio_spte', {
            sptep: locals.table * 4096 + locals.index * 8,
            gfn: fault.gfn,
            access: entry.lo & 7,
            gen: machine.slots.generation,
          });
          machine.count('faults.mmio');
          return returns(task, RET_PF.EMULATE);
        }
        machine.trace('kvm_mmu_set_spte', {
          gfn: fault.gfn - (fault.gfn % machine.secondFormat.span[locals.level]!),
          spte: entry,
          level: locals.level,
          sptep: locals.table * 4096 + locals.index * 8,
        });
        const denied = fault.write && fault.mapWritable && (entry.lo & machine.secondFormat.writeLo) === 0;
        return returns(task, denied ? RET_PF.WRITE_PROTECTED : RET_PF.FIXED);
      },
    },
    {
      name: 'module',
      text: 'call the TDX module, which locks its tables: where somebody else is in it, the entry is as it was, and the fault retries',
      run(machine, task, locals) {
        if (enterModule(machine, task)) return NEXT;
        if (locals.child >= 0) machine.freeTable(locals.child);
        machine.setSpte(locals.table, locals.index, locals.lo, locals.hi);
        return returns(task, RET_PF.RETRY);
      },
    },
    {
      name: 'external',
      text: 'TDH.MEM.SEPT.ADD a table, or TDH.MEM.PAGE.AUG the page: the secure EPT has it',
      run(machine, task, locals) {
        if (locals.child >= 0) septAdd(machine, locals, locals.child);
        else pageAug(machine, locals.table, locals.index, locals.fault.pfn);
        machine.release(task, 'sept_lock');
        return NEXT;
      },
    },
    {
      name: 'mirrored',
      text: 'the mirror’s entry becomes what it is to be',
      run(machine, task, locals) {
        const { lo, hi } = locals.final!;
        machine.setSpte(locals.table, locals.index, lo, hi);
        if (locals.child < 0) return returns(task, RET_PF.FIXED);
        locals.table = locals.child;
        locals.level--;
        return 'visit';
      },
    },
  ],
});

/** tdp_mmu_set_spte_atomic on a mirror: whoever meets the entry retries until the module has followed. */
function freeze(machine: Machine, locals: MapLocals, final: Entry, child: number): string {
  machine.setSpte(locals.table, locals.index, frozenEntry.lo, frozenEntry.hi);
  locals.final = final;
  locals.child = child;
  return 'module';
}

/** A large page that was made over both kinds is found here, unless a conversion there will still find it. */
function checkMixed(machine: Machine, level: number, gfn: Gfn): void {
  const first = gfn - (gfn % 512 ** (level - 1));
  if (machine.attributes.store.mix(gfn, level as 2 | 3) !== 'mixed') return;
  if (!isConverting(machine, first, first + 512 ** (level - 1))) reportMixed(machine, first, level);
}

/** What make_spte lets be written: what the host does, unless a table that L1 keeps for a guest of its own lies there. */
function writability(machine: Machine, { fault, level, lo }: MapLocals): Writability {
  if (!fault.mapWritable) return 'read-only';
  // What was writable already has been looked at.
  const wasWritable = level === 1 && (lo & machine.secondFormat.writeLo) !== 0;
  return wasWritable || tryToUnsync(machine, fault.gfn, true, false) ? 'writable' : 'protected';
}

/** Whether the entry is no longer what `visit` read: the compare-and-exchange fails. */
function changed(machine: Machine, locals: MapLocals): boolean {
  const page = machine.memory.page(locals.table);
  return page[2 * locals.index] !== locals.lo || page[2 * locals.index + 1] !== locals.hi;
}
