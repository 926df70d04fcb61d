import type { Machine } from '../machine.ts';
import { addressToFrame, type Gfn, hex, pageOffset } from '../memory/words.ts';
import type { Task } from '../operation.ts';
import type { FaultInfo, PageFault } from '../tdp/fault.ts';
import { REQ_APF_HALT, REQ_APF_READY, type Vcpu } from '../vcpu.ts';
import { asyncPfExecute } from './worker.ts';

// Asynchronous page faults: a vCPU whose page is swapped out need not wait for the disk, if the guest has something else to do. That
// interrupts are on, and that the local APIC is KVM's own, is taken for granted.

/** One page that a worker reads for a vCPU (`struct kvm_async_pf`). */
export interface AsyncPageFault {
  /** What the guest knows it by, 32 bits; all ones wake everybody. */
  readonly token: number;
  readonly gfn: Gfn;
  /** What faulted (`cr2_or_gpa`). */
  readonly addr: bigint;
  /** Null where there was no fault, and all are woken. */
  readonly info: FaultInfo | null;
  /** Of the root when it faulted: whether it is direct, and whose CR3. */
  readonly direct: boolean;
  readonly pgd: bigint;
  /** The guest has been told that the page is not there. */
  readonly injected: boolean;
  done: boolean;
}

/** What a vCPU has of it (`vcpu->async_pf`, `vcpu->arch.apf`); plain values. */
export interface AsyncPf {
  /** MSR_KVM_ASYNC_PF_EN, while the guest has it on: where flags and token stand, and KVM_ASYNC_PF_SEND_ALWAYS. */
  enabled: { readonly gpa: bigint; readonly sendAlways: boolean } | null;
  /** In the order of the faults. */
  queue: AsyncPageFault[];
  /** Faults so far, of which tokens are made. */
  count: number;
  /** A #PF for the guest that is to be injected at the next entry. */
  pending: { readonly token: number; readonly info: FaultInfo } | null;
  /** The interrupt by which KVM tells that a page is there waits for the next entry. */
  interrupt: boolean;
  /** Tokens by which the guest has woken what slept. */
  woken: number[];
}

export const newAsyncPf = (): AsyncPf => ({
  enabled: null,
  queue: [],
  count: 0,
  pending: null,
  interrupt: false,
  woken: [],
});

/** The host task that reads pages; it is there where a program swaps memory out. */
export const ASYNC_PF_WORKER = 'kworker';
/** ASYNC_PF_PER_VCPU */
const MOST = 64;
/** The token that wakes all. */
export const WAKE_ALL = 0xffff_ffff;
/** struct kvm_vcpu_pv_apf_data: offsets of its words, of 4 bytes. */
export const FLAGS = 0n;
export const TOKEN = 4n;
const PAGE_NOT_PRESENT = 1n;

/** A word of the area that the guest shares. */
export function sharedWord(machine: Machine, gpa: bigint): bigint {
  return machine.readBytes(machine.resolve(addressToFrame(gpa)), pageOffset(gpa), 4);
}

export function storeShared(machine: Machine, gpa: bigint, value: bigint): void {
  machine.storeBytes(machine.resolve(addressToFrame(gpa)), pageOffset(gpa), 4, value);
}

export const asyncPfOf = (machine: Machine, { id }: Vcpu): AsyncPf => machine.small.asyncPf[id]!;

/** kvm_can_deliver_async_pf: whether the guest can take a #PF that says that a page is not there. */
function canDeliver(machine: Machine, task: Task): boolean {
  const vcpu = machine.vcpu(task.vcpu);
  const { enabled } = asyncPfOf(machine, vcpu);
  if (!enabled || (!enabled.sendAlways && (task.access?.cpl ?? vcpu.mode.cpl) === 0)) return false;
  // L1 would have to ask for such VM exits (KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT), which is not modelled.
  if (vcpu.guestMode) return false;
  // Who has paging off is not likely to have a handler either; before the series of 2022 KVM did not mind.
  return vcpu.mode.paging || machine.policies.roots === 'before';
}

