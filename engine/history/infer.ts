import { roleField } from '../kernel/role.ts';
import type { KvmRoot, KvmTable, KvmTables, SecondStageKind } from '../kernel/tables.ts';
import {
  copyTable,
  FROZEN_LO,
  fillSplit,
  frameOf,
  type InferredRoot,
  type InferredTable,
  isLeaf,
  isTold,
  leadsToTable,
  newTable,
  PRESENT,
  secondStageOf,
  silentBits,
} from './infer-pages.ts';
import type { Recording } from './recording.ts';
import { traceField, traceKind } from './tracepoints.ts';

// What KVM's tracepoints tell of the tables that it builds, and what follows from that. Not traced are the pieces of a split
// page, accessed and dirty bits, links and drops of shadow entries, and where roots are; what is missing is said.

const GET_PAGE = traceKind('kvm_mmu_get_page');
const ZAP_PAGE = traceKind('kvm_mmu_prepare_zap_page');
const UNSYNC = traceKind('kvm_mmu_unsync_page');
const SYNC = traceKind('kvm_mmu_sync_page');
const ZAP_ALL = traceKind('kvm_mmu_zap_all_fast');
const SET_SPTE = traceKind('kvm_mmu_set_spte');
const TDP_CHANGED = traceKind('kvm_tdp_mmu_spte_changed');
const FAST = traceKind('fast_page_fault');
const PAGE_FAULT = traceKind('kvm_page_fault');
const WALK = traceKind('kvm_mmu_pagetable_walk');
const ENTRY = traceKind('kvm_entry');
const EXIT = traceKind('kvm_exit');
const UNMAP = traceKind('kvm_unmap_hva_range');

const PAGE = {
  gfn: traceField(GET_PAGE, 'gfn'),
  role: traceField(GET_PAGE, 'role'),
  created: traceField(GET_PAGE, 'created'),
};
const SPTE = {
  spte: traceField(SET_SPTE, 'spte'),
  sptep: traceField(SET_SPTE, 'sptep'),
  level: traceField(SET_SPTE, 'level'),
};
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
const FAULT = { vcpu: traceField(PAGE_FAULT, 'vcpu_id'), address: traceField(PAGE_FAULT, 'fault_address') };
const WALKED = { address: traceField(WALK, 'addr') };
const VCPU = { entry: traceField(ENTRY, 'vcpu_id'), exit: traceField(EXIT, 'vcpu_id') };

/** A role's bits without `invalid`, which a root gets when it is given up. */
const SAME_ROLE = ~(1 << 11);

/** What a thread is in the middle of. */
interface Thread {
  machine: number;
  /** The address that it faulted at last, in words of frames; undefined where none was told. */
  fault: number | undefined;
  /** Ids of the shadow pages that it has looked up since, from the root down; of the TDP MMU, of those it has made. */
  path: number[];
  /** Pages that it has made for the TDP MMU, by their place, and that hang nowhere yet. */
  readonly loose: Map<string, { readonly role: number; readonly roleKnown: number }>;
  vcpu: number | undefined;
}

/** A virtual machine, as far as its events can be told from others'. */
interface Machine {
  kind: SecondStageKind | undefined;
  readonly tables: Map<number, InferredTable>;
  /** Shadow pages by gfn and role; tables by frame. */
  readonly byKey: Map<string, number>;
  readonly byFrame: Map<number, number>;
  readonly roots: InferredRoot[];
  /** Tables of the TDP MMU that were taken out: events of their entries come after that. */
  readonly removed: Map<string, number[]>;
  /** The upper word of an entry that maps nothing: newer kernels set bit 63. */
  emptyHi: number;
  /** Events whose entry was not what it should have been: others are missing. */
  mismatches: number;
  /** Why the tables cannot be trusted; empty while they can. */
  stale: string;
}

interface State {
  readonly machines: Machine[];
  readonly threads: Map<number, Thread>;
  nextId: number;
}

/** Events between two moments that are kept for going back. */
const CHECKPOINT = 1 << 18;

export interface InferredMachine {
  /** Its number in the recording, and the threads that run or change it. */
  readonly number: number;
  readonly threads: readonly { readonly thread: number; readonly vcpu: number | undefined }[];
  /** Entries that the tables would have if nothing was missed, that events contradict. */
  readonly mismatches: number;
  readonly tables: KvmTables;
}

