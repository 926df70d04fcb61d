import { enableAsyncPf } from './async-pf/queue.ts';
import { readWithoutKey } from './attributes/ciphertext.ts';
import { callConvert } from './attributes/convert.ts';
import { directMapAccess } from './attributes/direct-map.ts';
import { kvmGmemPunchHole } from './attributes/gmem.ts';
import { endsAtOnce } from './attributes/page-instruction.ts';
import { rmpUpdateByHost } from './attributes/rmp-update.ts';
import { runVmpl } from './attributes/run-vmpl.ts';
import { checkFresh } from './attributes/stale.ts';
import { checkEntries } from './attributes/update-mem-attr.ts';
import { pageStateChange } from './attributes/vmm.ts';
import type { Instruction } from './code.ts';
import { ExpressionError, evaluate, evaluateInteger, type Scope, truthy } from './expression.ts';
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
import { nestedStage } from './guest/nested.ts';
import { REGISTER_BITS, RegisterError } from './guest/registers.ts';
import { applyMapping, protectRange, runningGuestTables, unmapRange } from './guest/tables.ts';
import { Kind } from './history/log.ts';
import { kvmSetMemoryRegion } from './host/memory-region.ts';
import { kvmZapGfnRange, unmapHostMemory } from './host/notifier.ts';
import type { Machine } from './machine.ts';
import { backingPfn, frameRange, MemslotError } from './memory/memslots.ts';
import { addressToFrame, formatSize, type Gfn, hex, highWord, lowWord, type Pfn, pageOffset } from './memory/words.ts';
import { call, type PendingAccess, type Task } from './operation.ts';
import { PgtableError } from './pgtable/tables.ts';
import type { AccessStatement, Expectation, RegisterStatement, Statement } from './program.ts';
import { programScope } from './queries/scope.ts';
import { mustEnter, vcpuEnterGuest } from './roots/enter.ts';
import { callNestedExit, callNestedRun, handleInvept } from './roots/nested.ts';
import { kvmHandleInvpcid, kvmMmuInvlpg, kvmSetCpuid, registerFunction, writeRegister } from './roots/registers.ts';
import { emulatorLeaveSmm, enterSmm } from './roots/smm.ts';
import { findEntry } from './tdp/iterate.ts';
import { recoverNxHugePages, recoverNxLocals } from './tdp/recover-nx-huge-pages.ts';
import { kvmMmuZapAllFast } from './tdp/zap.ts';
import type { Vcpu } from './vcpu.ts';

/** Runs the instruction at a task's `pc`; its stack is empty. */
export function runInstruction(machine: Machine, task: Task, instruction: Instruction): void {
  try {
    switch (instruction.kind) {
      case 'enter-loop': {
        const { count } = instruction.statement;
        const rounds = count ? evaluateInteger(count, programScope(machine, task), 'repeat') : -1n;
        if (rounds === 0n) task.pc = instruction.exit;
        else {
          task.loops.push({ remaining: Number(rounds), index: 0 });
          task.pc++;
        }
        return;
      }
      case 'end-loop': {
        const loop = task.loops.at(-1)!;
        loop.index++;
        if (loop.remaining < 0 || loop.index < loop.remaining) task.pc = instruction.start;
        else {
          task.loops.pop();
          task.pc++;
        }
        return;
      }
      case 'statement':
        // L1 resumes its guest, wherever a fault has brought it out.
        if (instruction.guest !== undefined && !task.access && machine.vcpu(task.vcpu).guestMode === undefined)
          callNestedRun(machine, task, instruction.guest);
        else runStatement(machine, task, instruction.statement);
    }
  } catch (error) {
    // What a program asks for and cannot have is told where it stands; a fault of the debugger itself is not.
    if (
      !(
        error instanceof ExpressionError ||
        error instanceof RegisterError ||
        error instanceof MemslotError ||
        error instanceof PgtableError ||
        error instanceof RangeError
      )
    )
      throw error;
    machine.fail(task, error.message);
  }
}

