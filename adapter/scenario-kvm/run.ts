import type { Instruction } from '../../engine/code.ts';
import type { Machine } from '../../engine/machine.ts';
import type { MissingFrames } from '../../engine/mirror.ts';
import type { Task } from '../../engine/operation.ts';
import { checkExpectation, runInstruction } from '../../engine/statements.ts';
import { mayGoOn } from '../../engine/step.ts';
import { type GpaRange, Traps } from '../kvm/traps.ts';
import { LostError } from '../rsp/packet.ts';
import { withFrames } from '../with-frames.ts';
import { Accesses, type StepResult } from './accesses.ts';
import { fillMemory } from './fill.ts';
import { untold } from './fit.ts';
import { changeHost, hostAccess } from './host.ts';
import { enterNested, leaveNested } from './nested-guests.ts';
import { convert, setAttributes } from './private-memory.ts';
import { editTables, invalidatePage, writeRegister } from './privileged.ts';
import { RealMachine, type RealMachineParts } from './real-machine.ts';
import type { Stubs } from './stubs.ts';

/** What a run is made of: its machine, and what is put into that machine's memory. */
export interface ScenarioParts extends RealMachineParts {
  /** Code of the stubs, by its file's name. */
  readonly codes: ReadonlyMap<Stubs['code'], Uint8Array>;
}

/**
 * A scenario on real KVM. The engine's machine keeps what is the scenario's: where its tasks stand, the guest's registers,
 * what was counted. Its memory is the real machine's, read when it is asked for; what the guest does to it a stub does.
 */
export class ScenarioRun {
  readonly #real: RealMachine;
  readonly #accesses: Accesses;
  readonly #traps: Traps;
  #finished = false;

  private constructor(real: RealMachine) {
    this.#real = real;
    this.#accesses = new Accesses(real);
    this.#traps = new Traps(real.client, real.print);
  }

  get machine(): Machine {
    return this.#real.machine;
  }

  /** Puts tables and stubs into memory, and every vCPU to where it waits. @throws with words when KVM does not take them */
  static async begin(parts: ScenarioParts): Promise<ScenarioRun> {
    // The engine lays out the guest's tables over memory that may be far away.
    const real = await withFrames(
      ({ frames }) => parts.memory.fetch(frames),
      () => new RealMachine(parts),
    );
    const { machine, vcpus, client } = real;
    await fillMemory(real, parts.codes);
    for (const { base, size } of machine.config.privateRanges ?? []) await setAttributes(real, base, size, true);
    real.renew();
    for (const vcpu of vcpus) await vcpu.begin(machine.vcpu(vcpu.number).registers.cr3);
    await client.vendor('QKvm.Stop:mmio,read-only');
    return new ScenarioRun(real);
  }

  fetch(missing: MissingFrames): Promise<void> {
    return this.#real.fetch(missing);
  }

  /** Which stops are wanted besides those that are counted. */
  async wantStops(stops: readonly string[]): Promise<void> {
    await this.#real.client.vendor(`QKvm.Stop:${[...new Set(['mmio', 'read-only', ...stops])].join(',')}`);
  }

  /** Arms the scenario's own memory for second-stage faults. */
  async armTraps(range: GpaRange | undefined): Promise<void> {
    const { info, stubs } = this.#real;
    const own = [...stubs.values()].map(({ slot }) => slot);
    const slots = info.memory.slots.filter(({ id }) => !own.includes(id));
    await this.#traps.arm(info, slots, range);
  }

