import { launch } from './attributes/launch.ts';
import type { CounterName } from './counters.ts';
import { Circles, circleWords } from './explore/circles.ts';
import { taskKeys } from './explore/schedule-text.ts';
import { guestNamed, l1Frame, nestedStage, tableFormatOf } from './guest/nested.ts';
import type { RegisterName } from './guest/registers.ts';
import { applyMapping, guestTableStore, guestTables } from './guest/tables.ts';
import { Machine, MachineError, type SmallState } from './machine.ts';
import { type Mirror, MissingFrames } from './mirror.ts';
import { isSpinning, type Task } from './operation.ts';
import type { GuestTables, Program } from './program.ts';
import { writeRegister } from './roots/registers.ts';
import { checkExpectation } from './statements.ts';
import { canRun, runStep } from './step.ts';

/**
 * Makes a machine from a program, in the memory of a mirror if one is given: its memory, its guests' tables, its vCPUs at their first statement.
 */
export function createMachine(program: Program, logLimit?: number, mirror?: Mirror): Machine {
  const machine = new Machine(program, logLimit, mirror);
  launch(machine);
  program.guests.forEach((guest, pool) => {
    const end = tablesEnd(machine, guest);
    if (end === undefined && guest.tablesAt === undefined)
      throw new MachineError(`guest ${guest.name} has no memory to keep its tables in`);
    const sharing = program.guests.slice(0, pool).filter(({ within }) => within === guest.within).length;
    const next = guest.tablesAt === undefined ? end! - 1 - sharing * 1024 : Number(guest.tablesAt >> 12n);
    machine.small.tablePools.push({ next, step: guest.tablesAt === undefined ? -1 : 1, free: [] });
    const format = tableFormatOf(machine, guest);
    let { line } = guest.span;
    try {
      refuseOverlap(machine, pool, next);
      refuseShared(machine, next);
      const root = guestTableStore(machine, pool).allocate(1);
      machine.guestRoots.set(guest.name, root);
      const tables = guestTables(machine, pool, { format, rootGfn: root, rootEntry: 0 });
      for (const mapping of guest.mappings) {
        ({ line } = mapping.span);
        applyMapping(tables, mapping);
      }
    } catch (error) {
      if (error instanceof MissingFrames) throw error;
      throw new MachineError(`guest ${guest.name}, line ${line}: ${(error as Error).message}`);
    }
  });
  for (const task of machine.tasks) {
    const name = program.tasks[task.id]!.guest;
    if (name === undefined || task.vcpu < 0) continue;
    const root = machine.guestRoots.get(name);
    if (root === undefined) throw new MachineError(`${task.name} runs in guest ${name}, which does not exist`);
    machine.setRegister(machine.vcpu(task.vcpu), 'cr3', BigInt(root) << 12n);
  }
  machine.log.truncate(0);
  return machine;
}

/** A guest whose memory is protected walks tables in private memory alone, and finds there what its launch has put there. */
function refuseShared(machine: Machine, gfn: number): void {
  const isProtected = machine.vm === 'snp' || machine.vm === 'tdx';
  if (!isProtected || machine.attributes.folios.get(machine.resolve(gfn)) !== undefined) return;
  throw new MachineError(
    `its tables at gpa 0x${(gfn * 4096).toString(16)} are not in launched memory: say launch in the machine`,
  );
}

/** What L1 maps for a guest of its own may hold tables of L1's: the guest's must not be put there. */
function refuseOverlap(machine: Machine, pool: number, root: number): void {
  const { guests } = machine.program;
  const { name, within } = guests[pool]!;
  if (within === undefined) return;
  const frame = l1Frame(machine, nestedStage(machine, within).mode, root);
  for (const [other, { next, step }] of machine.small.tablePools.slice(0, pool).entries()) {
    const first = machine.guestRoots.get(guests[other]!.name)!;
    const isAmong = (frame - first) * step >= 0 && (next - frame) * step > 0;
    if (guests[other]!.within !== undefined || !isAmong) continue;
    throw new MachineError(
      `tables of ${name} at gpa 0x${(root * 4096).toString(16)} are at L1’s gpa 0x${(frame * 4096).toString(16)}, among those of ${guests[other]!.name}: say tables at`,
    );
  }
}

