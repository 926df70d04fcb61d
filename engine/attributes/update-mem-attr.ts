import type { Machine } from '../machine.ts';
import { backingPfn, hostMappingLevel } from '../memory/memslots.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { defineFunction, NEXT, returns, type Task } from '../operation.ts';
import { mightSleep, removeFromDirectMap, restoreToDirectMap } from './direct-map.ts';
import { preparesAtFault } from './gmem.ts';
import { type Busy, findsBusy, rmpEntry, rmpMake } from './rmp.ts';

const PAGES_2M = 512;

/** What is done for each page: its part of the kernel's direct map goes or comes back, and the RMP is updated. */
export type Part = 'unmap' | 'rmp' | 'map';

export interface UpdateLocals extends Busy {
  readonly start: Gfn;
  readonly end: Gfn;
  readonly isPrivate: boolean;
  /** In this order. */
  readonly parts: readonly Part[];
  /** The page that is being done, and how much of it is. */
  next: Gfn;
  part: number;
  error: number;
}

/** The page that comes next: clipped to the slots that have a guest_memfd; undefined behind the last. */
function nextPage(machine: Machine, { next, end }: UpdateLocals): { gfn: Gfn; pfn: Pfn; level: 1 | 2 } | undefined {
  if (next >= end) return undefined;
  for (const slot of machine.slots.overlapping(next, end)) {
    if (!slot.gmem) continue;
    const gfn = Math.max(next, slot.base);
    const isLarge =
      gfn % PAGES_2M === 0 &&
      gfn + PAGES_2M <= Math.min(end, slot.base + slot.pages) &&
      hostMappingLevel(slot, gfn, slot.gmem) > 1;
    return { gfn, pfn: backingPfn(slot, gfn, slot.gmem), level: isLarge ? 2 : 1 };
  }
  return undefined;
}

/** Entries of the RMP that one conversion may make or take: 16G in 4K, which a real machine's firmware does not do at once either. */
const ENTRIES_MOST = 2 ** 22;

/** @throws RangeError where a conversion, by an ordering that updates the RMP, comes to more entries than are kept here */
export function checkEntries(machine: Machine, start: Gfn, end: Gfn): void {
  if (machine.vm !== 'snp' || preparesAtFault(machine)) return;
  let entries = 0;
  for (const slot of machine.slots.overlapping(start, end)) {
    if (!slot.gmem) continue;
    const pages = Math.min(end, slot.base + slot.pages) - Math.max(start, slot.base);
    entries += slot.gmem.pageLevel > 1 ? Math.ceil(pages / PAGES_2M) : pages;
  }
  if (entries > ENTRIES_MOST)
    throw new RangeError(
      `convert: by policy conversion = ${machine.policies.conversion} ${entries} entries of the RMP change, and more than ${ENTRIES_MOST} are not kept; take less, guest-memfd 2M, or an ordering that leaves the RMP to faults`,
    );
}

function run(
  machine: Machine,
  task: Task,
  part: Part,
  locals: UpdateLocals,
  page: { gfn: Gfn; pfn: Pfn; level: 1 | 2 },
): void {
  const { gfn, pfn, level } = page;
  if (part === 'rmp') {
    locals.error ||= updatePage(machine, pfn, gfn, level, locals.isPrivate);
    return;
  }
  mightSleep(machine, task, part === 'unmap' ? 'set_direct_map_invalid' : 'set_direct_map_default', gfn);
  for (let frame = pfn; frame < pfn + PAGES_2M ** (level - 1); frame++)
    if (part === 'unmap') removeFromDirectMap(machine, frame);
    else restoreToDirectMap(machine, frame);
}

/** Whether the RMP has 2M as one, or nothing of it. */
function isUniform(machine: Machine, first: Pfn): boolean {
  const { rmp } = machine.attributes;
  if (rmp.get(first)?.level === 2) return true;
  for (let page = 0; page < PAGES_2M; page++) if (rmp.get(first + page)) return false;
  return true;
}

/** Of a page that is not so already. @returns 0, or an errno */
function updatePage(machine: Machine, pfn: Pfn, gfn: Gfn, level: 1 | 2, isPrivate: boolean): number {
  const { folios } = machine.attributes;
  if (level === 2 && !isUniform(machine, pfn)) {
    // A part of it has been converted before: the rest goes page by page.
    let error = 0;
    for (let page = 0; page < PAGES_2M; page++) error ||= updatePage(machine, pfn + page, gfn + page, 1, isPrivate);
    return error;
  }
  if (isPrivate)
    for (let page = 0; page < PAGES_2M ** (level - 1); page++)
      if (folios.get(pfn + page) === undefined) folios.set(machine, pfn + page, gfn + page);
  if ((rmpEntry(machine, pfn) !== undefined) === isPrivate) return 0;
  return rmpMake(machine, pfn, isPrivate ? gfn : -1, level);
}

/** `update_mem_attr` of the series for SNP: what a conversion does for each page beyond KVM's own tables. */
export const sevUpdateMemAttr = defineFunction<UpdateLocals>({
  name: 'sev_update_mem_attr',
  where: 'arch/x86/kvm/svm/sev.c, as was posted for SNP',
  about: 'For every page of every slot in the range: the RMP and the kernel’s direct map follow the attribute.',
  steps: [
    {
      name: 'page',
      text: 'find the next page, clipped to its slot',
      run(machine, task, locals) {
        const page = nextPage(machine, locals);
        if (!page) return returns(task, locals.error);
        locals.next = page.gfn;
        locals.part = 0;
        return NEXT;
      },
    },
    {
      name: 'part',
      text: 'RMPUPDATE; or take the page out of the direct map, or put it back, for which a mutex is taken',
      run(machine, task, locals) {
        const page = nextPage(machine, locals);
        if (!page) return 'page';
        if (locals.parts[locals.part] === 'rmp' && findsBusy(machine, task, locals, 'RMPUPDATE', page.pfn))
          return 'part';
        run(machine, task, locals.parts[locals.part]!, locals, page);
        locals.part++;
        if (locals.part < locals.parts.length) return 'part';
        locals.next = page.gfn + PAGES_2M ** (page.level - 1);
        return 'page';
      },
    },
  ],
});
