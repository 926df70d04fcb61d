import { TABLE } from '../formats/compile.ts';
import type { Entry } from '../formats/encode.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import type { PageFault } from './fault.ts';
import type { SpteRef } from './iterate.ts';
import { isPresent, spteFormat, withExecute } from './spte.ts';

// The mitigation of iTLB multihit: no large page is executable, so that no guest can have one address in the instruction TLB in two sizes.

/** is_nx_huge_page_enabled */
export function hasNxHugePages(machine: Machine): boolean {
  return machine.policies['nx-huge-pages'] === 'on';
}

/** A leaf as the mitigation lets it be: of a large page not executable (make_spte, make_huge_spte). */
export function limitExecute(machine: Machine, level: number, entry: Entry): Entry {
  if (level === 1 || !hasNxHugePages(machine) || machine.injects('nx-huge-executable')) return entry;
  return withExecute(spteFormat(machine.secondFormat), entry, false);
}

/**
 * A piece of a large page, of the level below: on the last level the mitigation has no say any more (make_huge_page_split_spte).
 * @param access ACC_* bits of the role of the table that it is for
 */
export function restoreExecute(machine: Machine, level: number, access: number, entry: Entry): Entry {
  if (level > 1 || !hasNxHugePages(machine) || (access & 1) === 0) return entry;
  return withExecute(spteFormat(machine.secondFormat), entry, true);
}

/**
 * disallowed_hugepage_adjust: where a table stands for the mitigation's sake, no large page may take its place, for what it maps may be
 * executable: the walk goes down another level.
 */
export function adjustDisallowed(machine: Machine, fault: PageFault, { level, lo, hi }: SpteRef): void {
  if (!hasNxHugePages(machine) || level === 1 || level !== fault.goalLevel || !isPresent(lo)) return;
  const format = machine.secondFormat;
  if (format.classify(level, lo) !== TABLE) return;
  if (!machine.pages.get(format.frame(level, lo, hi))?.nxHugePageDisallowed) return;
  fault.pfn += (fault.gfn % 512 ** (level - 1)) - (fault.gfn % 512 ** (level - 2));
  fault.goalLevel--;
}

/** track_possible_nx_huge_page: nothing but the mitigation is in the way of a large page there. */
export function trackPossible(machine: Machine, table: Pfn): void {
  const { possibleNxHugePages } = machine.small;
  if (possibleNxHugePages.includes(table)) return;
  possibleNxHugePages.push(table);
  machine.count('nx_lpage_splits');
}

/** account_nx_huge_page @param possible whether a large page would be there without the mitigation */
export function accountDisallowed(machine: Machine, table: Pfn, possible: boolean): void {
  if (!machine.page(table).nxHugePageDisallowed) machine.updatePage(table, { nxHugePageDisallowed: true });
  if (possible) trackPossible(machine, table);
}

/** unaccount_nx_huge_page: its table is given up, or can be recovered no more. */
export function unaccountDisallowed(machine: Machine, table: Pfn): void {
  if (!machine.page(table).nxHugePageDisallowed) return;
  machine.updatePage(table, { nxHugePageDisallowed: false });
  const { possibleNxHugePages } = machine.small;
  const at = possibleNxHugePages.indexOf(table);
  if (at < 0) return;
  possibleNxHugePages.splice(at, 1);
  if (!machine.injects('nx-splits-leak')) machine.count('nx_lpage_splits', -1);
}
