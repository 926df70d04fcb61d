import { memoryFaultWords } from '../../engine/attributes/vmm.ts';
import type { Instruction } from '../../engine/code.ts';
import { evaluate, evaluateInteger, truthy } from '../../engine/expression.ts';
import { untranslatable } from '../../engine/guest/access.ts';
import { guestModeOf, l1Frame, nestedStage } from '../../engine/guest/nested.ts';
import { type PagingName, pagingName, type RegisterName } from '../../engine/guest/registers.ts';
import { x86Regime } from '../../engine/guest/x86-regime.ts';
import { isMemoryKind, type LogEntry } from '../../engine/history/log.ts';
import type { Machine } from '../../engine/machine.ts';
import { addressToFrame, frameToAddress, hex, pageOffset, toBigint } from '../../engine/memory/words.ts';
import { type Mirror, type MissingFrames, makeMirror } from '../../engine/mirror.ts';
import { runTopStep, type Task } from '../../engine/operation.ts';
import type { Program, Statement } from '../../engine/program.ts';
import { programScope } from '../../engine/queries/scope.ts';
import { softTranslate } from '../../engine/queries/translate.ts';
import { createMachine } from '../../engine/run.ts';
import { checkExpectation, runInstruction } from '../../engine/statements.ts';
import { Control } from '../kvm/control.ts';
import type { KvmBuilt } from '../kvm/kvm-built.ts';
import { guestCpu } from '../kvm/machine-view.ts';
import type { GuestMemory } from '../kvm/memory.ts';
import { type GpaRange, Traps } from '../kvm/traps.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import { LostError } from '../rsp/packet.ts';
import type { KvmStop, StopEvent } from '../rsp/stop.ts';
import { withFrames } from '../with-frames.ts';
import { firstVmcb } from './actions.ts';
import { COUNTED, untold } from './fit.ts';
import { PAGE } from './layout.ts';
import { directAddress, nestedMappings, pagingOf, type Stubs } from './stubs.ts';
import { type Outcome, StubVcpu } from './vcpu.ts';
import { EXIT_NPF, EXIT_VMMCALL, SVME, VM_EXIT, vmExitOf } from './vmcb.ts';

export interface ScenarioParts {
  readonly client: RspClient;
  readonly info: KvmInfo;
  /** Stops of the handshake. */
  readonly first: readonly StopEvent[];
  readonly memory: GuestMemory;
  readonly built: KvmBuilt;
  readonly program: Program;
  /** Of each paging mode of the guests. */
  readonly stubs: ReadonlyMap<PagingName, Stubs>;
  /** Their code, by its file's name. */
  readonly codes: ReadonlyMap<Stubs['code'], Uint8Array>;
  /** Where words for people go. */
  print(text: string): void;
}

/** A step of a task: it has made one, or its vCPU has stopped in the middle of an access. */
export type StepResult = { readonly stop: KvmStop } | undefined;

const RET = 0xc3;
const PF = 14;
/** KVM_MEMORY_EXIT_FLAG_PRIVATE */
const MEMORY_EXIT_PRIVATE = 8n;
/** KVM_MAP_GPA_RANGE_ENCRYPTED */
const MAP_GPA_PRIVATE = 0x10n;
/** Accessed, of a table entry. */
const A = 0x20;

/** Whether an access for which KVM has no memory was to private memory. */
export const isPrivateFault = ({ data = 0n }: KvmStop): boolean => (data & MEMORY_EXIT_PRIVATE) !== 0n;

/**
 * A scenario on real KVM. The engine's machine keeps what is the scenario's: where its tasks stand, the guest's registers,
 * what was counted. Its memory is the real machine's, read when it is asked for; what the guest does to it a stub does.
 */
