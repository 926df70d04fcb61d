import { HAZARDS, type Hazard } from '../attributes/hazards.ts';
import { COUNTERS, type CounterName } from '../counters.ts';
import { Kind, type LogEntry } from '../history/log.ts';
import { type Machine, MachineError, type SmallState } from '../machine.ts';
import { functionSpec, type Task } from '../operation.ts';
import type { Expectation, Program } from '../program.ts';
import { createMachine } from '../run.ts';
import { checkExpectation } from '../statements.ts';
import { canRun, mayGoOn, runStep } from '../step.ts';
import { RET_PF } from '../tdp/fault.ts';
import { countersOf, namesIn } from './counted.ts';
import { Graph } from './graph.ts';
import { type Schedule, schedulesTo } from './schedule.ts';
import { changes, forStep } from './snapshot.ts';
import { type Hash, hashSmall, hashTask, StateHash } from './state-hash.ts';

/** What can come of an interleaving: a hazard, or what a guest or a VMM sees of a conversion and can live with. */
export type Event =
  | Hazard
  | 'failure'
  | 'expectation'
  | 'final-expectation'
  | 'retry'
  | 'memory-fault'
  | 'rmp-fault'
  | 'not-validated';

export const EVENTS: Readonly<Record<Event, string>> = {
  ...HAZARDS,
  failure: 'a task ends where it should not: KVM_RUN fails, the VM is dead, an invariant is broken',
  expectation: 'an expect of a task does not hold',
  'final-expectation': 'when every task has ended, an expect does not hold',
  retry: 'a fault is tried again (RET_PF_RETRY)',
  'memory-fault': 'KVM_RUN returns with KVM_EXIT_MEMORY_FAULT',
  'rmp-fault': 'the RMP refuses an access',
  'not-validated': 'a guest uses a page that it has not accepted (#VC), and the access is lost',
};

export function isHazard(event: Event): event is Hazard {
  return Object.hasOwn(HAZARDS, event);
}

/** Whether something happens that must not, whatever the scenario says, or that it says must not. */
export function isBroken(event: Event): boolean {
  return event === 'failure' || event === 'expectation' || event === 'final-expectation';
}

export interface ExploreOptions {
  /** States after which the exploration gives up. */
  readonly maxStates: number;
  /** Whether a step that touches nothing shared is joined to the one behind it; not where tasks ask for counters. */
  readonly reduce: boolean;
  /** Changes of a way, in entries of the log, beyond which it cannot be taken back and the exploration gives up; 4 Mi unless told. */
  readonly mostChanges?: number;
}

export interface Outcome {
  readonly event: Event;
  /** What happened, where. */
  readonly text: string;
  /** Of an expectation: where it stands, and its text. */
  readonly line?: number;
  readonly expected?: string;
  /** Of all schedules that lead there one with the fewest switches between tasks, and of those with the fewest steps. */
  readonly schedule: Schedule;
  /** Of a loop: how many steps one round of it has. */
  readonly round?: number;
}

export interface Exploration {
  readonly states: number;
  readonly transitions: number;
  /** Whether every interleaving was explored; false where `maxStates` was reached. */
  readonly complete: boolean;
  readonly outcomes: readonly Outcome[];
  /** Final expectations that no state can answer. */
  readonly unjudged: readonly Expectation[];
}

/** Different texts of one event that are kept: more would say nothing new. */
const KEPT_TEXTS = 16;
/** Steps that may be joined: who makes more, and all of them local, never comes back. */
const MOST_JOINED = 10_000;

/** What happens on a transition, or is so in a state. */
type Happening = Pick<Outcome, 'event' | 'text' | 'line' | 'expected'>;

/** A state on the way from the start, whose successors are being explored. */
interface Frame {
  readonly state: number;
  readonly position: number;
  readonly steps: number;
  readonly a: number;
  readonly b: number;
  readonly saved: SmallState | undefined;
  readonly tasks: readonly Hash[] | undefined;
  next: number;
  /** Tasks that could not move. */
  disabled: number;
}

/**
 * Runs every interleaving of a program's tasks. States that were met before are not explored again; what is counted, traced or told does not
 * tell states apart, and neither does a stored value that no statement gives.
 */
