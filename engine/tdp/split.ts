import { moveLeaf } from '../formats/encode.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import type { SpteRef } from './iterate.ts';
import { childRole } from './mmu-page.ts';
import { restoreExecute } from './nx-huge-pages.ts';

/**
 * tdp_mmu_split_huge_page: fills a new table with the 512 pieces of a large page. The caller links it. The kernel
 * traces none of the 512 entries, only the split itself.
 * @param disallowed whether a fetch is why no large page may stand there
 */
export function splitHugePage(machine: Machine, entry: SpteRef, gfn: Gfn, disallowed = false): Pfn {
  const format = machine.secondFormat;
  const level = entry.level - 1;
  const role = childRole(machine, entry.table);
  const child = machine.allocateTable({
    gfn,
    level,
    role,
    parent: entry.table,
    parentIndex: entry.index,
    nxHugePageDisallowed: disallowed,
  }).pfn;
  const piece = moveLeaf(format, entry.level, level, entry.lo, entry.hi);
  const below = restoreExecute(machine, level, roleField(role, 'access'), piece);
  const base = format.frame(entry.level, entry.lo, entry.hi);
  for (let index = 0; index < 512; index++) {
    const frame = base + index * format.span[level]!;
    machine.setSpte(
      child,
      index,
      (below.lo | format.frameLo(frame)) >>> 0,
      (below.hi | format.frameHi(frame)) >>> 0,
      false,
    );
  }
  machine.trace('kvm_mmu_split_huge_page', { gfn, spte: { lo: entry.lo, hi: entry.hi }, level: entry.level, errno: 0 });
  return child;
}
