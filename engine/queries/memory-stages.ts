import { sharedBit } from '../attributes/tdx.ts';
import type { Format } from '../formats/compile.ts';
import { roleField } from '../kernel/role.ts';
import { kvmMemory } from '../kernel/tables.ts';
import type { Machine } from '../machine.ts';
import { backingPfn, type Memslot } from '../memory/memslots.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import type { Mirror } from '../mirror.ts';
import type { Tables } from '../pgtable/tables.ts';
import { DONE, LEAF, READ_ONLY, Walker } from '../pgtable/walker.ts';
import { isPresent } from '../tdp/spte.ts';
import type { Certainty } from './answers.ts';
import { builtStage } from './built-answers.ts';
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
  readonly format: Format;
  readonly tables: Tables;
  readonly certainty: Certainty;
  /** What is added to a gfn to find it there: of TDX's shared EPT the shared bit. */
  readonly offset: Gfn;
}

/** The second stages, in the order of their names. */
export function stageRoots(state: MemoryState): readonly StageRoot[] {
  const { machine } = state;
  if (machine.mirror) return [builtRoot(machine.mirror.built?.(), state)];
  const walked = machine.vcpus.map(({ mmus }) => mmus.root.root.pfn);
  const all = state.roots().filter(({ role }) => roleField(role, 'guest_mode') === 0 && roleField(role, 'smm') === 0);
  return stageNames(machine).map((_, stage) => {
    const own = all.filter(({ role }) => roleField(role, 'is_mirror') === stage);
    const root = own.find(({ pfn }) => walked.includes(pfn)) ?? own[0];
    return {
      root: root?.pfn ?? -1,
      format: machine.secondFormat,
      tables: state.tables,
      certainty: 'exact',
      offset: stageOffset(machine, stage === 1),
    };
  });
}

/** Of a real KVM, what it has built by now. */
function builtRoot(built: ReturnType<NonNullable<Mirror['built']>>, { machine, at, tables }: MemoryState): StageRoot {
  const stage = built && at === undefined ? builtStage(built, 0) : undefined;
  if (!built || !stage) return { root: -1, format: machine.secondFormat, tables, certainty: 'exact', offset: 0 };
  const { format, root } = stage.tree;
  return { root, format, tables: kvmMemory(built.tables), certainty: built.tables.certainty, offset: 0 };
}

export function stageOffset(machine: Machine, isMirror: boolean): Gfn {
  return machine.vm === 'tdx' && !isMirror ? sharedBit(machine) : 0;
}

/**
 * Whether the frames behind guest memory are known: of a machine under KVM neither which a guest_memfd has, nor whether an entry maps
 * a page's private frame or the shared one.
 */
export const knowsFrames = (machine: Machine): boolean => machine.mirror === undefined;

/** Which of a page's frames is meant: SHARED, PRIVATE, both where pages are converted in place, 0 for neither. */
export function frameKinds(slot: Memslot, gfn: Gfn, pfn: Pfn): number {
  const isShared = backingPfn(slot, gfn) === pfn;
  const isPrivate = slot.gmem !== undefined && backingPfn(slot, gfn, slot.gmem) === pfn;
  return (isShared ? SHARED : 0) | (isPrivate ? PRIVATE : 0);
}

/** Visits the leaves of a second stage that map a part of [start, end). @param leaf hears level, first gfn, first frame, low word */
export function eachLeaf(
  { root, offset, format, tables }: StageRoot,
  start: Gfn,
  end: Gfn,
  leaf: (level: number, gfn: Gfn, pfn: Pfn, lo: number) => void,
): void {
  const limit = Math.min(end + offset, format.inputFrames);
  if (root < 0 || start + offset >= limit) return;
  const walker = new Walker(tables, { format, root }, start + offset, limit, LEAF | READ_ONLY, () => {});
  while (walker.next() !== DONE) {
    const { lo } = walker;
    if (isPresent(lo)) leaf(walker.level, walker.frame - offset, walker.target, lo);
  }
}
