import type { CounterName } from '../counters.ts';
import { Kind } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import { functionSpec, isSpinning, type Task } from '../operation.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import { countersOf } from './counted.ts';
import { hashSmall, hashTask, StateHash } from './state-hash.ts';

/**
 * Notices a run that goes round in circles. It is asked at the end of a turn that was taken from a task, when everyone else has had one or can do
 * nothing: what comes next then depends on the state and on whose turn it was, and if both were so before, they will be again.
 */
export class Circles {
  readonly #machine: Machine;
  readonly #counted: readonly CounterName[] | undefined;
  readonly #seen = new Set<string>();
  #hash = new StateHash();
  /** How far the hash has followed the log. */
  #position = 0;

  constructor(machine: Machine) {
    this.#machine = machine;
    this.#counted = countersOf(machine.program);
  }

  /** Something has got on, or was changed from outside: what was seen does not come again. */
  clear(): void {
    if (this.#seen.size > 0) this.#seen.clear();
  }

  /** Whether a task's turn ended in this very state before. */
  isBack(task: Task): boolean {
    if (!this.#counted) return false;
    const { log, tasks } = this.#machine;
    if (this.#seen.size === 0 || this.#position < log.first) {
      // Only how states differ from the first one matters.
      this.#seen.clear();
      this.#hash = new StateHash();
    } else this.#hash.follow(log, this.#position);
    this.#position = log.length;
    const hashes = [this.#hash, hashSmall(this.#machine, this.#counted), ...tasks.map(hashTask)];
    const key = `${task.id} ${hashes.map(({ a, b }) => `${a},${b}`).join(' ')}`;
    if (this.#seen.has(key)) return true;
    this.#seen.add(key);
    return false;
  }
}

const FAULTS: Readonly<Record<FaultInfo['kind'], string>> = {
  guest: '#PF',
  violation: 'second-stage fault',
  misconfiguration: 'misconfiguration',
  mmio: 'MMIO',
  nested: 'fault of L1’s tables',
  rmp: 'RMP fault',
};

/** Of each task that has not ended and could make steps, which fault it takes again and again. */
export function circleWords({ tasks, log }: Machine): string {
  const last = new Map<number, FaultInfo>();
  for (let at = log.length - 1; at >= log.first && last.size < tasks.length; at--) {
    const { kind, object } = log.at(at);
    if (kind !== Kind.EXIT) continue;
    const fault = object as FaultInfo;
    if (!last.has(fault.vcpu)) last.set(fault.vcpu, fault);
  }
  return tasks
    .filter(({ state }) => state === 'ready')
    .map((task) => {
      const { name, vcpu, stack } = task;
      const fault = last.get(vcpu);
      if (isSpinning(task)) {
        const { fn, step } = stack.at(-1)!;
        return `${name} goes round in circles in ${fn}: ${functionSpec(fn).steps[step]!.text}`;
      }
      if (!fault) return `${name} goes round in circles`;
      const place = fault.gpa === undefined ? `gva 0x${fault.gva.toString(16)}` : `gpa 0x${fault.gpa.toString(16)}`;
      return `${name} goes round in circles: ${FAULTS[fault.kind]} at ${place}: ${fault.reason}`;
    })
    .join('; ');
}