function runStatement(machine: Machine, task: Task, statement: Exclude<Statement, { kind: 'repeat' }>): void {
  switch (statement.kind) {
    case 'access':
      if (task.vcpu >= 0) {
        runAccess(machine, task, statement);
        return;
      }
      accessDirectMap(machine, task, statement);
      break;
    case 'page-instruction':
      runPageInstruction(machine, task, statement);
      return;
    case 'vmpl':
      call(task, runVmpl, { vmpl: statement.vmpl });
      break;
    case 'rmpupdate':
      callRmpUpdate(machine, task, statement);
      break;
    case 'convert': {
      const { base, pages } = rangeOf(machine, task, statement);
      const { isPrivate } = statement;
      checkEntries(machine, base, base + pages);
      if (task.vcpu < 0) callConvert(machine, task, base, base + pages, isPrivate);
      else call(task, pageStateChange, { start: base, end: base + pages, isPrivate });
      break;
    }
    case 'punch': {
      const { base, pages } = rangeOf(machine, task, statement);
      call(task, kvmGmemPunchHole, { start: base, end: base + pages, next: base });
      break;
    }
    case 'register':
      setRegister(machine, task, statement);
      break;
    case 'invlpg': {
      const address = evaluateInteger(statement.address, programScope(machine, task), 'invlpg');
      const vcpu = machine.vcpu(task.vcpu);
      if (untranslatable(vcpu.mode, address) !== undefined) break;
      if (machine.config.second === 'shadow') call(task, kvmMmuInvlpg, { address, roots: [] });
      else machine.invalidatePage(vcpu, addressToFrame(address));
      break;
    }
    case 'invpcid': {
      const scope = programScope(machine, task);
      const value = (name: 'pcid' | 'address'): bigint =>
        statement[name] ? evaluateInteger(statement[name], scope, 'invpcid') : 0n;
      call(task, kvmHandleInvpcid, { type: statement.type, pcid: value('pcid'), address: value('address') });
      break;
    }
    case 'map':
      applyMapping(editedTables(machine, task, statement.nested), statement.mapping);
      break;
    case 'unmap':
      unmapRange(editedTables(machine, task, statement.nested), statement.gva, statement.size);
      break;
    case 'protect':
      protectRange(editedTables(machine, task, statement.nested), statement.gva, statement.size, statement);
      break;
    case 'enter':
      callNestedRun(machine, task, statement.guest);
      break;
    case 'leave':
      if (machine.vcpu(task.vcpu).guestMode) callNestedExit(machine, task, 'VMCALL');
      break;
    case 'smm':
      call(task, enterSmm, {});
      break;
    case 'rsm':
      call(task, emulatorLeaveSmm, {});
      break;
    case 'invept': {
      const { nested } = statement;
      call(task, handleInvept, { pgd: nested === undefined ? null : nestedStage(machine, nested).pgd });
      break;
    }
    case 'async-pf': {
      const { gpa, sendAlways } = statement;
      enableAsyncPf(machine, machine.vcpu(task.vcpu), gpa === undefined ? null : { gpa, sendAlways });
      break;
    }
    case 'expect':
      checkExpectation(machine, statement.expectation, task);
      break;
    case 'wait':
      if (!truthy(evaluate(statement.condition, programScope(machine, task)))) {
        task.state = 'waiting';
        return;
      }
      break;
    case 'slot-add':
      call(task, kvmSetMemoryRegion, { change: { kind: 'create', config: statement.slot } });
      break;
    case 'slot-delete':
      call(task, kvmSetMemoryRegion, { change: { kind: 'delete', id: statement.id } });
      break;
    case 'slot-move': {
      const { base } = frameRange(`slot ${statement.id}`, statement.base, 4096n);
      call(task, kvmSetMemoryRegion, { change: { kind: 'move', id: statement.id, base } });
      break;
    }
    case 'slot-log':
      call(task, kvmSetMemoryRegion, { change: { kind: 'log', id: statement.id, enable: statement.enable } });
      break;
    case 'zap':
      if (statement.range) {
        const { base, pages } = frameRange('zap', statement.range.base, statement.range.size);
        call(task, kvmZapGfnRange, { start: base, end: base + pages });
      } else call(task, kvmMmuZapAllFast, {});
      break;
    case 'notifier': {
      const { base, pages } = frameRange('unmap', statement.base, statement.size);
      call(task, unmapHostMemory, { start: base, end: base + pages, how: statement.how, notified: false });
      break;
    }
    case 'recover-nx-huge-pages':
      call(task, recoverNxHugePages, recoverNxLocals(statement.ratio));
      break;
    case 'cpuid':
      call(task, kvmSetCpuid, { maxPhyAddr: statement.maxPhyAddr });
      break;
    case 'inject':
      if (!machine.injects(statement.name)) machine.small.injected.push(statement.name);
      break;
    case 'poke':
      poke(machine, task, statement);
      break;
  }
  task.pc++;
}

function poke(machine: Machine, task: Task, statement: Extract<Statement, { kind: 'poke' }>): void {
  const roots = machine.directRoots().filter(({ invalid }) => !invalid);
  const root = roots.find(({ rootCount }) => rootCount > 0) ?? roots[0];
  if (!root) throw new RangeError('poke: KVM has no tables yet; wait until a vCPU has run');
  const entry = findEntry(machine, root.pfn, addressToFrame(statement.gpa), statement.level);
  if (entry.level !== statement.level)
    throw new RangeError(
      `poke: KVM’s tables for gpa ${hex(statement.gpa)} end at level ${entry.level}, above level ${statement.level}`,
    );
  const value = evaluateInteger(statement.value, programScope(machine, task), 'poke');
  machine.setSpte(entry.table, entry.index, lowWord(value), highWord(value));
}

