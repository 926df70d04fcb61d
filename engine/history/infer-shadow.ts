import { roleField } from '../kernel/role.ts';
import { confirm, descend, discard, isTwoStage, type Machine, revive, tableAt } from './infer-machine.ts';
import {
  type InferredTable,
  indexOf,
  isTold,
  leavesOf,
  placeKey,
  secondStageOf,
  writeLink,
  writePointer,
} from './infer-pages.ts';
import { addTable, claim, hasOther, ownerOf, type State, type Thread, threadOf, WHOSE } from './infer-state.ts';
import { traceField, traceKind } from './tracepoints.ts';

// Shadow pages, whether of a guest's tables or of a second stage without the TDP MMU, are told as they are looked up, and their
// entries as they are mapped; what leads from one page to another is not.

export const GET_PAGE = traceKind('kvm_mmu_get_page');
export const ZAP_PAGE = traceKind('kvm_mmu_prepare_zap_page');
export const UNSYNC = traceKind('kvm_mmu_unsync_page');
export const SYNC = traceKind('kvm_mmu_sync_page');
export const SET_SPTE = traceKind('kvm_mmu_set_spte');

const PAGE = {
  gfn: traceField(GET_PAGE, 'gfn'),
  role: traceField(GET_PAGE, 'role'),
  created: traceField(GET_PAGE, 'created'),
};
const SPTE = {
  gfn: traceField(SET_SPTE, 'gfn'),
  spte: traceField(SET_SPTE, 'spte'),
  sptep: traceField(SET_SPTE, 'sptep'),
  level: traceField(SET_SPTE, 'level'),
};

/** A role's bits without `invalid`, which a root gets when it is given up. */
const SAME_ROLE = ~(1 << 11);

const pageKey = (gfn: number, role: number): string => `${gfn} ${role & SAME_ROLE}`;

export function getPage(state: State, at: number, pid: number): void {
  const { recording } = state;
  const role = recording.lo(at, PAGE.role);
  const { roleKnown } = recording.shape(at);
  const gfn = recording.number(at, PAGE.gfn);
  const level = roleField(role, 'level');
  const thread = threadOf(state, pid);
  const created = recording.number(at, PAGE.created) !== 0;
  const known = state.machines[thread.machine];
  // The TDP MMU's pages are direct, and hang where a later event says; its roots hang nowhere. A guest without paging has direct
  // shadow pages too: those are looked up again.
  if ((known?.kind ?? state.given) !== 'shadow' && roleField(role, 'direct') !== 0) {
    // Below a root of five levels there is a table of level 4 and gfn 0 too.
    const isTop = level >= 4 && gfn === 0 && !(known && hasRoot(known, role, level + 1));
    // Another vCPU may be the first to need a new root.
    if (thread.machine < 0 && isTop) {
      const waiting = state.machines.filter(
        (each) => each.hadRoot && each.roots.length === 0 && !hasOther(state, each, thread),
      );
      if (waiting.length > 1) for (const each of waiting) each.stale ||= WHOSE;
      if (waiting.length > 0) thread.machine = state.machines.indexOf(waiting[0]!);
    }
    const machine = isTop ? claim(state, pid) : known;
    if (machine && isTop && created && !hasRoot(machine, role, level)) {
      const root = addTable(state, machine, { level, gfn: 0 });
      root.role = role;
      root.roleKnown = roleKnown;
      machine.hadRoot = true;
      confirm(machine);
      machine.roots.push({
        table: root.id,
        asId: roleField(role, 'smm') ? 1 : 0,
        threads: new Set(),
        invalid: false,
        guessed: false,
      });
    } else thread.loose.set(placeKey(level, gfn), { role, roleKnown });
    withoutPaging(state, thread, pid, { level, gfn, role, roleKnown });
    return;
  }
  // A second stage stays one: what shadows a nested guest's tables is not of its own.
  if (known ? isTwoStage(known) : thread.tdp || thread.loose.size > 0) return;
  const machine = claim(state, pid);
  if (!machine) return;
  machine.kind = 'shadow';
  const key = pageKey(gfn, role);
  let table = machine.tables.get(machine.byKey.get(key) ?? -1);
  if (!table || created) {
    if (table) dropPage(machine, table, key);
    table = addTable(state, machine, { level, gfn });
    table.role = role;
    table.roleKnown = roleKnown;
    machine.byKey.set(key, table.id);
  }
  hang(state, machine, thread, table, pid);
}

