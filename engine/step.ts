import { type Expression, ExpressionError, evaluate, truthy } from './expression.ts';
import { RegisterError } from './guest/registers.ts';
import { type Machine, MachineError, USER_TASK } from './machine.ts';
import { runTopStep, type Task } from './operation.ts';
import { PgtableError } from './pgtable/tables.ts';
import { programScope } from './queries/scope.ts';
import { sanitize } from './shadow/sanitizer.ts';
import { runInstruction } from './statements.ts';

/** Whether a task can make a step: one that waits for a condition can as soon as it holds. */
export function canRun(machine: Machine, task: Task): boolean {
  if (task.state === 'ready') return true;
  if (task.state !== 'waiting') return false;
  const instruction = machine.code[task.id]![task.pc];
  if (instruction?.kind !== 'statement' || instruction.statement.kind !== 'wait') return false;
  return mayGoOn(machine, task, instruction.statement.condition);
}

/** Whether what a task waits for is so. Where that cannot be told its next step will say why, and end it. */
export function mayGoOn(machine: Machine, task: Task, condition: Expression): boolean {
  try {
    return truthy(evaluate(condition, programScope(machine, task)));
  } catch (error) {
    if (error instanceof ExpressionError) return true;
    throw error;
  }
}

/** Makes one step of a task. */
export function runStep(machine: Machine, task: Task): void {
  machine.acting = task.id;
  machine.small.current = task.id;
  machine.steps++;
  if (task.state === 'waiting') task.state = 'ready';
  task.yields = false;
  if (task.stack.length > 0) runFunctionStep(machine, task);
  else runInstruction(machine, task, machine.code[task.id]![task.pc]!);
  if (machine.config.sanitize) checkInvariants(machine, task);
  if (task.stack.length === 0 && task.state === 'ready' && task.pc >= machine.code[task.id]!.length)
    task.state = 'done';
  machine.acting = USER_TASK;
}

/** Ends the task after whose step something does not hold. What has been said once is not said again. */
function checkInvariants(machine: Machine, task: Task): void {
  for (const breach of sanitize(machine)) {
    const text = `sanitizer: ${breach}`;
    if (machine.small.failures.some((failure) => failure.text === text)) continue;
    machine.fail(task, text);
    return;
  }
}

/** Damaged tables (a poke, a person's edit) end the task that runs into them, not the machine. */
function runFunctionStep(machine: Machine, task: Task): void {
  try {
    runTopStep(machine, task);
  } catch (error) {
    if (error instanceof RegisterError) machine.fail(task, error.message);
    else if (error instanceof PgtableError || error instanceof MachineError)
      machine.fail(task, `KVM’s tables are damaged: ${error.message}`);
    else throw error;
  }
}