/** The tables in the task's CR3, with the pool of the guest that they were made for; or L1's for its guests, by their name. */
function editedTables(machine: Machine, task: Task, nested: string | undefined) {
  const vcpu = machine.vcpu(task.vcpu);
  const { mode } = vcpu;
  if (nested !== undefined) {
    const stage = nestedStage(machine, nested).mode;
    const pool = machine.program.guests.findIndex(({ name }) => name === nested);
    return runningGuestTables(machine, pool, vcpu, stage);
  }
  if (!mode.paging) throw new RangeError('the guest has no tables to edit while paging is off');
  const pool = machine.poolOf(vcpu);
  return runningGuestTables(machine, pool, vcpu);
}

function setRegister(machine: Machine, task: Task, statement: RegisterStatement): void {
  const vcpu = machine.vcpu(task.vcpu);
  const value = evaluateInteger(statement.value, programScope(machine, task), statement.register);
  const old = vcpu.registers[statement.register];
  let next = value;
  if (statement.bit !== undefined) {
    const mask = 1n << BigInt(REGISTER_BITS[statement.register]![statement.bit]!);
    next = value === 0n ? old & ~mask : old | mask;
  }
  const exits = machine.mirror ? undefined : registerFunction(machine, vcpu, statement.register, next);
  // CR3 is written to flush, too.
  if (exits && (next !== old || statement.register === 'cr3'))
    call(task, exits, { register: statement.register, value: next });
  else writeRegister(machine, vcpu, statement.register, next);
}

export function checkExpectation(machine: Machine, expectation: Expectation, task?: Task): boolean {
  const scope = programScope(machine, task);
  if (truthy(evaluate(expectation.condition, scope))) {
    machine.count('expects.passed');
    return true;
  }
  machine.count('expects.failed');
  const actual = actualValues(expectation, scope);
  machine.append(Kind.EXPECT_FAILED, expectation.span.line, 0, 0, 0, 0, { text: expectation.text, actual });
  machine.small.failures.push({ text: `expect ${expectation.text}`, line: expectation.span.line, actual });
  return false;
}

/** `faults.second = 3`: the two sides of a comparison that failed. */
function actualValues({ condition }: Expectation, scope: ReturnType<typeof programScope>): string {
  if (condition.kind !== 'binary') return 'it is false';
  const words = (value: ReturnType<typeof evaluate>): string =>
    typeof value === 'bigint' ? (value < 65536n ? `${value}` : hex(value)) : `${value}`;
  return `left is ${words(evaluate(condition.left, scope))}, right is ${words(evaluate(condition.right, scope))}`;
}

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
function accessDirectMap(machine: Machine, task: Task, statement: AccessStatement): void {
  const access = accessOf(machine, task, { ...statement, isPrivate: statement.isPrivate ?? false }, 0);
  const gfn = addressToFrame(access.address);
  const slot = machine.slots.find(gfn);
  if (!slot) throw new RangeError(`no memory slot holds gpa ${hex(access.address)}`);
  if (pageOffset(access.address) + access.size > 4096)
    throw new RangeError(`gpa ${hex(access.address)} +${access.size} crosses a page`);
  if (access.isPrivate && !slot.gmem) throw new RangeError(`slot ${slot.id} has no guest_memfd`);
  call(task, directMapAccess, { access, gfn, pfn: backingPfn(slot, gfn, access.isPrivate ? slot.gmem : slot.backing) });
}

/** Frames of a range whose start may be computed. @throws ExpressionError, or MemslotError where it is no multiple of 4K */
export function rangeOf(
  machine: Machine,
  task: Task,
  { kind, base, size }: Extract<Statement, { kind: 'convert' | 'punch' }>,
): { readonly base: Gfn; readonly pages: number } {
  const start = evaluateInteger(base, programScope(machine, task), kind);
  if (start < 0n || start + size > 1n << 64n)
    throw new RangeError(`${kind}: gpa ${hex(start)} +${formatSize(Number(size))} is not within 64 bits`);
  return frameRange(kind, start, size);
}

function callRmpUpdate(
  machine: Machine,
  task: Task,
  { gpa, level, to }: Extract<Statement, { kind: 'rmpupdate' }>,
): void {
  const gfn = addressToFrame(gpa);
  const slot = machine.slots.find(gfn);
  if (!slot?.gmem) throw new RangeError(`rmpupdate: no slot with guest-memfd holds gpa ${hex(gpa)}`);
  call(task, rmpUpdateByHost, {
    pfn: backingPfn(slot, gfn, slot.gmem),
    level,
    to: to && { gfn: addressToFrame(to.gpa), asid: to.asid },
  });
}

/** Translated as a private read, whatever the page has been accepted as so far. */
function runPageInstruction(
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
function runAccess(machine: Machine, task: Task, statement: AccessStatement): void {
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