  get stuck(): string | undefined {
    if (this.ended || this.#pickNow()) return undefined;
    const waiting = this.machine.tasks.filter(({ state }) => state !== 'done').map(({ name }) => name);
    return `${waiting.join(', ')} wait${waiting.length === 1 ? 's' : ''} for a condition that nobody can make true any more`;
  }

  get ended(): boolean {
    return this.machine.tasks.every((task) => task.state === 'done');
  }

  /** The task whose turn it is: the one in the middle of an access, else the next. */
  pick(): Promise<Task | undefined> {
    return this.#real.withFrames(() => this.#pickNow());
  }

  #pickNow(): Task | undefined {
    if (this.#accesses.stopped) return this.#accesses.stopped;
    const { tasks, small } = this.machine;
    for (let offset = 1; offset <= tasks.length; offset++) {
      const task = tasks[(small.current + offset) % tasks.length]!;
      if (this.canRun(task)) return task;
    }
    return undefined;
  }

  canRun(task: Task): boolean {
    if (task.state === 'ready') return true;
    const instruction = this.machine.code[task.id]![task.pc];
    return (
      task.state === 'waiting' &&
      instruction?.kind === 'statement' &&
      instruction.statement.kind === 'wait' &&
      mayGoOn(this.machine, task, instruction.statement.condition)
    );
  }

  /** One statement of a task, or what is left of one. */
  async step(task: Task): Promise<StepResult> {
    const { machine } = this;
    machine.acting = task.id;
    machine.small.current = task.id;
    if (task.state === 'waiting') task.state = 'ready';
    let result: StepResult;
    if (this.#accesses.stopped === task) result = await this.#accesses.goOn(task);
    else {
      machine.steps++;
      result = await this.#instruction(task, machine.code[task.id]![task.pc]!);
    }
    this.#real.renew();
    if (!result && task.state === 'ready' && task.pc >= machine.code[task.id]!.length) task.state = 'done';
    return result;
  }

  /** Checks the final expectations, once. */
  async finish(): Promise<void> {
    if (this.#finished) return;
    this.#finished = true;
    for (const expectation of this.machine.program.expects) {
      if (untold(expectation.condition).length > 0) continue;
      try {
        await this.#real.withFrames(() => checkExpectation(this.machine, expectation));
      } catch (error) {
        if (error instanceof LostError) throw error;
        this.machine.count('expects.failed');
        const { text, span } = expectation;
        this.machine.small.failures.push({ text: `expect ${text}`, line: span.line, actual: (error as Error).message });
      }
    }
  }

  // ---- statements

  async #instruction(task: Task, instruction: Instruction): Promise<StepResult> {
    if (instruction.kind !== 'statement') {
      await this.#real.withFrames(() => runInstruction(this.machine, task, instruction));
      return undefined;
    }
    const { statement, guest } = instruction;
    const real = this.#real;
    try {
      // L1 resumes its guest, wherever a fault has brought it out.
      if (guest !== undefined && !this.machine.vcpu(task.vcpu).guestMode) {
        await enterNested(real, task, guest);
        return undefined;
      }
      switch (statement.kind) {
        case 'enter':
          await enterNested(real, task, statement.guest);
          task.pc++;
          return undefined;
        case 'leave':
          await leaveNested(real, task);
          task.pc++;
          return undefined;
        case 'access':
          if (task.vcpu >= 0) return await this.#accesses.begin(task, statement);
          await hostAccess(real, task, statement);
          return undefined;
        case 'register':
          await writeRegister(real, task, instruction, statement);
          return undefined;
        case 'invlpg':
          await invalidatePage(real, task, statement);
          return undefined;
        case 'map':
        case 'unmap':
        case 'protect':
          await editTables(real, task, instruction);
          return undefined;
        case 'convert':
          await convert(real, task, statement);
          task.pc++;
          return undefined;
        case 'expect':
          if (untold(statement.expectation.condition).length > 0) task.pc++;
          else await this.#real.withFrames(() => runInstruction(this.machine, task, instruction));
          return undefined;
        case 'wait':
          await this.#real.withFrames(() => runInstruction(this.machine, task, instruction));
          return undefined;
        default:
          await changeHost(real, task, instruction, statement);
          return undefined;
      }
    } catch (error) {
      if (error instanceof LostError) throw error;
      // What KVM refuses ends the task where it stands.
      this.machine.fail(task, (error as Error).message);
      return undefined;
    }
  }
}
