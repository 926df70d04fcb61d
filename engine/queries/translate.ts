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
  const { mode } = machine.vcpu(vcpu);
  // Rights are not asked here: AC excuses the read of a user page.
  const asking = { ...mode, ac: true };
  const walk = startWalk(asking, undefined, addressToFrame(gva), { bits: 0, implicit: false });
  return finishWalk(walk, asking, undefined, readOnlyMemory(machine), trace);
}
