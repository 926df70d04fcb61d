import { confirm, discard, type Machine, revive, tableAt } from './infer-machine.ts';
import {
  ENTRIES,
  FROZEN_LO,
  fillSplit,
  frameOf,
  type InferredRoot,
  type InferredTable,
  indexOf,
  isEmpty,
  isLeaf,
  leadsToTable,
  PRESENT,
  placeKey,
  type RemovedTable,
  secondStageOf,
  silentBits,
  writeLink,
} from './infer-pages.ts';
import {
  addTable,
  type Change,
  claim,
  hasOther,
  ownerOf,
  pageOf,
  type State,
  type Thread,
  threadOf,
  WHOSE,
} from './infer-state.ts';
import { traceField, traceKind } from './tracepoints.ts';

// The TDP MMU tells of each entry what it was before, and what it is then.

export const TDP_CHANGED = traceKind('kvm_tdp_mmu_spte_changed');
export const FAST = traceKind('fast_page_fault');

const CHANGED = {
  gfn: traceField(TDP_CHANGED, 'gfn'),
  old: traceField(TDP_CHANGED, 'old_spte'),
  new: traceField(TDP_CHANGED, 'new_spte'),
  level: traceField(TDP_CHANGED, 'level'),
  asId: traceField(TDP_CHANGED, 'as_id'),
};
const FASTER = {
  vcpu: traceField(FAST, 'vcpu_id'),
  address: traceField(FAST, 'cr2_or_gpa'),
  old: traceField(FAST, 'old_spte'),
  new: traceField(FAST, 'new_spte'),
  fixed: traceField(FAST, 'fixed'),
};

/** Changes that wait for the machine that they belong to. */
const PENDING_MOST = 1024;

/** A table of a tree in which a change's entry is what it was before. */
interface Match {
  readonly root: InferredRoot;
  readonly table: InferredTable;
}

const isFrozen = ({ newLo }: Change): boolean => (newLo & 0xfff) === FROZEN_LO;
/** An empty entry of a table that is taken out: nothing was there. */
const isNothing = (change: Change): boolean => isFrozen(change) && change.oldLo === 0;

/** Whether a change is to what another one made: its entry, or an entry of its table. */
function isBelow(made: Change, { gfn, level, asId }: Change): boolean {
  if (made.asId !== asId) return false;
  if (made.level === level) return made.gfn === gfn;
  return leadsToTable(made.level, made.newLo) && placeKey(made.level - 1, made.gfn) === placeKey(level, gfn);
}

export function tdpChanged(state: State, at: number, pid: number): void {
  const { recording } = state;
  const gfn = recording.number(at, CHANGED.gfn);
  const level = recording.number(at, CHANGED.level);
  const asId = recording.number(at, CHANGED.asId);
  const oldLo = recording.lo(at, CHANGED.old);
  const oldHi = recording.hi(at, CHANGED.old);
  const newLo = recording.lo(at, CHANGED.new);
  const newHi = recording.hi(at, CHANGED.new);
  const change = { gfn, level, asId, oldLo, oldHi, newLo, newHi };
  const thread = threadOf(state, pid);
  thread.tdp = true;
  const machine = state.machines[thread.machine];
  if (machine) {
    if (state.waiting.size > 0 && !fits(machine, change)) decideByLink(state, machine, change);
    tell(state, machine, change, thread);
    return;
  }
  if (thread.candidates.length > 0) {
    narrow(state, pid, thread, change);
    return;
  }
  // Nobody knows the thread: it is of a machine in which this can happen. Where the machine's own threads are known, others'
  // events are its only when they change what is there: an empty place is everybody's.
  const isVcpu = thread.vcpu !== undefined || thread.loose.size > 0;
  if (!state.own || oldLo !== 0) {
    const fitting = state.machines.filter((each) => !hasOther(state, each, thread) && fits(each, change));
    if (fitting.length > 1 && isVcpu && oldLo === 0) {
      thread.candidates = fitting.map((each) => state.machines.indexOf(each));
      thread.pending.push(change);
      state.waiting.add(pid);
      return;
    }
    if (fitting.length > 0) {
      // Of what is not there, it is all the same who drops it.
      if (fitting.length > 1 && oldLo !== 0) for (const each of fitting) each.stale ||= WHOSE;
      else if (isVcpu) thread.machine = state.machines.indexOf(fitting[0]!);
      tell(state, fitting[0]!, change, thread);
      return;
    }
  }
  if (isNothing(change)) return;
  const claimed = claim(state, pid);
  if (claimed) tell(state, claimed, change, thread);
}