/** Whether the fault can be left to a worker (kvm_can_do_async_pf). */
export function canDoAsyncPf(machine: Machine, task: Task): boolean {
  return workerOf(machine) !== undefined && asyncPfOf(machine, machine.vcpu(task.vcpu)).pending === null;
}

const workerOf = (machine: Machine): Task | undefined => machine.tasks.find(({ name }) => name === ASYNC_PF_WORKER);

/** kvm_setup_async_pf and kvm_arch_async_page_not_present. @returns whether a worker reads the page; else the fault waits for it */
export function setupAsyncPf(machine: Machine, task: Task, fault: PageFault, direct: boolean, pgd: bigint): boolean {
  const vcpu = machine.vcpu(task.vcpu);
  const apf = asyncPfOf(machine, vcpu);
  if (apf.queue.length >= MOST) return false;
  // alloc_apf_token, which is never 0.
  const token = (++apf.count * 4096 + vcpu.id) % WAKE_ALL;
  const injected = canDeliver(machine, task);
  apf.queue.push({ token, gfn: fault.gfn, addr: fault.addr, info: fault.info, direct, pgd, injected, done: false });
  machine.trace('kvm_async_pf_not_present', { token, gva: fault.addr });
  if (injected) {
    storeShared(machine, apf.enabled!.gpa + FLAGS, PAGE_NOT_PRESENT);
    apf.pending = { token, info: fault.info };
    machine.count('async_pf.not_present');
  } else machine.setRequests(vcpu, vcpu.requests | REQ_APF_HALT);
  const worker = workerOf(machine)!;
  worker.stack.unshift({ fn: asyncPfExecute.name, step: 0, locals: { vcpu: vcpu.id, token, pfn: fault.pfn } });
  if (worker.state === 'done') worker.state = 'ready';
  return true;
}

/** Whether a worker reads a page already (kvm_find_async_pf_gfn). */
export function isAwaited(machine: Machine, vcpu: Vcpu, gfn: Gfn): boolean {
  return asyncPfOf(machine, vcpu).queue.some((each) => each.gfn === gfn && each.token !== WAKE_ALL);
}

/** kvm_arch_can_dequeue_async_page_present: the guest has taken the last token. */
export function canDequeue(machine: Machine, { enabled }: AsyncPf): boolean {
  return !enabled || sharedWord(machine, enabled.gpa + TOKEN) === 0n;
}

/** A fault is done: its vCPU is asked to look, and runs again if it was halted. */
export function completed(machine: Machine, vcpu: Vcpu): void {
  machine.setRequests(vcpu, vcpu.requests | REQ_APF_READY);
  wake(machine, vcpu);
}

function wake(machine: Machine, vcpu: Vcpu): void {
  for (const task of machine.tasks) if (task.vcpu === vcpu.id && task.state === 'halted') task.state = 'ready';
}

/** kvm_clear_async_pf_completion_queue: nobody is told of these any more. */
export function clearQueue(machine: Machine, vcpu: Vcpu): void {
  asyncPfOf(machine, vcpu).queue = [];
}

/**
 * The guest writes MSR_KVM_ASYNC_PF_EN (kvm_pv_enable_async_pf). Whoever slept when it was last on is woken.
 * @throws RangeError where no memory holds the area
 */
export function enableAsyncPf(machine: Machine, vcpu: Vcpu, enabled: AsyncPf['enabled']): void {
  machine.count('exits');
  if (enabled && !machine.slots.find(addressToFrame(enabled.gpa)))
    throw new RangeError(`async-pf ${hex(enabled.gpa)}: no memslot holds it, and WRMSR gives #GP`);
  const apf = asyncPfOf(machine, vcpu);
  apf.enabled = enabled;
  if (!enabled) {
    clearQueue(machine, vcpu);
    return;
  }
  if (apf.queue.some(({ done }) => done)) return;
  // kvm_async_pf_wakeup_all
  apf.queue.push({
    token: WAKE_ALL,
    gfn: -1,
    addr: 0n,
    info: null,
    direct: false,
    pgd: 0n,
    injected: true,
    done: true,
  });
  completed(machine, vcpu);
}