/** A recording's tables, at any of its moments. */
export class Inference {
  readonly #recording: Recording;
  /** Threads of the machine that is asked about, with their vCPUs; without them machines are told apart by their events. */
  readonly #own: ReadonlyMap<number, number> | undefined;
  readonly #given: SecondStageKind | undefined;
  readonly #kept: { readonly at: number; readonly state: State }[] = [];
  #state: State;
  #at = 0;

  constructor(recording: Recording, own?: ReadonlyMap<number, number>, kind?: SecondStageKind) {
    this.#recording = recording;
    this.#own = own;
    this.#given = kind;
    this.#state = this.#begin();
  }

  #begin(): State {
    const state: State = { machines: [], threads: new Map(), nextId: 1 };
    if (this.#own) {
      state.machines.push(newMachine(this.#given));
      for (const [thread, vcpu] of this.#own) state.threads.set(thread, { ...newThread(), machine: 0, vcpu });
    }
    return state;
  }

  /** Events that are told of, so far. */
  get position(): number {
    return this.#at;
  }

  /** Goes to the moment before event `index`, forwards or back. */
  goTo(index: number): void {
    const to = Math.min(index, this.#recording.length);
    if (to < this.#at) {
      while (this.#kept.length > 0 && this.#kept.at(-1)!.at > to) this.#kept.pop();
      const kept = this.#kept.at(-1);
      this.#state = kept ? copyState(kept.state) : this.#begin();
      this.#at = kept?.at ?? 0;
    }
    for (; this.#at < to; this.#at++) {
      const last = this.#kept.at(-1)?.at ?? 0;
      if (this.#at - last >= CHECKPOINT) this.#kept.push({ at: this.#at, state: copyState(this.#state) });
      this.#apply(this.#at);
    }
  }

  /** Events from `index` on have changed, since a recording that grows has sorted late ones in. */
  forget(index: number): void {
    if (index >= this.#at) return;
    while (this.#kept.length > 0 && this.#kept.at(-1)!.at > index) this.#kept.pop();
    this.goTo(Math.min(index, this.#at));
  }

  /** Every machine that events have told of up to here. */
  machines(): InferredMachine[] {
    return this.#state.machines.map((machine, number) => ({
      number,
      threads: [...this.#state.threads]
        .filter(([, thread]) => thread.machine === number)
        .map(([thread, { vcpu }]) => ({ thread, vcpu })),
      mismatches: machine.mismatches,
      tables: this.#tables(machine, number),
    }));
  }

  // ---- events

  #apply(at: number): void {
    const recording = this.#recording;
    const pid = recording.pid(at);
    switch (recording.kind(at)) {
      case TDP_CHANGED:
        this.#tdpChanged(at, pid);
        break;
      case GET_PAGE:
        this.#getPage(at, pid);
        break;
      case SET_SPTE:
        this.#setSpte(at, pid);
        break;
      case ZAP_PAGE:
        this.#zapPage(at, pid);
        break;
      case FAST:
        this.#fast(at, pid);
        break;
      case PAGE_FAULT: {
        const thread = this.#thread(pid);
        thread.fault = pageOf(recording, at, FAULT.address);
        thread.path = [];
        if (recording.known(at, FAULT.vcpu)) thread.vcpu = recording.number(at, FAULT.vcpu);
        break;
      }
      case WALK: {
        const thread = this.#thread(pid);
        thread.fault = pageOf(recording, at, WALKED.address);
        thread.path = [];
        break;
      }
      case ENTRY:
      case EXIT: {
        const field = recording.kind(at) === ENTRY ? VCPU.entry : VCPU.exit;
        if (recording.known(at, field)) this.#thread(pid).vcpu = recording.number(at, field);
        break;
      }
      case UNSYNC:
      case SYNC: {
        const machine = this.#ownerOf(pid);
        const table = machine && this.#byKey(machine, at);
        if (table) table.unsync = recording.kind(at) === UNSYNC;
        // What is synchronized is dropped or changed without a word.
        if (machine && table && recording.kind(at) === SYNC)
          machine.stale ||=
            'a shadow page was synchronized with the guest’s table: what became of its entries is not traced';
        break;
      }
      case ZAP_ALL: {
        const machine = this.#ownerOf(pid);
        for (const root of machine?.roots ?? []) root.invalid = true;
        break;
      }
      case UNMAP: {
        const machine = this.#ownerOf(pid);
        if (machine?.kind === 'shadow')
          machine.stale ||= 'the host took memory back (MMU notifier): which shadow entries were dropped is not traced';
        break;
      }
    }
  }

  #thread(pid: number): Thread {
    let thread = this.#state.threads.get(pid);
    if (!thread) {
      thread = newThread();
      this.#state.threads.set(pid, thread);
    }
    return thread;
  }

  #ownerOf(pid: number): Machine | undefined {
    const thread = this.#state.threads.get(pid);
    return thread && this.#state.machines[thread.machine];
  }

  /** The machine of a thread that makes something new: where none is known, it is another machine's. */
  #claim(pid: number): Machine | undefined {
    const thread = this.#thread(pid);
    // Where the machine's own threads are known, nobody else makes tables for it.
    if (thread.machine < 0 && this.#own) return undefined;
    if (thread.machine < 0) {
      thread.machine = this.#state.machines.length;
      this.#state.machines.push(newMachine(this.#given));
    }
    return this.#state.machines[thread.machine];
  }

  #add(machine: Machine, shape: { level: number; gfn: number; frame?: number }): InferredTable {
    const table = newTable(this.#state.nextId++, shape, machine.emptyHi);
    machine.tables.set(table.id, table);
    if (isTold(table)) machine.byFrame.set(table.frame, table.id);
    return table;
  }

  // ---- the TDP MMU

  #tdpChanged(at: number, pid: number): void {
    const recording = this.#recording;
    const gfn = recording.number(at, CHANGED.gfn);
    const level = recording.number(at, CHANGED.level);
    const asId = recording.number(at, CHANGED.asId);
    const oldLo = recording.lo(at, CHANGED.old);
    const oldHi = recording.hi(at, CHANGED.old);
    const newLo = recording.lo(at, CHANGED.new);
    const newHi = recording.hi(at, CHANGED.new);
    const change = { gfn, level, asId, oldLo, oldHi, newLo, newHi };
    const thread = this.#thread(pid);
    const machine = this.#state.machines[thread.machine];
    const frozen = (newLo & 0xfff) === FROZEN_LO;
    const tells = (of: Machine): boolean =>
      (frozen && this.#dropRemoved(of, change)) || this.#change(of, change, thread, true);
    if (machine) {
      if (!tells(machine)) this.#change(machine, change, thread, false);
      return;
    }
    // Nobody knows the thread: it is of a machine in which this can happen. Where the machine's own threads are known, others'
    // events are its only when they change what is there: an empty place is everybody's.
    if (!this.#own || oldLo !== 0) {
      const found = this.#state.machines.findIndex((each) => !this.#hasOther(each, thread) && tells(each));
      if (found >= 0) {
        if (thread.vcpu !== undefined || thread.loose.size > 0) thread.machine = found;
        return;
      }
    }
    const claimed = this.#claim(pid);
    if (claimed) this.#change(claimed, change, thread, false);
  }

  /** Whether a machine has another thread for the same vCPU. */
  #hasOther(machine: Machine, { vcpu }: Thread): boolean {
    if (vcpu === undefined) return false;
    const number = this.#state.machines.indexOf(machine);
    return [...this.#state.threads.values()].some((each) => each.machine === number && each.vcpu === vcpu);
  }

  /** An entry of a table that was taken out, as it is emptied. @returns whether there is such a table */
  #dropRemoved(machine: Machine, { gfn, level, oldLo, oldHi }: Change): boolean {
    const key = placeKey(level, gfn);
    for (const id of machine.removed.get(key) ?? []) {
      const table = machine.tables.get(id)!;
      const index = indexOf(gfn, level);
      if (!this.#same(machine, table, index, oldLo, oldHi)) continue;
      const child = table.children.get(index);
      table.children.delete(index);
      if (child !== undefined) this.#remove(machine, machine.tables.get(child)!);
      // The last entry of a table that is emptied ends it.
      if (index === 511) this.#forget(machine, table, key);
      return true;
    }
    return false;
  }

  #remove(machine: Machine, table: InferredTable): void {
    const key = placeKey(table.level, table.gfn);
    machine.removed.set(key, [...(machine.removed.get(key) ?? []), table.id]);
    if (machine.byFrame.get(table.frame) === table.id) machine.byFrame.delete(table.frame);
    table.parent = undefined;
  }

  #forget(machine: Machine, table: InferredTable, key: string): void {
    const left = (machine.removed.get(key) ?? []).filter((id) => id !== table.id);
    if (left.length > 0) machine.removed.set(key, left);
    else machine.removed.delete(key);
    machine.tables.delete(table.id);
  }

  #same(machine: Machine, table: InferredTable, index: number, lo: number, hi: number): boolean {
    const silent = machine.kind ? silentBits(machine.kind) : 0;
    const known = table.entries[2 * index + 1]!;
    // Of an entry that maps nothing bit 63 means nothing either.
    const mask = (lo & PRESENT) === 0 ? 0x7fff_ffff : -1;
    return ((table.entries[2 * index]! ^ lo) & ~silent) === 0 && ((known ^ hi) & mask) === 0;
  }

  /** Makes a change in the tree that it fits; with `only`, not at all where it fits none. */
  #change(machine: Machine, change: Change, thread: Thread, only: boolean): boolean {
    const { gfn, level, asId, oldLo, oldHi, newLo, newHi } = change;
    const index = indexOf(gfn, level);
    const roots = machine.roots
      .filter((root) => root.asId === asId)
      // A tree that was given up is only taken down.
      .sort((a, b) => Number(a.invalid) - Number(b.invalid));
    let found = roots
      .map((root) => this.#tableAt(machine, root, level, gfn))
      .find((table) => table && this.#same(machine, table, index, oldLo, oldHi));
    if (!found) {
      if (only) return false;
      found = this.#makeWay(
        machine,
        roots.find(({ invalid }) => !invalid),
        change,
      );
      // A table that nobody saw before says nothing of what its entries were.
      if (!this.#same(machine, found, index, oldLo, oldHi) && found.roleKnown !== 0) machine.mismatches++;
    }
    machine.kind ??= secondStageOf(newLo | oldLo);
    if (oldLo === 0) machine.emptyHi = oldHi;
    found.entries[2 * index] = newLo;
    found.entries[2 * index + 1] = newHi;
    found.doubtful.delete(index);
    const before = found.children.get(index);
    if (before !== undefined) {
      found.children.delete(index);
      this.#remove(machine, machine.tables.get(before)!);
    }
    if (leadsToTable(level, newLo)) this.#link(machine, found, index, change, thread);
    return true;
  }

  #link(machine: Machine, parent: InferredTable, index: number, change: Change, thread: Thread): void {
    const { gfn, oldLo, oldHi, newLo, newHi } = change;
    const level = parent.level - 1;
    const first = gfn - (gfn % 512 ** level);
    const child = this.#add(machine, { level, gfn: first, frame: frameOf(newLo, newHi) });
    const made = thread.loose.get(placeKey(level, first));
    child.role = made?.role ?? (parent.role & ~15) | level;
    child.roleKnown = made?.roleKnown ?? 0xf;
    thread.loose.delete(placeKey(level, first));
    if (isLeaf(parent.level, oldLo)) fillSplit(child, oldLo, oldHi);
    child.parent = { id: parent.id, index };
    parent.children.set(index, child.id);
  }

  /** The table of a level that translates a gfn, if the way there is known. */
  #tableAt(machine: Machine, root: InferredRoot, level: number, gfn: number): InferredTable | undefined {
    let table = machine.tables.get(root.table);
    while (table && table.level > level) {
      const next: number | undefined = table.children.get(indexOf(gfn, table.level));
      table = next === undefined ? undefined : machine.tables.get(next);
    }
    return table?.level === level ? table : undefined;
  }

