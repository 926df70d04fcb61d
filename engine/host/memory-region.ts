import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import type { Memslot, Memslots } from '../memory/memslots.ts';
import { call, defineFunction, NEXT } from '../operation.ts';
import type { SlotConfig } from '../program.ts';
import { dirtyLogLocals, recoverHugePages, recoverLocals, startDirtyLog } from '../tdp/dirty-log.ts';
import { kvmMmuZapAllFast } from '../tdp/zap.ts';
import { kvmMmuZapMemslot } from './notifier.ts';

export type SlotChange =
  | { readonly kind: 'create'; readonly config: SlotConfig }
  | { readonly kind: 'delete'; readonly id: number }
  | { readonly kind: 'move'; readonly id: number; readonly base: number }
  | { readonly kind: 'log'; readonly id: number; readonly enable: boolean };

interface RegionLocals {
  readonly change: SlotChange;
}

/** What the slots will be: checked before anything changes, as the ioctl does. @throws MemslotError */
function changed(machine: Machine, change: SlotChange, makeSlot: (config: SlotConfig) => Memslot): Memslots {
  const { slots } = machine;
  switch (change.kind) {
    case 'create':
      return slots.with(makeSlot(change.config));
    case 'delete':
      return slots.without(change.id);
    case 'move':
      return slots.with({ ...slots.require(change.id), base: change.base, invalid: false });
    case 'log':
      return slots.with({ ...slots.require(change.id), logDirty: change.enable });
  }
}

/** What is so already is left alone: no entry is write-protected again, and no generation passes. */
function isNoChange({ slots }: Machine, change: SlotChange): boolean {
  if (change.kind === 'log') return slots.require(change.id).logDirty === change.enable;
  return change.kind === 'move' && slots.require(change.id).base === change.base;
}

/**
 * KVM_SET_USER_MEMORY_REGION. A slot that is deleted or moved is first marked invalid and its translations are dropped,
 * so that no vCPU can use the old memory when the new layout appears.
 */
export const kvmSetMemoryRegion = defineFunction<RegionLocals>({
  name: 'kvm_set_memory_region',
  where: 'virt/kvm/kvm_main.c',
  about: 'KVM_SET_USER_MEMORY_REGION: adds, deletes or moves a memslot, or changes its flags.',
  steps: [
    lockStep('slots_lock', 'write'),
    {
      name: 'check',
      text: 'refuse what overlaps, does not exist or is no change',
      run(machine, task, { change }) {
        if (change.kind === 'create' && machine.slots.byId(change.config.id))
          machine.warn(`slot ${change.config.id} exists already: KVM_SET_USER_MEMORY_REGION fails with -EEXIST`);
        else if (change.kind !== 'create' && !machine.slots.byId(change.id))
          machine.warn(`there is no slot ${change.id}: KVM_SET_USER_MEMORY_REGION fails with -EINVAL`);
        else if ((change.kind === 'move' || change.kind === 'log') && machine.slots.byId(change.id)!.gmem)
          machine.warn(
            `slot ${change.id} has a guest_memfd, and can only be deleted: KVM_SET_USER_MEMORY_REGION fails with -EINVAL`,
          );
        else {
          try {
            changed(machine, change, (config) => machine.describeSlot(config));
            if (isNoChange(machine, change)) return 'done';
            return change.kind === 'delete' || change.kind === 'move' ? NEXT : 'install';
          } catch (error) {
            machine.warn(`${(error as Error).message}: KVM_SET_USER_MEMORY_REGION fails`);
          }
        }
        task.result = -22;
        return 'unlock';
      },
    },
    {
      name: 'invalidate',
      text: 'kvm_invalidate_memslot: mark the slot invalid and install that, so that faults in it retry',
      run(machine, _task, { change }) {
        const id = change.kind === 'create' ? change.config.id : change.id;
        machine.setSlots(machine.slots.with({ ...machine.slots.require(id), invalid: true }));
        return NEXT;
      },
    },
    {
      name: 'flush',
      text: 'kvm_arch_flush_shadow_memslot: drop every translation; of a VM with private memory those of the slot alone',
      run(machine, task, { change }) {
        // Shadow pages of nested guests would have to go by their gfns.
        if (machine.vm === 'ordinary' || machine.shadow.hash.size > 0) return call(task, kvmMmuZapAllFast, {});
        const { base, pages } = machine.slots.require(change.kind === 'create' ? change.config.id : change.id);
        return call(task, kvmMmuZapMemslot, { start: base, end: base + pages });
      },
    },
    {
      name: 'install',
      text: 'install the new slots: the generation moves, and MMIO markers of the old one become stale',
      run(machine, _task, { change }) {
        machine.setSlots(changed(machine, change, (config) => machine.makeSlot(config)));
        return change.kind === 'log' ? NEXT : 'done';
      },
    },
    {
      name: 'dirty-log',
      text: 'logging begins: split large pages and write-protect the slot, so that writes fault; logging ends: recover large pages',
      run(machine, task, { change }) {
        if (change.kind !== 'log') return NEXT;
        return change.enable
          ? call(task, startDirtyLog, dirtyLogLocals(machine, change.id))
          : call(task, recoverHugePages, recoverLocals(machine, change.id));
      },
    },
    {
      name: 'done',
      text: 'the new layout is in force',
      run(_machine, task) {
        task.result = 0;
        return NEXT;
      },
    },
    unlockStep('slots_lock'),
  ],
});