/** Frame behind the memory whose last pages hold a guest's tables: the first slot, or the first range that L1 maps for it. */
function tablesEnd(machine: Machine, { within }: GuestTables): number | undefined {
  if (within === undefined) {
    const first = machine.slots.list[0];
    return first && first.base + first.pages;
  }
  const first = guestNamed(machine, within).mappings.find(({ raw }) => !raw);
  return first && Number((first.gva + first.size) >> 12n);
}

/** What a person changed: part of the schedule, so that a replay repeats it. */
export type Edit =
  | { readonly kind: 'register'; readonly vcpu: number; readonly register: RegisterName; readonly value: bigint }
  | { readonly kind: 'memory'; readonly pfn: number; readonly offset: number; readonly bytes: readonly number[] };

interface Checkpoint {
  readonly step: number;
  readonly logPosition: number;
  readonly small: SmallState;
  readonly turnStart: number;
}

/** Steps of one statement after which a vCPU that enters the guest for it once more gives others their turn. */
const TURN_STEPS = 2000;

/** Whether a task stands at the beginning of a statement. */
function isAtStatement({ stack, access }: Task): boolean {
  return stack.length === 0 && access === null;
}

/** Why a task cannot make the step that is planned. */
function whyNot(task: Task): string {
  switch (task.state) {
    case 'done':
      return 'has ended';
    case 'halted':
      return 'is halted until a page is swapped in,';
    case 'blocked':
      return `waits for ${task.wants}`;
    default:
      return 'waits';
  }
}

/** Steps between checkpoints: a step back replays at most this many, about a millisecond's work. */
const CHECKPOINT_STEPS = 2000;

function cloneSmall(small: SmallState): SmallState {
  return structuredClone(small);
}

/**
 * A machine in time. State and schedule decide everything, so that going back is undoing the log to a checkpoint and
 * running the same schedule again from there.
 */
export class Run {
  readonly machine: Machine;
  #checkpoints: Checkpoint[] = [];
  /** Who ran: task `#scheduleTask[i]` from step `#scheduleStart[i]` on. */
  #scheduleTask: number[] = [];
  #scheduleStart: number[] = [];
  #edits: { step: number; edit: Edit }[] = [];
  #finished = false;
  /** Since which step the same task is busy with the same statement, or has had its turn again. */
  #turnStart = 0;
  readonly #circles: Circles;
  /** Whether all that can go on do so in circles. */
  #isCircling = false;
  /** The task of each of the first steps, as far as they are planned. */
  readonly #plan: readonly number[];
  /** The first step that was not made as planned. */
  #leftPlanAt = Number.POSITIVE_INFINITY;

  constructor(program: Program, logLimit?: number, plan: readonly number[] = []) {
    this.machine = createMachine(program, logLimit);
    this.#circles = new Circles(this.machine);
    this.#plan = plan;
    this.#checkpoint();
  }

  /** Oldest step that can be gone back to. */
  get firstStep(): number {
    return this.#checkpoints[0]!.step;
  }

