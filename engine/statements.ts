import { accessDirectMap, runAccess, runPageInstruction } from './accesses.ts';
import { enableAsyncPf } from './async-pf/queue.ts';
import { callConvert } from './attributes/convert.ts';
import { kvmGmemPunchHole } from './attributes/gmem.ts';
import { rmpUpdateByHost } from './attributes/rmp-update.ts';
import { runVmpl } from './attributes/run-vmpl.ts';
import { checkEntries } from './attributes/update-mem-attr.ts';
import { pageStateChange } from './attributes/vmm.ts';
import type { Instruction } from './code.ts';
import { ExpressionError, evaluate, evaluateInteger, truthy } from './expression.ts';
import { untranslatable } from './guest/access.ts';
import { nestedStage } from './guest/nested.ts';
import { REGISTER_BITS, RegisterError } from './guest/registers.ts';
import { applyMapping, protectRange, runningGuestTables, unmapRange } from './guest/tables.ts';
import { Kind } from './history/log.ts';
import { kvmSetMemoryRegion } from './host/memory-region.ts';
import { kvmZapGfnRange, unmapHostMemory } from './host/notifier.ts';
import type { Machine } from './machine.ts';
import { backingPfn, frameRange, MemslotError } from './memory/memslots.ts';
import { addressToFrame, formatSize, type Gfn, hex, highWord, lowWord } from './memory/words.ts';
import { call, type Task } from './operation.ts';
import { PgtableError } from './pgtable/tables.ts';
import type { Expectation, RegisterStatement, Statement } from './program.ts';
import { programScope } from './queries/scope.ts';
import { callNestedExit, callNestedRun, handleInvept } from './roots/nested.ts';
import { kvmHandleInvpcid, kvmMmuInvlpg, kvmSetCpuid, registerFunction, writeRegister } from './roots/registers.ts';
import { emulatorLeaveSmm, enterSmm } from './roots/smm.ts';
import { findEntry } from './tdp/iterate.ts';
import { recoverNxHugePages, recoverNxLocals } from './tdp/recover-nx-huge-pages.ts';
import { kvmMmuZapAllFast } from './tdp/zap.ts';

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