  /** The same, made where it is missing: the recording began later, or lost something. */
  #makeWay(machine: Machine, known: InferredRoot | undefined, { gfn, level, asId }: Change): InferredTable {
    let root = known;
    if (!root) {
      const top = this.#add(machine, { level: Math.max(level, 4), gfn: 0 });
      root = { table: top.id, asId, threads: new Set(), invalid: false };
      machine.roots.push(root);
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
      const child = this.#add(machine, { level: table.level - 1, gfn: gfn - (gfn % 512 ** (table.level - 1)) });
      child.parent = { id: table.id, index };
      table.children.set(index, child.id);
      writeLink(table, index, child);
      table.doubtful.set(index, 'unknown');
      table = child;
    }
    return table;
  }

  #fast(at: number, pid: number): void {
    const recording = this.#recording;
    const machine = this.#ownerOf(pid);
    if (recording.known(at, FASTER.vcpu)) this.#thread(pid).vcpu = recording.number(at, FASTER.vcpu);
    if (!machine || machine.kind === 'shadow' || !recording.known(at, FASTER.new)) return;
    const [oldLo, oldHi] = [recording.lo(at, FASTER.old), recording.hi(at, FASTER.old)];
    const [newLo, newHi] = [recording.lo(at, FASTER.new), recording.hi(at, FASTER.new)];
    // What changed nothing is told too, with a new value that means nothing.
    const fixed = recording.known(at, FASTER.fixed) ? recording.number(at, FASTER.fixed) !== 0 : isLeaf(1, newLo);
    if (!fixed || (oldLo === newLo && oldHi === newHi)) return;
    const gfn = pageOf(recording, at, FASTER.address);
    if (gfn === undefined) return;
    const thread = this.#thread(pid);
    for (let level = 1; level <= 3; level++)
      if (this.#change(machine, { gfn, level, asId: 0, oldLo, oldHi, newLo, newHi }, thread, true)) return;
    machine.mismatches++;
  }

  // ---- shadow pages

  #getPage(at: number, pid: number): void {
    const recording = this.#recording;
    const role = recording.lo(at, PAGE.role);
    const { roleKnown } = recording.shape(at);
    const gfn = recording.number(at, PAGE.gfn);
    const level = roleField(role, 'level');
    const thread = this.#thread(pid);
    const created = recording.number(at, PAGE.created) !== 0;
    const known = this.#state.machines[thread.machine];
    // The TDP MMU's pages are direct, and hang where a later event says; its roots hang nowhere. A guest without paging has direct
    // shadow pages too: those are looked up again.
    if ((known?.kind ?? this.#given) !== 'shadow' && roleField(role, 'direct') !== 0) {
      const isTop = level >= 4 && gfn === 0;
      // Another vCPU may be the first to need a new root.
      if (thread.machine < 0 && isTop) {
        const waiting = this.#state.machines.findIndex(
          (each) =>
            each.roots.length > 0 && each.roots.every(({ invalid }) => invalid) && !this.#hasOther(each, thread),
        );
        if (waiting >= 0) thread.machine = waiting;
      }
      const machine = isTop ? this.#claim(pid) : known;
      if (machine && isTop && created && !this.#hasRoot(machine, role, level)) {
        const root = this.#add(machine, { level, gfn: 0 });
        root.role = role;
        root.roleKnown = roleKnown;
        machine.roots.push({
          table: root.id,
          asId: roleField(role, 'smm') ? 1 : 0,
          threads: new Set(),
          invalid: false,
        });
      } else thread.loose.set(placeKey(level, gfn), { role, roleKnown });
      return;
    }
    const machine = this.#claim(pid);
    if (!machine) return;
    machine.kind = 'shadow';
    const key = pageKey(gfn, role);
    let table = machine.tables.get(machine.byKey.get(key) ?? -1);
    if (!table || created) {
      if (table) this.#dropPage(machine, table, key);
      table = this.#add(machine, { level, gfn });
      table.role = role;
      table.roleKnown = roleKnown;
      machine.byKey.set(key, table.id);
    }
    this.#hang(machine, thread, table, pid);
  }

  #hasRoot(machine: Machine, role: number, level: number): boolean {
    return machine.roots.some((root) => {
      const table = machine.tables.get(root.table);
      return !root.invalid && table?.level === level && ((table.role ^ role) & SAME_ROLE) === 0;
    });
  }

  /** A shadow page that a thread has looked up hangs below the one before it, at the index of the address that faulted. */
  #hang(machine: Machine, thread: Thread, table: InferredTable, pid: number): void {
    const above = machine.tables.get(thread.path.at(-1) ?? -1);
    const follows = above !== undefined && above.level === table.level + 1;
    if (!follows) {
      thread.path = [table.id];
      // Nothing is above a page of the upper levels that is looked up first: it is a root.
      if (table.level >= 3 || roleField(table.role, 'quadrant') !== 0) this.#load(machine, table, pid);
      else this.#resume(machine, thread, table, pid);
      return;
    }
    thread.path.push(table.id);
    if (thread.fault !== undefined) this.#hangAt(machine, above, indexOf(thread.fault, above.level), table);
  }

  #hangAt(machine: Machine, above: InferredTable, index: number, table: InferredTable): void {
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

  /** A fault looks up only what is below its vCPU's root, and that is not traced again. */
  #resume(machine: Machine, thread: Thread, table: InferredTable, pid: number): void {
    const root = machine.roots.findLast((each) => each.threads.has(pid));
    if (!root || thread.fault === undefined) return;
    const above = machine.tables.get(root.table);
    if (above && above.level === table.level + 1)
      this.#hangAt(machine, above, indexOf(thread.fault, above.level), table);
  }

  #load(machine: Machine, table: InferredTable, pid: number): void {
    for (const root of machine.roots) if (root.table !== table.id) root.threads.delete(pid);
    const known = machine.roots.find((root) => root.table === table.id);
    if (known) known.threads.add(pid);
    else machine.roots.push({ table: table.id, asId: 0, threads: new Set([pid]), invalid: false });
  }

  #setSpte(at: number, pid: number): void {
    const recording = this.#recording;
    const machine = this.#claim(pid);
    if (!machine) return;
    // Nested guests aside, the TDP MMU tells of its entries otherwise.
    if (machine.kind !== undefined && machine.kind !== 'shadow') return;
    machine.kind = 'shadow';
    const level = recording.number(at, SPTE.level);
    const address = recording.value(at, SPTE.sptep);
    const frame = Number(address >> 12n);
    const index = Number((address & 0xfffn) >> 3n);
    let table = machine.tables.get(machine.byFrame.get(frame) ?? -1);
    if (!table || table.level !== level) {
      const thread = this.#thread(pid);
      const last = thread.path.map((id) => machine.tables.get(id)).findLast((each) => each?.level === level);
      table = last && !isTold(last) ? last : this.#add(machine, { level, gfn: -1 });
      table.frame = frame;
      machine.byFrame.set(frame, table.id);
      // What leads to it has its address from now on.
      const above = table.parent && machine.tables.get(table.parent.id);
      if (above && table.parent) writeLink(above, table.parent.index, table);
    }
    table.entries[2 * index] = recording.lo(at, SPTE.spte);
    table.entries[2 * index + 1] = recording.hi(at, SPTE.spte);
    table.doubtful.delete(index);
  }

  #byKey(machine: Machine, at: number): InferredTable | undefined {
    const key = pageKey(this.#recording.number(at, PAGE.gfn), this.#recording.lo(at, PAGE.role));
    return machine.tables.get(machine.byKey.get(key) ?? -1);
  }

  #zapPage(at: number, pid: number): void {
    const machine =
      this.#ownerOf(pid) ?? this.#state.machines.find((each) => each.kind === 'shadow' && this.#byKey(each, at));
    const table = machine && this.#byKey(machine, at);
    if (table) this.#dropPage(machine, table, pageKey(table.gfn, table.role));
  }

  #dropPage(machine: Machine, table: InferredTable, key: string): void {
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
    machine.tables.delete(table.id);
    machine.byKey.delete(key);
    if (machine.byFrame.get(table.frame) === table.id) machine.byFrame.delete(table.frame);
    const root = machine.roots.findIndex((each) => each.table === table.id);
    if (root >= 0) machine.roots.splice(root, 1);
  }

  // ---- what came of it

  #tables(machine: Machine, number: number): KvmTables {
    const removed = new Set([...machine.removed.values()].flat());
    const stale = this.#staleWords(machine);
    const tables = new Map<number, KvmTable>();
    for (const table of machine.tables.values()) {
      if (removed.has(table.id)) continue;
      tables.set(table.frame, {
        frame: table.frame,
        gfn: table.gfn,
        role: table.role,
        roleKnown: table.roleKnown,
        entries: table.entries,
        certainty: stale === '' ? 'inferred' : 'stale',
        doubtful: table.doubtful,
        ...(isTold(table) ? {} : { untold: true }),
      });
    }
    const own = [...this.#state.threads].filter(([, each]) => each.machine === number);
    const named = own.filter(([, each]) => each.vcpu !== undefined);
    // Where no event names vCPUs, each thread that builds tables stands for one.
    const vcpus = (named.length > 0 ? named : own).map(([pid, each], index) => [pid, each.vcpu ?? index] as const);
    const rootOf = (root: InferredRoot, vcpu: number, which: KvmRoot['which']): KvmRoot => {
      const table = machine.tables.get(root.table)!;
      return { vcpu, which, frame: table.frame, levels: table.level, invalid: root.invalid };
    };
    const shadow = machine.kind === 'shadow';
    const roots = machine.roots.flatMap((root) => {
      const users = vcpus.filter(([pid]) => (shadow ? root.threads.has(pid) : !root.invalid)).map(([, vcpu]) => vcpu);
      return users.length > 0 ? users.map((vcpu) => rootOf(root, vcpu, 'current')) : [rootOf(root, 0, 0)];
    });
    return {
      kind: machine.kind ?? 'npt',
      source: 'events',
      certainty: stale === '' ? 'inferred' : 'stale',
      why: stale === '' ? 'worked out from tracepoints' : stale,
      tables,
      roots,
    };
  }

  #staleWords(machine: Machine): string {
    if (machine.stale !== '') return machine.stale;
    const lost = this.#recording.losses.filter(({ beforeIndex }) => beforeIndex <= this.#at);
    if (lost.length > 0) return 'events were lost';
    const { mismatches } = machine;
    return mismatches === 0
      ? ''
      : `${mismatches} event${mismatches === 1 ? '' : 's'} did not fit what was known before`;
  }
}