  /** The task that the plan has next; undefined where it has none, that task cannot run, or the plan was not followed so far. */
  planned(): Task | undefined {
    const { machine } = this;
    const next = this.#plan[machine.steps];
    if (next === undefined || machine.steps > this.#leftPlanAt) return undefined;
    const task = machine.task(next);
    return canRun(machine, task) ? task : undefined;
  }

  /** Why the plan cannot be followed from here on, in words; undefined where it can, has ended, or was left before. */
  unfollowed(): string | undefined {
    const { machine } = this;
    const { steps } = machine;
    const next = this.#plan[steps];
    if (next === undefined || steps > this.#leftPlanAt || this.planned()) return undefined;
    const task = machine.task(next);
    let start = steps;
    while (start > 0 && this.#plan[start - 1] === next) start--;
    let end = steps;
    while (this.#plan[end] === next) end++;
    const line = task.state === 'done' ? undefined : machine.currentLine(task);
    const where = line === undefined ? '' : `, at line ${line}`;
    const key = taskKeys(machine.program)[next]!;
    return `${key} ${whyNot(task)} after ${steps - start} of ${end - start} steps${where}`;
  }

  /** Gives up the plan, until time goes back to before now. */
  leavePlan(): void {
    this.#leftPlanAt = Math.min(this.#leftPlanAt, this.machine.steps - 1);
  }

  /** Makes the planned steps, up to a number. @returns why it cannot make them all */
  followPlan(limit = Number.POSITIVE_INFINITY): string | undefined {
    for (let task = this.planned(); task && this.machine.steps < limit; task = this.planned()) this.step(task);
    return this.machine.steps < limit ? this.unfollowed() : undefined;
  }

  /** Whether the last planned step has just been made. */
  get planEnds(): boolean {
    const { steps } = this.machine;
    return this.#plan.length > 0 && steps === this.#plan.length && steps <= this.#leftPlanAt;
  }

  /** The task that runs next by default: the one that is planned, the one in the middle of something, else the next in turn. */
  pick(): Task | undefined {
    const { machine } = this;
    const { tasks } = machine;
    const planned = this.planned();
    if (planned) return planned;
    if (this.#isCircling) return undefined;
    const current = tasks[machine.small.current];
    const isBusy = current && !isAtStatement(current) && !this.#isTurnOver(current);
    if (isBusy && current.state === 'ready' && !current.yields) return current;
    for (let offset = 1; offset <= tasks.length; offset++) {
      const task = tasks[(machine.small.current + offset) % tasks.length]!;
      if (canRun(machine, task)) return task;
    }
    return undefined;
  }

  /** Whether a task has tried one access, or repeated one step, for so long that others get their turn: they may change what it needs. */
  #isTurnOver(task: Task): boolean {
    const { machine } = this;
    const { id, stack, access, state } = task;
    if (state !== 'ready' || id !== machine.small.current || machine.steps - this.#turnStart < TURN_STEPS) return false;
    // The walk for an access begins at its first step, and again after each fault.
    const begins = stack.length === 0 || (stack.length === 1 && stack[0]!.step === 0);
    return (begins && access !== null) || isSpinning(task);
  }

  /** Makes a step, and keeps track of whose turn it is. */
  #advance(task: Task): void {
    const { machine } = this;
    if (isAtStatement(task) || task.id !== machine.small.current || this.#isTurnOver(task))
      this.#turnStart = machine.steps;
    runStep(machine, task);
  }

  /** Runs one step of a task. */
  step(task: Task): void {
    const { machine } = this;
    const { steps } = machine;
    const isKept = this.#isTurnOver(task) && machine.tasks.some((each) => each !== task && canRun(machine, each));
    // Who is kept running though others could says nothing of what happens once they may.
    if (isAtStatement(task) || isKept) this.#circles.clear();
    this.#isCircling = false;
    if (steps - this.#checkpoints.at(-1)!.step >= CHECKPOINT_STEPS) this.#checkpoint();
    if (this.#plan[steps] !== task.id) this.#leftPlanAt = Math.min(this.#leftPlanAt, steps);
    if (this.#scheduleTask.at(-1) !== task.id) {
      this.#scheduleTask.push(task.id);
      this.#scheduleStart.push(steps);
    }
    this.#advance(task);
    if (this.#isTurnOver(task)) this.#isCircling = this.#circles.isBack(task);
  }

  /** Every task has ended. */
  get ended(): boolean {
    return this.machine.tasks.every((task) => task.state === 'done');
  }

  /** Whether the same would happen again and again, and nothing else. */
  get isCircling(): boolean {
    return this.#isCircling && !this.planned();
  }

  /** Why nothing can run although not everything has ended, or only in circles; undefined when something can. */
  stuck(): string | undefined {
    if (this.isCircling) return circleWords(this.machine);
    if (this.ended || this.pick()) return undefined;
    const words = this.machine.tasks
      .filter((task) => task.state !== 'done')
      .map((task) => {
        if (task.state === 'waiting') return `${task.name} waits for a condition that nobody can make true any more`;
        if (task.state === 'halted')
          return `${task.name} is halted until a page is swapped in, of which nobody tells it any more`;
        const owners = task.wants ? this.machine.owners(task.wants).map((owner) => owner.name) : [];
        return `${task.name} waits for ${task.wants}, held by ${owners.join(' and ') || 'nobody'}`;
      });
    return words.join('; ');
  }

  /** Checks the program's final expectations, once, when every task has ended. */
  finish(): void {
    if (this.#finished) return;
    this.#finished = true;
    const { hazards, failures } = this.machine.small;
    for (const { hazard, span } of this.machine.program.never ?? []) {
      const found = hazards.find((known) => known.hazard === hazard);
      if (!found) continue;
      this.machine.count('expects.failed');
      failures.push({ text: `expect never ${hazard}`, line: span.line, actual: found.text });
    }
    for (const expectation of this.machine.program.expects) {
      try {
        checkExpectation(this.machine, expectation);
      } catch (error) {
        this.machine.count('expects.failed');
        this.machine.small.failures.push({
          text: `expect ${expectation.text}`,
          line: expectation.span.line,
          actual: (error as Error).message,
        });
      }
    }
  }

  /** Runs the default schedule to the end, or for a number of steps. Returns whether it came to an end. */
  runToEnd(limit = Number.POSITIVE_INFINITY): boolean {
    for (let done = 0; done < limit; done++) {
      const task = this.pick();
      if (!task) {
        if (this.ended) this.finish();
        return true;
      }
      this.step(task);
    }
    return false;
  }

  /** Changes state from outside, as an entry of the schedule. */
  edit(edit: Edit): void {
    this.#forgetCircles();
    this.#apply(edit);
    this.#edits.push({ step: this.machine.steps, edit });
  }

  #apply(edit: Edit): void {
    const { machine } = this;
    if (edit.kind === 'register') {
      writeRegister(machine, machine.vcpu(edit.vcpu), edit.register, edit.value);
      return;
    }
    edit.bytes.forEach((byte, index) => {
      machine.storeBytes(edit.pfn, edit.offset + index, 1, BigInt(byte));
    });
  }

  #checkpoint(): void {
    const { machine } = this;
    while (this.#checkpoints.length > 0 && this.#checkpoints[0]!.logPosition < machine.log.first)
      this.#checkpoints.shift();
    this.#checkpoints.push({
      step: machine.steps,
      logPosition: machine.log.length,
      small: cloneSmall(machine.small),
      turnStart: this.#turnStart,
    });
  }

  /** Who made the step after `step` steps. */
  taskAt(step: number): number {
    let low = 0;
    let high = this.#scheduleStart.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#scheduleStart[middle]! <= step) low = middle + 1;
      else high = middle;
    }
    return this.#scheduleTask[low - 1] ?? 0;
  }

  /**
   * Puts the machine where it was after `target` steps. `onStep` sees each replayed state, before its step is made.
   * @throws MachineError when that is before the history that is kept.
   */
  goTo(target: number, onStep?: (machine: Machine, task: Task) => void): void {
    const { machine } = this;
    if (target < this.firstStep)
      throw new MachineError(`history begins at step ${this.firstStep}; step ${target} is forgotten`);
    if (target < machine.steps) this.#restore(target);
    while (machine.steps < target) {
      this.#replayEdits(machine.steps);
      const task = machine.task(this.taskAt(machine.steps));
      onStep?.(machine, task);
      this.#advance(task);
    }
  }

  #restore(target: number): void {
    const { machine } = this;
    while (this.#checkpoints.length > 1 && this.#checkpoints.at(-1)!.step > target) this.#checkpoints.pop();
    const checkpoint = this.#checkpoints.at(-1)!;
    machine.undoTo(checkpoint.logPosition);
    machine.small = cloneSmall(checkpoint.small);
    machine.steps = checkpoint.step;
    this.#turnStart = checkpoint.turnStart;
    this.#forgetCircles();
    this.#finished = false;
  }

  #forgetCircles(): void {
    this.#circles.clear();
    this.#isCircling = false;
  }

  #replayEdits(step: number): void {
    for (const entry of this.#edits) if (entry.step === step) this.#apply(entry.edit);
  }

  /** Forgets the schedule after now: what comes next is a new future. */
  cutFuture(): void {
    const { steps } = this.machine;
    if (this.#leftPlanAt >= steps) this.#leftPlanAt = Number.POSITIVE_INFINITY;
    while (this.#scheduleStart.length > 0 && this.#scheduleStart.at(-1)! >= steps) {
      this.#scheduleStart.pop();
      this.#scheduleTask.pop();
    }
    this.#edits = this.#edits.filter((entry) => entry.step <= steps);
  }

  /** Starts of the stretches that history is kept in, oldest first. */
  checkpointSteps(): number[] {
    return this.#checkpoints.map((checkpoint) => checkpoint.step);
  }

  counters(): Record<CounterName, number> {
    return Object.fromEntries(this.machine.counterList()) as Record<CounterName, number>;
  }
}
