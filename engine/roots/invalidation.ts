import { Kind } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import type { Vcpu } from '../vcpu.ts';

/** Has the log say what a guest invalidates: the cause of what becomes of its roots. */
export function tellInvalidation(machine: Machine, vcpu: Vcpu, words: string): void {
  machine.append(Kind.INVALIDATION, vcpu.id, 0, 0, 0, 0, words);
}