export class ScenarioRun {
  readonly machine: Machine;
  #parts: ScenarioParts;
  readonly #mirror: { -readonly [K in keyof Mirror]: Mirror[K] };
  readonly #built: KvmBuilt;
  readonly #control: Control;
  readonly #vcpus: StubVcpu[];
  readonly #traps: Traps;
  /** The task whose vCPU has stopped in the middle of an access. */
  #stopped: Task | undefined;
  /** The page for which KVM waits: of which kind it is to be. */
  #memoryFault: { readonly gpa: bigint; readonly isPrivate: boolean } | undefined;
  #undo: (() => Promise<void>) | undefined;
  #finished = false;

  private constructor(parts: ScenarioParts) {
    const { client, info, memory, program } = parts;
    this.#parts = parts;
    this.#built = parts.built;
    this.#mirror = { ...makeMirror(memory, [], 'memslots'), counted: COUNTED, built: () => this.#built.now() };
    this.machine = createMachine(program, undefined, this.#mirror);
    this.#control = new Control(client, info.vcpus, parts.first);
    this.#traps = new Traps(client, parts.print);
    this.#vcpus = this.machine.vcpus.map(({ id }) => new StubVcpu(client, this.#control, this.#stubsOf(id), id));
  }

  #stubsOf(vcpu: number): Stubs {
    return this.#parts.stubs.get(pagingName(this.machine.vcpu(vcpu).registers))!;
  }

