import { ASYNC_PF_WORKER } from '../async-pf/queue.ts';
import type { Machine, SmallState } from '../machine.ts';
import type { Task } from '../operation.ts';

/** The small state for a step of one task: what the step may change is copied, so that the old one stays what it was; the rest is shared. */
export function forStep({ small }: Machine, task: Task): SmallState {
  return {
    ...small,
    tasks: small.tasks.map((each) => (changes(small, task, each) ? copyTask(each) : each)),
    asyncPf: small.asyncPf.map((apf) => ({
      ...apf,
      queue: apf.queue.map((page) => ({ ...page })),
      woken: [...apf.woken],
    })),
    possibleNxHugePages: [...small.possibleNxHugePages],
    counters: small.counters.slice(),
    failures: [...small.failures],
    warnings: [...small.warnings],
    injected: [...small.injected],
    lateUnsync: [...small.lateUnsync],
    conversions: [...small.conversions],
    hazards: [...small.hazards],
    mmioPages: [...small.mmioPages],
    tablePools: small.tablePools.length === 0 ? small.tablePools : structuredClone(small.tablePools),
  };
}

/** Whether a step of `task` may change `each`: itself, and where pages are swapped out a vCPU its worker, which wakes it. */
export function changes({ tasks }: SmallState, task: Task, each: Task): boolean {
  return each === task || tasks.some(({ name }) => name === ASYNC_PF_WORKER);
}

function copyTask(task: Task): Task {
  // Functions on one stack share what they work on, such as the fault, and must go on sharing it.
  const copies = new Map<object, object>();
  return {
    ...task,
    loops: task.loops.map((loop) => ({ ...loop })),
    holds: [...task.holds],
    stack: task.stack.map(({ fn, step, locals }) => ({ fn, step, locals: copy(locals, copies) })),
  };
}

function copy<T extends object>(value: T, copies: Map<object, object>): T {
  const known = copies.get(value);
  if (known) return known as T;
  const result = (Array.isArray(value) ? [] : {}) as Record<string, unknown>;
  copies.set(value, result);
  for (const key in value) {
    const each = value[key];
    const isOwn = typeof each === 'object' && each !== null && !NEVER_CHANGED.has(key);
    result[key] = isOwn ? copy(each, copies) : each;
  }
  return result as T;
}

/** What locals refer to and no step changes: a fault as it is told, and the access that made it. */
export const NEVER_CHANGED: ReadonlySet<string> = new Set(['info', 'access']);
