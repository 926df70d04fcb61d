import type { SecondStageKind } from '../kernel/tables.ts';
import { type Machine, newMachine } from './infer-machine.ts';
import { copyTable, type InferredRoot, type InferredTable, isTold, newTable } from './infer-pages.ts';
import type { Recording } from './recording.ts';

export const WHOSE = 'a thread changed tables of this virtual machine or of another’s: events do not tell which';

export interface Change {
  readonly gfn: number;
  readonly level: number;
  readonly asId: number;
  readonly oldLo: number;
  readonly oldHi: number;
  readonly newLo: number;
  readonly newHi: number;
}

/** What a thread is in the middle of. */
export interface Thread {
  machine: number;
  /** The address that it faulted at last, in words of frames; undefined where none was told. */
  fault: number | undefined;
  /** Ids of the shadow pages that it has looked up since, from the root down; of the TDP MMU, of those it has made. */
  path: number[];
  /** Pages that it has made for the TDP MMU, by their place, and that hang nowhere yet. */
  readonly loose: Map<string, { readonly role: number; readonly roleKnown: number }>;
  vcpu: number | undefined;
  /** It has faulted, and has not mapped the address since: what it removes meanwhile belongs to that. */
  handling: boolean;
  /** It has changed entries of the TDP MMU. */
  tdp: boolean;
  /** The address space of what it mapped last. */
  asId: number;
  /** Machines that what it has changed fits, while these are several, and those changes. */
  candidates: number[];
  pending: Change[];
  /** Page directories that it has loaded one after the other. */
  directories: number[];
}

/** What tables are worked out from, at every moment. */
interface Source {
  readonly recording: Recording;
  /** Threads of the machine that is asked about, with their vCPUs, if they are such; without them machines are told apart by their events. */
  readonly own: ReadonlyMap<number, number | undefined> | undefined;
  readonly given: SecondStageKind | undefined;
}

/** What events have told of up to a moment. Going back replaces it: it is passed on, and not kept. */
export interface State extends Source {
  readonly machines: Machine[];
  readonly threads: Map<number, Thread>;
  /** Threads whose changes fit several machines. */
  readonly waiting: Set<number>;
  /** What the processor is, where exits say it. */
  isa: SecondStageKind | undefined;
  nextId: number;
}

const newThread = (): Thread => ({
  machine: -1,
  fault: undefined,
  path: [],
  loose: new Map(),
  vcpu: undefined,
  handling: false,
  tdp: false,
  asId: 0,
  candidates: [],
  pending: [],
  directories: [],
});

export function newState({ recording, own, given }: Source): State {
  const state: State = {
    recording,
    own,
    given,
    machines: [],
    threads: new Map(),
    waiting: new Set(),
    isa: undefined,
    nextId: 1,
  };
  if (own) {
    state.machines.push(newMachine(given));
    for (const [thread, vcpu] of own) state.threads.set(thread, { ...newThread(), machine: 0, vcpu });
  }
  return state;
}

export function copyState(state: State): State {
  const copyRoot = (root: InferredRoot): InferredRoot => ({ ...root, threads: new Set(root.threads) });
  return {
    ...state,
    waiting: new Set(state.waiting),
    threads: new Map(
      [...state.threads].map(([pid, thread]) => [
        pid,
        {
          ...thread,
          path: [...thread.path],
          loose: new Map(thread.loose),
          pending: [...thread.pending],
          directories: [...thread.directories],
        },
      ]),
    ),
    machines: state.machines.map((machine) => ({
      ...machine,
      tables: new Map([...machine.tables].map(([id, table]) => [id, copyTable(table)])),
      byKey: new Map(machine.byKey),
      byFrame: new Map(machine.byFrame),
      roots: machine.roots.map(copyRoot),
      dying: machine.dying.map(copyRoot),
      removed: new Map([...machine.removed].map(([key, list]) => [key, list.map((each) => ({ ...each }))])),
    })),
  };
}

export function threadOf(state: State, pid: number): Thread {
  let thread = state.threads.get(pid);
  if (!thread) {
    thread = newThread();
    state.threads.set(pid, thread);
  }
  return thread;
}

export function ownerOf(state: State, pid: number): Machine | undefined {
  const thread = state.threads.get(pid);
  return thread && state.machines[thread.machine];
}

/** The machine of a thread that makes something new: where none is known, it is another machine's. */
export function claim(state: State, pid: number): Machine | undefined {
  const thread = threadOf(state, pid);
  // Where the machine's own threads are known, nobody else makes tables for it.
  if (thread.machine < 0 && state.own) return undefined;
  if (thread.machine < 0) {
    thread.machine = state.machines.length;
    state.machines.push(newMachine(state.given));
  }
  return state.machines[thread.machine];
}

export function addTable(
  state: State,
  machine: Machine,
  shape: { level: number; gfn: number; frame?: number },
): InferredTable {
  const table = newTable(state.nextId++, shape, machine.emptyHi);
  machine.tables.set(table.id, table);
  if (isTold(table)) machine.byFrame.set(table.frame, table.id);
  return table;
}

/** Whether a machine has another thread for the same vCPU. */
export function hasOther(state: State, machine: Machine, { vcpu }: Thread): boolean {
  if (vcpu === undefined) return false;
  const number = state.machines.indexOf(machine);
  return [...state.threads.values()].some((each) => each.machine === number && each.vcpu === vcpu);
}

/** The frame of an address field; undefined where it was not recorded. */
export function pageOf(recording: Recording, at: number, field: number): number | undefined {
  if (!recording.known(at, field)) return undefined;
  return recording.hi(at, field) * 2 ** 20 + (recording.lo(at, field) >>> 12);
}
