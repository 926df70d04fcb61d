// How a program's accesses are made: by vCPUs through their TLBs, by page instructions, by the host's threads through its direct map.
import { readWithoutKey } from './attributes/ciphertext.ts';
import { directMapAccess } from './attributes/direct-map.ts';
import { endsAtOnce } from './attributes/page-instruction.ts';
import { checkFresh } from './attributes/stale.ts';
import { evaluateInteger, type Scope } from './expression.ts';
import {
  accessPages,
  COMPLETED,
  EMULATED,
  FAILED,
  FAULTED,
  isByFrame,
  lookUp,
  pageWalk,
  untranslatable,
} from './guest/access.ts';
import type { Machine } from './machine.ts';
import { backingPfn } from './memory/memslots.ts';
import { addressToFrame, hex, type Pfn, pageOffset } from './memory/words.ts';
import { call, type PendingAccess, type Task } from './operation.ts';
import type { AccessStatement, Statement } from './program.ts';
import { programScope } from './queries/scope.ts';
import { mustEnter, vcpuEnterGuest } from './roots/enter.ts';
import type { Vcpu } from './vcpu.ts';

function accessOf(machine: Machine, task: Task, statement: AccessStatement, cpl: number): PendingAccess {
  const scope = programScope(machine, task);
  // A guest of SNP or TDX says of every access which memory it means: by its tables, or without them always private memory.
  const mode = task.vcpu < 0 ? undefined : machine.vcpu(task.vcpu).mode;
  const tellsTables = mode?.paging === true && mode.format.privacyHi !== 0;
  const isPrivate = statement.isPrivate ?? (isToldByGuest(machine) && !tellsTables ? true : undefined);
  return {
    kind: statement.access,
    address: evaluateInteger(statement.address, scope, statement.access),
    size: statement.size,
    value: storedValue(machine, statement, scope),
    cpl,
    implicit: statement.implicit,
    ...(isPrivate === undefined ? {} : { isPrivate }),
  };
}

/** What a write stores: unless the statement says, the number of the step, which is no other's. Of a read nothing, or each would be a state of its own. */
function storedValue({ steps }: Machine, { access, size, value }: AccessStatement, scope: Scope): bigint {
  if (access !== 'write') return 0n;
  return value ? BigInt.asUintN(8 * size, evaluateInteger(value, scope, 'write')) : BigInt(steps);
}

const isToldByGuest = ({ vm }: Machine): boolean => vm === 'snp' || vm === 'tdx';

/** A kernel thread's access, to the page that userspace has mapped unless the statement says the private one. */
export function accessDirectMap(machine: Machine, task: Task, statement: AccessStatement): void {
  const access = accessOf(machine, task, { ...statement, isPrivate: statement.isPrivate ?? false }, 0);
  const gfn = addressToFrame(access.address);
  const slot = machine.slots.find(gfn);
  if (!slot) throw new RangeError(`no memory slot holds gpa ${hex(access.address)}`);
  if (pageOffset(access.address) + access.size > 4096)
    throw new RangeError(`gpa ${hex(access.address)} +${access.size} crosses a page`);
  if (access.isPrivate && !slot.gmem) throw new RangeError(`slot ${slot.id} has no guest_memfd`);
  call(task, directMapAccess, { access, gfn, pfn: backingPfn(slot, gfn, access.isPrivate ? slot.gmem : slot.backing) });
}

/** Translated as a private read, whatever the page has been accepted as so far. */
export function runPageInstruction(
  machine: Machine,
  task: Task,
  statement: Extract<Statement, { kind: 'page-instruction' }>,
): void {
  const { address, instruction, span } = statement;
  const read: AccessStatement = {
    kind: 'access',
    access: 'read',
    address,
    size: 1,
    implicit: false,
    isPrivate: true,
    span,
  };
  if (task.access === null) {
    task.access = { ...accessOf(machine, task, read, 0), page: instruction };
    if (endsAtOnce(machine, task, task.access)) {
      finishAccess(task);
      return;
    }
  }
  runAccess(machine, task, read);
}