export class Explorer {
  readonly machine: Machine;
  readonly graph: Graph;
  readonly #hash = new StateHash();
  /** Of each task the hash; a new list for every state. */
  #tasks: readonly Hash[];
  readonly #options: ExploreOptions;
  readonly #counted: readonly CounterName[];
  readonly #known = new Map<number, Map<number, number> | number>();
  readonly #words: number[] = [];
  readonly #frames: Frame[] = [];
  /** What happened, by `event text`. */
  readonly #events = new Map<string, number>();
  readonly #eventList: Happening[] = [];
  readonly #texts = new Map<string, number>();
  #complete = true;

  constructor(program: Program, options: ExploreOptions) {
    const counted = countersOf(program);
    if (!counted)
      throw new MachineError('explore: a task asks for step, which is another in every order of the tasks’ steps');
    this.#counted = counted;
    // Local steps count, too: where a count is asked for, others see them.
    this.#options = { ...options, reduce: options.reduce && this.#counted.length === 0 };
    this.machine = createMachine(withValues(program), options.mostChanges ?? 1 << 22);
    this.graph = new Graph(this.machine.tasks.length);
    this.#tasks = this.machine.tasks.map(hashTask);
    this.#enter(this.#intern());
  }

  /** Explores for about so many transitions. @returns whether there is more to do */
  advance(transitions: number): boolean {
    const until = this.graph.edges + transitions;
    while (this.#frames.length > 0) {
      if (this.graph.edges >= until) return true;
      this.#explore(this.#frames.at(-1)!);
    }
    return false;
  }

  result(): Exploration {
    const { graph } = this;
    const outcomes = this.#outcomes();
    const unjudged = this.machine.program.expects.filter((expectation) => !this.#isJudged(expectation));
    return { states: graph.states, transitions: graph.edges, complete: this.#complete, outcomes, unjudged };
  }

  #explore(frame: Frame): void {
    const { machine, graph } = this;
    if (frame.next >= machine.tasks.length) {
      const isOver = machine.tasks.every((task) => task.state === 'done');
      if (isOver) {
        graph.setTerminal(frame.state);
        this.#judge(frame);
      } else if (frame.disabled === machine.tasks.length)
        this.#note(frame.state, { event: 'no-progress', text: `nothing can run: ${this.#stuckWords()}` });
      this.#leave();
      return;
    }
    const task = machine.tasks[frame.next++]!;
    const saved = this.#move(task);
    if (!saved) {
      frame.disabled++;
      return;
    }
    const count = machine.steps - frame.steps;
    const position = frame.position;
    this.#hash.follow(machine.log, position);
    const before = this.#tasks;
    this.#tasks = saved.tasks.map((each) =>
      changes(saved, task, each) ? hashTask(machine.task(each.id)) : before[each.id]!,
    );
    const isNew = graph.states;
    const to = this.#intern();
    const edge = graph.addEdge(frame.state, to, task.id, count);
    this.#eventsOf(position, edge, frame.steps);
    const isFresh = to === isNew;
    // What the log has forgotten cannot be taken back.
    if (machine.log.first > this.#frames[0]!.position) this.#giveUp(to);
    else if (!isFresh) this.#undo(frame, saved, before);
    else if (graph.states < this.#options.maxStates) this.#enter(to, saved, before);
    else this.#giveUp(to);
  }

  /** Checks what the program expects in the end. It changes nothing: what is counted and told of it is taken back. */
  #judge({ state, position }: Frame): void {
    const { machine } = this;
    const saved = machine.small;
    for (const expectation of machine.program.expects) {
      if (!this.#isJudged(expectation)) continue;
      machine.small = { ...saved, counters: saved.counters.slice(), failures: [] };
      const { line } = expectation.span;
      let actual: string | undefined;
      try {
        if (!checkExpectation(machine, expectation)) actual = machine.small.failures[0]!.actual;
      } catch (error) {
        actual = (error as Error).message;
      }
      machine.undoTo(position);
      if (actual !== undefined) this.#note(state, failed('final-expectation', expectation.text, actual, line));
    }
    machine.small = saved;
  }

  /** Counters are no part of a state, unless tasks ask for them; how many steps were made never is. */
  #isJudged({ condition }: Expectation): boolean {
    const names = namesIn(condition);
    return !names.has('step') && COUNTERS.every((name) => !names.has(name) || this.#counted.includes(name));
  }

  /** What has not been explored may lead to an end. */
  #giveUp(last: number): void {
    this.#complete = false;
    this.graph.setTerminal(last);
    for (const { state } of this.#frames) this.graph.setTerminal(state);
    this.#frames.length = 0;
  }

  /** @param saved the small state and the tasks' hashes before the step that led here; absent at the beginning */
  #enter(state: number, saved?: SmallState, tasks?: readonly Hash[]): void {
    const { machine } = this;
    const { a, b } = this.#hash;
    const position = machine.log.length;
    this.#frames.push({ state, position, steps: machine.steps, a, b, saved, tasks, next: 0, disabled: 0 });
  }

  /** Goes back to the state from which this one was reached. */
  #leave(): void {
    const { saved, tasks } = this.#frames.pop()!;
    const frame = this.#frames.at(-1);
    if (frame) this.#undo(frame, saved!, tasks!);
  }

