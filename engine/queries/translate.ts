import { l2Memory } from '../guest/nested.ts';
import { finishWalk, type Reference, startWalk, type Walk, type WalkMemory } from '../guest/walk.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame } from '../memory/words.ts';

/** Memory that a question may read but not change: A/D bits stay as they are. */
export function readOnlyMemory(machine: Machine): WalkMemory {
  return {
    page: (pfn) => machine.memory.page(pfn),
    setBits() {},
    resolve: (gfn) => machine.resolve(gfn),
    mayUpdate: () => false,
  };
}

/** The guest's own translation of an address, as a supervisor read, without the second stage and without effect. */
export function softTranslate(machine: Machine, vcpu: number, gva: bigint, trace?: Reference[]): Walk {
  const { mode, guestMode } = machine.vcpu(vcpu);
  // Rights are not asked here: AC excuses the read of a user page.
  const asking = { ...mode, ac: true };
  const walk = startWalk(asking, undefined, addressToFrame(gva), { bits: 0, implicit: false });
  const nested = guestMode?.nested;
  const memory = nested ? { ...l2Memory(machine, nested.mode), setBits() {} } : readOnlyMemory(machine);
  return finishWalk(walk, asking, undefined, memory, trace);
}
