import type { Task } from '../../engine/operation.ts';
import { LOCKS } from '../../engine/operation.ts';
import type { Program } from '../../engine/program.ts';
import { type Edit, Run } from '../../engine/run.ts';
import { canRun } from '../../engine/step.ts';
import type { Halt, Match, Motion, Target, TargetCapabilities, Watcher } from './target.ts';

/** How long a slice runs before the event loop gets its turn: a tenth of what a person notices. */
const SLICE_MS = 8;
/** Steps between two looks at the clock. */
const STEPS_PER_LOOK = 256;

const isStepped = (motion: Motion, task: Task): boolean => motion.kind !== 'continue' && motion.task === task.id;

/** Whether a task stands at the beginning of a statement. */
function atStatement(task: Task): boolean {
  return task.stack.length === 0 && task.access === null;
}

/** Where a task stands, as far as a step back is concerned. */
interface Place {
  readonly step: number;
  readonly depth: number;
}

/** The built-in emulator: deterministic, so that it goes backwards too. */
export class EmulatorTarget implements Target {
  readonly name = 'emulator';
  readonly run: Run;
  readonly capabilities: TargetCapabilities = {
    run: true,
    stepBack: true,
    writeMemory: true,
    setRegisters: true,
    why: {},
  };
  #pauseWanted = false;
  #disposed = false;
  readonly #yield: () => Promise<void>;

  /** `yieldToLoop` resolves after waiting messages were handled; `plan` is the task of each of the first steps. */
  constructor(
    program: Program,
    historyEntries: number,
    yieldToLoop: () => Promise<void>,
    plan: readonly number[] = [],
  ) {
    this.run = new Run(program, historyEntries, plan);
    this.#yield = yieldToLoop;
  }

  get machine() {
    return this.run.machine;
  }

  pause(): void {
    this.#pauseWanted = true;
  }

  edit(edit: Edit): void {
    this.run.cutFuture();
    this.run.edit(edit);
  }

  async dispose(): Promise<void> {
    this.#disposed = true;
    this.#pauseWanted = true;
  }

  async move(motion: Motion, watcher: Watcher): Promise<Halt> {
    this.#pauseWanted = false;
    if (motion.kind === 'step-back') return this.#stepBack(motion.task);
    if (motion.kind === 'reverse-continue') return this.#reverse(watcher);
    this.run.cutFuture();
    watcher.begin(this.machine);
    const arrived = motion.kind === 'continue' ? undefined : this.#goal(motion);
    for (;;) {
      const until = performance.now() + SLICE_MS;
      do {
        for (let i = 0; i < STEPS_PER_LOOK; i++) {
          const halt = this.#oneStep(motion, watcher, arrived);
          if (halt) return halt;
        }
      } while (performance.now() < until);
      await this.#yield();
      if (this.#disposed) return { kind: 'ended' };
      if (this.#pauseWanted) return { kind: 'pause' };
    }
  }

  #oneStep(motion: Motion, watcher: Watcher, arrived: ((task: Task) => boolean) | undefined): Halt | undefined {
    const { run, machine } = this;
    const unfollowed = run.unfollowed();
    if (unfollowed !== undefined) {
      run.leavePlan();
      return { kind: 'schedule-end', unfollowed };
    }
    let task = run.planned();
    if (task) {
      // Who is stepped waits for the others as the schedule has it.
    } else if (motion.kind === 'continue') {
      task = run.pick();
      if (!task) {
        const words = run.stuck();
        if (words !== undefined) return { kind: 'stuck', words, circling: run.isCircling };
        run.finish();
        return { kind: 'ended' };
      }
    } else {
      task = machine.task(motion.task);
      if (task.state === 'done') return run.ended ? this.#ended() : { kind: 'step', task: task.id };
      if (task.state === 'blocked') {
        const lock = task.wants!;
        return { kind: 'blocked', task: task.id, lock, owners: machine.owners(lock).map((owner) => owner.id) };
      }
      if (!canRun(machine, task))
        return {
          kind: 'stuck',
          words: `${task.name} ${task.state === 'halted' ? 'is halted until a page is swapped in' : 'waits for a condition'}; continue lets the others run`,
        };
    }
    run.step(task);
    const match = watcher.check(machine, task.id);
    if (match) return { kind: 'matched', match };
    if (run.planEnds) return { kind: 'schedule-end' };
    if (isStepped(motion, task) && arrived?.(task))
      return task.state === 'done' && run.ended ? this.#ended() : { kind: 'step', task: task.id };
    return undefined;
  }

  #ended(): Halt {
    this.run.finish();
    return { kind: 'ended' };
  }

