import { evaluateInteger } from '../engine/expression.ts';
import type { Machine } from '../engine/machine.ts';
import { hex } from '../engine/memory/words.ts';
import { functionSpec, LOCKS, type Task } from '../engine/operation.ts';
import type { Query, StopAnswer } from '../engine/queries/answers.ts';
import { programScope } from '../engine/queries/scope.ts';
import { faultAnswer, faultSentence, kvmErrorWords } from '../engine/queries/words.ts';
import { type FaultInfo, isFaultInfo } from '../engine/tdp/fault.ts';
import { currentFault, FILTERS } from './breakpoints.ts';
import type { Halt } from './targets/target.ts';

/** Where a task stands, as the end of a sentence. */
function nextWords(machine: Machine, task: Task): string {
  const frame = task.stack.at(-1);
  if (!frame) {
    const line = machine.currentLine(task);
    if (line === undefined) return `${task.name} has ended`;
    // A real vCPU stands in the middle of its access.
    return machine.mirror && task.access ? `line ${line} goes on` : `line ${line} is next`;
  }
  return `${frame.fn} is next`;
}

/** The walk that a stop is about: of the fault being handled, or of the access that comes next. */
function stoppedWalk(
  machine: Machine,
  task: Task,
  fault: FaultInfo | undefined,
): Extract<Query, { kind: 'walk' }> | undefined {
  if (task.vcpu < 0 && !fault) return undefined;
  const base = (
    vcpu: number,
    gva: bigint,
    access: 'read' | 'write' | 'fetch',
    cpl: number,
    implicit: boolean,
    isPrivate: boolean | undefined,
  ) =>
    ({
      kind: 'walk',
      vcpu,
      space: 'gva',
      address: hex(gva),
      access,
      cpl: cpl === 3 ? 3 : 0,
      ...(implicit ? { implicit } : {}),
      ...(isPrivate === undefined ? {} : { private: isPrivate }),
    }) as const;
  if (fault) return base(fault.vcpu, fault.gva, fault.access, fault.cpl, fault.implicit, fault.isPrivate);
  const { access } = task;
  if (access) return base(task.vcpu, access.address, access.kind, access.cpl, access.implicit, access.isPrivate);
  const instruction = machine.code[task.id]![task.pc];
  if (instruction?.kind !== 'statement' || instruction.statement.kind !== 'access') return undefined;
  const { statement } = instruction;
  try {
    const address = evaluateInteger(statement.address, programScope(machine, task), 'address');
    return base(
      task.vcpu,
      address,
      statement.access,
      statement.cpl ?? machine.vcpu(task.vcpu).mode.cpl,
      statement.implicit,
      statement.isPrivate,
    );
  } catch {
    return undefined;
  }
}

/** Why the session stopped, in the one sentence that every place shows. */
export function describeStop(machine: Machine, task: Task, halt: Halt | { readonly kind: 'entry' }): StopAnswer {
  const matched = halt.kind === 'matched' ? halt.match : undefined;
  const event = isFaultInfo(matched?.object) ? matched.object : undefined;
  const fault = event ?? currentFault(task);
  const walk = stoppedWalk(machine, task, fault);
  const stop = (reason: StopAnswer['reason'], sentence: string): StopAnswer => ({
    reason,
    sentence,
    task: task.id,
    taskName: task.name,
    step: machine.steps,
    ...(walk ? { walk } : {}),
    ...(fault ? { fault: faultAnswer(fault) } : {}),
  });
  const next = nextWords(machine, task);
  switch (halt.kind) {
    case 'entry':
      return stop('entry', `${task.name} has not begun: ${next}.`);
    case 'schedule-end':
      return stop(
        'pause',
        halt.unfollowed === undefined
          ? `The schedule ends here, after ${machine.steps} steps: ${next}.`
          : `The schedule cannot be followed any further, after ${machine.steps} steps: ${halt.unfollowed}.`,
      );
    case 'pause':
      return stop('pause', `Paused after ${machine.steps} steps: ${next}.`);
    case 'blocked': {
      const owners = halt.owners.map((owner) => machine.task(owner).name).join(' and ');
      return stop('stuck', `${task.name} waits for ${halt.lock}, held by ${owners}: let the owner run, or continue.`);
    }
    case 'stuck':
      return stop('stuck', `Nothing ${halt.circling ? 'gets on' : 'can run'}: ${halt.words}.`);
    case 'ended':
      return stop('end', `Everything has ended after ${machine.steps} steps.`);
    case 'history-start':
      return stop('entry', `This is as far back as the history goes: ${next}.`);
    case 'step':
      return stop('step', stepSentence(task, fault, next));
    case 'matched':
      break;
  }
  if (matched!.kind === 'breakpoint') return stop('breakpoint', `Breakpoint: ${stepSentence(task, fault, next)}`);
  if (matched!.kind === 'data') return stop('data', `${task.name} changed the watched memory: ${next}.`);
  if (event) {
    const delivered =
      matched!.filter === 'guest' ? `; the guest gets #PF with error code ${kvmErrorWords(event.errorCode)}` : '';
    const how =
      matched!.filter === 'spurious'
        ? ', but by now the entry allows it'
        : matched!.filter === 'fast'
          ? ', fixed without a lock'
          : matched!.filter === 'memory-fault'
            ? `: the access was ${event.isPrivate ? 'private' : 'shared'}, the page is not; KVM_EXIT_MEMORY_FAULT`
            : '';
    return stop('exception', `${faultSentence(event)}${how}${delivered}; ${next}.`);
  }
  const label = FILTERS.find((filter) => filter.filter === matched!.filter)?.label ?? 'Event';
  const object = matched!.object;
  const what =
    typeof object === 'string'
      ? object
      : typeof object === 'object' && object !== null && 'text' in object
        ? `${String(object.text)}${'actual' in object ? ` (${String(object.actual)})` : ''}`
        : label;
  return stop('exception', `${label}: ${what}; ${next}.`);
}

function stepSentence(task: Task, fault: FaultInfo | undefined, next: string): string {
  const frame = task.stack.at(-1);
  if (!frame) return `${task.name}: ${next}.`;
  const step = functionSpec(frame.fn).steps[frame.step];
  const doing = step ? `${frame.fn}, ${step.name}: ${step.text}` : frame.fn;
  return `${fault ? `${faultSentence(fault)}. Next in ` : `${task.name}, next in `}${doing}.`;
}

/** Locks that a task holds, for its thread's name. */
export function taskTitle(machine: Machine, task: Task): string {
  // Without a program of its own a machine's tasks are its CPUs.
  if (machine.mirror && machine.code[task.id]!.length === 0)
    return `${machine.mirror.places === 'memslots' ? 'vCPU' : 'CPU'} ${task.vcpu}`;
  const held = LOCKS.filter((lock) => machine.owners(lock).includes(task));
  const state =
    task.state === 'done'
      ? ' (ended)'
      : task.state === 'blocked'
        ? ` (waits for ${task.wants})`
        : task.state === 'waiting'
          ? ' (waits)'
          : task.state === 'halted'
            ? ' (halted)'
            : '';
  return `${task.name}${state}${held.length > 0 ? ` [${held.join(', ')}]` : ''}`;
}