function tell(state: State, machine: Machine, change: Change, thread: Thread): void {
  // A machine that is known to have no second stage has no such changes: they are another's.
  if (state.given === 'shadow') return;
  machine.tdp = true;
  // Pages that looked like a shadow MMU's were those of a nested guest.
  if (machine.kind === 'shadow') restart(machine);
  if (isFrozen(change) && dropRemoved(machine, change)) return;
  makeChange(state, machine, change, thread, false);
}

function restart(machine: Machine): void {
  machine.kind = undefined;
  machine.stale ||= 'the recording begins after the tables were made';
  for (const list of [machine.roots, machine.dying]) list.length = 0;
  for (const map of [machine.tables, machine.byKey, machine.byFrame, machine.removed]) map.clear();
}

/** Whether an entry is in a machine as it was before a change. */
function fits(machine: Machine, change: Change): boolean {
  if (isFrozen(change) && removedOf(machine, change)) return true;
  return [machine.roots, machine.dying].some((roots) => matching(machine, roots, change).length > 0);
}

/** A thread whose changes fit several machines: one that has what it changes now is its own. */
function narrow(state: State, pid: number, thread: Thread, change: Change): void {
  const { machines, waiting } = state;
  thread.candidates = thread.candidates.filter((each) => !hasOther(state, machines[each]!, thread));
  const below = thread.pending.some((each) => isBelow(each, change));
  const fitting = below ? [] : thread.candidates.filter((each) => fits(machines[each]!, change));
  thread.pending.push(change);
  if (fitting.length === 1 || thread.candidates.length === 1) settle(state, pid, fitting[0] ?? thread.candidates[0]!);
  else if (thread.candidates.length === 0 || thread.pending.length > PENDING_MOST) {
    for (const each of thread.candidates) machines[each]!.stale ||= WHOSE;
    thread.candidates = [];
    thread.pending = [];
    waiting.delete(pid);
  }
}

/** An entry of a table that nobody has made but a thread that waits for its machine: now it is known. */
function decideByLink(state: State, machine: Machine, change: Change): void {
  const number = state.machines.indexOf(machine);
  for (const pid of state.waiting) {
    const { candidates, pending } = state.threads.get(pid)!;
    if (candidates.includes(number) && pending.some((each) => isBelow(each, change))) settle(state, pid, number);
  }
}

function settle(state: State, pid: number, number: number): void {
  const thread = threadOf(state, pid);
  const { pending } = thread;
  thread.machine = number;
  thread.candidates = [];
  thread.pending = [];
  state.waiting.delete(pid);
  for (const change of pending) tell(state, state.machines[number]!, change, thread);
}

/** A table that was taken out and has an entry that is emptied. */
function removedOf(machine: Machine, { gfn, level, oldLo, oldHi }: Change): RemovedTable | undefined {
  const index = indexOf(gfn, level);
  return machine.removed
    .get(placeKey(level, gfn))
    ?.find(({ id }) => same(machine, machine.tables.get(id)!, index, oldLo, oldHi));
}

/** An entry of a table that was taken out, as it is emptied. @returns whether there is such a table */
function dropRemoved(machine: Machine, change: Change): boolean {
  const removed = removedOf(machine, change);
  if (!removed) return false;
  const table = machine.tables.get(removed.id)!;
  const index = indexOf(change.gfn, change.level);
  const child = table.children.get(index);
  table.children.delete(index);
  if (table.entries[2 * index] !== 0) removed.left--;
  table.entries[2 * index] = 0;
  if (child !== undefined) remove(machine, machine.tables.get(child)!);
  if (removed.left === 0 || index === 511) forget(machine, removed, placeKey(table.level, table.gfn));
  return true;
}

