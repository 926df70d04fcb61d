import type { DebugProtocol } from '@vscode/debugprotocol';
import { ExpressionError, type Scope, type Value } from '../../engine/expression.ts';
import { x86Regime } from '../../engine/guest/x86-regime.ts';
import { type EventClass, eventAddress, eventClass, eventField, eventText } from '../../engine/history/event-text.ts';
import { Inference, type InferredMachine } from '../../engine/history/infer.ts';
import type { Recording } from '../../engine/history/recording.ts';
import type { KvmTables, SecondStageKind } from '../../engine/kernel/tables.ts';
import type { Machine } from '../../engine/machine.ts';
import { hex } from '../../engine/memory/words.ts';
import { type Mirror, mirrorMachine } from '../../engine/mirror.ts';
import type { StopAnswer } from '../../engine/queries/answers.ts';
import { faultIndices } from '../../engine/queries/recording-answers.ts';
import type { FilterName, PlacedBreakpoint } from '../breakpoints.ts';
import { compileCondition } from '../wanted-breakpoints.ts';
import type { GuestSide } from './guest.ts';
import type { Halt, Motion, Target, TargetCapabilities, Watcher } from './target.ts';

/** Physical bits that entries may have where nobody says how many the host has. */
const MAX_PHYS = 52;
/** Events that are shown as one text. */
const CHUNK = 2000;
/** References of those texts; lower ones are the listings'. */
const FIRST_TEXT = 100_000;
/** Events between two looks at the clock, and how long a slice may take. */
const SLICE = 512;
const SLICE_MS = 8;
/** Tasks that a session can have. */
const TASKS_MOST = 1024;
const PAST = 'a recording is the past: nothing in it can be changed';
const NO_CODE = 'a recording has no guest code';

const FILTER_OF: Readonly<Partial<Record<EventClass, FilterName>>> = {
  'second-stage': 'second-stage',
  fast: 'fast',
  guest: 'guest',
  mmio: 'mmio',
};

interface LinePoint extends PlacedBreakpoint {
  readonly index: number;
}

/** Tracepoints that KVM has recorded, as a machine that can be stepped both ways: its tables, roots and faults at each moment. */
export class RecordingTarget implements Target {
  readonly name = 'recording';
  readonly machine: Machine;
  readonly guest: GuestSide;
  readonly capabilities: TargetCapabilities = {
    run: true,
    stepBack: true,
    writeMemory: false,
    setRegisters: false,
    why: { writeMemory: PAST, setRegisters: PAST },
  };
  readonly #recording: Recording;
  readonly #path: string;
  readonly #inference: Inference;
  readonly #number: number;
  readonly #about: string;
  readonly #kind: SecondStageKind | undefined;
  /** Threads of the machine that is shown, and their tasks: their vCPUs where `named`. */
  readonly #tasks: ReadonlyMap<number, number>;
  readonly #named: boolean;
  /** Whether a thread's faults are the machine's. */
  readonly #counts: (pid: number) => boolean;
  /** Threads of other machines, and their vCPUs. */
  readonly #foreign: ReadonlyMap<number, number | undefined>;
  readonly #points = new Map<string, LinePoint[]>();
  #pointsAt = new Map<number, LinePoint[]>();
  #position = 0;
  #tables: KvmTables | undefined;
  #pauseWanted = false;
  #nextPoint = 1;

