import { roleField } from '../kernel/role.ts';
import type { KvmRoot, KvmTable, KvmTables, SecondStageKind } from '../kernel/tables.ts';
import {
  copyTable,
  ENTRIES,
  FROZEN_LO,
  fillSplit,
  frameOf,
  type InferredRoot,
  type InferredTable,
  isEmpty,
  isLeaf,
  isTold,
  leadsToTable,
  newTable,
  PRESENT,
  type RemovedTable,
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
  gfn: traceField(SET_SPTE, 'gfn'),
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
const ISA = traceField(EXIT, 'isa');

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

/** A virtual machine, as far as its events can be told from others'. */
interface Machine {
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

interface State {
  readonly machines: Machine[];
  readonly threads: Map<number, Thread>;
  /** Threads whose changes fit several machines. */
  readonly waiting: Set<number>;
  /** What the processor is, where exits say it. */
  isa: SecondStageKind | undefined;
  nextId: number;
}

/** Events between two moments that are kept for going back. */
const CHECKPOINT = 1 << 18;
/** Changes that wait for the machine that they belong to, and trees that wait to be taken down. */
const PENDING_MOST = 1024;
const DYING_MOST = 32;

const WHOSE = 'a thread changed tables of this virtual machine or of another’s: events do not tell which';

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
  /** Threads of the machine that is asked about, with their vCPUs, if they are such; without them machines are told apart by their events. */
  readonly #own: ReadonlyMap<number, number | undefined> | undefined;
  readonly #given: SecondStageKind | undefined;
  readonly #kept: { readonly at: number; readonly state: State }[] = [];
  #state: State;
  #at = 0;

  constructor(recording: Recording, own?: ReadonlyMap<number, number | undefined>, kind?: SecondStageKind) {
    this.#recording = recording;
    this.#own = own;
    this.#given = kind;
    this.#state = this.#begin();
  }

  #begin(): State {
    const state: State = { machines: [], threads: new Map(), waiting: new Set(), isa: undefined, nextId: 1 };
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
        this.#faults(thread, pageOf(recording, at, FAULT.address));
        thread.handling = true;
        if (recording.known(at, FAULT.vcpu)) thread.vcpu = recording.number(at, FAULT.vcpu);
        break;
      }
      case WALK: {
        // Of a machine with a second stage it is an instruction that KVM emulates, and virtual.
        const thread = this.#thread(pid);
        const machine = this.#state.machines[thread.machine];
        if (machine && isTwoStage(machine)) break;
        this.#faults(thread, pageOf(recording, at, WALKED.address));
        thread.handling = true;
        break;
      }
      case ENTRY:
      case EXIT: {
        const thread = this.#thread(pid);
        thread.handling = false;
        thread.directories = [];
        const field = recording.kind(at) === ENTRY ? VCPU.entry : VCPU.exit;
        if (recording.known(at, field)) thread.vcpu = recording.number(at, field);
        if (this.#state.isa === undefined && recording.kind(at) === EXIT) this.#toldIsa(at);
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
      case ZAP_ALL:
        this.#zapAll(pid);
        break;
      case UNMAP: {
        // Whoever takes memory back: where the thread is nobody's, it can be anybody's memory.
        const owner = this.#ownerOf(pid);
        for (const machine of owner ? [owner] : this.#state.machines)
          if (machine.kind === 'shadow' || machine.direct)
            machine.stale ||=
              'the host took memory back (MMU notifier): which entries were dropped of it is not traced';
        break;
      }
    }
  }

  #faults(thread: Thread, address: number | undefined): void {
    thread.fault = address;
    thread.path = [];
    thread.directories = [];
  }

  /** What exits say of the processor is better than what entries look like. */
  #toldIsa(at: number): void {
    const isa = this.#recording.known(at, ISA) ? this.#recording.number(at, ISA) : 0;
    const kind = isa === 1 ? 'ept' : isa === 2 ? 'npt' : undefined;
    this.#state.isa = kind;
    if (kind === undefined || this.#given) return;
    for (const machine of this.#state.machines) if (machine.kind && machine.kind !== 'shadow') machine.kind = kind;
  }

  /** All tables are given up. Who does it may be any thread of the process, or of another machine's. */
  #zapAll(pid: number): void {
    const { machines } = this.#state;
    this.#thread(pid).handling = false;
    const owner = this.#ownerOf(pid);
    if (owner) this.#giveUp(owner, false);
    else if (machines.length === 1) {
      machines[0]!.zapper = pid;
      this.#giveUp(machines[0]!, true);
    } else
      for (const machine of machines)
        machine.stale ||=
          'a thread that is of no virtual machine known gave up all tables (kvm_mmu_zap_all_fast): whose is not told';
  }

  #giveUp(machine: Machine, guessed: boolean): void {
    for (const root of machine.roots) {
      if (!root.invalid) root.guessed = guessed;
      root.invalid = true;
    }
    if (machine.kind === 'shadow') return;
    for (const root of machine.roots.splice(0)) {
      if (isEmpty(machine.tables.get(root.table)!)) this.#discard(machine, root.table);
      else machine.dying.push(root);
    }
    while (machine.dying.length > DYING_MOST) {
      machine.stale ||= 'trees were given up that no event tells the end of';
      this.#discard(machine, machine.dying.shift()!.table);
    }
  }

  /** They go on being used: what gave them up was of another machine. */
  #revive(machine: Machine): void {
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
  #discard(machine: Machine, id: number): void {
    const table = machine.tables.get(id);
    if (!table) return;
    machine.tables.delete(id);
    if (machine.byFrame.get(table.frame) === id) machine.byFrame.delete(table.frame);
    for (const child of table.children.values()) this.#discard(machine, child);
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
    thread.tdp = true;
    const machine = this.#state.machines[thread.machine];
    if (machine) {
      if (this.#state.waiting.size > 0 && !this.#fits(machine, change)) this.#decideByLink(machine, change);
      this.#tell(machine, change, thread);
      return;
    }
    if (thread.candidates.length > 0) {
      this.#narrow(pid, thread, change);
      return;
    }
    // Nobody knows the thread: it is of a machine in which this can happen. Where the machine's own threads are known, others'
    // events are its only when they change what is there: an empty place is everybody's.
    const isVcpu = thread.vcpu !== undefined || thread.loose.size > 0;
    if (!this.#own || oldLo !== 0) {
      const fitting = this.#state.machines.filter((each) => !this.#hasOther(each, thread) && this.#fits(each, change));
      if (fitting.length > 1 && isVcpu && oldLo === 0) {
        thread.candidates = fitting.map((each) => this.#state.machines.indexOf(each));
        thread.pending.push(change);
        this.#state.waiting.add(pid);
        return;
      }
      if (fitting.length > 0) {
        // Of what is not there, it is all the same who drops it.
        if (fitting.length > 1 && oldLo !== 0) for (const each of fitting) each.stale ||= WHOSE;
        else if (isVcpu) thread.machine = this.#state.machines.indexOf(fitting[0]!);
        this.#tell(fitting[0]!, change, thread);
        return;
      }
    }
    if (isNothing(change)) return;
    const claimed = this.#claim(pid);
    if (claimed) this.#tell(claimed, change, thread);
  }

  #tell(machine: Machine, change: Change, thread: Thread): void {
    // A machine that is known to have no second stage has no such changes: they are another's.
    if (this.#given === 'shadow') return;
    machine.tdp = true;
    // Pages that looked like a shadow MMU's were those of a nested guest.
    if (machine.kind === 'shadow') this.#restart(machine);
    if (isFrozen(change) && this.#dropRemoved(machine, change)) return;
    this.#change(machine, change, thread, false);
  }

  #restart(machine: Machine): void {
    machine.kind = undefined;
    machine.stale ||= 'the recording begins after the tables were made';
    for (const list of [machine.roots, machine.dying]) list.length = 0;
    for (const map of [machine.tables, machine.byKey, machine.byFrame, machine.removed]) map.clear();
  }

  /** Whether an entry is in a machine as it was before a change. */
  #fits(machine: Machine, change: Change): boolean {
    if (isFrozen(change) && this.#removedOf(machine, change)) return true;
    return [machine.roots, machine.dying].some((roots) => this.#matching(machine, roots, change).length > 0);
  }

  /** A thread whose changes fit several machines: one that has what it changes now is its own. */
  #narrow(pid: number, thread: Thread, change: Change): void {
    const { machines, waiting } = this.#state;
    thread.candidates = thread.candidates.filter((each) => !this.#hasOther(machines[each]!, thread));
    const below = thread.pending.some((each) => isBelow(each, change));
    const fitting = below ? [] : thread.candidates.filter((each) => this.#fits(machines[each]!, change));
    thread.pending.push(change);
    if (fitting.length === 1 || thread.candidates.length === 1) this.#settle(pid, fitting[0] ?? thread.candidates[0]!);
    else if (thread.candidates.length === 0 || thread.pending.length > PENDING_MOST) {
      for (const each of thread.candidates) machines[each]!.stale ||= WHOSE;
      thread.candidates = [];
      thread.pending = [];
      waiting.delete(pid);
    }
  }

  /** An entry of a table that nobody has made but a thread that waits for its machine: now it is known. */
  #decideByLink(machine: Machine, change: Change): void {
    const number = this.#state.machines.indexOf(machine);
    for (const pid of this.#state.waiting) {
      const { candidates, pending } = this.#state.threads.get(pid)!;
      if (candidates.includes(number) && pending.some((each) => isBelow(each, change))) this.#settle(pid, number);
    }
  }

  #settle(pid: number, number: number): void {
    const thread = this.#thread(pid);
    const { pending } = thread;
    thread.machine = number;
    thread.candidates = [];
    thread.pending = [];
    this.#state.waiting.delete(pid);
    for (const change of pending) this.#tell(this.#state.machines[number]!, change, thread);
  }

  /** Whether a machine has another thread for the same vCPU. */
  #hasOther(machine: Machine, { vcpu }: Thread): boolean {
    if (vcpu === undefined) return false;
    const number = this.#state.machines.indexOf(machine);
    return [...this.#state.threads.values()].some((each) => each.machine === number && each.vcpu === vcpu);
  }

  /** A table that was taken out and has an entry that is emptied. */
  #removedOf(machine: Machine, { gfn, level, oldLo, oldHi }: Change): RemovedTable | undefined {
    const index = indexOf(gfn, level);
    return machine.removed
      .get(placeKey(level, gfn))
      ?.find(({ id }) => this.#same(machine, machine.tables.get(id)!, index, oldLo, oldHi));
  }

  /** An entry of a table that was taken out, as it is emptied. @returns whether there is such a table */
  #dropRemoved(machine: Machine, change: Change): boolean {
    const removed = this.#removedOf(machine, change);
    if (!removed) return false;
    const table = machine.tables.get(removed.id)!;
    const index = indexOf(change.gfn, change.level);
    const child = table.children.get(index);
    table.children.delete(index);
    if (table.entries[2 * index] !== 0) removed.left--;
    table.entries[2 * index] = 0;
    if (child !== undefined) this.#remove(machine, machine.tables.get(child)!);
    if (removed.left === 0 || index === 511) this.#forget(machine, removed, placeKey(table.level, table.gfn));
    return true;
  }

  #remove(machine: Machine, table: InferredTable): void {
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

  #forget(machine: Machine, removed: RemovedTable, key: string): void {
    const there = machine.removed.get(key)!;
    there.splice(there.indexOf(removed), 1);
    if (there.length === 0) machine.removed.delete(key);
    this.#discard(machine, removed.id);
  }

  #same(machine: Machine, table: InferredTable, index: number, lo: number, hi: number): boolean {
    const silent = machine.kind ? silentBits(machine.kind) : 0;
    const known = table.entries[2 * index + 1]!;
    // What is frozen while its table is taken out is emptied without a word.
    if ((table.entries[2 * index]! & 0xfff) === FROZEN_LO && lo === 0) return true;
    // Of an entry that maps nothing bit 63 means nothing either.
    const mask = (lo & PRESENT) === 0 ? 0x7fff_ffff : -1;
    return ((table.entries[2 * index]! ^ lo) & ~silent) === 0 && ((known ^ hi) & mask) === 0;
  }

  /** Tables of trees in which a change's entry is what it was before. */
  #matching(machine: Machine, roots: readonly InferredRoot[], change: Change): Match[] {
    const { gfn, level, asId, oldLo, oldHi } = change;
    const found: Match[] = [];
    for (const root of roots) {
      if (root.asId !== asId) continue;
      const table = this.#tableAt(machine, root, level, gfn);
      if (table && this.#same(machine, table, indexOf(gfn, level), oldLo, oldHi)) found.push({ root, table });
    }
    return found;
  }

  /** Makes a change in the tree that it fits; with `only`, not at all where it fits none. */
  #change(machine: Machine, change: Change, thread: Thread, only: boolean): boolean {
    const { gfn, level, asId, oldLo, oldHi, newLo, newHi } = change;
    const index = indexOf(gfn, level);
    // A tree that was given up is only taken down, and not by whoever handles a fault.
    const isRemoval = (newLo & PRESENT) === 0 && oldLo !== 0;
    const fitting = this.#matching(machine, machine.roots, change);
    if (fitting.length === 0 || (isRemoval && !thread.handling))
      fitting.unshift(...this.#matching(machine, machine.dying, change));
    let table = fitting[0]?.table;
    if (!table) {
      if (only) return false;
      if (isNothing(change)) return true;
      const root = machine.roots.find((each) => each.asId === asId);
      table = this.#makeWay(machine, root, change);
      // A table that nobody saw before says nothing of what its entries were.
      if (!this.#same(machine, table, index, oldLo, oldHi) && table.roleKnown !== 0) machine.mismatches++;
    }
    const { root } = fitting[0] ?? {};
    if (root?.guessed && root.invalid && !isRemoval) this.#revive(machine);
    // Nobody else takes tables out.
    if (root?.guessed && isRemoval && leadsToTable(level, oldLo)) confirm(machine);
    machine.kind ??= this.#state.isa ?? secondStageOf(newLo, newHi) ?? secondStageOf(oldLo, oldHi);
    if (oldLo === 0) machine.emptyHi = oldHi;
    table.entries[2 * index] = newLo;
    table.entries[2 * index + 1] = newHi;
    table.doubtful.delete(index);
    if (fitting.length > 1) for (const each of fitting) each.table.doubtful.set(index, 'stale');
    const before = table.children.get(index);
    if (before !== undefined) {
      table.children.delete(index);
      this.#remove(machine, machine.tables.get(before)!);
    }
    if (leadsToTable(level, newLo)) this.#link(machine, table, index, change, thread);
    if (!isRemoval && thread.handling) {
      thread.asId = asId;
      const span = 512 ** (level - 1);
      if (isLeaf(level, newLo) && Math.floor(gfn / span) === Math.floor((thread.fault ?? -1) / span))
        thread.handling = false;
    }
    if (root?.invalid && table.id === root.table && isEmpty(table)) {
      machine.dying.splice(machine.dying.indexOf(root), 1);
      this.#discard(machine, root.table);
    }
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
    // Nothing more comes of what was there before.
    const key = placeKey(level, first);
    for (const removed of machine.removed.get(key)?.filter(({ under }) => under === parent.id) ?? [])
      this.#forget(machine, removed, key);
  }

  /** The table of a level that translates a gfn, if the way there is known. */
  #tableAt(machine: Machine, root: InferredRoot, level: number, gfn: number): InferredTable | undefined {
    return this.#descend(machine, machine.tables.get(root.table)!, gfn, level);
  }

  /** The same, made where it is missing: the recording began later, or lost something. */
  #makeWay(machine: Machine, known: InferredRoot | undefined, { gfn, level, asId }: Change): InferredTable {
    let root = known;
    if (!root) {
      const top = this.#add(machine, { level: Math.max(level, 4), gfn: 0 });
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
        const waiting = this.#state.machines.filter(
          (each) => each.hadRoot && each.roots.length === 0 && !this.#hasOther(each, thread),
        );
        if (waiting.length > 1) for (const each of waiting) each.stale ||= WHOSE;
        if (waiting.length > 0) thread.machine = this.#state.machines.indexOf(waiting[0]!);
      }
      const machine = isTop ? this.#claim(pid) : known;
      if (machine && isTop && created && !this.#hasRoot(machine, role, level)) {
        const root = this.#add(machine, { level, gfn: 0 });
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
      this.#withoutPaging(thread, pid, { level, gfn, role, roleKnown });
      return;
    }
    // A second stage stays one: what shadows a nested guest's tables is not of its own.
    if (known ? isTwoStage(known) : thread.tdp || thread.loose.size > 0) return;
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

  /** Four page directories in a row, which map the first 4G to themselves, are those of a guest without paging: a second stage has no such. */
  #withoutPaging(
    thread: Thread,
    pid: number,
    { level, gfn, role, roleKnown }: { level: number; gfn: number; role: number; roleKnown: number },
  ): void {
    const { directories } = thread;
    const follows = level === 2 && gfn === directories.length * 2 ** 18 && !thread.tdp && !this.#given;
    if (!follows) directories.length = 0;
    else directories.push(role);
    if (directories.length < 4) return;
    const roles = directories.splice(0);
    const machine = this.#claim(pid);
    if (!machine || isTwoStage(machine)) return;
    machine.kind = 'shadow';
    roles.forEach((each, index) => {
      const table = this.#add(machine, { level: 2, gfn: index * 2 ** 18 });
      table.role = each;
      table.roleKnown = roleKnown;
      machine.byKey.set(pageKey(table.gfn, each), table.id);
      this.#loadDirectory(machine, thread, table, pid);
    });
    thread.loose.clear();
  }

  #hasRoot(machine: Machine, role: number, level: number): boolean {
    return machine.roots.some((root) => {
      const table = machine.tables.get(root.table);
      return table?.level === level && ((table.role ^ role) & SAME_ROLE) === 0;
    });
  }

  /** A shadow page that a thread has looked up hangs below the one before it, at the index of the address that faulted. */
  #hang(machine: Machine, thread: Thread, table: InferredTable, pid: number): void {
    if (this.#isDirectory(machine, thread, table, pid)) {
      this.#loadDirectory(machine, thread, table, pid);
      return;
    }
    thread.directories = [];
    const above = machine.tables.get(thread.path.at(-1) ?? -1);
    if (above?.level === table.level + 1) {
      thread.path.push(table.id);
      if (thread.fault !== undefined) this.#hangAt(machine, above, indexOf(thread.fault, above.level), table);
      return;
    }
    thread.path = [table.id];
    const root = this.#rootOf(machine, pid);
    // Nothing is above a page of the upper levels that is looked up first, unless a fault goes on below a root.
    const isRoot = table.level >= 4 && !(thread.handling && root && root.level > table.level);
    if (isRoot) this.#load(machine, table, pid);
    else this.#resume(machine, thread, table, pid, root);
  }

  #rootOf(machine: Machine, pid: number): InferredTable | undefined {
    const root = machine.roots.findLast(({ threads, invalid }) => !invalid && threads.has(pid));
    return root && machine.tables.get(root.table);
  }

  /** Guests of 32 bits, with PAE or without paging have no root of one page: KVM makes one of up to four page directories. */
  #isDirectory(machine: Machine, thread: Thread, table: InferredTable, pid: number): boolean {
    if (table.level !== 2) return false;
    if (roleField(table.role, 'has_4_byte_gpte') !== 0) return true;
    // A guest that is reset turns paging off.
    if (!thread.handling && roleField(table.role, 'direct') !== 0 && table.gfn % 2 ** 18 === 0) return true;
    const root = this.#rootOf(machine, pid);
    if (root) return root.level === 3;
    return !thread.handling && machine.tables.get(thread.path.at(-1) ?? -1)?.level !== 3;
  }

  #loadDirectory(machine: Machine, thread: Thread, table: InferredTable, pid: number): void {
    const { directories } = thread;
    const place = roleField(table.role, 'has_4_byte_gpte')
      ? roleField(table.role, 'quadrant')
      : roleField(table.role, 'direct')
        ? Math.floor(table.gfn / 2 ** 18) % 4
        : undefined;
    let top = this.#rootOf(machine, pid);
    const isNext = directories.length < 4 && (place === undefined || place >= directories.length);
    if (directories.length === 0 || !isNext || top?.level !== 3) {
      directories.length = 0;
      top = this.#add(machine, { level: 3, gfn: table.gfn });
      top.roleKnown = 0xf;
      this.#load(machine, top, pid);
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

  /** A fault looks up only what is missing below its vCPU's root, and that is not traced again. */
  #resume(machine: Machine, thread: Thread, table: InferredTable, pid: number, root: InferredTable | undefined): void {
    if (thread.fault === undefined) return;
    let above = root;
    if (!above && table.level >= 3) {
      machine.stale ||= 'the recording begins after roots were loaded';
      above = this.#add(machine, { level: table.level + 1, gfn: -1 });
      this.#load(machine, above, pid);
    }
    above = above && this.#descend(machine, above, thread.fault, table.level + 1);
    if (above) this.#hangAt(machine, above, indexOf(thread.fault, above.level), table);
  }

  /** The table of a level that translates a frame, below another. */
  #descend(machine: Machine, from: InferredTable, frame: number, level: number): InferredTable | undefined {
    let table: InferredTable | undefined = from;
    while (table && table.level > level)
      table = machine.tables.get(table.children.get(indexOf(frame, table.level)) ?? -1);
    return table?.level === level ? table : undefined;
  }

  #load(machine: Machine, table: InferredTable, pid: number): void {
    for (const root of machine.roots) if (root.table !== table.id) root.threads.delete(pid);
    // The four entries above page directories are each vCPU's own, and written anew.
    for (const [index, root] of [...machine.roots.entries()].reverse()) {
      if (root.table === table.id || root.threads.size > 0 || machine.tables.get(root.table)?.level !== 3) continue;
      machine.roots.splice(index, 1);
      machine.tables.delete(root.table);
    }
    const known = machine.roots.find((root) => root.table === table.id);
    if (known?.guessed) this.#revive(machine);
    if (known) known.threads.add(pid);
    else machine.roots.push({ table: table.id, asId: 0, threads: new Set([pid]), invalid: false, guessed: false });
  }

  #setSpte(at: number, pid: number): void {
    const recording = this.#recording;
    // Nested guests aside, the TDP MMU tells of its entries otherwise.
    if (this.#ownerOf(pid)?.tdp || this.#thread(pid).tdp) return;
    const machine = this.#claim(pid);
    if (!machine) return;
    if (isTwoStage(machine)) {
      this.#setDirect(machine, at, pid);
      return;
    }
    machine.kind = 'shadow';
    this.#thread(pid).handling = false;
    const level = recording.number(at, SPTE.level);
    const address = recording.value(at, SPTE.sptep);
    const frame = Number(address >> 12n);
    const index = Number((address & 0xfffn) >> 3n);
    let table = machine.tables.get(machine.byFrame.get(frame) ?? -1);
    if (!table || table.level !== level) {
      table = this.#untoldAt(machine, pid, level) ?? this.#add(machine, { level, gfn: -1 });
      if (table.gfn < 0) machine.stale ||= 'an entry was set in a table that no event has told of';
      this.#toldFrame(machine, table, frame);
    }
    table.entries[2 * index] = recording.lo(at, SPTE.spte);
    table.entries[2 * index + 1] = recording.hi(at, SPTE.spte);
    table.doubtful.delete(index);
  }

  /** The shadow page that a thread maps something in, while its address is not known. */
  #untoldAt(machine: Machine, pid: number, level: number): InferredTable | undefined {
    const { path, fault } = this.#thread(pid);
    const last = path.map((id) => machine.tables.get(id)).findLast((each) => each?.level === level);
    if (last && !isTold(last)) return last;
    const root = this.#rootOf(machine, pid);
    const table = root && fault !== undefined ? this.#descend(machine, root, fault, level) : undefined;
    return table && !isTold(table) ? table : undefined;
  }

  #byKey(machine: Machine, at: number): InferredTable | undefined {
    const key = pageKey(this.#recording.number(at, PAGE.gfn), this.#recording.lo(at, PAGE.role));
    return machine.tables.get(machine.byKey.get(key) ?? -1);
  }

  /** An entry of a second stage that KVM keeps in shadow pages: by its gfn, since those pages are direct. */
  #setDirect(machine: Machine, at: number, pid: number): void {
    const recording = this.#recording;
    const thread = this.#thread(pid);
    const gfn = recording.number(at, SPTE.gfn);
    const level = recording.number(at, SPTE.level);
    const [lo, hi] = [recording.lo(at, SPTE.spte), recording.hi(at, SPTE.spte)];
    machine.direct = true;
    machine.kind ??= this.#state.isa ?? secondStageOf(lo, hi);
    let root = machine.roots.find(({ asId }) => asId === thread.asId) ?? machine.roots[0];
    if (!root) {
      machine.stale ||= 'the recording begins after the tables were made';
      const top = this.#add(machine, { level: 4, gfn: 0 });
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
      const child = this.#add(machine, { level: below, gfn: first });
      child.role = made?.role ?? (table.role & ~15) | below;
      child.roleKnown = made?.roleKnown ?? 0xf;
      this.#hangAt(machine, table, index, child);
      table = child;
    }
    const address = recording.value(at, SPTE.sptep);
    this.#toldFrame(machine, table, Number(address >> 12n));
    const index = Number((address & 0xfffn) >> 3n);
    const before = table.children.get(index);
    if (before !== undefined) this.#discard(machine, before);
    table.children.delete(index);
    table.entries[2 * index] = lo;
    table.entries[2 * index + 1] = hi;
    table.doubtful.delete(index);
  }

  /** A table's address is known from now on, and so is what leads to it. */
  #toldFrame(machine: Machine, table: InferredTable, frame: number): void {
    if (table.frame === frame) return;
    table.frame = frame;
    machine.byFrame.set(frame, table.id);
    const above = table.parent && machine.tables.get(table.parent.id);
    if (above && table.parent) writeLink(above, table.parent.index, table);
    for (const [top, index] of pointersTo(machine, table)) writePointer(top, index, table);
  }

  #zapPage(at: number, pid: number): void {
    const owner = this.#ownerOf(pid);
    const { machines } = this.#state;
    const found = (owner ? [owner] : machines).filter((each) => this.#pageOf(each, at));
    // Other machines have pages of the same gfn and role.
    if (!owner && (this.#own || found.length > 1))
      for (const machine of found)
        machine.stale ||= 'a shadow page was zapped that is of this virtual machine or of another: events do not tell';
    const machine = owner ?? (found.length === 1 && (!this.#own || found[0]!.zapper === pid) ? found[0] : undefined);
    const table = machine && this.#pageOf(machine, at);
    if (!table) return;
    const isRoot = machine.roots.some((root) => root.table === table.id);
    if (!machine.direct) this.#dropPage(machine, table, pageKey(table.gfn, table.role));
    else if (!isRoot) this.#dropDirect(machine, table);
  }

  /** The page that an event is about, of those that are looked up by gfn and role. */
  #pageOf(machine: Machine, at: number): InferredTable | undefined {
    if (machine.kind === 'shadow') return this.#byKey(machine, at);
    const gfn = this.#recording.number(at, PAGE.gfn);
    const role = this.#recording.lo(at, PAGE.role);
    if (!machine.direct || roleField(role, 'direct') === 0) return undefined;
    const asId = roleField(role, 'smm') ? 1 : 0;
    for (const root of [...machine.dying, ...machine.roots]) {
      const table = root.asId === asId ? this.#tableAt(machine, root, roleField(role, 'level'), gfn) : undefined;
      if (table) return table;
    }
    return undefined;
  }

  #dropDirect(machine: Machine, table: InferredTable): void {
    const above = table.parent && machine.tables.get(table.parent.id);
    if (above && table.parent) {
      above.children.delete(table.parent.index);
      above.entries.fill(0, 2 * table.parent.index, 2 * table.parent.index + 2);
    }
    const dying = machine.dying.findIndex((root) => root.table === table.id);
    if (dying >= 0) machine.dying.splice(dying, 1);
    this.#discard(machine, table.id);
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

  // ---- what came of it

  #tables(machine: Machine, number: number): KvmTables {
    const removed = new Set([...machine.removed.values()].flat().map(({ id }) => id));
    const stale = this.#staleWords(machine, number);
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
    const roots = [...machine.roots, ...machine.dying].flatMap((root) => {
      const users = vcpus.filter(([pid]) => this.#isCurrent(machine, root, pid));
      return users.length > 0 ? users.map(([, vcpu]) => rootOf(root, vcpu, 'current')) : [rootOf(root, 0, 'untold')];
    });
    return {
      kind: machine.kind ?? 'npt',
      source: 'events',
      certainty: stale === '' ? 'inferred' : 'stale',
      why: stale === '' ? `worked out from tracepoints${this.#looseWords(machine, removed)}` : stale,
      tables,
      roots,
    };
  }

  /**
   * Shadow roots are loaded. Of a second stage's no event tells which is in use: there can be one for SMM and one for a nested guest, and
   * what a thread mapped last says that it was in SMM, not that it has left it.
   */
  #isCurrent(machine: Machine, root: InferredRoot, pid: number): boolean {
    if (machine.kind === 'shadow') return root.threads.has(pid);
    if (root.invalid || root.asId !== 0 || this.#state.threads.get(pid)?.asId) return false;
    return machine.roots.every((each) => each === root || each.asId !== 0);
  }

  /** Where no fault is told of, nothing says which entries lead to the shadow pages that it needed (link_shadow_page). */
  #looseWords({ tables, roots, dying }: Machine, removed: ReadonlySet<number>): string {
    const tops = new Set([...roots, ...dying].map(({ table }) => table));
    const loose = [...tables.values()].filter(({ id, parent }) => !parent && !tops.has(id) && !removed.has(id)).length;
    if (loose === 0) return '';
    return `; they do not tell which entries lead to ${loose} of its ${tables.size} tables`;
  }

  #staleWords(machine: Machine, number: number): string {
    if (machine.stale !== '') return machine.stale;
    for (const pid of this.#state.waiting) if (this.#state.threads.get(pid)!.candidates.includes(number)) return WHOSE;
    if ([...machine.roots, ...machine.dying].some(({ guessed }) => guessed))
      return 'a thread that is of no virtual machine known gave up all tables (kvm_mmu_zap_all_fast): they may be another’s';
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

/** A table of a tree in which a change's entry is what it was before. */
interface Match {
  readonly root: InferredRoot;
  readonly table: InferredTable;
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

/** It was this machine whose tables were given up. */
function confirm({ roots, dying }: Machine): void {
  for (const root of [...roots, ...dying]) root.guessed = false;
}

/** Whether a machine translates gpas, in whatever kind of entries. */
const isTwoStage = ({ kind, tdp, hadRoot }: Machine): boolean =>
  tdp || (kind === undefined ? hadRoot : kind !== 'shadow');

const isFrozen = ({ newLo }: Change): boolean => (newLo & 0xfff) === FROZEN_LO;
/** An empty entry of a table that is taken out: nothing was there. */
const isNothing = (change: Change): boolean => isFrozen(change) && change.oldLo === 0;

/** Whether a change is to what another one made: its entry, or an entry of its table. */
function isBelow(made: Change, { gfn, level, asId }: Change): boolean {
  if (made.asId !== asId) return false;
  if (made.level === level) return made.gfn === gfn;
  return leadsToTable(made.level, made.newLo) && placeKey(made.level - 1, made.gfn) === placeKey(level, gfn);
}

function newMachine(kind: SecondStageKind | undefined): Machine {
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

function copyState({ machines, threads, waiting, isa, nextId }: State): State {
  const copyRoot = (root: InferredRoot): InferredRoot => ({ ...root, threads: new Set(root.threads) });
  return {
    nextId,
    isa,
    waiting: new Set(waiting),
    threads: new Map(
      [...threads].map(([pid, thread]) => [
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
    machines: machines.map((machine) => ({
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

/** The same above page directories, whose entries have nothing but the address and that they are present. */
function writePointer(table: InferredTable, index: number, child: InferredTable): void {
  writeLink(table, index, child);
  table.entries[2 * index]! &= ~0xfff;
  table.entries[2 * index]! |= 1;
}