function remove(machine: Machine, table: InferredTable): void {
  if (machine.byFrame.get(table.frame) === table.id) machine.byFrame.delete(table.frame);
  let left = 0;
  for (let index = 0; index < ENTRIES; index++) if (table.entries[2 * index] !== 0) left++;
  if (left === 0) {
    machine.tables.delete(table.id);
    return;
  }
  const key = placeKey(table.level, table.gfn);
  const there = machine.removed.get(key);
  const removed = { id: table.id, under: table.parent?.id ?? -1, left };
  if (there) there.push(removed);
  else machine.removed.set(key, [removed]);
  table.parent = undefined;
}

function forget(machine: Machine, removed: RemovedTable, key: string): void {
  const there = machine.removed.get(key)!;
  there.splice(there.indexOf(removed), 1);
  if (there.length === 0) machine.removed.delete(key);
  discard(machine, removed.id);
}

function same(machine: Machine, table: InferredTable, index: number, lo: number, hi: number): boolean {
  const silent = machine.kind ? silentBits(machine.kind) : 0;
  const known = table.entries[2 * index + 1]!;
  // What is frozen while its table is taken out is emptied without a word.
  if ((table.entries[2 * index]! & 0xfff) === FROZEN_LO && lo === 0) return true;
  // Of an entry that maps nothing bit 63 means nothing either.
  const mask = (lo & PRESENT) === 0 ? 0x7fff_ffff : -1;
  return ((table.entries[2 * index]! ^ lo) & ~silent) === 0 && ((known ^ hi) & mask) === 0;
}

/** Tables of trees in which a change's entry is what it was before. */
function matching(machine: Machine, roots: readonly InferredRoot[], change: Change): Match[] {
  const { gfn, level, asId, oldLo, oldHi } = change;
  const found: Match[] = [];
  for (const root of roots) {
    if (root.asId !== asId) continue;
    const table = tableAt(machine, root, level, gfn);
    if (table && same(machine, table, indexOf(gfn, level), oldLo, oldHi)) found.push({ root, table });
  }
  return found;
}

/** Makes a change in the tree that it fits; with `only`, not at all where it fits none. */
function makeChange(state: State, machine: Machine, change: Change, thread: Thread, only: boolean): boolean {
  const { gfn, level, asId, oldLo, oldHi, newLo, newHi } = change;
  const index = indexOf(gfn, level);
  // A tree that was given up is only taken down, and not by whoever handles a fault.
  const isRemoval = (newLo & PRESENT) === 0 && oldLo !== 0;
  const fitting = matching(machine, machine.roots, change);
  if (fitting.length === 0 || (isRemoval && !thread.handling))
    fitting.unshift(...matching(machine, machine.dying, change));
  let table = fitting[0]?.table;
  if (!table) {
    if (only) return false;
    if (isNothing(change)) return true;
    const root = machine.roots.find((each) => each.asId === asId);
    table = makeWay(state, machine, root, change);
    // A table that nobody saw before says nothing of what its entries were.
    if (!same(machine, table, index, oldLo, oldHi) && table.roleKnown !== 0) machine.mismatches++;
  }
  const { root } = fitting[0] ?? {};
  if (root?.guessed && root.invalid && !isRemoval) revive(machine);
  // Nobody else takes tables out.
  if (root?.guessed && isRemoval && leadsToTable(level, oldLo)) confirm(machine);
  machine.kind ??= state.isa ?? secondStageOf(newLo, newHi) ?? secondStageOf(oldLo, oldHi);
  if (oldLo === 0) machine.emptyHi = oldHi;
  table.entries[2 * index] = newLo;
  table.entries[2 * index + 1] = newHi;
  table.doubtful.delete(index);
  if (fitting.length > 1) for (const each of fitting) each.table.doubtful.set(index, 'stale');
  const before = table.children.get(index);
  if (before !== undefined) {
    table.children.delete(index);
    remove(machine, machine.tables.get(before)!);
  }
  if (leadsToTable(level, newLo)) link(state, machine, table, index, change, thread);
  if (!isRemoval && thread.handling) {
    thread.asId = asId;
    const span = 512 ** (level - 1);
    if (isLeaf(level, newLo) && Math.floor(gfn / span) === Math.floor((thread.fault ?? -1) / span))
      thread.handling = false;
  }
  if (root?.invalid && table.id === root.table && isEmpty(table)) {
    machine.dying.splice(machine.dying.indexOf(root), 1);
    discard(machine, root.table);
  }
  return true;
}

