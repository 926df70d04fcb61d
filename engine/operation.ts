import type { Machine } from './machine.ts';

/**
 * A function in progress, as plain values inside the machine's state: cloned by checkpoints, shown as a stack frame,
 * run one step at a time.
 */
export interface OperationFrame {
  readonly fn: string;
  step: number;
  locals: object;
}

/** Something that runs: a vCPU with its program, or a host thread. Plain values only. */
export interface Task {
  readonly id: number;
  readonly kind: 'vcpu' | 'host';
  readonly name: string;
  /** Index of the vCPU; −1 for a host task. */
  readonly vcpu: number;
  /** Instruction of the flattened program that runs next. */
  pc: number;
  /** Loops being executed, outermost first. */
  loops: { remaining: number; index: number }[];
  stack: OperationFrame[];
  /** It must try again while somebody invalidates memory: by default others get their turn first. */
  yields?: boolean;
  /** What the last function returned. */
  result: number;
  /** `halted`: a vCPU that has nothing to do until a page is swapped in. */
  state: 'ready' | 'blocked' | 'waiting' | 'halted' | 'done';
  /** Lock waited for while blocked. */
  wants: LockName | null;
  holds: HeldLock[];
  /** The access being performed, kept over its faults. */
  access: PendingAccess | null;
  /** A guest fault that ended the last statement, for `#PF` reporting. */
  cr2: bigint;
  /** What the last read found. */
  loaded: bigint;
  /** Error code of the vCPU's last #PF. */
  errorCode: number;
}

export interface PendingAccess {
  readonly kind: 'read' | 'write' | 'fetch';
  readonly address: bigint;
  readonly size: number;
  readonly value: bigint;
  readonly cpl: number;
  readonly implicit: boolean;
  /** Of a VM whose guests tell private from shared memory: whether this access is to private memory. */
  readonly isPrivate?: boolean;
  /** It is no access, but an instruction on a page as a whole, which is translated as a private read is. */
  readonly page?: PageInstruction;
}

/** By linear address, or of TDX by guest-physical address. */
export type PageInstruction =
  | { readonly name: 'PVALIDATE'; readonly level: 1 | 2; readonly validated: boolean }
  /** What a VMPL may do with the page, in bits of `rightsMask`. */
  | { readonly name: 'RMPADJUST'; readonly level: 1 | 2; readonly vmpl: number; readonly rights: number }
  | { readonly name: 'TDG.MEM.PAGE.ACCEPT'; readonly level: 1 };

/** The last is the TDX module's, on its own tables. */
export const LOCKS = ['slots_lock', 'mmu_lock', 'sept_lock'] as const;
export type LockName = (typeof LOCKS)[number];
export interface HeldLock {
  readonly lock: LockName;
  readonly mode: 'read' | 'write';
}

/** What a step says of where to go; a step's name jumps there. */
export type Flow = number | string;
export const NEXT = -1;
/** A callee was pushed; when it returns, the next step runs. */
export const CALLED = -2;
export const RETURNED = -3;
/** The step could not take a lock; it runs again when the task is scheduled again. */
export const BLOCKED = -4;
/** The same step again: a loop whose every round is observable. */
export const AGAIN = -5;

export interface Step<L> {
  readonly name: string;
  /** One line of the listing, in our own words. */
  readonly text: string;
  /** It reads and changes nothing that another task could change or see: no place to ask who runs next. */
  readonly local?: true;
  /** It may be repeated until somebody else has changed something. */
  readonly spins?: true;
  run(machine: Machine, task: Task, locals: L): Flow;
}

export interface FunctionSpec<L> {
  /** KVM's name, where it is KVM's function. */
  readonly name: string;
  /** Where it lives in the kernel, or whose work it stands for. */
  readonly where: string;
  readonly about: string;
  readonly steps: readonly Step<L>[];
}

interface Registered {
  readonly spec: FunctionSpec<unknown>;
  readonly numbers: ReadonlyMap<string, number>;
  run(step: number, machine: Machine, task: Task, locals: object): Flow;
}

const registry = new Map<string, Registered>();

/** Declares a function as a list of named steps, cut wherever the kernel could be observed or preempted. */
export function defineFunction<L extends object>(spec: FunctionSpec<L>): FunctionSpec<L> {
  const numbers = new Map(spec.steps.map((step, index) => [step.name, index]));
  if (numbers.size !== spec.steps.length) throw new Error(`${spec.name}: two steps share a name`);
  if (registry.has(spec.name)) throw new Error(`${spec.name} is declared twice`);
  const steps = spec.steps;
  registry.set(spec.name, {
    spec: spec as FunctionSpec<unknown>,
    numbers,
    // Locals were pushed by `call` with this function's own type, so the cast only undoes their storage as `object`.
    run: (step, machine, task, locals) => steps[step]!.run(machine, task, locals as L),
  });
  return spec;
}

/** Starts a function on top of the task's stack. */
export function call<L extends object>(task: Task, fn: FunctionSpec<L>, locals: L): typeof CALLED {
  task.stack.push({ fn: fn.name, step: 0, locals });
  return CALLED;
}

export function returns(task: Task, result: number): typeof RETURNED {
  task.result = result;
  return RETURNED;
}

export function functionSpec(name: string): FunctionSpec<unknown> {
  const found = registry.get(name);
  if (!found) throw new Error(`no function ${name}`);
  return found.spec;
}

export function functionNames(): string[] {
  return [...registry.keys()];
}

/** Whether the step on top of the stack is one that spins. */
export function isSpinning({ stack }: Task): boolean {
  const frame = stack.at(-1);
  return frame !== undefined && registry.get(frame.fn)!.spec.steps[frame.step]?.spins === true;
}

/** Runs the step on top of the stack. */
export function runTopStep(machine: Machine, task: Task): void {
  const { stack } = task;
  const depth = stack.length - 1;
  const frame = stack[depth]!;
  const registered = registry.get(frame.fn)!;
  const flow = registered.run(frame.step, machine, task, frame.locals);
  if (typeof flow === 'string') {
    const step = registered.numbers.get(flow);
    if (step === undefined) throw new Error(`${frame.fn} has no step ${flow}`);
    frame.step = step;
  } else if (flow === NEXT || flow === CALLED) frame.step++;
  else if (flow === RETURNED) stack.pop();
  // A caller that has no step left after its callee returned has returned with it.
  for (let top = stack.length - 1; top >= 0 && flow !== CALLED; top--) {
    const below = stack[top]!;
    if (below.step < registry.get(below.fn)!.spec.steps.length) break;
    stack.pop();
  }
}
