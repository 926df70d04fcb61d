import { invalidateAdd, invalidateBegin, invalidateEnd } from '../host/invalidate.ts';
import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import type { Gfn } from '../memory/words.ts';
import { AGAIN, call, defineFunction, type FunctionSpec, NEXT, returns, type Step, type Task } from '../operation.ts';
import { ORDERINGS, type Ordering } from '../policies.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { tdpMmuZapLeafs, zapLeafsLocals } from '../tdp/zap.ts';
import { checkConverted } from './check.ts';
import { isMixed, updateMixed } from './mixed.ts';
import { forgetLaunched } from './tdx.ts';
import { type Part, sevUpdateMemAttr } from './update-mem-attr.ts';

// KVM_SET_MEMORY_ATTRIBUTES: the steps that every ordering is made of, and then the orderings.

const ENOMEM = -12;
/** Pages that are stored one by one, so that a fault may come between any two; of larger ranges whole blocks are. */
const STORED_SINGLY = 512;

export interface ConvertLocals {
  readonly start: Gfn;
  /** Where the range ends; nearer, once storing has stopped early. */
  end: Gfn;
  readonly isPrivate: boolean;
  /** The next gfn to be stored. */
  next: Gfn;
  result: number;
}

export function convertLocals(start: Gfn, end: Gfn, isPrivate: boolean): ConvertLocals {
  return { start, end, isPrivate, next: start, result: 0 };
}

type ConvertStep = Step<ConvertLocals>;

const named = <S extends { readonly name: string }>(step: S, name: string): S => ({ ...step, name });
const lock = (name: string): ConvertStep => named(lockStep('mmu_lock', 'write'), name);
const unlock = (name: string): ConvertStep => named(unlockStep('mmu_lock'), name);

const hasSlot = (machine: Machine, { start, end }: ConvertLocals): boolean =>
  machine.slots.overlapping(start, end).length > 0;

const enter: ConvertStep = {
  name: 'ioctl',
  text: 'address, size and attributes are well-formed: the conversion begins',
  run(machine, task, { start, end, isPrivate }) {
    machine.count('conversions');
    machine.trace('kvm_vm_set_mem_attributes', { start, end, attr: isPrivate ? 8 : 0 });
    machine.small.conversions.push({ task: task.id, start, end, isPrivate });
    return NEXT;
  },
};

const leave: ConvertStep = {
  name: 'return',
  text: 'the ioctl returns',
  run(machine, task, { start, end, result }) {
    const { conversions } = machine.small;
    machine.small.conversions = conversions.filter((conversion) => conversion.task !== task.id);
    checkConverted(machine, start, end);
    if (result < 0) machine.warn(`KVM_SET_MEMORY_ATTRIBUTES fails with ${result === ENOMEM ? '-ENOMEM' : '-EFAULT'}`);
    return returns(task, result);
  },
};

/** The invalidation's range, with the large pages at its ends that could be mapped over it. */
function begin(machine: Machine, { start, end }: ConvertLocals): void {
  if (machine.injects('begin-without-range')) {
    invalidateBegin(machine, -1, -1);
    return;
  }
  invalidateBegin(machine, start, end);
  if (machine.injects('edges-not-invalidated')) return;
  for (const slot of machine.slots.overlapping(start, end))
    for (const level of [2, 3]) {
      const span = 512 ** (level - 1);
      for (const gfn of [Math.max(start, slot.base), Math.min(end, slot.base + slot.pages) - 1]) {
        const first = gfn - (gfn % span);
        const isWithin = first >= slot.base && first + span <= slot.base + slot.pages;
        if (isWithin && !isMixed(machine, first, level)) invalidateAdd(machine, first, first + span);
      }
    }
}

const beginStep: ConvertStep = {
  name: 'begin',
  text: 'kvm_mmu_invalidate_begin, with the range and the large pages at its ends: faults there retry from now on',
  run(machine, _task, locals) {
    begin(machine, locals);
    return NEXT;
  },
};

const zapStep: ConvertStep = {
  name: 'zap',
  text: 'kvm_unmap_gfn_range: clear what maps the range as what it was',
  run(machine, task, { start, end, isPrivate }) {
    task.result = 0;
    if (machine.policies['attribute-zap'] !== 'zap' || machine.injects('attributes-without-zap')) return NEXT;
    return call(task, tdpMmuZapLeafs, zapLeafsLocals(machine, start, end, 0, isPrivate ? 'direct' : 'mirror'));
  },
};

const flushStep: ConvertStep = {
  name: 'flush',
  text: 'kvm_flush_remote_tlbs, if anything was cleared',
  run(machine, task) {
    if (task.result > 0 || machine.policies['attribute-zap'] === 'flush') flushRemoteTlbs(machine);
    return NEXT;
  },
};