  /** @throws Error when the recording has no such machine */
  constructor(recording: Recording, path: string, wanted: number, print: (text: string) => void) {
    this.#recording = recording;
    this.#path = path;
    for (const problem of recording.problems) print(`${path}: ${problem}\n`);
    this.#inference = new Inference(recording);
    this.#inference.goTo(recording.length);
    const machines = [...this.#inference.machines()].sort((a, b) => b.tables.tables.size - a.tables.tables.size);
    if (wanted > 0 && wanted >= machines.length)
      throw new Error(
        `${path}: "machine" ${wanted}: events tell of ${machines.length || 'no'} virtual machine${machines.length === 1 ? '' : 's'}`,
      );
    const shown = machines[wanted];
    this.#number = shown?.number ?? -1;
    this.#kind = shown?.tables.kind;
    this.#named = shown?.threads.some(({ vcpu }) => vcpu !== undefined) ?? false;
    this.#tasks = tasksOf(shown);
    this.#foreign = new Map(
      machines
        .filter((each) => each !== shown)
        .flatMap(({ threads }) => threads.map((each) => [each.thread, each.vcpu])),
    );
    const own = new Set(shown?.threads.map(({ thread }) => thread));
    this.#counts = (pid) => machines.length < 2 || own.has(pid);
    const faults = faultIndices(recording, this.#counts);
    const shadow = shown?.tables.kind === 'shadow';
    const vcpus = 1 + Math.max(0, ...this.#tasks.values());
    const mirror: Mirror = {
      memory: NO_MEMORY,
      guestMemory: NO_MEMORY,
      resolve: () => -1,
      places: 'recording',
      regimes: Array.from({ length: vcpus }, () =>
        x86Regime(undefined, { maxPhyAddr: MAX_PHYS, features: new Set() }, undefined),
      ),
      counted: new Set(),
      built: () => ({ tables: this.#now(), maxPhyAddr: MAX_PHYS }),
      recording: () => ({
        recording,
        position: this.#position,
        faults,
        shadow,
        thread: (pid) => this.#thread(pid),
        isForeign: (pid) => this.#foreign.has(pid),
        machine: wanted,
        machines: machines.length,
      }),
    };
    this.machine = mirrorMachine(mirror, []);
    const kernel = recording.kernel === undefined ? '' : ` of ${recording.kernel}`;
    const count = machines.length === 1 ? 'one virtual machine' : `${machines.length} virtual machines`;
    this.#about = `${path.replace(/^.*[/\\]/, '')}: ${recording.length} events${kernel} (${recording.source}), ${count}. It can be stepped and run both ways.`;
    this.guest = this.#guestSide(shadow);
  }

  /** The tables as of now. */
  #now(): KvmTables {
    this.#inference.goTo(this.#position);
    this.#tables ??= this.#inference.machines().find(({ number }) => number === this.#number)?.tables;
    return (
      this.#tables ?? {
        kind: 'npt',
        source: 'events',
        certainty: 'inferred',
        why: 'no event has told of tables yet',
        tables: new Map(),
        roots: [],
      }
    );
  }

  #thread(pid: number): string {
    const task = this.#named ? this.#tasks.get(pid) : undefined;
    return task !== undefined ? `vCPU ${task}` : (this.#recording.comm(pid) ?? `thread ${pid}`);
  }

  /** What a session calls a thread; threads that are no vCPU of the machine go with its first. */
  #task(pid: number): number {
    return this.#tasks.get(pid) ?? 0;
  }

  /** The thread of the event where the session stands. */
  #here(): number {
    return this.#recording.length > 0 ? this.#recording.pid(Math.max(0, this.#position - 1)) : -1;
  }

  /** Threads that a motion goes along: a task's, unless it only stands for the thread of the last event. */
  #along(task: number): (pid: number) => boolean {
    const here = this.#here();
    const isTold = [...this.#tasks.values()].includes(task) && (task !== 0 || this.#tasks.has(here));
    return isTold ? (pid) => this.#tasks.get(pid) === task : (pid) => pid === here;
  }

  // ---- moving

