import type { Machine } from '../machine.ts';
import type { Memslot } from '../memory/memslots.ts';
import type { Gfn } from '../memory/words.ts';
import { rmapKey } from '../shadow/state.ts';

/**
 * kvm_arch_post_set_memory_attributes: notes of the 2M and 1G blocks that [start, end) touches whether their pages differ, 2M first,
 * because 1G is judged by them. A block that sticks out of its slot is never mapped large, and not noted.
 */
export function updateMixed(machine: Machine, start: Gfn, end: Gfn): void {
  const before = machine.injects('mixed-1g-first') ? notedBlocks(machine) : undefined;
  for (const level of [2, 3] as const) {
    const span = 512 ** (level - 1);
    const limit = machine.injects('mixed-tail') ? end - (end % span) : end;
    for (const slot of machine.slots.overlapping(start, end)) {
      const from = Math.max(start, slot.base);
      for (let gfn = from - (from % span); gfn < Math.min(limit, slot.base + slot.pages); gfn += span) {
        if (gfn < slot.base || gfn + span > slot.base + slot.pages) continue;
        if (machine.injects('mixed-unaligned') && (gfn < start || gfn + span > end)) continue;
        const isNow = machine.attributes.store.mix(gfn, level) === 'mixed';
        // Judged too early, 1G is mixed where its 2M blocks were noted so.
        setMixed(machine, level, gfn, before && level === 3 ? hasNoted(before, gfn) : isNow);
      }
    }
  }
}

/** The 2M blocks that are noted as mixed, by their first gfn. */
function notedBlocks(machine: Machine): ReadonlySet<Gfn> {
  const noted = [...machine.attributes.mixed.entries()].map(([key]) => key).filter((key) => key < 3 * 2 ** 44);
  return new Set(noted.map((key) => key % 2 ** 44));
}

function hasNoted(noted: ReadonlySet<Gfn>, first: Gfn): boolean {
  return [...noted].some((gfn) => gfn >= first && gfn < first + 512 * 512);
}

function setMixed(machine: Machine, level: 2 | 3, gfn: Gfn, isMixed: boolean): void {
  const { mixed } = machine.attributes;
  const key = rmapKey(level, gfn);
  if ((mixed.get(key) ?? false) !== isMixed) mixed.set(machine, key, isMixed ? true : undefined);
}

/** hugepage_test_mixed */
export function isMixed(machine: Machine, gfn: Gfn, level: number): boolean {
  return machine.attributes.mixed.get(rmapKey(level, gfn - (gfn % 512 ** (level - 1)))) === true;
}

/** Blocks that are noted otherwise than their pages are, while no conversion is under way. */
export function mixedProblems(machine: Machine): string[] {
  const found: string[] = [];
  const { store, mixed } = machine.attributes;
  const judge = (slot: Memslot, gfn: Gfn, level: 2 | 3): void => {
    const span = 512 ** (level - 1);
    const first = gfn - (gfn % span);
    if (first < slot.base || first + span > slot.base + slot.pages) return;
    const really = store.mix(first, level) === 'mixed';
    if (really === isMixed(machine, first, level)) return;
    found.push(
      `${level === 2 ? '2M' : '1G'} from gfn 0x${first.toString(16)} on ${really ? 'hold private and shared pages, and are not noted as mixed' : 'are all alike, and noted as mixed'}`,
    );
  };
  for (const slot of machine.slots.list) {
    if (!slot.gmem) continue;
    // Only where one kind ends and the other begins can a block be mixed.
    for (const { start } of store.runs(slot.base, slot.base + slot.pages))
      if (start > slot.base) for (const level of [2, 3] as const) judge(slot, start, level);
    for (const [key] of mixed.entries()) {
      const gfn = key % 2 ** 44;
      if (gfn >= slot.base && gfn < slot.base + slot.pages) judge(slot, gfn, key >= 3 * 2 ** 44 ? 3 : 2);
    }
  }
  return [...new Set(found)];
}