/** Four page directories in a row, which map the first 4G to themselves, are those of a guest without paging: a second stage has no such. */
function withoutPaging(
  state: State,
  thread: Thread,
  pid: number,
  { level, gfn, role, roleKnown }: { level: number; gfn: number; role: number; roleKnown: number },
): void {
  const { directories } = thread;
  const follows = level === 2 && gfn === directories.length * 2 ** 18 && !thread.tdp && !state.given;
  if (!follows) directories.length = 0;
  else directories.push(role);
  if (directories.length < 4) return;
  const roles = directories.splice(0);
  const machine = claim(state, pid);
  if (!machine || isTwoStage(machine)) return;
  machine.kind = 'shadow';
  roles.forEach((each, index) => {
    const table = addTable(state, machine, { level: 2, gfn: index * 2 ** 18 });
    table.role = each;
    table.roleKnown = roleKnown;
    machine.byKey.set(pageKey(table.gfn, each), table.id);
    loadDirectory(state, machine, thread, table, pid);
  });
  thread.loose.clear();
}

const LEVEL = 15;

function hasRoot(machine: Machine, role: number, level: number): boolean {
  return machine.roots.some((root) => {
    const table = machine.tables.get(root.table);
    return table?.level === level && ((table.role ^ role) & SAME_ROLE & ~LEVEL) === 0;
  });
}

/** A shadow page that a thread has looked up hangs below the one before it, at the index of the address that faulted. */
function hang(state: State, machine: Machine, thread: Thread, table: InferredTable, pid: number): void {
  if (isDirectory(machine, thread, table, pid)) {
    loadDirectory(state, machine, thread, table, pid);
    return;
  }
  thread.directories = [];
  const above = machine.tables.get(thread.path.at(-1) ?? -1);
  if (above?.level === table.level + 1) {
    thread.path.push(table.id);
    if (thread.fault !== undefined) hangAt(machine, above, indexOf(thread.fault, above.level), table);
    return;
  }
  thread.path = [table.id];
  const root = rootOf(machine, pid);
  // Nothing is above a page of the upper levels that is looked up first, unless a fault goes on below a root.
  const isRoot = table.level >= 4 && !(thread.handling && root && root.level > table.level);
  if (isRoot) load(machine, table, pid);
  else resume(state, machine, thread, table, pid, root);
}

function rootOf(machine: Machine, pid: number): InferredTable | undefined {
  const root = machine.roots.findLast(({ threads, invalid }) => !invalid && threads.has(pid));
  return root && machine.tables.get(root.table);
}

/** Guests of 32 bits, with PAE or without paging have no root of one page: KVM makes one of up to four page directories. */
function isDirectory(machine: Machine, thread: Thread, table: InferredTable, pid: number): boolean {
  if (table.level !== 2) return false;
  if (roleField(table.role, 'has_4_byte_gpte') !== 0) return true;
  // A guest that is reset turns paging off.
  if (!thread.handling && roleField(table.role, 'direct') !== 0 && table.gfn % 2 ** 18 === 0) return true;
  const root = rootOf(machine, pid);
  if (root) return root.level === 3;
  return !thread.handling && machine.tables.get(thread.path.at(-1) ?? -1)?.level !== 3;
}

function loadDirectory(state: State, machine: Machine, thread: Thread, table: InferredTable, pid: number): void {
  const { directories } = thread;
  const place = roleField(table.role, 'has_4_byte_gpte')
    ? roleField(table.role, 'quadrant')
    : roleField(table.role, 'direct')
      ? Math.floor(table.gfn / 2 ** 18) % 4
      : undefined;
  let top = rootOf(machine, pid);
  const isNext = directories.length < 4 && (place === undefined || place >= directories.length);
  if (directories.length === 0 || !isNext || top?.level !== 3) {
    directories.length = 0;
    top = addTable(state, machine, { level: 3, gfn: table.gfn });
    top.roleKnown = 0xf;
    load(machine, top, pid);
  }
  // Where its pages cannot say it, their order does.
  const index = place ?? directories.length;
  directories.push(table.id);
  thread.path = [table.id];
  top.children.set(index, table.id);
  writePointer(top, index, table);
  // Of a guest with PAE, which of its directories are absent is told only when none is.
  for (const each of top.children.keys())
    top.doubtful.set(each, place === undefined && directories.length < 4 ? 'stale' : 'inferred');
}

function hangAt(machine: Machine, above: InferredTable, index: number, table: InferredTable): void {
  const before = above.children.get(index);
  if (before === table.id) return;
  if (before !== undefined) {
    const other = machine.tables.get(before);
    if (other) other.parent = undefined;
  }
  table.parent = { id: above.id, index };
  above.children.set(index, table.id);
  writeLink(above, index, table);
  above.doubtful.set(index, 'inferred');
}