  #undo(frame: Frame, saved: SmallState, tasks: readonly Hash[]): void {
    const { machine } = this;
    machine.undoTo(frame.position);
    machine.small = saved;
    machine.steps = frame.steps;
    this.#hash.a = frame.a;
    this.#hash.b = frame.b;
    this.#tasks = tasks;
  }

  /**
   * Lets a task make a step, and before it those that are local. @returns the small state before; undefined, and nothing has changed, where it
   * cannot make one
   */
  #move(task: Task): SmallState | undefined {
    const { machine } = this;
    if (!isEnabled(machine, task)) return undefined;
    const position = machine.log.length;
    const { steps } = machine;
    const saved = machine.small;
    machine.small = forStep(machine, task);
    const now = machine.task(task.id);
    for (let joined = 0; isEnabled(machine, now); joined++) {
      const isLast = !this.#options.reduce || joined >= MOST_JOINED || !isLocal(machine, now);
      const [mark, step] = [machine.log.length, machine.steps];
      runStep(machine, now);
      if (now.state === 'blocked') {
        // It has found a lock taken, and nothing else.
        machine.undoTo(mark);
        machine.steps = step;
        now.state = 'ready';
        now.wants = null;
        break;
      }
      if (isLast || now.state === 'done') return saved;
    }
    // Local steps alone are one too, where what comes behind them cannot be made yet.
    if (machine.steps > steps) return saved;
    machine.undoTo(position);
    machine.small = saved;
    machine.steps = steps;
    return undefined;
  }

  /** The number of the state that the machine is in. */
  #intern(): number {
    const small = hashSmall(this.machine, this.#counted);
    let { a, b } = this.#hash;
    a ^= small.a;
    b ^= small.b;
    for (const task of this.#tasks) {
      a ^= task.a;
      b ^= task.b;
    }
    const key = (a >>> 0) * 2 ** 20 + ((b >>> 0) & 0xfffff);
    const rest = (b >>> 20) & 0xfff;
    const known = this.#known.get(key);
    if (known === undefined) {
      const state = this.graph.addState();
      this.#known.set(key, state);
      this.#words[state] = rest;
      return state;
    }
    if (typeof known === 'number' && this.#words[known] === rest) return known;
    const others = typeof known === 'number' ? new Map([[this.#words[known]!, known]]) : known;
    const found = others.get(rest);
    if (found !== undefined) return found;
    const state = this.graph.addState();
    this.#words[state] = rest;
    others.set(rest, state);
    this.#known.set(key, others);
    return state;
  }

  /** @param before steps made before the transition */
  #eventsOf(position: number, edge: number, before: number): void {
    const { log } = this.machine;
    for (let at = position; at < log.length; at++) {
      const found = eventOf(log.at(at));
      if (found) this.graph.addEvent(edge, this.#number(found), log.at(at).step - before);
    }
  }

  #note(state: number, happening: Happening): void {
    this.graph.addStateEvent(state, this.#number(happening));
  }

  #number(happening: Happening): number {
    const { event, text, line, expected } = happening;
    const key = `${event} ${line ?? ''} ${text}`;
    const known = this.#events.get(key);
    if (known !== undefined) return known;
    const kind = `${event} ${line ?? ''} ${expected ?? ''}`;
    const texts = this.#texts.get(kind) ?? 0;
    // What is one too many counts as the last.
    if (texts >= KEPT_TEXTS)
      return this.#eventList.findLastIndex(
        (each) => each.event === event && each.line === line && each.expected === expected,
      );
    this.#texts.set(kind, texts + 1);
    this.#events.set(key, this.#eventList.length);
    return this.#eventList.push(happening) - 1;
  }

  #stuckWords(): string {
    const { machine } = this;
    return machine.tasks
      .filter((task) => task.state !== 'done')
      .map((task) => `${task.name} cannot go on`)
      .join(', ');
  }

  #outcomes(): Outcome[] {
    const { graph } = this;
    for (const state of graph.withoutEnd())
      this.#note(state, { event: 'no-progress', text: 'from here on every schedule goes round in circles' });
    const schedules = schedulesTo(graph, this.#eventList.length);
    return this.#eventList.flatMap((happening, number): Outcome[] => {
      const found = schedules[number];
      if (!found) return [];
      const round = happening.event === 'rmp-fault-loop' ? graph.roundOf(number) : undefined;
      return [{ ...happening, schedule: found, ...(round === undefined ? {} : { round }) }];
    });
  }
}

