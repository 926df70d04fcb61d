import { LEAF } from '../formats/compile.ts';
import { moveLeaf } from '../formats/encode.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Memslot } from '../memory/memslots.ts';
import { restoreExecute } from '../tdp/nx-huge-pages.ts';
import { isPresent } from '../tdp/spte.ts';
import { gfnsOf } from './host.ts';
import { hasPagesLeft } from './limits.ts';
import {
  accessOfEntry,
  childRole,
  getShadowPage,
  gfnOfEntry,
  indexOf,
  linkShadowPage,
  type ShadowPage,
  shadowPage,
  tableOf,
} from './pages.ts';
import { rmapAdd, rmapOf } from './rmap.ts';
import type { SpteAddress } from './state.ts';

/**
 * kvm_shadow_mmu_try_split_huge_pages: when dirty logging starts, large pages of nested guests are split at once, the larger first. As
 * eager splitting was first posted it did so for every shadow page; Linux leaves a guest's own to their faults.
 */
export function splitHugePages(machine: Machine, slot: Memslot): void {
  for (let level = 3; level > 1; level--)
    for (const gfn of gfnsOf(slot.base, slot.base + slot.pages, level))
      for (const spte of rmapOf(machine, gfn, level)) {
        const page = shadowPage(machine, tableOf(spte));
        if (roleField(page.role, 'invalid') === 1 || isLeftAlone(machine, page)) continue;
        if (!hasPagesLeft(machine)) return;
        splitHugePage(machine, page, spte);
      }
}

/** What nobody splits: without the TDP MMU all, unless a policy says so; and tables of 4-byte entries, where their role cannot be told. */
function isLeftAlone(machine: Machine, { role }: ShadowPage): boolean {
  if (!machine.hasTdpMmu && machine.policies['page-split'] !== 'all') return true;
  return machine.policies.quadrant === 'skip' && roleField(role, 'has_4_byte_gpte') === 1;
}

/** shadow_mmu_split_huge_page: a direct page with the pieces takes the place of the large one. No fault, and so no address, tells its role. */
function splitHugePage(machine: Machine, page: ShadowPage, spte: SpteAddress): void {
  const index = indexOf(spte);
  const gfn = gfnOfEntry(machine, page, index);
  const [lo, hi] = machine.entryWords(page.pfn, index);
  const format = machine.tableFormat(page.pfn);
  const role = childRole(machine, page, index, true, accessOfEntry(machine, page, index));
  const child = getShadowPage(machine, machine.vcpus[0]!, gfn, role);
  const piece = moveLeaf(format, page.level, child.level, lo, hi);
  const below = restoreExecute(machine, child.level, roleField(role, 'access'), piece);
  const first = format.frame(page.level, lo, hi);
  let flush = false;
  for (let at = 0; at < 512; at++) {
    const [there] = machine.entryWords(child.pfn, at);
    if (isPresent(there)) {
      // A table there may lack some of what the large page maps.
      if (format.classify(child.level, there) !== LEAF) flush = true;
      continue;
    }
    const frame = first + at * 512 ** (child.level - 1);
    const pieceLo = (below.lo | format.frameLo(frame)) >>> 0;
    machine.setSpte(child.pfn, at, pieceLo, (below.hi | format.frameHi(frame)) >>> 0, false);
    rmapAdd(machine, child.pfn * 512 + at, gfnOfEntry(machine, child, at));
  }
  linkShadowPage(machine, spte, child.pfn, flush);
  machine.trace('kvm_mmu_split_huge_page', { gfn, spte: { lo, hi }, level: page.level, errno: 0 });
}