/** A fault looks up only what is missing below its vCPU's root, and that is not traced again. */
function resume(
  state: State,
  machine: Machine,
  thread: Thread,
  table: InferredTable,
  pid: number,
  root: InferredTable | undefined,
): void {
  if (thread.fault === undefined) return;
  let above = root;
  if (!above && table.level >= 3) {
    machine.stale ||= 'the recording begins after roots were loaded';
    above = addTable(state, machine, { level: table.level + 1, gfn: -1 });
    load(machine, above, pid);
  }
  above = above && descend(machine, above, thread.fault, table.level + 1);
  if (above) hangAt(machine, above, indexOf(thread.fault, above.level), table);
}

function load(machine: Machine, table: InferredTable, pid: number): void {
  for (const root of machine.roots) if (root.table !== table.id) root.threads.delete(pid);
  // The four entries above page directories are each vCPU's own, and written anew.
  for (const [index, root] of [...machine.roots.entries()].reverse()) {
    if (root.table === table.id || root.threads.size > 0 || machine.tables.get(root.table)?.level !== 3) continue;
    machine.roots.splice(index, 1);
    machine.tables.delete(root.table);
  }
  const known = machine.roots.find((root) => root.table === table.id);
  if (known?.guessed) revive(machine);
  if (known) known.threads.add(pid);
  else machine.roots.push({ table: table.id, asId: 0, threads: new Set([pid]), invalid: false, guessed: false });
}

export function setSpte(state: State, at: number, pid: number): void {
  const { recording } = state;
  // Nested guests aside, the TDP MMU tells of its entries otherwise.
  if (ownerOf(state, pid)?.tdp || threadOf(state, pid).tdp) return;
  const machine = claim(state, pid);
  if (!machine) return;
  if (isTwoStage(machine)) {
    setDirect(state, machine, at, pid);
    return;
  }
  machine.kind = 'shadow';
  threadOf(state, pid).handling = false;
  const level = recording.number(at, SPTE.level);
  const address = recording.value(at, SPTE.sptep);
  const frame = Number(address >> 12n);
  const index = Number((address & 0xfffn) >> 3n);
  let table = machine.tables.get(machine.byFrame.get(frame) ?? -1);
  if (!table || table.level !== level) {
    table = untoldAt(state, machine, pid, level) ?? addTable(state, machine, { level, gfn: -1 });
    if (table.gfn < 0) machine.stale ||= 'an entry was set in a table that no event has told of';
    toldFrame(machine, table, frame);
  }
  table.entries[2 * index] = recording.lo(at, SPTE.spte);
  table.entries[2 * index + 1] = recording.hi(at, SPTE.spte);
  table.doubtful.delete(index);
}

/** The shadow page that a thread maps something in, while its address is not known. */
function untoldAt(state: State, machine: Machine, pid: number, level: number): InferredTable | undefined {
  const { path, fault } = threadOf(state, pid);
  const last = path.map((id) => machine.tables.get(id)).findLast((each) => each?.level === level);
  if (last && !isTold(last)) return last;
  const root = rootOf(machine, pid);
  const table = root && fault !== undefined ? descend(machine, root, fault, level) : undefined;
  return table && !isTold(table) ? table : undefined;
}

function pageByKey(state: State, machine: Machine, at: number): InferredTable | undefined {
  const key = pageKey(state.recording.number(at, PAGE.gfn), state.recording.lo(at, PAGE.role));
  return machine.tables.get(machine.byKey.get(key) ?? -1);
}

/** An entry of a second stage that KVM keeps in shadow pages: by its gfn, since those pages are direct. */
function setDirect(state: State, machine: Machine, at: number, pid: number): void {
  const { recording } = state;
  const thread = threadOf(state, pid);
  const gfn = recording.number(at, SPTE.gfn);
  const level = recording.number(at, SPTE.level);
  const [lo, hi] = [recording.lo(at, SPTE.spte), recording.hi(at, SPTE.spte)];
  machine.direct = true;
  machine.kind ??= state.isa ?? secondStageOf(lo, hi);
  let root = machine.roots.find(({ asId }) => asId === thread.asId) ?? machine.roots[0];
  if (!root) {
    machine.stale ||= 'the recording begins after the tables were made';
    const top = addTable(state, machine, { level: 4, gfn: 0 });
    root = { table: top.id, asId: 0, threads: new Set(), invalid: false, guessed: false };
    machine.roots.push(root);
    machine.hadRoot = true;
  }
  let table = machine.tables.get(root.table)!;
  while (table.level > level) {
    const index = indexOf(gfn, table.level);
    const next = machine.tables.get(table.children.get(index) ?? -1);
    if (next) {
      table = next;
      continue;
    }
    const below = table.level - 1;
    const first = gfn - (gfn % 512 ** below);
    const made = thread.loose.get(placeKey(below, first));
    const child = addTable(state, machine, { level: below, gfn: first });
    child.role = made?.role ?? (table.role & ~15) | below;
    child.roleKnown = made?.roleKnown ?? 0xf;
    hangAt(machine, table, index, child);
    table = child;
  }
  const address = recording.value(at, SPTE.sptep);
  toldFrame(machine, table, Number(address >> 12n));
  const index = Number((address & 0xfffn) >> 3n);
  const before = table.children.get(index);
  if (before !== undefined) discard(machine, before);
  table.children.delete(index);
  table.entries[2 * index] = lo;
  table.entries[2 * index + 1] = hi;
  table.doubtful.delete(index);
}

