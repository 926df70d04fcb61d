import type { Scope } from '../../engine/expression.ts';
import type { Machine } from '../../engine/machine.ts';
import type { MissingFrames } from '../../engine/mirror.ts';
import type { LockName } from '../../engine/operation.ts';
import type { Edit } from '../../engine/run.ts';
import type { FilterName, PlacedBreakpoint } from '../breakpoints.ts';
import type { GuestSide } from './guest.ts';

/** What a target can do. Where it cannot, `why` says so in words that a person can act on. */
export interface TargetCapabilities {
  /** Whether anything moves. */
  readonly run: boolean;
  readonly stepBack: boolean;
  readonly writeMemory: boolean;
  readonly setRegisters: boolean;
  /** Reasons by capability, for those that are false. */
  readonly why: Readonly<Partial<Record<'run' | 'stepBack' | 'writeMemory' | 'setRegisters', string>>>;
}

/** How far to go. A step concerns one task; `continue` runs the default schedule. */
export type Motion =
  | { readonly kind: 'continue' }
  | {
      readonly kind: 'step-in' | 'step-over' | 'step-out';
      readonly task: number;
      /** Of guest code: one instruction, not a line of source. */
      readonly byInstruction?: boolean;
    }
  | { readonly kind: 'step-back' | 'reverse-continue'; readonly task: number }
  /** Of a recording: to the moment after so many events. */
  | { readonly kind: 'seek'; readonly position: number; readonly task: number }
  /** Runs a lock's owner until the lock is free. */
  | { readonly kind: 'release'; readonly lock: LockName; readonly task: number };

/** Why a motion came to its end. */
export type Halt =
  | { readonly kind: 'matched'; readonly match: Match }
  | { readonly kind: 'step'; readonly task: number }
  | { readonly kind: 'pause' }
  /** What was planned has been done; from here on any task may go on. */
  | { readonly kind: 'schedule-end'; readonly unfollowed?: string }
  | { readonly kind: 'blocked'; readonly task: number; readonly lock: string; readonly owners: readonly number[] }
  /** `status`: what the guest ended with. */
  | { readonly kind: 'ended'; readonly status?: number }
  /** Something happened to a vCPU that nobody asked for. */
  | { readonly kind: 'event'; readonly task: number }
  /** `circling`: steps could be made, and would lead back here. */
  | { readonly kind: 'stuck'; readonly words: string; readonly circling?: boolean }
  /** Going back reached the oldest state that is kept. */
  | { readonly kind: 'history-start' };

/** Something that a person asked to be stopped at. */
export interface Match {
  readonly kind: 'breakpoint' | 'exception' | 'data';
  readonly task: number;
  /** DAP ids of breakpoints hit; the filter of an exception. */
  readonly ids: readonly number[];
  readonly filter?: string;
  readonly object?: unknown;
}

/** Looks at the machine after every step. */
export interface Watcher {
  /** Called before the first step of a motion, to forget what was matched before. */
  begin(machine: Machine): void;
  /** What is matched now, if anything. `task` made the last step. */
  check(machine: Machine, task: number): Match | undefined;
  // For targets that tell of events themselves:
  /** Whether events of a kind are wanted at all. */
  wants(filter: FilterName): boolean;
  /** The guest-physical addresses to which the condition on such events restricts them. */
  range(filter: FilterName): { readonly from: bigint; readonly to: bigint } | undefined;
  /** Whether this event is wanted. Counts it as a hit. */
  admits(filter: FilterName, scope: Scope): boolean;
  /** Ids of breakpoints that stop here, those whose condition holds; log messages are printed. */
  hit(points: readonly PlacedBreakpoint[], scope: Scope): number[];
}

/** What a session drives: control, memory, events, and a machine that mirrors it. */
export interface Target {
  readonly name: string;
  /** What a target that never runs is, in one sentence: its only stop. */
  readonly about?: string;
  readonly machine: Machine;
  /** Where vCPUs run real code: that code. */
  readonly guest?: GuestSide;
  readonly capabilities: TargetCapabilities;
  /** Moves until something halts it. Control returns to the event loop every few milliseconds. @throws LostError when the machine is gone */
  move(motion: Motion, watcher: Watcher): Promise<Halt>;
  /** Ends the current motion soon. */
  pause(): void;
  /** Brings here what a question lacked. */
  fetch?(missing: MissingFrames): Promise<void>;
  edit(edit: Edit): void;
  /** Lets go of it, once; what is told of its last moments has been told when this resolves. */
  dispose(): Promise<void>;
}