const endStep: ConvertStep = {
  name: 'end',
  text: 'kvm_mmu_invalidate_end: the sequence moves, then the count drops',
  run(machine) {
    invalidateEnd(machine);
    return NEXT;
  },
};

const mixedStep: ConvertStep = {
  name: 'mixed',
  text: 'kvm_arch_post_set_memory_attributes: note which 2M and 1G blocks now hold both kinds',
  run(machine, _task, { start, end }) {
    updateMixed(machine, start, end);
    return NEXT;
  },
};

/** How far one step stores. */
function storedUntil({ start, end, next }: ConvertLocals): Gfn {
  if (end - start <= STORED_SINGLY) return next + 1;
  for (const span of [512 * 512, 512]) if (next % span === 0 && next + span <= end) return next + span;
  return Math.min(end, (Math.floor(next / 512) + 1) * 512);
}

const storeStep: ConvertStep = {
  name: 'store',
  text: 'xa_store: the next page is what it is to be; faults see it at once',
  run(machine, _task, locals) {
    const { start, end, next, isPrivate } = locals;
    const half = start + Math.floor((end - start) / 2);
    if (next >= half && machine.injects('store-fails')) {
      machine.warn(`xa_store fails at gfn 0x${next.toString(16)}: the pages behind it stay what they were`);
      locals.end = next;
      locals.result = ENOMEM;
      return NEXT;
    }
    const until = storedUntil(locals);
    machine.setAttributes(next, until, isPrivate);
    if (!isPrivate) forgetLaunched(machine, next, until);
    locals.next = until;
    return until < end ? AGAIN : NEXT;
  },
};

/** The callback of SNP for every page that was stored; of other VMs there is nothing to do. */
function update(name: string, text: string, parts: (isPrivate: boolean) => readonly Part[]): ConvertStep {
  return {
    name,
    text,
    run(machine, task, { start, end, isPrivate }) {
      task.result = 0;
      const todo = parts(isPrivate);
      if (machine.vm !== 'snp' || todo.length === 0 || end <= start) return NEXT;
      return call(task, sevUpdateMemAttr, { start, end, isPrivate, parts: todo, next: start, part: 0, error: 0 });
    },
  };
}

/** What becomes of the callback's error: the attribute stays as it was stored. */
function updated(name: string): ConvertStep {
  return {
    name,
    text: 'an error is only logged; or returned, though the attribute stays as it was stored',
    local: true,
    run(machine, task, locals) {
      if (task.result >= 0) return NEXT;
      if (machine.policies['attribute-errors'] === 'returned') locals.result = task.result;
      else machine.warn(`sev_update_mem_attr fails with ${task.result}: it is logged, and the attribute stays changed`);
      return NEXT;
    },
  };
}

const both = (isPrivate: boolean): readonly Part[] => (isPrivate ? ['unmap', 'rmp'] : ['rmp', 'map']);
const inReverse = (isPrivate: boolean): readonly Part[] => (isPrivate ? ['rmp', 'unmap'] : ['map', 'rmp']);

const callback = update(
  'update',
  'kvm_arch_post_set_memory_attributes: RMP and direct map follow, outside of mmu_lock',
  both,
);
const mmuBegin: readonly ConvertStep[] = [lock('lock'), beginStep, unlock('unlock')];
const mmuEnd = (...within: readonly ConvertStep[]): readonly ConvertStep[] => [
  lock('lock-end'),
  ...within,
  endStep,
  unlock('unlock-end'),
];

const today: readonly ConvertStep[] = [
  lockStep('slots_lock', 'write'),
  {
    name: 'check',
    text: 'kvm_range_has_memory_attributes: where every page is so already there is nothing to do',
    run(machine, _task, { start, end, isPrivate }) {
      const { value: run } = machine.attributes.store.runs(start, end).next();
      return run?.end === end && run.isPrivate === isPrivate ? 'unlock-slots' : NEXT;
    },
  },
  {
    name: 'reserve',
    text: 'xa_reserve: room for every page first, so that storing cannot fail',
    run(machine, _task, locals) {
      if (!machine.injects('store-fails')) return hasSlot(machine, locals) ? NEXT : 'store';
      locals.result = ENOMEM;
      return 'unlock-slots';
    },
  },
  lock('lock-begin'),
  beginStep,
  zapStep,
  {
    ...flushStep,
    run(machine, task, locals) {
      flushStep.run(machine, task, locals);
      if (machine.injects('end-before-store')) invalidateEnd(machine);
      return NEXT;
    },
  },
  unlock('unlock-begin'),
  storeStep,
  {
    name: 'stored',
    text: 'without a slot in the range that is all',
    run: (machine, _task, locals) => (hasSlot(machine, locals) ? NEXT : 'unlock-slots'),
  },
  lock('lock-end'),
  {
    ...endStep,
    run(machine) {
      if (!machine.injects('end-before-store')) invalidateEnd(machine);
      return NEXT;
    },
  },
  mixedStep,
  unlock('unlock-end'),
  named(unlockStep('slots_lock'), 'unlock-slots'),
];