/** A table's address is known from now on, and so is what leads to it. */
function toldFrame(machine: Machine, table: InferredTable, frame: number): void {
  if (table.frame === frame) return;
  table.frame = frame;
  machine.byFrame.set(frame, table.id);
  const above = table.parent && machine.tables.get(table.parent.id);
  if (above && table.parent) writeLink(above, table.parent.index, table);
  for (const [top, index] of pointersTo(machine, table)) writePointer(top, index, table);
}

export function syncPage(state: State, at: number, pid: number): void {
  const { recording } = state;
  const machine = ownerOf(state, pid);
  const table = machine && pageByKey(state, machine, at);
  if (!table) return;
  // What is synchronized is dropped or changed without a word.
  if (table.unsync) for (const index of leavesOf(table)) table.doubtful.set(index, 'stale');
  table.unsync = recording.kind(at) === UNSYNC;
}

export function zapPage(state: State, at: number, pid: number): void {
  const owner = ownerOf(state, pid);
  const { machines } = state;
  const found = (owner ? [owner] : machines).filter((each) => zappedPage(state, each, at));
  // Other machines have pages of the same gfn and role.
  if (!owner && (state.own || found.length > 1))
    for (const machine of found)
      machine.stale ||= 'a shadow page was zapped that is of this virtual machine or of another: events do not tell';
  const machine = owner ?? (found.length === 1 && (!state.own || found[0]!.zapper === pid) ? found[0] : undefined);
  const table = machine && zappedPage(state, machine, at);
  if (!table) return;
  const isRoot = machine.roots.some((root) => root.table === table.id);
  if (!machine.direct) dropPage(machine, table, pageKey(table.gfn, table.role));
  else if (!isRoot) dropDirect(machine, table);
}

/** The page that an event is about, of those that are looked up by gfn and role. */
function zappedPage(state: State, machine: Machine, at: number): InferredTable | undefined {
  if (machine.kind === 'shadow') return pageByKey(state, machine, at);
  const gfn = state.recording.number(at, PAGE.gfn);
  const role = state.recording.lo(at, PAGE.role);
  if (!machine.direct || roleField(role, 'direct') === 0) return undefined;
  const asId = roleField(role, 'smm') ? 1 : 0;
  for (const root of [...machine.dying, ...machine.roots]) {
    const table = root.asId === asId ? tableAt(machine, root, roleField(role, 'level'), gfn) : undefined;
    if (table) return table;
  }
  return undefined;
}

function dropDirect(machine: Machine, table: InferredTable): void {
  const above = table.parent && machine.tables.get(table.parent.id);
  if (above && table.parent) {
    above.children.delete(table.parent.index);
    above.entries.fill(0, 2 * table.parent.index, 2 * table.parent.index + 2);
  }
  const dying = machine.dying.findIndex((root) => root.table === table.id);
  if (dying >= 0) machine.dying.splice(dying, 1);
  discard(machine, table.id);
}

function dropPage(machine: Machine, table: InferredTable, key: string): void {
  const above = table.parent && machine.tables.get(table.parent.id);
  if (above && table.parent) {
    above.children.delete(table.parent.index);
    above.entries[2 * table.parent.index] = 0;
    above.entries[2 * table.parent.index + 1] = 0;
  }
  for (const id of table.children.values()) {
    const child = machine.tables.get(id);
    if (child) child.parent = undefined;
  }
  for (const [top, index] of pointersTo(machine, table)) {
    top.children.delete(index);
    top.entries.fill(0, 2 * index, 2 * index + 2);
  }
  machine.tables.delete(table.id);
  machine.byKey.delete(key);
  if (machine.byFrame.get(table.frame) === table.id) machine.byFrame.delete(table.frame);
  const root = machine.roots.findIndex((each) => each.table === table.id);
  if (root >= 0) machine.roots.splice(root, 1);
}

/** Entries of roots that KVM has made of page directories, and that lead to one. */
function pointersTo(machine: Machine, { id, level }: InferredTable): [InferredTable, number][] {
  if (level !== 2 || machine.kind !== 'shadow') return [];
  return machine.roots.flatMap(({ table }) => {
    const top = machine.tables.get(table);
    if (top?.level !== 3) return [];
    return [...top.children]
      .filter(([, child]) => child === id)
      .map(([index]): [InferredTable, number] => [top, index]);
  });
}