/** Every interleaving of a program, to the end or to the bound. */
export function explore(program: Program, options: ExploreOptions): Exploration {
  const explorer = new Explorer(program, options);
  while (explorer.advance(1 << 16)) {
    // It goes on where it stopped.
  }
  return explorer.result();
}

/** Whether a step of a task would change anything: one that only finds a condition false would not. */
function isEnabled(machine: Machine, task: Task): boolean {
  if (!canRun(machine, task)) return false;
  if (task.stack.length > 0) return true;
  const instruction = machine.code[task.id]![task.pc];
  if (instruction?.kind !== 'statement' || instruction.statement.kind !== 'wait') return true;
  return mayGoOn(machine, task, instruction.statement.condition);
}

/** Whether the step that comes next is no place to ask who runs. */
function isLocal(machine: Machine, task: Task): boolean {
  const frame = task.stack.at(-1);
  if (frame) return functionSpec(frame.fn).steps[frame.step]?.local === true;
  return machine.code[task.id]![task.pc]?.kind === 'end-loop';
}

function failed(event: 'expectation' | 'final-expectation', expected: string, actual: string, line: number): Happening {
  return { event, text: `expect ${expected}: ${actual}`, line, expected };
}

function eventOf({
  kind,
  address,
  object,
  newLo,
}: Pick<LogEntry, 'kind' | 'address' | 'object' | 'newLo'>): Happening | undefined {
  switch (kind) {
    case Kind.HAZARD: {
      const { hazard, text } = object as { hazard: Hazard; text: string };
      return { event: hazard, text };
    }
    case Kind.FAILURE: {
      const { text, line } = object as { text: string; line: number };
      return { event: 'failure', text, line };
    }
    case Kind.NOT_VALIDATED:
      return { event: 'not-validated', text: object as string };
    case Kind.MEMORY_FAULT: {
      const { vcpu, gpa, isPrivate } = object as { vcpu: number; gpa: bigint; isPrivate: boolean };
      const text = `vCPU ${vcpu}'s ${isPrivate ? 'private' : 'shared'} access to gpa 0x${gpa.toString(16)}`;
      return { event: 'memory-fault', text };
    }
    case Kind.EXIT: {
      const fault = object as { kind: string; vcpu: number; gpa: bigint; reason: string };
      if (fault.kind !== 'rmp') return undefined;
      return { event: 'rmp-fault', text: `vCPU ${fault.vcpu} at gpa 0x${fault.gpa.toString(16)}: ${fault.reason}` };
    }
    case Kind.FAULT_RESULT: {
      if (newLo !== RET_PF.RETRY) return undefined;
      const fault = object as { vcpu: number; gpa: bigint };
      return { event: 'retry', text: `vCPU ${fault.vcpu}'s fault at gpa 0x${fault.gpa.toString(16)}` };
    }
    case Kind.EXPECT_FAILED: {
      const { text, actual } = object as { text: string; actual: string };
      return failed('expectation', text, actual, address);
    }
    default:
      return undefined;
  }
}

/** Stores without a value would store the number of steps, which depends on the schedule: here they store their line. */
export function withValues(program: Program): Program {
  const fill = <T extends object>(node: T): T => {
    if (Array.isArray(node)) return node.map((each) => (isObject(each) ? fill(each) : each)) as T;
    const entries = Object.entries(node).map(([key, value]) => [key, isObject(value) ? fill(value) : value]);
    const result = Object.fromEntries(entries);
    if (result.kind === 'access' && result.access === 'write' && result.value === undefined)
      result.value = { kind: 'number', value: BigInt(result.span.line) };
    return result;
  };
  return { ...program, tasks: fill(program.tasks) };
}

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null;