  async move(motion: Motion, watcher: Watcher): Promise<Halt> {
    this.#pauseWanted = false;
    const { length } = this.#recording;
    switch (motion.kind) {
      case 'seek':
        return this.#stand(Math.min(motion.position, length), { kind: 'step', task: 0 });
      case 'step-in':
        return this.#position < length ? this.#stand(this.#position + 1, this.#stepped()) : END;
      case 'step-over':
      case 'step-out': {
        const isAlong = this.#along(motion.task);
        return this.#search(
          1,
          watcher,
          (at) =>
            isAlong(this.#recording.pid(at)) &&
            (motion.kind === 'step-over' || eventClass(this.#recording, at) === 'second-stage'),
        );
      }
      case 'step-back':
        return this.#position > 0 ? this.#stand(this.#position - 1, this.#stepped()) : { kind: 'history-start' };
      case 'reverse-continue':
        return this.#search(-1, watcher, undefined);
      default:
        return this.#search(1, watcher, undefined);
    }
  }

  #stepped(): Halt {
    return { kind: 'step', task: this.#task(this.#recording.pid(Math.max(0, this.#position - 1))) };
  }

  #stand(position: number, halt: Halt): Halt {
    this.#position = position;
    this.#tables = undefined;
    return halt.kind === 'step' ? this.#stepped() : halt;
  }

  /** The next event in a direction that is wanted, or that somebody stops at. */
  async #search(step: 1 | -1, watcher: Watcher, wanted: ((at: number) => boolean) | undefined): Promise<Halt> {
    const { length } = this.#recording;
    let until = Date.now() + SLICE_MS;
    for (
      let position = this.#position + step, count = 1;
      position > 0 && position <= length;
      position += step, count++
    ) {
      const at = position - 1;
      if (wanted?.(at)) return this.#stand(position, { kind: 'step', task: 0 });
      const match = wanted ? undefined : this.#match(at, watcher);
      if (match) return this.#stand(position, match);
      if (count % SLICE !== 0 || Date.now() < until) continue;
      await new Promise((resolve) => setImmediate(resolve));
      until = Date.now() + SLICE_MS;
      if (this.#pauseWanted) return this.#stand(position, { kind: 'pause' });
    }
    this.#stand(step > 0 ? length : 0, END);
    return step > 0 ? END : { kind: 'history-start' };
  }

  #match(at: number, watcher: Watcher): Halt | undefined {
    const pid = this.#recording.pid(at);
    const task = this.#task(pid);
    const filter = this.#counts(pid) ? FILTER_OF[eventClass(this.#recording, at)] : undefined;
    if (filter !== undefined && watcher.wants(filter) && watcher.admits(filter, this.#scope(at)))
      return { kind: 'matched', match: { kind: 'exception', task, ids: [], filter } };
    const points = this.#pointsAt.get(at);
    const ids = points ? watcher.hit(points, this.#scope(at)) : [];
    return ids.length > 0 ? { kind: 'matched', match: { kind: 'breakpoint', task, ids } } : undefined;
  }

  pause(): void {
    this.#pauseWanted = true;
  }

  edit(): void {
    throw new Error(PAST);
  }

  async dispose(): Promise<void> {
    this.#pauseWanted = true;
  }

  // ---- telling

  /** Fields of an event, by the names that conditions have elsewhere too. */
  #scope(at: number): Scope {
    const recording = this.#recording;
    const address = eventAddress(recording, at, this.machine.mirror!.recording!().shadow);
    return {
      name: (path) => {
        const name = path.length === 1 ? path[0] : undefined;
        if (typeof name !== 'string') return undefined;
        const error = eventField(recording, at, 'error_code');
        const bit = (mask: bigint): Value | undefined => (error === undefined ? undefined : (error & mask) !== 0n);
        // VMX gives the exit qualification of an EPT violation, which says nothing of who accesses.
        const isViolation = this.#kind === 'ept' && recording.shape(at).tracepoint.name === 'kvm_page_fault';
        switch (name) {
          case 'vcpu':
            return eventField(recording, at, 'vcpu_id') ?? this.#vcpu(recording.pid(at));
          case 'gpa':
          case 'gva':
            return address?.space === name ? address.address : undefined;
          case 'gfn':
            return address && address.address >> 12n;
          case 'write':
            return bit(2n);
          case 'fetch':
            return bit(isViolation ? 4n : 16n);
          case 'user':
            return isViolation ? undefined : bit(4n);
          case 'index':
            return BigInt(at);
          case 'thread':
            return BigInt(recording.pid(at));
          default:
            return eventField(recording, at, name);
        }
      },
      call: (name) => {
        throw new ExpressionError(`${name}: a recording has no memory to look into`);
      },
      known: 'the fields of the event, gpa or gva, gfn, vcpu, thread, index, write, fetch and user',
      knownFunctions: 'none',
    };
  }

  #vcpu(pid: number): bigint | undefined {
    const vcpu = this.#tasks.get(pid) ?? this.#foreign.get(pid);
    return vcpu === undefined ? undefined : BigInt(vcpu);
  }

  #describe(halt: Halt | { readonly kind: 'entry' }, vcpu: number): { stop: StopAnswer; fault: undefined } {
    const [reason, sentence] = this.#words(halt);
    const at = this.#position - 1;
    const pid = this.#here();
    // Another machine's address is none of this one.
    const isOwn = at >= 0 && !this.#foreign.has(pid);
    const address = isOwn ? eventAddress(this.#recording, at, this.machine.mirror!.recording!().shadow) : undefined;
    const task = this.machine.task(vcpu);
    return {
      stop: {
        reason,
        sentence,
        task: vcpu,
        taskName: at < 0 || this.#tasks.has(pid) ? task.name : this.#thread(pid),
        step: this.#position,
        ...(address
          ? {
              walk: { kind: 'walk', vcpu: Math.max(0, task.vcpu), space: address.space, address: hex(address.address) },
            }
          : {}),
      },
      fault: undefined,
    };
  }

  #words(halt: Halt | { readonly kind: 'entry' }): [StopAnswer['reason'], string] {
    if (halt.kind === 'entry') return ['entry', this.#about];
    const at = this.#position - 1;
    if (at < 0) return ['end', 'The recording begins here: none of its events has happened.'];
    const event = `event ${at + 1} of ${this.#recording.length}, ${this.#thread(this.#recording.pid(at))}: ${eventText(this.#recording, at)}`;
    if (halt.kind === 'stuck' || halt.kind === 'ended') return ['end', `The recording ends here, with ${event}`];
    if (halt.kind === 'pause') return ['pause', `Paused at ${event}`];
    if (halt.kind !== 'matched') return ['step', `After ${event}`];
    return [halt.match.kind === 'breakpoint' ? 'breakpoint' : 'exception', `After ${event}`];
  }

  #guestSide(shadow: boolean): GuestSide {
    const refuse = (): never => {
      throw new Error(NO_CODE);
    };
    const unset = (wanted: readonly unknown[]) =>
      Promise.resolve(wanted.map(() => ({ verified: false, message: NO_CODE })));
    return {
      recorded: true,
      describe: (halt, vcpu) => this.#describe(halt, vcpu),
      frames: () => {
        const at = Math.max(0, this.#position - 1);
        if (this.#recording.length === 0) return [];
        const chunk = Math.floor(at / CHUNK);
        return [
          {
            name: this.#position === 0 ? 'before the first event' : eventText(this.#recording, at),
            address: 0n,
            path: this.#chunkPath(chunk),
            line: (at % CHUNK) + 1,
            sourceReference: FIRST_TEXT + chunk,
          },
        ];
      },
      text: (reference) => {
        const chunk = reference - FIRST_TEXT;
        return chunk >= 0 && chunk * CHUNK < this.#recording.length ? this.#chunkText(chunk) : undefined;
      },
      scopes: () => [
        { name: 'Event', hint: 'locals', nodes: () => this.#eventNodes() },
        {
          name: 'Recording',
          nodes: () => [
            { name: 'file', value: this.#path },
            { name: 'kernel', value: this.#recording.kernel ?? 'not told' },
            { name: 'clock', value: this.#recording.clock ?? 'not told' },
            { name: 'faults', value: shadow ? 'on shadow tables' : 'second-stage' },
            { name: 'tables', value: `${this.#now().certainty}: ${this.#now().why}` },
            ...[...this.#recording.unknown].map(([name, count]) => ({
              name,
              value: `${count} events, not understood`,
            })),
          ],
        },
      ],
      scope: () => this.#scope(Math.max(0, this.#position - 1)),
      setRegister: refuse,
      write: refuse,
      disassemble: refuse,
      sources: () => [],
      breakableLines: (path) => this.#breakable(path),
      setLines: async (path, wanted) => this.#setLines(path, wanted),
      setFunctions: unset,
      setInstructions: unset,
      command: async (text) => this.#command(text),
    };
  }

  #eventNodes() {
    const at = this.#position - 1;
    if (at < 0) return [{ name: 'event', value: 'none has happened' }];
    const recording = this.#recording;
    const { tracepoint } = recording.shape(at);
    return [
      { name: 'event', value: tracepoint.name },
      { name: 'number', value: `${at + 1} of ${recording.length}` },
      { name: 'time', value: `${(recording.time(at) - recording.time(0)) / 1000} µs` },
      { name: 'thread', value: `${this.#thread(recording.pid(at))} (${recording.pid(at)})` },
      { name: 'CPU', value: `${recording.cpu(at)}` },
      ...tracepoint.fields.flatMap(({ name }) => {
        const value = eventField(recording, at, name);
        return value === undefined ? [] : [{ name, value: hex(BigInt.asUintN(64, value)), evaluateName: name }];
      }),
    ];
  }

  // ---- events as texts

  #chunkPath(chunk: number): string {
    return `${this.#path} from event ${chunk * CHUNK + 1}.events`;
  }

  #chunkOf(path: string): number | undefined {
    const [, first] = / from event (\d+)\.events$/.exec(path) ?? [];
    const chunk = first === undefined ? Number.NaN : (Number(first) - 1) / CHUNK;
    return Number.isInteger(chunk) && chunk * CHUNK < this.#recording.length ? chunk : undefined;
  }

  #chunkText(chunk: number): string {
    const recording = this.#recording;
    const lines: string[] = [];
    for (let at = chunk * CHUNK; at < Math.min((chunk + 1) * CHUNK, recording.length); at++) {
      const time = ((recording.time(at) - recording.time(0)) / 1e9).toFixed(6).padStart(12);
      lines.push(`${time}  ${this.#thread(recording.pid(at)).padEnd(10)}  ${eventText(recording, at)}`);
    }
    return `${lines.join('\n')}\n`;
  }

