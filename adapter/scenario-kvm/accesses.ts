import { evaluateInteger } from '../../engine/expression.ts';
import { untranslatable } from '../../engine/guest/access.ts';
import { addressToFrame, frameToAddress, hex, pageOffset } from '../../engine/memory/words.ts';
import type { Task } from '../../engine/operation.ts';
import type { Statement } from '../../engine/program.ts';
import { programScope } from '../../engine/queries/scope.ts';
import { softTranslate } from '../../engine/queries/translate.ts';
import { LostError } from '../rsp/packet.ts';
import type { KvmStop } from '../rsp/stop.ts';
import { nestedExit } from './nested-guests.ts';
import { convertFaulted } from './private-memory.ts';
import type { RealMachine } from './real-machine.ts';
import type { Outcome } from './vcpu.ts';

/** A step of a task: it has made one, or its vCPU has stopped in the middle of an access. */
export type StepResult = { readonly stop: KvmStop } | undefined;

const RET = 0xc3;
const PF = 14;

/** The accesses of a scenario's vCPUs: stubs make them, and one may have stopped in the middle. */
export class Accesses {
  readonly #real: RealMachine;
  #stopped: Task | undefined;
  /** The page for which KVM waits, until it is converted. */
  #memoryFault: KvmStop | undefined;
  #undo: (() => Promise<void>) | undefined;

  constructor(real: RealMachine) {
    this.#real = real;
  }

  /** The task whose vCPU has stopped in the middle of an access. */
  get stopped(): Task | undefined {
    return this.#stopped;
  }

  /** Makes an access, as far as its first stop. */
  async begin(task: Task, statement: Extract<Statement, { kind: 'access' }>): Promise<StepResult> {
    const { machine, vcpus } = this.#real;
    const vcpu = machine.vcpu(task.vcpu);
    const { address, value } = await this.#real.withFrames(() => {
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
    const outcome = await vcpus[task.vcpu]!.act({ name: kind, size, address, value, user, rflags });
    return this.#finish(task, outcome);
  }

  /** After a stop in the middle of an access; where KVM waits for userspace to convert the page, that comes first. */
  async goOn(task: Task): Promise<StepResult> {
    const { machine, vcpus } = this.#real;
    const fault = this.#memoryFault;
    this.#memoryFault = undefined;
    if (fault) {
      const words = await this.#convert(fault);
      if (words !== undefined) {
        await this.#settle();
        machine.fail(task, words);
        return undefined;
      }
    }
    return this.#finish(task, await vcpus[task.vcpu]!.goOn());
  }

  async #finish(task: Task, first: Outcome): Promise<StepResult> {
    const { machine, vcpus } = this.#real;
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
        this.#memoryFault = stop;
      }
      if (stop.reason !== 'pause') return { stop };
      outcome = await vcpus[task.vcpu]!.goOn();
    }
    await this.#settle();
    if (outcome.kind === 'lost') {
      machine.fail(task, await this.#lostWords(task, outcome.words));
      return undefined;
    }
    if (outcome.kind === 'exited') await nestedExit(this.#real, task);
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

  /** @returns why the vCPU cannot go on: the VMM does not convert, or KVM refuses; undefined where it can */
  async #convert(fault: KvmStop): Promise<string | undefined> {
    try {
      return await convertFaulted(this.#real, fault);
    } catch (error) {
      if (error instanceof LostError) throw error;
      return (error as Error).message;
    }
  }

  /** No vCPU stands in an access any more, and what was planted for it goes. */
  async #settle(): Promise<void> {
    this.#stopped = undefined;
    await this.#undo?.();
    this.#undo = undefined;
  }

  /** Why KVM gives up a vCPU: of a fetch, that there is nothing to fetch is more than that its emulator cannot go on. */
  async #lostWords(task: Task, words: string): Promise<string> {
    const { machine } = this.#real;
    const { access } = task;
    if (access?.kind !== 'fetch') return words;
    const walk = await this.#real.withFrames(() => softTranslate(machine, task.vcpu, access.address));
    if (walk.status !== 'done' || machine.slots.find(walk.gfn)) return words;
    const gpa = frameToAddress(walk.gfn, pageOffset(access.address));
    return `no memslot holds the instruction at gpa ${hex(gpa)}: KVM_EXIT_INTERNAL_ERROR`;
  }

  /** What is fetched must be an instruction that comes back: for as long as the fetch takes, there is a `ret`. */
  async #plantReturn(vcpu: number, address: bigint, user: boolean): Promise<void> {
    const { client, memory, machine } = this.#real;
    const walk = await this.#real.withFrames(() =>
      machine.mirror!.regimes[vcpu]!.walk(memory, address, { kind: 'fetch', user }),
    );
    // Behind L1's tables for a nested guest lies L1's memory.
    const gpa = walk.hpa ?? walk.gpa;
    if (walk.end !== 'done' || gpa === undefined || !memory.has(addressToFrame(gpa))) return;
    const before = await client.readPhysical(gpa, 1);
    if (before[0] === RET) return;
    await client.writePhysical(gpa, Uint8Array.of(RET));
    this.#undo = () => client.writePhysical(gpa, before);
  }
}