interface Change {
  readonly gfn: number;
  readonly level: number;
  readonly asId: number;
  readonly oldLo: number;
  readonly oldHi: number;
  readonly newLo: number;
  readonly newHi: number;
}

const newThread = (): Thread => ({ machine: -1, fault: undefined, path: [], loose: new Map(), vcpu: undefined });

function newMachine(kind: SecondStageKind | undefined): Machine {
  return {
    kind,
    tables: new Map(),
    byKey: new Map(),
    byFrame: new Map(),
    roots: [],
    removed: new Map(),
    emptyHi: 0,
    mismatches: 0,
    stale: '',
  };
}

function copyState({ machines, threads, nextId }: State): State {
  return {
    nextId,
    threads: new Map(
      [...threads].map(([pid, thread]) => [pid, { ...thread, path: [...thread.path], loose: new Map(thread.loose) }]),
    ),
    machines: machines.map((machine) => ({
      ...machine,
      tables: new Map([...machine.tables].map(([id, table]) => [id, copyTable(table)])),
      byKey: new Map(machine.byKey),
      byFrame: new Map(machine.byFrame),
      roots: machine.roots.map((root) => ({ ...root, threads: new Set(root.threads) })),
      removed: new Map(machine.removed),
    })),
  };
}

/** Index of a gfn, or of the frame of an address, in a table of a level. */
const indexOf = (frame: number, level: number): number => Math.floor(frame / 512 ** (level - 1)) % 512;

/** A table's place in a tree of the TDP MMU. */
const placeKey = (level: number, gfn: number): string => `${level} ${Math.floor(gfn / 512 ** level)}`;
const pageKey = (gfn: number, role: number): string => `${gfn} ${role & SAME_ROLE}`;

/** The frame of an address field; undefined where it was not recorded. */
function pageOf(recording: Recording, at: number, field: number): number | undefined {
  if (!recording.known(at, field)) return undefined;
  return recording.hi(at, field) * 2 ** 20 + (recording.lo(at, field) >>> 12);
}

/** What KVM writes where a table hangs below another (make_nonleaf_spte): the address, present, W, U, A and KVM's own bit. */
function writeLink(table: InferredTable, index: number, child: InferredTable): void {
  table.entries[2 * index] = ((child.frame % 2 ** 20) * 4096 + 0x827) >>> 0;
  table.entries[2 * index + 1] = Math.floor(child.frame / 2 ** 20);
}