  #breakable(path: string): number[] {
    const chunk = this.#chunkOf(path);
    if (chunk === undefined) return [];
    return Array.from({ length: Math.min(CHUNK, this.#recording.length - chunk * CHUNK) }, (_, line) => line + 1);
  }

  #setLines(path: string, wanted: readonly DebugProtocol.SourceBreakpoint[]): DebugProtocol.Breakpoint[] {
    const chunk = this.#chunkOf(path);
    const points: LinePoint[] = [];
    const answers = wanted.map((point): DebugProtocol.Breakpoint => {
      const index = chunk === undefined ? -1 : chunk * CHUNK + point.line - 1;
      if (index < 0 || index >= this.#recording.length)
        return { verified: false, message: 'no event of this recording stands here' };
      const id = this.#nextPoint++;
      const condition = compileCondition(point);
      if (typeof condition === 'string') return { id, verified: false, message: condition };
      points.push({ id, index, condition, logMessage: point.logMessage });
      return { id, verified: true, line: point.line };
    });
    this.#points.set(path, points);
    this.#pointsAt = new Map();
    for (const point of [...this.#points.values()].flat()) {
      const there = this.#pointsAt.get(point.index);
      if (there) there.push(point);
      else this.#pointsAt.set(point.index, [point]);
    }
    return answers;
  }

  #command(text: string): string | undefined {
    if (text.trim() === 'help')
      return 'goto N — to the moment after event N\nAddresses, and fields of the event by their names, are evaluated.';
    const [, number] = /^goto (\d+)$/.exec(text.trim()) ?? [];
    if (number === undefined) return undefined;
    this.#stand(Math.min(Number(number), this.#recording.length), END);
    return this.#words({ kind: 'step', task: 0 })[1];
  }
}

const END: Halt = { kind: 'stuck', words: 'the recording ends here' };

const NO_MEMORY = {
  has: () => false,
  page(): never {
    throw new Error('a recording has none of the guest’s memory');
  },
};

/** Threads of a machine and their vCPUs; where no event names these, its threads in turn. */
function tasksOf(machine: InferredMachine | undefined): Map<number, number> {
  const threads = machine?.threads ?? [];
  const named = threads.flatMap(({ thread, vcpu }) => (vcpu === undefined ? [] : [[thread, vcpu] as const]));
  if (named.length > 0) return new Map(named.filter(([, vcpu]) => vcpu < TASKS_MOST));
  return new Map(threads.slice(0, TASKS_MOST).map(({ thread }, index) => [thread, index]));
}