/** One attempt at an access: through the TLB, or by starting the walk that will fill it. */
export function runAccess(machine: Machine, task: Task, statement: AccessStatement): void {
  const vcpu = machine.vcpu(task.vcpu);
  if (task.access === null) {
    task.access = accessOf(machine, task, statement, statement.cpl ?? vcpu.mode.cpl);
    task.result = 0;
    machine.count('accesses');
  } else if (task.result === FAULTED || task.result === EMULATED || task.result === COMPLETED) {
    // No slot holds it, and no device answers.
    if (task.result === EMULATED && task.access.kind === 'read')
      task.loaded = (1n << BigInt(8 * task.access.size)) - 1n;
    finishAccess(task);
    return;
  } else if (task.result === FAILED) {
    machine.fail(task, 'KVM_RUN failed: the vCPU cannot go on');
    return;
  }
  const { access } = task;
  const problem = isByFrame(access) ? undefined : untranslatable(vcpu.mode, access.address);
  if (problem !== undefined) {
    machine.warn(`${task.name}: ${problem}`);
    finishAccess(task);
    return;
  }
  if (mustEnter(vcpu)) {
    call(task, vcpuEnterGuest, {});
    return;
  }
  const pages = accessPages(access);
  const frames: number[] = [];
  for (const vfn of pages) {
    const pfn = access.page
      ? -1
      : lookUp(vcpu, vfn, machine.injects('smap-ac-implicit') ? { ...access, implicit: false } : access);
    if (pfn < 0) {
      call(task, pageWalk, { vfn, access, walk: null, fault: null });
      return;
    }
    frames.push(pfn);
  }
  machine.count('tlb.hits', pages.length);
  if (machine.vm !== 'ordinary') for (const vfn of pages) checkFresh(machine, vcpu, vfn);
  if (machine.vm === 'tdx' && frames.some((pfn) => machine.attributes.poisoned.get(pfn))) {
    failPoisoned(machine, task, access.address);
    return;
  } else if (access.kind === 'write') store(machine, frames, access);
  else if (access.kind === 'read') task.loaded = load(machine, vcpu, frames, access);
  finishAccess(task);
}

function failPoisoned(machine: Machine, task: Task, address: bigint): void {
  const text = `${task.name} takes a machine check at ${hex(address)}: the host has written to the page, and its integrity is gone`;
  machine.hazard('poisoned-memory', text, addressToFrame(address));
  machine.fail(task, text);
}

function store(machine: Machine, frames: readonly number[], access: NonNullable<Task['access']>): void {
  const offset = pageOffset(access.address);
  const first = Math.min(access.size, 4096 - offset);
  machine.storeBytes(frames[0]!, offset, first, access.value);
  if (frames.length > 1) machine.storeBytes(frames[1]!, 0, access.size - first, access.value >> BigInt(8 * first));
}

function load(machine: Machine, vcpu: Vcpu, frames: readonly number[], access: NonNullable<Task['access']>): bigint {
  const offset = pageOffset(access.address);
  const first = Math.min(access.size, 4096 - offset);
  // A guest of SNP reads what is private by its key: without the C-bit there is ciphertext.
  const hasKey = machine.vm !== 'snp' || vcpu.tlb.find(accessPages(access)[0]!, vcpu.hardware.pcid)?.isPrivate === true;
  const read = (pfn: Pfn, at: number, size: number): bigint =>
    hasKey ? machine.readBytes(pfn, at, size) : readWithoutKey(machine, pfn, at, size);
  const low = read(frames[0]!, offset, first);
  return frames.length === 1 ? low : low | (read(frames[1]!, 0, access.size - first) << BigInt(8 * first));
}

function finishAccess(task: Task): void {
  task.access = null;
  task.result = 0;
  task.pc++;
}