  /** Puts tables and stubs into memory, and every vCPU to where it waits. @throws with words when KVM does not take them */
  static async begin(parts: ScenarioParts): Promise<ScenarioRun> {
    // The engine lays out the guest's tables over memory that may be far away.
    const run = await withFrames(
      ({ frames }) => parts.memory.fetch(frames),
      () => new ScenarioRun(parts),
    );
    await run.#fillMemory();
    for (const { base, size } of run.machine.config.privateRanges ?? []) await run.#convert(base, size, true);
    run.#renew();
    for (const vcpu of run.#vcpus) await vcpu.begin(run.machine.vcpu(vcpu.number).registers.cr3);
    await parts.client.vendor('QKvm.Stop:mmio,read-only');
    return run;
  }

  async #fillMemory(): Promise<void> {
    const { client, stubs, codes } = this.#parts;
    const { machine } = this;
    const roots: { name: string; isNested: boolean; gpa: bigint }[] = [];
    for (const { name, nested } of machine.program.guests) {
      const gpa = frameToAddress(machine.guestRoots.get(name)!);
      roots.push({ name, isNested: nested !== undefined, gpa: await this.#l1Address(name, gpa) });
    }
    for (const frame of [...machine.memory.frames()]) {
      const page = machine.memory.page(frame);
      await client.writePhysical(frameToAddress(frame), new Uint8Array(page.buffer, page.byteOffset, 4096));
      machine.memory.drop(frame);
    }
    for (const { gpa, pages, code } of stubs.values()) {
      for (const [offset, bytes] of pages) await client.writePhysical(gpa + offset, bytes);
      await client.writePhysical(gpa, codes.get(code)!);
    }
    for (const { name, isNested, gpa } of roots) {
      const own = stubs.get(pagingOf(machine.program, name))!;
      await (isNested ? this.#giveNested(own, gpa) : this.#giveStubs(own, gpa));
    }
  }

  /** Where a guest's own physical address lies: of a nested guest where L1's tables say. */
  async #l1Address(name: string | undefined, gpa: bigint): Promise<bigint> {
    const { machine } = this;
    const within = machine.program.guests.find((guest) => guest.name === name)?.within;
    if (within === undefined) return gpa;
    const frame = await this.#withFrames(() =>
      l1Frame(machine, nestedStage(machine, within).mode, addressToFrame(gpa)),
    );
    if (frame < 0) throw new Error(`${within} maps nothing at gpa ${hex(gpa)} of ${name}, where it has tables`);
    return frameToAddress(frame, pageOffset(gpa));
  }

  /** The root of L1's nested tables gets the entry by which its guests see the stubs. */
  async #giveNested({ nested }: Stubs, root: bigint): Promise<void> {
    // Where no statement enters a guest nobody walks it.
    if (!nested) return;
    const { index, entry } = nested;
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, entry, true);
    await this.#parts.client.writePhysical(root + BigInt(index * 8), bytes);
  }

  /** A root table gets the entries by which the stubs are seen, unless it has them: what is written from outside makes shadow tables anew. */
  async #giveStubs({ index, entryBytes, entries }: Stubs, root: bigint): Promise<void> {
    const { client } = this.#parts;
    const bytes = new Uint8Array(entryBytes * entries.length);
    const view = new DataView(bytes.buffer);
    entries.forEach((entry, at) => {
      if (entryBytes === 8) view.setBigUint64(8 * at, entry, true);
      else view.setUint32(4 * at, Number(entry), true);
    });
    const gpa = root + BigInt(index * entryBytes);
    const there = await client.readPhysical(gpa, bytes.length);
    // A processor that has used it has set A.
    const isThere = there.every(
      (byte, at) => byte === bytes[at] || (at % entryBytes === 0 && (byte ^ bytes[at]!) === A),
    );
    if (!isThere) await client.writePhysical(gpa, bytes);
  }

  async fetch({ frames, built }: MissingFrames): Promise<void> {
    if (built) await this.#built.fetch();
    await this.#parts.memory.fetch(frames);
  }

  /** Which stops are wanted besides those that are counted. */
  async wantStops(stops: readonly string[]): Promise<void> {
    await this.#parts.client.vendor(`QKvm.Stop:${[...new Set(['mmio', 'read-only', ...stops])].join(',')}`);
  }

  /** Arms the scenario's own memory for second-stage faults. */
  async armTraps(range: GpaRange | undefined): Promise<void> {
    const { info, stubs } = this.#parts;
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
    return this.#withFrames(() => this.#pickNow());
  }

  #pickNow(): Task | undefined {
    if (this.#stopped) return this.#stopped;
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
      truthy(evaluate(instruction.statement.condition, programScope(this.machine, task)))
    );
  }

  /** One statement of a task, or what is left of one. */
  async step(task: Task): Promise<StepResult> {
    const { machine } = this;
    machine.acting = task.id;
    machine.small.current = task.id;
    if (task.state === 'waiting') task.state = 'ready';
    let result: StepResult;
    if (this.#stopped === task) result = await this.#goOn(task);
    else {
      machine.steps++;
      result = await this.#instruction(task, machine.code[task.id]![task.pc]!);
    }
    this.#renew();
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
        await this.#withFrames(() => checkExpectation(this.machine, expectation));
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
      await this.#withFrames(() => runInstruction(this.machine, task, instruction));
      return undefined;
    }
    const { statement, guest } = instruction;
    try {
      // L1 resumes its guest, wherever a fault has brought it out.
      if (guest !== undefined && !this.machine.vcpu(task.vcpu).guestMode) {
        await this.#enterNested(task, guest);
        return undefined;
      }
      switch (statement.kind) {
        case 'enter':
          await this.#enterNested(task, statement.guest);
          task.pc++;
          return undefined;
        case 'leave':
          await this.#leaveNested(task);
          task.pc++;
          return undefined;
        case 'access':
          if (task.vcpu >= 0) return await this.#access(task, statement);
          await this.#hostAccess(task, statement);
          return undefined;
        case 'register':
          await this.#register(task, instruction, statement.register);
          return undefined;
        case 'invlpg': {
          const address = evaluateInteger(statement.address, programScope(this.machine, task), 'invlpg');
          if (untranslatable(this.machine.vcpu(task.vcpu).mode, address) === undefined)
            await this.#control0(task, 'invlpg', address);
          task.pc++;
          return undefined;
        }
        case 'map':
        case 'unmap':
        case 'protect':
          await this.#editTables(task, instruction);
          return undefined;
        case 'expect':
          if (untold(statement.expectation.condition).length > 0) task.pc++;
          else await this.#withFrames(() => runInstruction(this.machine, task, instruction));
          return undefined;
        case 'wait':
          await this.#withFrames(() => runInstruction(this.machine, task, instruction));
          return undefined;
        default:
          await this.#host(task, instruction, statement);
          return undefined;
      }
    } catch (error) {
      if (error instanceof LostError) throw error;
      // What KVM refuses ends the task where it stands.
      this.machine.fail(task, (error as Error).message);
      return undefined;
    }
  }

  async #access(task: Task, statement: Extract<Statement, { kind: 'access' }>): Promise<StepResult> {
    const { machine } = this;
    const vcpu = machine.vcpu(task.vcpu);
    const { address, value } = await this.#withFrames(() => {
      const scope = programScope(machine, task);
      return {
        address: evaluateInteger(statement.address, scope, statement.access),
        value: statement.value ? evaluateInteger(statement.value, scope, 'write') : BigInt(machine.steps),
      };
    });
    const cpl = statement.cpl ?? vcpu.mode.cpl;
    const { size, access: kind } = statement;
    task.access = { kind, address, size, value: BigInt.asUintN(8 * size, value), cpl, implicit: false };
    machine.count('accesses');
    const problem = untranslatable(vcpu.mode, address);
    if (problem !== undefined && vcpu.mode.addressBits === 32) {
      // 32-bit code has no such address.
      machine.warn(`${task.name}: ${problem}`);
      task.access = null;
      task.pc++;
      return undefined;
    }
    if (kind === 'fetch') await this.#plantReturn(task.vcpu, address, cpl === 3);
    const rflags = vcpu.registers.rflags | 2n;
    const user = cpl === 3;
    const outcome = await this.#vcpus[task.vcpu]!.act({ name: kind, size, address, value, user, rflags });
    return this.#finishAccess(task, outcome);
  }

  /** An access of the host's own to what it shares with the guest. */
  async #hostAccess(task: Task, statement: Extract<Statement, { kind: 'access' }>): Promise<void> {
    const { machine } = this;
    const { client } = this.#parts;
    const { size } = statement;
    const scope = programScope(machine, task);
    const gpa = await this.#withFrames(() => evaluateInteger(statement.address, scope, statement.access));
    if (statement.access === 'read') {
      const bytes = await client.readPhysical(gpa, size);
      if (bytes.length < size) throw new Error(`read ${hex(gpa)}: ${this.#nowhere(gpa)}`);
      task.loaded = bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
    } else {
      if (!this.#mirror.memory.has(addressToFrame(gpa))) throw new Error(`write ${hex(gpa)}: ${this.#nowhere(gpa)}`);
      const value = await this.#withFrames(() =>
        statement.value ? evaluateInteger(statement.value, scope, 'write') : BigInt(machine.steps),
      );
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, value), true);
      await client.writePhysical(gpa, bytes.subarray(0, size));
    }
    task.pc++;
  }

  #nowhere(gpa: bigint): string {
    return this.machine.attributes.store.isPrivate(addressToFrame(gpa))
      ? 'it is private memory, of which the host has no mapping'
      : 'no memslot holds it';
  }

  /** After a stop in the middle of an access; where KVM waits for userspace to convert the page, that comes first. */
  async #goOn(task: Task): Promise<StepResult> {
    const { machine } = this;
    const fault = this.#memoryFault;
    this.#memoryFault = undefined;
    if (fault) {
      const { gpa, isPrivate } = fault;
      const words = memoryFaultWords(machine, gpa, isPrivate);
      if (words !== undefined) {
        this.#stopped = undefined;
        machine.fail(task, words);
        return undefined;
      }
      await this.#convert(gpa & ~0xfffn, 4096n, isPrivate);
      machine.count('conversions');
    }
    return this.#finishAccess(task, await this.#vcpus[task.vcpu]!.goOn());
  }

  /** Why KVM gives up a vCPU: of a fetch, that there is nothing to fetch is more than that its emulator cannot go on. */
  async #lostWords(task: Task, words: string): Promise<string> {
    const { machine } = this;
    const { access } = task;
    if (access?.kind !== 'fetch') return words;
    const walk = await this.#withFrames(() => softTranslate(machine, task.vcpu, access.address));
    if (walk.status !== 'done' || machine.slots.find(walk.gfn)) return words;
    const gpa = frameToAddress(walk.gfn, pageOffset(access.address));
    return `no memslot holds the instruction at gpa ${hex(gpa)}: KVM_EXIT_INTERNAL_ERROR`;
  }

  async #finishAccess(task: Task, first: Outcome): Promise<StepResult> {
    const { machine } = this;
    let outcome = first;
    while (outcome.kind === 'stop') {
      const { stop } = outcome;
      this.#stopped = task;
      if (stop.reason === 'mmio' || stop.reason === 'read-only') {
        machine.count('emulated');
        if (stop.reason === 'read-only') machine.count('faults.read_only');
      }
      if (stop.reason === 'memory-fault') {
        machine.count('exits.memory_fault');
        this.#memoryFault = { gpa: stop.gpa!, isPrivate: isPrivateFault(stop) };
      }
      if (stop.reason !== 'pause') return { stop };
      outcome = await this.#vcpus[task.vcpu]!.goOn();
    }
    this.#stopped = undefined;
    await this.#undo?.();
    this.#undo = undefined;
    if (outcome.kind === 'lost') {
      machine.fail(task, await this.#lostWords(task, outcome.words));
      return undefined;
    }
    if (outcome.kind === 'exited') await this.#exited(task);
    else if (outcome.kind === 'exception') {
      const { vector, error, cr2 } = outcome;
      const problem = untranslatable(machine.vcpu(task.vcpu).mode, task.access!.address);
      if (vector === PF) {
        task.cr2 = cr2;
        machine.count('faults.guest');
      } else if (problem !== undefined) machine.warn(`${task.name}: ${problem}`);
      else machine.warn(`${task.name}: exception ${vector}, error code ${hex(error)}`);
    } else if (task.access!.kind === 'read') task.loaded = BigInt.asUintN(8 * task.access!.size, outcome.value);
    task.access = null;
    task.pc++;
    return undefined;
  }

  /** What is fetched must be an instruction that comes back: for as long as the fetch takes, there is a `ret`. */
  async #plantReturn(vcpu: number, address: bigint, user: boolean): Promise<void> {
    const { client } = this.#parts;
    const walk = await this.#withFrames(() =>
      this.#mirror.regimes[vcpu]!.walk(this.#mirror.memory, address, { kind: 'fetch', user }),
    );
    // Behind L1's tables for a nested guest lies L1's memory.
    const gpa = walk.hpa ?? walk.gpa;
    if (walk.end !== 'done' || gpa === undefined || !this.#mirror.memory.has(addressToFrame(gpa))) return;
    const before = await client.readPhysical(gpa, 1);
    if (before[0] === RET) return;
    await client.writePhysical(gpa, Uint8Array.of(RET));
    this.#undo = () => client.writePhysical(gpa, before);
  }

  /** An action at CPL0 that is no access of the scenario. @throws with words when the processor refuses it */
  async #control0(
    task: Task,
    name: Parameters<StubVcpu['act']>[0]['name'],
    address: bigint,
    value = 0n,
    size: 4 | 8 = 8,
  ): Promise<void> {
    const vcpu = this.#vcpus[task.vcpu]!;
    let outcome = await vcpu.act({ name, size, address, value, user: false, rflags: 2n });
    while (outcome.kind === 'stop') outcome = await vcpu.goOn();
    if (outcome.kind === 'lost') throw new Error(outcome.words);
    if (outcome.kind === 'exited') await this.#exited(task);
    if (outcome.kind === 'exception')
      throw new Error(
        `${name} ${hex(address)}: the processor raises exception ${outcome.vector}, error code ${hex(outcome.error)}`,
      );
  }

  /** L1 runs a guest of its own: VMRUN, with registers as the guest had them when it came out. */
  async #enterNested(task: Task, guest: string): Promise<void> {
    const { machine } = this;
    const { client } = this.#parts;
    const vcpu = machine.vcpu(task.vcpu);
    const stubs = this.#stubsOf(task.vcpu);
    const { mode, registers } = await this.#withFrames(() => guestModeOf(machine, vcpu, guest));
    const vmcb = this.#vmcb(task);
    await client.writePhysical(vmcb, firstVmcb(stubs, task.vcpu, { registers, nestedCr3: mode.nested?.pgd }));
    machine.count('nested.entries');
    machine.setGuestMode(vcpu, mode, registers, vcpu.saved);
    await this.#control0(task, 'vmrun', vmcb, stubs.gpa + stubs.nested!.hostSave);
  }

  async #leaveNested(task: Task): Promise<void> {
    if (this.machine.vcpu(task.vcpu).guestMode) await this.#control0(task, 'vmmcall', 0n);
  }

  #vmcb(task: Task): bigint {
    const { gpa, nested } = this.#stubsOf(task.vcpu);
    return gpa + nested!.vmcbs + PAGE * BigInt(task.vcpu);
  }

  /** L1 has the processor again. @throws with words when no statement of the scenario's has led to it */
  async #exited(task: Task): Promise<void> {
    const { machine } = this;
    const { client, print } = this.#parts;
    const vcpu = machine.vcpu(task.vcpu);
    const { guest, l1 } = vcpu.guestMode!;
    const { code, info } = vmExitOf(await client.readPhysical(this.#vmcb(task) + VM_EXIT.at, VM_EXIT.size));
    machine.count('nested.exits');
    machine.setGuestMode(vcpu, undefined, l1, { ...vcpu.saved, [guest]: vcpu.registers });
    if (code === EXIT_VMMCALL) return;
    if (code !== EXIT_NPF) throw new Error(`${guest} cannot go on: VMRUN ends with exit code ${hex(code)}`);
    print(`${task.name}: ${guest} exits to L1: nested page fault at gpa ${hex(info[1])}, error code ${hex(info[0])}\n`);
  }

  async #register(task: Task, instruction: Instruction, register: RegisterName): Promise<void> {
    const { machine } = this;
    const vcpu = machine.vcpu(task.vcpu);
    const failures = machine.small.failures.length;
    const { pc } = task;
    const stubs = this.#stubsOf(task.vcpu);
    await this.#withFrames(() => runInstruction(machine, task, instruction));
    const value = vcpu.registers[register];
    // What the engine refused has ended the task; flags and CPL are an access's own.
    if (machine.small.failures.length > failures) return;
    if (register === 'rflags' || register === 'cpl') return;
    await this.#atStatement(task, pc, async () => {
      const { paging, rootGfn, rootEntry } = vcpu.mode;
      const now = pagingName(vcpu.registers);
      if (!paging || now !== stubs.paging)
        throw new Error(
          `${register} ${hex(value)} is for ${paging ? `${now} paging` : 'a processor without paging'}: the code that makes the accesses on KVM stays with ${stubs.paging} paging`,
        );
      if (register === 'cr3')
        await this.#giveStubs(
          stubs,
          await this.#l1Address(vcpu.guestMode?.guest, frameToAddress(rootGfn, rootEntry * 8)),
        );
      await this.#control0(task, register, register === 'efer' && stubs.nested ? value | SVME : value);
    });
  }

  /** What the engine has done already the real machine does too: should that fail, it is this statement's failure. */
  async #atStatement(task: Task, pc: number, work: () => Promise<void>): Promise<void> {
    const next = task.pc;
    task.pc = pc;
    await work();
    task.pc = next;
  }

  /** The engine says which entries to write; the guest writes them. */
  async #editTables(task: Task, instruction: Instruction): Promise<void> {
    const { machine } = this;
    const { log, memory } = machine;
    const from = log.length;
    const changed = (): number[] => {
      const positions: number[] = [];
      for (let at = from; at < log.length; at++) if (isMemoryKind(log.kindAt(at))) positions.push(at);
      return positions;
    };
    const forget = (): void => {
      for (const frame of new Set(changed().map((at) => Math.floor(log.at(at).address / 512)))) memory.drop(frame);
    };
    const { pc } = task;
    const pools = structuredClone(machine.small.tablePools);
    await this.#withFrames(() => {
      try {
        runInstruction(machine, task, instruction);
      } catch (error) {
        // It is tried again from the beginning.
        forget();
        machine.small.tablePools = structuredClone(pools);
        log.truncate(from);
        task.pc = pc;
        throw error;
      }
    });
    const stores = changed().map((at) => log.at(at));
    forget();
    await this.#atStatement(task, pc, async () => {
      const stubs = this.#stubsOf(task.vcpu);
      for (const entry of stores) {
        const gpa = await this.#ownAddress(
          task,
          frameToAddress(Math.floor(entry.address / 512), (entry.address % 512) * 8),
        );
        for (const { offset, value, size } of storesOf(entry, stubs.entryBytes))
          await this.#control0(task, 'write', directAddress(stubs, gpa + offset), value, size);
      }
    });
  }

  /** How the guest that runs knows an address of the machine's: a nested one by what L1 maps there. */
  async #ownAddress(task: Task, gpa: bigint): Promise<bigint> {
    const { machine } = this;
    const { program } = machine;
    const guest = machine.vcpu(task.vcpu).guestMode?.guest;
    const within = program.guests.find(({ name }) => name === guest)?.within;
    if (within === undefined) return gpa;
    for (const mapping of nestedMappings(program)) {
      const own = mapping.gva + gpa - mapping.gpa;
      const isIn = gpa >= mapping.gpa && gpa < mapping.gpa + mapping.size;
      if (isIn && (await this.#l1Address(guest, own)) === gpa) return own;
    }
    throw new Error(`${within} maps nothing to gpa ${hex(gpa)}, where ${guest} has tables`);
  }

  async #host(task: Task, instruction: Instruction, statement: Statement): Promise<void> {
    const { machine } = this;
    const { client } = this.#parts;
    const number = (value: bigint): string => value.toString(16);
    let packet: string;
    let isSlot = true;
    switch (statement.kind) {
      case 'convert':
        if (task.vcpu < 0) {
          await this.#convert(statement.base, statement.size, statement.isPrivate);
          machine.count('conversions');
        } else await this.#pageStateChange(task, statement);
        task.pc++;
        return;
      case 'slot-add': {
        const { id, base, size, readonly, gmemLevel } = statement.slot;
        const flag = readonly ? ',ro' : gmemLevel === undefined ? '' : ',private';
        packet = `vKvm.Slot:add,${id.toString(16)},${number(base)},${number(size)}${flag}`;
        break;
      }
      case 'punch':
        packet = `vKvm.Punch:${number(statement.base)},${number(statement.size)}`;
        isSlot = false;
        break;
      case 'slot-delete':
        packet = `vKvm.Slot:delete,${statement.id.toString(16)}`;
        break;
      case 'slot-move':
        packet = `vKvm.Slot:move,${statement.id.toString(16)},${number(statement.base)}`;
        break;
      case 'slot-log':
        packet = `vKvm.Slot:flags,${statement.id.toString(16)},${statement.enable ? 'log' : ''}`;
        break;
      case 'zap':
        packet = 'vKvm.Refresh';
        isSlot = false;
        break;
      case 'notifier':
        packet = `vKvm.${statement.how === 'migrate' ? 'Migrate' : 'Unmap'}:${number(statement.base)},${number(statement.size)}`;
        isSlot = false;
        break;
      default:
        throw new Error(`${statement.kind} cannot be done on KVM`);
    }
    await client.vendor(packet);
    if (!isSlot) {
      task.pc++;
      return;
    }
    // The engine's own slots follow: expressions and views ask them.
    runInstruction(machine, task, instruction);
    while (task.stack.length > 0) runTopStep(machine, task);
    this.#parts = { ...this.#parts, info: await client.info() };
  }

  /** KVM_SET_MEMORY_ATTRIBUTES. KVM tells nobody what is private: the engine's machine keeps it. */
  async #convert(base: bigint, size: bigint, isPrivate: boolean): Promise<void> {
    const { machine } = this;
    const { client } = this.#parts;
    await client.vendor(
      `vKvm.Attributes:${base.toString(16)},${size.toString(16)},${isPrivate ? 'private' : 'shared'}`,
    );
    machine.setAttributes(addressToFrame(base), addressToFrame(base + size), isPrivate);
    this.#parts = { ...this.#parts, info: await client.info() };
  }

  /** The guest asks for a conversion, by a hypercall that KVM leaves to userspace. */
  async #pageStateChange(
    task: Task,
    { base, size, isPrivate }: Extract<Statement, { kind: 'convert' }>,
  ): Promise<void> {
    const vcpu = this.#vcpus[task.vcpu]!;
    const name = this.#parts.info.vendor === 'AuthenticAMD' ? 'map-gpa-range' : 'map-gpa-range by vmcall';
    const value = isPrivate ? MAP_GPA_PRIVATE : 0n;
    let outcome = await vcpu.act({ name, size: 8, address: base, value, pages: size / PAGE, user: false, rflags: 2n });
    while (outcome.kind === 'stop') {
      const { reason, gpa, size: bytes, data } = outcome.stop;
      if (reason === 'hypercall') {
        await this.#convert(gpa!, BigInt(bytes!), ((data ?? 0n) & MAP_GPA_PRIVATE) !== 0n);
        this.machine.count('conversions');
      }
      outcome = await vcpu.goOn();
    }
    if (outcome.kind === 'lost') throw new Error(outcome.words);
    const answer = outcome.kind === 'done' ? BigInt.asIntN(64, outcome.value) : undefined;
    if (answer !== 0n)
      throw new Error(
        `convert: the hypercall KVM_HC_MAP_GPA_RANGE ${answer === undefined ? 'does not come back' : `answers ${answer}`}; it needs KVM_CAP_EXIT_HYPERCALL (Linux 5.14)`,
      );
  }

  // ---- looking

  /** Memory is read anew, and registers decide how it is translated. */
  #renew(): void {
    const { memory, info } = this.#parts;
    memory.renew(info.memory, new Map());
    this.#built.forget();
    const cpu = guestCpu(info);
    this.#mirror.regimes = this.machine.vcpus.map(({ registers, guestMode }) =>
      x86Regime(registers, cpu, guestMode?.nested && { kind: 'npt', root: guestMode.nested.pgd, levels: 4 }),
    );
  }

  #withFrames<T>(ask: () => T): Promise<T> {
    return withFrames((missing) => this.fetch(missing), ask);
  }
}

/** How the guest stores 8 bytes of its tables: one entry of 4, or both where a table is cleared, as far as it changes. */
function storesOf(
  { oldLo, oldHi, newLo, newHi, object }: LogEntry,
  entryBytes: 4 | 8,
): { offset: bigint; value: bigint; size: 4 | 8 }[] {
  if (entryBytes === 8) return [{ offset: 0n, value: toBigint(newLo, newHi), size: 8 }];
  const isStored = (half: 0 | 1, changes: boolean): boolean => (object === undefined ? changes : object === half);
  return [
    ...(isStored(0, oldLo !== newLo) ? [{ offset: 0n, value: BigInt(newLo), size: 4 } as const] : []),
    ...(isStored(1, oldHi !== newHi) ? [{ offset: 4n, value: BigInt(newHi), size: 4 } as const] : []),
  ];
}
