import { type Machine, MachineError } from '../machine.ts';
import { backingPfn, frameRange, type Memslot } from '../memory/memslots.ts';
import type { Gfn } from '../memory/words.ts';
import { removeFromDirectMap, splitDirectMap } from './direct-map.ts';
import { preparesAtFault } from './gmem.ts';
import { updateMixed } from './mixed.ts';
import { GUEST_ASID } from './state.ts';

/** Pages that a launch puts into memory one by one: 1G. */
const LAUNCHED_PAGES = 512 * 512;

/** Private memory as it is before anything runs. @throws MachineError naming the range that cannot be. */
export function launch(machine: Machine): void {
  for (const range of machine.config.privateRanges ?? []) {
    const { base, pages } = frameRange('private memory', range.base, range.size);
    const end = base + pages;
    const where = `private memory at 0x${range.base.toString(16)}`;
    if (machine.vm === 'ordinary') throw new MachineError(`${where}: an ordinary VM has none; say vm snp, for example`);
    machine.attributes.store.set(base, end, true);
    if (range.launched) {
      if (pages > LAUNCHED_PAGES) throw new MachineError(`${where}: more than 1G cannot be launched; say private`);
      for (let gfn = base; gfn < end; ) gfn += launchPage(machine, gfn, end, where, true);
    } else if (machine.vm === 'snp' && !preparesAtFault(machine)) assign(machine, base, end, where);
  }
  for (const slot of machine.slots.list) if (slot.gmem) updateMixed(machine, slot.base, slot.base + slot.pages);
}

/** Orderings by which the RMP follows the conversion have had one of what is private from the start. */
function assign(machine: Machine, base: Gfn, end: Gfn, where: string): void {
  for (const slot of machine.slots.overlapping(base, end)) {
    if (!slot.gmem) continue;
    const [first, last] = [Math.max(base, slot.base), Math.min(end, slot.base + slot.pages)];
    if (last - first > LAUNCHED_PAGES)
      throw new MachineError(
        `${where}: with policy conversion = ${machine.policies.conversion} every page is in the RMP, and more than 1G is too much`,
      );
    for (let gfn = first; gfn < last; ) gfn += launchPage(machine, gfn, last, where, false);
  }
}

/** @returns how many pages that was */
function launchPage(machine: Machine, gfn: Gfn, end: Gfn, where: string, validated: boolean): number {
  const slot = machine.slots.find(gfn);
  if (!slot?.gmem)
    throw new MachineError(`${where}: no slot with guest-memfd holds gpa 0x${(gfn * 4096).toString(16)}`);
  const pfn = backingPfn(slot, gfn, slot.gmem);
  const pages = isLarge(slot, gfn, end) ? 512 : 1;
  for (let page = 0; page < pages; page++) machine.attributes.folios.set(machine, pfn + page, gfn + page);
  if (machine.vm === 'tdx')
    for (let page = 0; page < pages; page++) machine.attributes.launched.set(machine, pfn + page, true);
  if (machine.vm !== 'snp') return pages;
  if (!preparesAtFault(machine)) for (let page = 0; page < pages; page++) removeFromDirectMap(machine, pfn + page);
  else if (pages === 1) splitDirectMap(machine, pfn);
  machine.attributes.rmp.set(machine, pfn, {
    gfn,
    level: pages === 1 ? 1 : 2,
    validated,
    asid: GUEST_ASID,
    rights: 0,
  });
  return pages;
}

function isLarge({ gmem, base, pages }: Memslot, gfn: Gfn, end: Gfn): boolean {
  return gmem!.pageLevel > 1 && gfn % 512 === 0 && gfn + 512 <= Math.min(end, base + pages);
}
