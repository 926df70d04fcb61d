import { LEAF } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import { backingPfn } from '../memory/memslots.ts';
import type { Gfn } from '../memory/words.ts';
import { findEntry } from '../tdp/iterate.ts';
import { preparesAtFault } from './gmem.ts';
import { rmpEntry } from './rmp.ts';
import { GUEST_ASID, ownerWords } from './state.ts';
import { directBits } from './tdx.ts';

const hex = (value: number): string => `0x${value.toString(16)}`;

/** Whether an ioctl that converts a part of [start, end) has not returned yet. */
export function isConverting(machine: Machine, start: Gfn, end: Gfn): boolean {
  return machine.small.conversions.some((conversion) => conversion.start < end && start < conversion.end);
}

/** What must hold of a range when its conversion returns, as far as no other is under way there. */
export function checkConverted(machine: Machine, start: Gfn, end: Gfn): void {
  checkHugePages(machine, start, end);
  if (machine.vm === 'snp' && !preparesAtFault(machine)) checkRmpAgrees(machine, start, end);
}

/** Large pages can lie over both kinds at the range's ends alone. */
function checkHugePages(machine: Machine, start: Gfn, end: Gfn): void {
  for (const level of [2, 3] as const)
    for (const gfn of new Set([start, end - 1].map((at) => at - (at % 512 ** (level - 1))))) {
      const isMixed = machine.attributes.store.mix(gfn, level) === 'mixed';
      if (!isMixed || isConverting(machine, gfn, gfn + 512 ** (level - 1))) continue;
      for (const root of machine.roots()) {
        if (root.invalid) continue;
        const entry = findEntry(machine, root.pfn, gfn + directBits(machine, root.pfn), level);
        if (entry.level === level && machine.secondFormat.classify(level, entry.lo) === LEAF)
          reportMixed(machine, gfn, level);
      }
    }
}

export function reportMixed(machine: Machine, gfn: Gfn, level: number): void {
  const size = level === 2 ? '2M' : '1G';
  machine.hazard(
    'mixed-huge-page',
    `a ${size} page maps gfn ${hex(gfn)} on, of which some are private and some shared`,
    gfn,
  );
}

function checkRmpAgrees(machine: Machine, start: Gfn, end: Gfn): void {
  for (const slot of machine.slots.overlapping(start, end)) {
    if (!slot.gmem) continue;
    for (let gfn = Math.max(start, slot.base); gfn < Math.min(end, slot.base + slot.pages); gfn++) {
      if (isConverting(machine, gfn, gfn + 1)) continue;
      const isPrivate = machine.attributes.store.isPrivate(gfn);
      const entry = rmpEntry(machine, backingPfn(slot, gfn, slot.gmem));
      const isAssigned = entry?.asid === GUEST_ASID && entry.gfn === gfn;
      if (isPrivate === isAssigned) continue;
      machine.hazard(
        'lost-update',
        `gfn ${hex(gfn)} is ${isPrivate ? 'private' : 'shared'}, and the RMP has its private page as ${entry ? `${ownerWords(entry)}, gfn ${hex(entry.gfn)}` : 'the hypervisor’s'}`,
        gfn,
      );
    }
  }
}
