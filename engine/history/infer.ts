import type { KvmTables, SecondStageKind } from '../kernel/tables.ts';
import { giveUp, isTwoStage } from './infer-machine.ts';
import { GET_PAGE, getPage, SET_SPTE, SYNC, setSpte, syncPage, UNSYNC, ZAP_PAGE, zapPage } from './infer-shadow.ts';
import { copyState, newState, ownerOf, pageOf, type State, type Thread, threadOf } from './infer-state.ts';
import { tablesOf } from './infer-tables.ts';
import { FAST, fastPageFault, TDP_CHANGED, tdpChanged } from './infer-tdp.ts';
import type { Recording } from './recording.ts';
import { traceField, traceKind } from './tracepoints.ts';

// What KVM's tracepoints tell of the tables that it builds, and what follows from that. Not traced are the pieces of a split
// page, accessed and dirty bits, links and drops of shadow entries, and where roots are; what is missing is said.

const ZAP_ALL = traceKind('kvm_mmu_zap_all_fast');
const PAGE_FAULT = traceKind('kvm_page_fault');
const WALK = traceKind('kvm_mmu_pagetable_walk');
const ENTRY = traceKind('kvm_entry');
const EXIT = traceKind('kvm_exit');
const UNMAP = traceKind('kvm_unmap_hva_range');

const FAULT = { vcpu: traceField(PAGE_FAULT, 'vcpu_id'), address: traceField(PAGE_FAULT, 'fault_address') };
const WALKED = { address: traceField(WALK, 'addr') };
const VCPU = { entry: traceField(ENTRY, 'vcpu_id'), exit: traceField(EXIT, 'vcpu_id') };
const ISA = traceField(EXIT, 'isa');

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
  readonly #kept: { readonly at: number; readonly state: State }[] = [];
  #state: State;
  #at = 0;

  constructor(recording: Recording, own?: ReadonlyMap<number, number | undefined>, kind?: SecondStageKind) {
    this.#state = newState({ recording, own, given: kind });
  }

  /** Events that are told of, so far. */
  get position(): number {
    return this.#at;
  }

  /** Goes to the moment before event `index`, forwards or back. */
  goTo(index: number): void {
    const to = Math.min(index, this.#state.recording.length);
    if (to < this.#at) {
      while (this.#kept.length > 0 && this.#kept.at(-1)!.at > to) this.#kept.pop();
      const kept = this.#kept.at(-1);
      this.#state = kept ? copyState(kept.state) : newState(this.#state);
      this.#at = kept?.at ?? 0;
    }
    for (; this.#at < to; this.#at++) {
      const last = this.#kept.at(-1)?.at ?? 0;
      if (this.#at - last >= CHECKPOINT) this.#kept.push({ at: this.#at, state: copyState(this.#state) });
      apply(this.#state, this.#at);
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
      tables: tablesOf(this.#state, machine, number, this.#at),
    }));
  }
}

function apply(state: State, at: number): void {
  const { recording } = state;
  const pid = recording.pid(at);
  switch (recording.kind(at)) {
    case TDP_CHANGED:
      tdpChanged(state, at, pid);
      break;
    case GET_PAGE:
      getPage(state, at, pid);
      break;
    case SET_SPTE:
      setSpte(state, at, pid);
      break;
    case ZAP_PAGE:
      zapPage(state, at, pid);
      break;
    case FAST:
      fastPageFault(state, at, pid);
      break;
    case PAGE_FAULT: {
      const thread = threadOf(state, pid);
      faults(thread, pageOf(recording, at, FAULT.address));
      thread.handling = true;
      if (recording.known(at, FAULT.vcpu)) thread.vcpu = recording.number(at, FAULT.vcpu);
      break;
    }
    case WALK: {
      // Of a machine with a second stage it is an instruction that KVM emulates, and virtual.
      const thread = threadOf(state, pid);
      const machine = state.machines[thread.machine];
      if (machine && isTwoStage(machine)) break;
      faults(thread, pageOf(recording, at, WALKED.address));
      thread.handling = true;
      break;
    }
    case ENTRY:
    case EXIT: {
      const thread = threadOf(state, pid);
      thread.handling = false;
      thread.directories = [];
      const field = recording.kind(at) === ENTRY ? VCPU.entry : VCPU.exit;
      if (recording.known(at, field)) thread.vcpu = recording.number(at, field);
      if (state.isa === undefined && recording.kind(at) === EXIT) toldIsa(state, at);
      break;
    }
    case UNSYNC:
    case SYNC:
      syncPage(state, at, pid);
      break;
    case ZAP_ALL:
      zapAll(state, pid);
      break;
    case UNMAP: {
      // Whoever takes memory back: where the thread is nobody's, it can be anybody's memory.
      const owner = ownerOf(state, pid);
      for (const machine of owner ? [owner] : state.machines)
        if (machine.kind === 'shadow' || machine.direct)
          machine.stale ||= 'the host took memory back (MMU notifier): which entries were dropped of it is not traced';
      break;
    }
  }
}

function faults(thread: Thread, address: number | undefined): void {
  thread.fault = address;
  thread.path = [];
  thread.directories = [];
}

/** What exits say of the processor is better than what entries look like. */
function toldIsa(state: State, at: number): void {
  const { recording, machines, given } = state;
  const isa = recording.known(at, ISA) ? recording.number(at, ISA) : 0;
  const kind = isa === 1 ? 'ept' : isa === 2 ? 'npt' : undefined;
  state.isa = kind;
  if (kind === undefined || given) return;
  for (const machine of machines) if (machine.kind && machine.kind !== 'shadow') machine.kind = kind;
}

/** All tables are given up. Who does it may be any thread of the process, or of another machine's. */
function zapAll(state: State, pid: number): void {
  const { machines } = state;
  threadOf(state, pid).handling = false;
  const owner = ownerOf(state, pid);
  if (owner) giveUp(owner, false);
  else if (machines.length === 1) {
    machines[0]!.zapper = pid;
    giveUp(machines[0]!, true);
  } else
    for (const machine of machines)
      machine.stale ||=
        'a thread that is of no virtual machine known gave up all tables (kvm_mmu_zap_all_fast): whose is not told';
}
