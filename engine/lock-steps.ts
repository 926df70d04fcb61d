import type { Machine } from './machine.ts';
import { BLOCKED, type LockName, NEXT, type Task } from './operation.ts';

/** The step that takes a lock: it runs again each time the task is scheduled, until the lock is free. */
export function lockStep(lock: LockName, mode: 'read' | 'write') {
  const how = lock === 'slots_lock' ? '' : mode === 'read' ? ' for reading' : ' for writing';
  return {
    name: 'lock',
    text: `take ${lock}${how}`,
    run: (machine: Machine, task: Task) => (machine.acquire(task, lock, mode) ? NEXT : BLOCKED),
  };
}

/** The step that drops it. What the last function returned stays. */
export function unlockStep(lock: LockName) {
  return {
    name: 'unlock',
    text: `drop ${lock}`,
    run(machine: Machine, task: Task) {
      machine.release(task, lock);
      return NEXT;
    },
  };
}

/** The lock that a task spins others out with, and so must not sleep in: mmu_lock, where it holds it. */
export function heldSpinlock(task: Task): LockName | undefined {
  return task.holds.find(({ lock }) => lock === 'mmu_lock')?.lock;
}
