import { LEAF } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import type { Gfn } from '../memory/words.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { findEntry } from '../tdp/iterate.ts';
import { isMmuWritable, isPresent, spteFormat } from '../tdp/spte.ts';
import { gfnOfEntry, indexOf, shadowPage, tableOf } from './pages.ts';
import { rmapKey, type SpteAddress } from './state.ts';

/** From RMAP_RECYCLE_THRESHOLD on all entries that map a gfn are dropped instead of being remembered. */
const RECYCLE_THRESHOLD = 1000;

/** gfn_to_rmap */
export function rmapOf(machine: Machine, gfn: Gfn, level: number): readonly SpteAddress[] {
  return machine.shadow.rmaps.get(rmapKey(level, gfn - (gfn % 512 ** (level - 1)))) ?? [];
}

/** rmap_add */
export function rmapAdd(machine: Machine, spte: SpteAddress, gfn: Gfn): void {
  const level = machine.tableLevel(tableOf(spte));
  const key = rmapKey(level, gfn - (gfn % 512 ** (level - 1)));
  const { rmaps } = machine.shadow;
  const sptes = [...(rmaps.get(key) ?? []), spte];
  rmaps.set(machine, key, sptes);
  if (sptes.length > RECYCLE_THRESHOLD) {
    zapRmap(machine, gfn, level);
    flushRemoteTlbs(machine);
  }
}

/** rmap_remove: the entry no longer maps the gfn that its page says. */
function rmapRemove(machine: Machine, spte: SpteAddress): void {
  const page = shadowPage(machine, tableOf(spte));
  const gfn = gfnOfEntry(machine, page, indexOf(spte));
  const key = rmapKey(page.level, gfn - (gfn % 512 ** (page.level - 1)));
  const { rmaps } = machine.shadow;
  const sptes = rmaps.get(key);
  if (!sptes?.includes(spte)) {
    machine.warn(`pte_list_remove: no reverse map of gfn 0x${gfn.toString(16)} has the entry`);
    return;
  }
  rmaps.set(machine, key, sptes.length === 1 ? undefined : sptes.filter((each) => each !== spte));
}

/** drop_spte: a leaf goes, and its reverse map with it. @returns whether it was present */
export function dropSpte(machine: Machine, spte: SpteAddress): boolean {
  const [lo] = machine.entryWords(tableOf(spte), indexOf(spte));
  const present = isPresent(lo);
  if (present) rmapRemove(machine, spte);
  machine.clearSpte(tableOf(spte), indexOf(spte));
  return present;
}

/** drop_large_spte */
export function dropLargeSpte(machine: Machine, spte: SpteAddress, lo: number, flush: boolean): void {
  const table = tableOf(spte);
  if (machine.tableFormat(table).classify(machine.tableLevel(table), lo) !== LEAF) return;
  dropSpte(machine, spte);
  if (flush) flushRemoteTlbs(machine);
}

/** kvm_zap_all_rmap_sptes @returns whether there was any */
export function zapRmap(machine: Machine, gfn: Gfn, level: number): boolean {
  const sptes = rmapOf(machine, gfn, level);
  for (const spte of sptes) dropSpte(machine, spte);
  return sptes.length > 0;
}

/**
 * spte_write_protect on all that maps a gfn at a level (rmap_write_protect).
 * @param forTable also without a lock nobody may make it writable again
 * @returns whether anything changed
 */
export function rmapWriteProtect(machine: Machine, gfn: Gfn, level: number, forTable: boolean): boolean {
  let changed = false;
  for (const spte of rmapOf(machine, gfn, level)) {
    const [table, index] = [tableOf(spte), indexOf(spte)];
    const format = spteFormat(machine.tableFormat(table));
    const [lo, hi] = machine.entryWords(table, index);
    const writable = (lo & format.format.writeLo) !== 0;
    if (!writable && !(forTable && isMmuWritable(format, lo, hi))) continue;
    const own = forTable ? format.mmuWritable : { lo: 0, hi: 0 };
    machine.setSpte(table, index, (lo & ~format.format.writeLo & ~own.lo) >>> 0, (hi & ~own.hi) >>> 0, false);
    changed = true;
  }
  return changed;
}

/** kvm_mmu_slot_gfn_write_protect, from 4K up. @returns whether anything changed */
export function writeProtectGfn(machine: Machine, gfn: Gfn): boolean {
  let changed = false;
  for (let level = 1; level <= 3; level++) if (rmapWriteProtect(machine, gfn, level, true)) changed = true;
  if (machine.hasTdpMmu && tdpWriteProtect(machine, gfn)) changed = true;
  return changed;
}

/** kvm_tdp_mmu_write_protect_gfn: the leaf of a gfn below every valid root, whatever its size. */
function tdpWriteProtect(machine: Machine, gfn: Gfn): boolean {
  let changed = false;
  const { writeLo } = machine.secondFormat;
  const { mmuWritable } = spteFormat(machine.secondFormat);
  for (const root of machine.roots()) {
    if (root.invalid) continue;
    const { table, index, level, lo, hi } = findEntry(machine, root.pfn, gfn);
    if (!isPresent(lo) || machine.secondFormat.classify(level, lo) !== LEAF) continue;
    const next = { lo: (lo & ~(writeLo | mmuWritable.lo)) >>> 0, hi: (hi & ~mmuWritable.hi) >>> 0 };
    if (next.lo === lo && next.hi === hi) continue;
    machine.setSpte(table, index, next.lo, next.hi);
    changed = true;
  }
  return changed;
}