interface OrderingSpec {
  /** As the thread's designs are numbered. */
  readonly id: string;
  readonly about: string;
  readonly steps: readonly ConvertStep[];
}

export const ORDERING_SPECS: Readonly<Record<Ordering, OrderingSpec>> = {
  today: {
    id: 'O8',
    about:
      'Linux 7.1: zapped before the attributes are stored, all under slots_lock; the RMP follows at the next fault.',
    steps: today,
  },
  'rfc-v8': {
    id: 'O1',
    about:
      'As posted: zapped after the attributes are stored; RMP and direct map follow when mmu_lock has been dropped.',
    steps: [...mmuBegin, storeStep, ...mmuEnd(mixedStep, zapStep, flushStep), callback, updated('updated')],
  },
  'under-lock': {
    id: 'O2',
    about: 'As first proposed: RMP and direct map within the invalidation, and so under mmu_lock.',
    steps: [
      ...mmuBegin,
      storeStep,
      ...mmuEnd(
        mixedStep,
        update('update', 'update_mem_attr: RMP and direct map follow, under mmu_lock', both),
        updated('updated'),
        zapStep,
        flushStep,
      ),
    ],
  },
  'split-direct-map': {
    id: 'O3',
    about: 'The RMP within the invalidation, the direct map before it or after it, where it may sleep.',
    steps: [
      update('unmap', 'what becomes private leaves the direct map first', (isPrivate) => (isPrivate ? ['unmap'] : [])),
      ...mmuBegin,
      storeStep,
      ...mmuEnd(
        mixedStep,
        update('update', 'RMPUPDATE of every page, under mmu_lock: it does not sleep', () => ['rmp']),
        updated('updated'),
        zapStep,
        flushStep,
      ),
      update('map', 'what became shared comes back into the direct map', (isPrivate) => (isPrivate ? [] : ['map'])),
    ],
  },
  'reversed-direct-map': {
    id: 'O4',
    about: 'As rfc-v8, but what becomes private leaves the direct map after RMPUPDATE.',
    steps: [
      ...mmuBegin,
      storeStep,
      ...mmuEnd(mixedStep, zapStep, flushStep),
      update('update', 'RMPUPDATE first, and then the direct map: a window in which the kernel may die', inReverse),
      updated('updated'),
    ],
  },
  deferred: {
    id: 'O5',
    about: 'The conversion leaves the RMP alone: the next fault asks it, and brings it up to date.',
    steps: [...mmuBegin, storeStep, ...mmuEnd(mixedStep, zapStep, flushStep)],
  },
  'no-zap': {
    id: 'O6',
    about: 'Attributes and RMP alone, for RMPUPDATE flushes by itself.',
    steps: [storeStep, callback, updated('updated')],
  },
  'flush-only': {
    id: 'O7',
    about: 'Attributes and RMP, and a flush; what maps the range stays.',
    steps: [
      storeStep,
      callback,
      updated('updated'),
      {
        name: 'flush',
        text: 'kvm_flush_remote_tlbs: TLBs forget, second-stage entries stay',
        run(machine) {
          flushRemoteTlbs(machine);
          return NEXT;
        },
      },
    ],
  },
};

/** Today's has the kernel's name; the others say which they are. */
const FUNCTIONS = new Map<Ordering, FunctionSpec<ConvertLocals>>(
  ORDERINGS.map((ordering) => {
    const { id, about, steps } = ORDERING_SPECS[ordering];
    const name = ordering === 'today' ? 'kvm_vm_set_mem_attributes' : `kvm_vm_set_mem_attributes (${id}, ${ordering})`;
    const where = ordering === 'today' ? 'virt/kvm/kvm_main.c' : 'virt/kvm/kvm_main.c, as was proposed in March 2023';
    return [ordering, defineFunction({ name, where, about, steps: [enter, ...steps, leave] })];
  }),
);

/** Starts the conversion of frames [start, end), in the order that the machine's policy says. */
export function callConvert(machine: Machine, task: Task, start: Gfn, end: Gfn, isPrivate: boolean): number {
  return call(task, FUNCTIONS.get(machine.policies.conversion)!, convertLocals(start, end, isPrivate));
}
