import type { SecondStageKind } from '../kernel/tables.ts';
import { type InferredRoot, type InferredTable, indexOf, isEmpty, type RemovedTable } from './infer-pages.ts';

/** Trees that wait to be taken down. */
const DYING_MOST = 32;

/** A virtual machine, as far as its events can be told from others'. */
export interface Machine {
  kind: SecondStageKind | undefined;
  readonly tables: Map<number, InferredTable>;
  /** Shadow pages by gfn and role; tables by frame. */
  readonly byKey: Map<string, number>;
  readonly byFrame: Map<number, number>;
  readonly roots: InferredRoot[];
  /** Roots of the second stage that were given up, until they are empty. */
  readonly dying: InferredRoot[];
  /** It has had a root of the second stage. */
  hadRoot: boolean;
  /** Events have told of entries of the TDP MMU: what its other events tell of belongs to nested guests. */
  tdp: boolean;
  /** KVM maps gpas without the TDP MMU (tdp_mmu=0). */
  direct: boolean;
  /** A thread of nobody's that gave all up, which was taken for this machine's. */
  zapper: number | undefined;
  /** Tables of the TDP MMU that were taken out, by place: events of their entries come after that. */
  readonly removed: Map<string, RemovedTable[]>;
  /** The upper word of an entry that maps nothing: newer kernels set bit 63. */
  emptyHi: number;
  /** Events whose entry was not what it should have been: others are missing. */
  mismatches: number;
  /** Why the tables cannot be trusted; empty while they can. */
  stale: string;
}

export function newMachine(kind: SecondStageKind | undefined): Machine {
  return {
    kind,
    tables: new Map(),
    byKey: new Map(),
    byFrame: new Map(),
    roots: [],
    dying: [],
    hadRoot: false,
    tdp: false,
    direct: false,
    zapper: undefined,
    removed: new Map(),
    emptyHi: 0,
    mismatches: 0,
    stale: '',
  };
}

/** Whether a machine translates gpas, in whatever kind of entries. */
export const isTwoStage = ({ kind, tdp, hadRoot }: Machine): boolean =>
  tdp || (kind === undefined ? hadRoot : kind !== 'shadow');

/** The table of a level that translates a frame, below another. */
export function descend(
  machine: Machine,
  from: InferredTable,
  frame: number,
  level: number,
): InferredTable | undefined {
  let table: InferredTable | undefined = from;
  while (table && table.level > level)
    table = machine.tables.get(table.children.get(indexOf(frame, table.level)) ?? -1);
  return table?.level === level ? table : undefined;
}

/** The table of a level that translates a gfn, if the way there is known. */
export function tableAt(machine: Machine, root: InferredRoot, level: number, gfn: number): InferredTable | undefined {
  return descend(machine, machine.tables.get(root.table)!, gfn, level);
}

export function giveUp(machine: Machine, guessed: boolean): void {
  for (const root of machine.roots) {
    if (!root.invalid) root.guessed = guessed;
    root.invalid = true;
  }
  if (machine.kind === 'shadow') return;
  for (const root of machine.roots.splice(0)) {
    if (isEmpty(machine.tables.get(root.table)!)) discard(machine, root.table);
    else machine.dying.push(root);
  }
  while (machine.dying.length > DYING_MOST) {
    machine.stale ||= 'trees were given up that no event tells the end of';
    discard(machine, machine.dying.shift()!.table);
  }
}

/** They go on being used: what gave them up was of another machine. */
export function revive(machine: Machine): void {
  for (const root of machine.roots) if (root.guessed) root.invalid = false;
  for (const root of machine.dying.filter(({ guessed }) => guessed)) {
    machine.dying.splice(machine.dying.indexOf(root), 1);
    machine.roots.push(root);
    root.invalid = false;
  }
  for (const root of machine.roots) root.guessed = false;
  machine.zapper = undefined;
}

/** A table and all below it are gone. */
export function discard(machine: Machine, id: number): void {
  const table = machine.tables.get(id);
  if (!table) return;
  machine.tables.delete(id);
  if (machine.byFrame.get(table.frame) === id) machine.byFrame.delete(table.frame);
  for (const child of table.children.values()) discard(machine, child);
}

/** It was this machine whose tables were given up. */
export function confirm({ roots, dying }: Machine): void {
  for (const root of [...roots, ...dying]) root.guessed = false;
}
