import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import { backingPfn, type Memslot, withMoved } from '../memory/memslots.ts';
import { frameToAddress, type Gfn } from '../memory/words.ts';
import { call, defineFunction, NEXT, returns, type Task } from '../operation.ts';
import { zapRange } from '../shadow/host.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { tdpMmuZapLeafs, zapLeafsLocals } from '../tdp/zap.ts';
import { invalidateBegin, invalidateEnd } from './invalidate.ts';

export interface RangeLocals {
  readonly start: Gfn;
  readonly end: Gfn;
}

const begin = {
  name: 'begin',
  text: 'kvm_mmu_invalidate_begin: count the invalidation and note its range; faults on it retry from now on',
  run(machine: Machine, _task: Task, { start, end }: RangeLocals) {
    invalidateBegin(machine, start, end);
    return NEXT;
  },
};
const zap = {
  name: 'zap',
  text: 'kvm_unmap_gfn_range: clear what the reverse maps of shadow pages have, then the range in every root of the TDP MMU',
  run(machine: Machine, task: Task, { start, end }: RangeLocals) {
    const zapped = machine.shadow.rmaps.size > 0 ? zapRange(machine, start, end) : 0;
    if (machine.hasTdpMmu) return call(task, tdpMmuZapLeafs, zapLeafsLocals(machine, start, end, zapped, 'direct'));
    task.result = zapped;
    return NEXT;
  },
};
const flush = {
  name: 'flush',
  text: 'kvm_flush_remote_tlbs, if anything was cleared',
  run(machine: Machine, task: Task) {
    if (task.result > 0) flushRemoteTlbs(machine);
    return NEXT;
  },
};
const end = {
  name: 'end',
  text: 'kvm_mmu_invalidate_end: the sequence moves, then the count drops',
  run(machine: Machine) {
    invalidateEnd(machine);
    return NEXT;
  },
};

/** kvm_zap_gfn_range: as when a guest’s memory type changes. */
export const kvmZapGfnRange = defineFunction<RangeLocals>({
  name: 'kvm_zap_gfn_range',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'Drops KVM’s translations of a gfn range; the next access faults them in again.',
  steps: [lockStep('mmu_lock', 'write'), begin, zap, flush, end, unlockStep('mmu_lock')],
});

/** kvm_mmu_zap_memslot: before a slot of a VM with private memory goes. */
export const kvmMmuZapMemslot = defineFunction<RangeLocals>({
  name: 'kvm_mmu_zap_memslot',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about:
    'Drops what maps a slot’s memory, private memory too: other slots keep their translations, and private pages cannot be made anew.',
  steps: [
    lockStep('mmu_lock', 'write'),
    {
      name: 'zap',
      text: 'kvm_unmap_gfn_range: clear the slot’s range in every root, the mirror among them',
      run: (machine: Machine, task: Task, { start, end }: RangeLocals) =>
        call(task, tdpMmuZapLeafs, zapLeafsLocals(machine, start, end, 0, 'all')),
    },
    flush,
    unlockStep('mmu_lock'),
  ],
});

export const invalidateRangeStart = defineFunction<RangeLocals>({
  name: 'kvm_mmu_notifier_invalidate_range_start',
  where: 'virt/kvm/kvm_main.c',
  about: 'The host is about to unmap memory: KVM drops its translations and holds faults off until the end.',
  steps: [
    {
      name: 'notified',
      text: 'the notifier names the host-virtual range',
      run(machine, _task, { start, end: stop }) {
        const [slot] = machine.slots.overlapping(start, stop);
        if (slot) {
          const from = Math.max(start, slot.base) - slot.base;
          const to = Math.min(stop, slot.base + slot.pages) - slot.base;
          machine.trace('kvm_unmap_hva_range', {
            start: frameToAddress(slot.backing.pfn + from),
            end: frameToAddress(slot.backing.pfn + to),
          });
        }
        return NEXT;
      },
    },
    lockStep('mmu_lock', 'write'),
    begin,
    zap,
    flush,
    unlockStep('mmu_lock'),
  ],
});

export const invalidateRangeEnd = defineFunction<object>({
  name: 'kvm_mmu_notifier_invalidate_range_end',
  where: 'virt/kvm/kvm_main.c',
  about: 'The host has unmapped the memory: faults may go on, and those that looked before it must look again.',
  steps: [lockStep('mmu_lock', 'write'), end, unlockStep('mmu_lock')],
});

/** What becomes of the memory: it stays where it is, moves to other frames, or goes to the disk. */
export type HostUnmap = 'unmap' | 'migrate' | 'swap-out';

/** The host’s own part: unmapping, migrating or swapping out pages between the notifier’s two calls. */
export const unmapHostMemory = defineFunction<RangeLocals & { readonly how: HostUnmap; notified: boolean }>({
  name: 'unmap_host_memory',
  where: 'the host’s memory management (mm/)',
  about: 'Reclaim or migration of the memory behind a slot, between the two notifier calls.',
  steps: [
    {
      name: 'start',
      text: 'tell the MMU notifiers that the range is going away; KVM takes no notice where it has no slot',
      run(machine, task, locals) {
        const { start, end } = locals;
        locals.notified = machine.slots.overlapping(start, end).length > 0;
        return locals.notified ? call(task, invalidateRangeStart, { start, end }) : NEXT;
      },
    },
    {
      name: 'unmap',
      text: 'unmap the pages; migration copies them to other frames and maps those; what is swapped out goes to the disk',
      run(machine, _task, locals) {
        if (locals.how === 'swap-out') swapOut(machine, locals);
        if (locals.how === 'migrate') migrate(machine, locals);
        else if (!machine.hasTdpMmu || machine.shadow.hash.size > 0)
          for (let gfn = locals.start; gfn < locals.end; gfn++) machine.shadow.unmapped.set(machine, gfn, true);
        return NEXT;
      },
    },
    {
      name: 'end',
      text: 'tell the MMU notifiers that it is done',
      run: (_machine, task, { notified }) => (notified ? call(task, invalidateRangeEnd, {}) : NEXT),
    },
    { name: 'done', text: 'go on', run: (_machine, task) => returns(task, 0) },
  ],
});

/** Contents stay in their frames here: what counts is that nobody gets at them without waiting. */
function swapOut(machine: Machine, { start, end: stop }: RangeLocals): void {
  for (const slot of machine.slots.overlapping(start, stop))
    for (let gfn = Math.max(start, slot.base); gfn < Math.min(stop, slot.base + slot.pages); gfn++)
      machine.shadow.swapped.set(machine, backingPfn(slot, gfn), true);
}

function migrate(machine: Machine, { start, end: stop }: RangeLocals): void {
  let slots = machine.slots;
  for (const slot of machine.slots.overlapping(start, stop)) {
    const moves = new Map<number, number>();
    for (let gfn = Math.max(start, slot.base); gfn < Math.min(stop, slot.base + slot.pages); gfn++) {
      const to = machine.allocateFrame();
      copyFrame(machine, backingPfn(slot, gfn), to);
      moves.set(gfn - slot.base, to);
    }
    const next: Memslot = { ...slot, backing: withMoved(slot.backing, moves) };
    slots = slots.replaced(next);
  }
  machine.setSlots(slots);
}

function copyFrame(machine: Machine, from: number, to: number): void {
  if (!machine.memory.isWritten(from)) return;
  const page = machine.memory.page(from);
  for (let index = 0; index < 512; index++) {
    const lo = page[2 * index]!;
    const hi = page[2 * index + 1]!;
    if (lo !== 0 || hi !== 0) machine.storeData(to, index, lo, hi);
  }
}