function link(
  state: State,
  machine: Machine,
  parent: InferredTable,
  index: number,
  change: Change,
  thread: Thread,
): void {
  const { gfn, oldLo, oldHi, newLo, newHi } = change;
  const level = parent.level - 1;
  const first = gfn - (gfn % 512 ** level);
  const child = addTable(state, machine, { level, gfn: first, frame: frameOf(newLo, newHi) });
  const made = thread.loose.get(placeKey(level, first));
  child.role = made?.role ?? (parent.role & ~15) | level;
  child.roleKnown = made?.roleKnown ?? 0xf;
  thread.loose.delete(placeKey(level, first));
  if (isLeaf(parent.level, oldLo)) fillSplit(child, oldLo, oldHi, machine.kind!);
  child.parent = { id: parent.id, index };
  parent.children.set(index, child.id);
  // Nothing more comes of what was there before.
  const key = placeKey(level, first);
  for (const removed of machine.removed.get(key)?.filter(({ under }) => under === parent.id) ?? [])
    forget(machine, removed, key);
}

/** The table of a level that translates a gfn, made where it is missing: the recording began later, or lost something. */
function makeWay(
  state: State,
  machine: Machine,
  known: InferredRoot | undefined,
  { gfn, level, asId }: Change,
): InferredTable {
  let root = known;
  if (!root) {
    const top = addTable(state, machine, { level: Math.max(level, 4), gfn: 0 });
    root = { table: top.id, asId, threads: new Set(), invalid: false, guessed: false };
    machine.roots.push(root);
    machine.hadRoot = true;
    // The first entry of a tree's root is told like any other.
    if (level < top.level) machine.stale ||= 'the recording begins after the tables were made';
  }
  let table = machine.tables.get(root.table)!;
  while (table.level > level) {
    const index = indexOf(gfn, table.level);
    const next = table.children.get(index);
    if (next !== undefined) {
      table = machine.tables.get(next)!;
      continue;
    }
    machine.stale ||=
      'an event is about a table that no event has told of: the recording begins later, or has lost events';
    const child = addTable(state, machine, { level: table.level - 1, gfn: gfn - (gfn % 512 ** (table.level - 1)) });
    child.parent = { id: table.id, index };
    table.children.set(index, child.id);
    writeLink(table, index, child);
    table.doubtful.set(index, 'unknown');
    table = child;
  }
  return table;
}

export function fastPageFault(state: State, at: number, pid: number): void {
  const { recording } = state;
  const machine = ownerOf(state, pid);
  if (recording.known(at, FASTER.vcpu)) threadOf(state, pid).vcpu = recording.number(at, FASTER.vcpu);
  if (!machine || machine.kind === 'shadow' || !recording.known(at, FASTER.new)) return;
  const [oldLo, oldHi] = [recording.lo(at, FASTER.old), recording.hi(at, FASTER.old)];
  const [newLo, newHi] = [recording.lo(at, FASTER.new), recording.hi(at, FASTER.new)];
  // What changed nothing is told too, with a new value that means nothing.
  const fixed = recording.known(at, FASTER.fixed) ? recording.number(at, FASTER.fixed) !== 0 : isLeaf(1, newLo);
  if (!fixed || (oldLo === newLo && oldHi === newHi)) return;
  const gfn = pageOf(recording, at, FASTER.address);
  if (gfn === undefined) return;
  const thread = threadOf(state, pid);
  for (let level = 1; level <= 3; level++)
    if (makeChange(state, machine, { gfn, level, asId: 0, oldLo, oldHi, newLo, newHi }, thread, true)) return;
  machine.mismatches++;
}
