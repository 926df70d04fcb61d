import { TABLE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';

/** An entry of KVM's tables and where it stands (`struct tdp_iter`). */
export interface SpteRef {
  readonly level: number;
  readonly table: Pfn;
  readonly index: number;
  readonly lo: number;
  readonly hi: number;
}

/** The entry of one table for a gfn. */
export function readSpte(
  machine: Machine,
  table: Pfn,
  level: number,
  gfn: Gfn,
  format = machine.secondFormat,
): SpteRef {
  const index = format.indexOf(gfn, level);
  const page = machine.memory.page(table);
  return { level, table, index, lo: page[2 * index]!, hi: page[2 * index + 1]! };
}

/** The lowest entry for a gfn, down to `level`: where a walk of the tables for it ends. */
export function findEntry(machine: Machine, root: Pfn, gfn: Gfn, level = 1, format = machine.secondFormat): SpteRef {
  let entry = readSpte(machine, root, format.rootLevel, gfn, format);
  while (entry.level > level && format.classify(entry.level, entry.lo) === TABLE) {
    entry = readSpte(machine, format.frame(entry.level, entry.lo, entry.hi), entry.level - 1, gfn, format);
  }
  return entry;
}
