import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';

/** Fills a frame of a guest's with zeros. */
export function clearFrame(machine: Machine, pfn: Pfn): void {
  if (!machine.memory.isWritten(pfn)) return;
  for (let index = 0; index < 512; index++)
    if (machine.readEntry(pfn, index) !== 0n) machine.storeData(pfn, index, 0, 0);
}