  /** Whether a step has come to where it leads. Called after each step of the task. */
  #goal(motion: Exclude<Motion, { kind: 'continue' }>): (task: Task) => boolean {
    const task = this.machine.task(motion.task);
    const depth = task.stack.length;
    switch (motion.kind) {
      case 'step-in':
        return () => true;
      case 'step-over':
        // From a statement: to the next one. Inside a function: to its next step, or out of it.
        return depth === 0 ? atStatement : (now) => now.stack.length <= depth;
      case 'step-out':
        return depth === 0 ? (now) => now.state === 'done' : (now) => now.stack.length < depth;
      case 'release':
        return () => {
          const { writer, readers } = this.machine.locks[LOCKS.indexOf(motion.lock)]!;
          return writer !== motion.task && !readers.includes(motion.task);
        };
      default:
        return () => true;
    }
  }

  /** Back to where the task stood last, at this depth or above: the mirror of a step over. */
  #stepBack(taskId: number): Halt {
    const { run, machine } = this;
    const task = machine.task(taskId);
    const depth = task.stack.length;
    const now = machine.steps;
    const starts = run.checkpointSteps().filter((step) => step < now);
    let bound = now;
    for (let i = starts.length - 1; i >= 0; i--) {
      const found = this.#lastPlace(
        starts[i]!,
        bound,
        taskId,
        (place, statement) => place.depth <= depth && (depth > 0 || statement),
      );
      if (found !== undefined) {
        run.goTo(found);
        return { kind: 'step', task: taskId };
      }
      bound = starts[i]!;
    }
    run.goTo(run.firstStep);
    return { kind: 'history-start' };
  }

  /** Last state from which the task made a step, in the replayed stretch [from, bound). */
  #lastPlace(
    from: number,
    bound: number,
    taskId: number,
    accept: (place: Place, statement: boolean) => boolean,
  ): number | undefined {
    let found: number | undefined;
    this.run.goTo(from);
    this.run.goTo(bound, (machine, task) => {
      if (task.id === taskId && accept({ step: machine.steps, depth: task.stack.length }, atStatement(task)))
        found = machine.steps;
    });
    return found;
  }

  /** Back to the last state at which the watcher would have stopped. */
  #reverse(watcher: Watcher): Halt {
    const { run, machine } = this;
    const now = machine.steps;
    const starts = run.checkpointSteps().filter((step) => step < now);
    let bound = now;
    for (let i = starts.length - 1; i >= 0; i--) {
      let found: { step: number; match: Match } | undefined;
      run.goTo(starts[i]!);
      watcher.begin(machine);
      let last = -1;
      run.goTo(bound, (state) => {
        if (last >= 0) {
          const match = watcher.check(state, last);
          if (match && state.steps < now) found = { step: state.steps, match };
        }
        last = run.taskAt(state.steps);
      });
      if (last >= 0 && bound < now) {
        const match = watcher.check(machine, last);
        if (match) found = { step: bound, match };
      }
      if (found) {
        run.goTo(found.step);
        return { kind: 'matched', match: found.match };
      }
      bound = starts[i]!;
    }
    run.goTo(run.firstStep);
    return { kind: 'history-start' };
  }
}
