import { sharedBit } from '../attributes/tdx.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import { backingPfn, type Memslot } from '../memory/memslots.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { DONE, LEAF, READ_ONLY, Walker } from '../pgtable/walker.ts';
import { isPresent } from '../tdp/spte.ts';
import { type MemoryState, PRIVATE, SHARED } from './memory-state.ts';

/** Second stages of a machine, by the names under which they are shown. */
export function stageNames(machine: Machine): readonly string[] {
  if (!machine.isTdp) return [];
  return machine.vm === 'tdx'
    ? ['shared EPT', 'S-EPT (mirror)']
    : [machine.secondFormat.spec.stage ?? machine.secondFormat.spec.title];
}

/** A second stage as it stands. */
export interface StageRoot {
  /** −1: there is none yet. */
  readonly root: Pfn;
  /** What is added to a gfn to find it there: of TDX's shared EPT the shared bit. */
  readonly offset: Gfn;
}

/** The second stages, in the order of their names. */
export function stageRoots(state: MemoryState): readonly StageRoot[] {
  const { machine } = state;
  const walked = machine.vcpus.map(({ mmus }) => mmus.root.root.pfn);
  const all = state.roots().filter(({ role }) => roleField(role, 'guest_mode') === 0 && roleField(role, 'smm') === 0);
  return stageNames(machine).map((_, stage) => {
    const own = all.filter(({ role }) => roleField(role, 'is_mirror') === stage);
    const root = own.find(({ pfn }) => walked.includes(pfn)) ?? own[0];
    return { root: root?.pfn ?? -1, offset: stageOffset(machine, stage === 1) };
  });
}

export function stageOffset(machine: Machine, isMirror: boolean): Gfn {
  return machine.vm === 'tdx' && !isMirror ? sharedBit(machine) : 0;
}

/** Which of a page's frames is meant: SHARED, PRIVATE, both where pages are converted in place, 0 for neither. */
export function frameKinds(slot: Memslot, gfn: Gfn, pfn: Pfn): number {
  const isShared = backingPfn(slot, gfn) === pfn;
  const isPrivate = slot.gmem !== undefined && backingPfn(slot, gfn, slot.gmem) === pfn;
  return (isShared ? SHARED : 0) | (isPrivate ? PRIVATE : 0);
}

/** Visits the leaves of a second stage that map a part of [start, end). @param leaf hears level, first gfn, first frame, low word */
export function eachLeaf(
  state: MemoryState,
  { root, offset }: StageRoot,
  start: Gfn,
  end: Gfn,
  leaf: (level: number, gfn: Gfn, pfn: Pfn, lo: number) => void,
): void {
  const format = state.machine.secondFormat;
  const limit = Math.min(end + offset, format.inputFrames);
  if (root < 0 || start + offset >= limit) return;
  const walker = new Walker(state.tables, { format, root }, start + offset, limit, LEAF | READ_ONLY, () => {});
  while (walker.next() !== DONE) {
    const { lo } = walker;
    if (isPresent(lo)) leaf(walker.level, walker.frame - offset, walker.target, lo);
  }
}
