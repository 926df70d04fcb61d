import type { Scope } from '../../engine/expression.ts';
import type { Machine } from '../../engine/machine.ts';
import type { MissingFrames } from '../../engine/mirror.ts';
import type { Task } from '../../engine/operation.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import { type FilterName, faultScope } from '../breakpoints.ts';
import { guestFault } from '../kvm/event.ts';
import { KVM_FILTERS } from '../kvm/filters.ts';
import { LostError, RspError } from '../rsp/packet.ts';
import type { KvmStop } from '../rsp/stop.ts';
import type { OpenedScenario } from '../scenario-kvm/open.ts';
import { isPrivateFault } from '../scenario-kvm/private-memory.ts';
import type { ScenarioRun } from '../scenario-kvm/run.ts';
import { withFrames } from '../with-frames.ts';
import type { Halt, Motion, Target, TargetCapabilities, Watcher } from './target.ts';

const FILTER_OF: Readonly<Partial<Record<KvmStop['reason'], FilterName>>> = {
  'guest-pf': 'guest',
  'second-stage': 'second-stage',
  'memory-fault': 'memory-fault',
};

const FORWARDS_ONLY = 'a real machine does not run backwards; the emulator does ("target": "emulator")';
const BY_STATEMENTS = 'on KVM the scenario’s own statements change the machine';

/** A scenario on a machine of its own under KVM. */
export class KvmScenarioTarget implements Target {
  readonly name = 'kvm';
  readonly capabilities: TargetCapabilities = {
    run: true,
    stepBack: false,
    writeMemory: false,
    setRegisters: false,
    why: { stepBack: FORWARDS_ONLY, writeMemory: BY_STATEMENTS, setRegisters: BY_STATEMENTS },
  };
  readonly #run: ScenarioRun;
  readonly #close: () => Promise<void>;
  #pauseWanted = false;

  constructor({ run, close }: OpenedScenario) {
    this.#run = run;
    this.#close = close;
  }

  get machine(): Machine {
    return this.#run.machine;
  }

  pause(): void {
    this.#pauseWanted = true;
  }

  fetch(missing: MissingFrames): Promise<void> {
    return this.#run.fetch(missing);
  }

  edit(): void {
    throw new Error(BY_STATEMENTS);
  }

  async dispose(): Promise<void> {
    this.#pauseWanted = true;
    await this.#close();
  }

  async move(motion: Motion, watcher: Watcher): Promise<Halt> {
    try {
      return await this.#untilHalt(motion, watcher);
    } catch (error) {
      if (!(error instanceof RspError) || error instanceof LostError) throw error;
      // What the helper refuses is no loss.
      return { kind: 'stuck', words: error.message };
    }
  }

  async #untilHalt(motion: Motion, watcher: Watcher): Promise<Halt> {
    this.#pauseWanted = false;
    const run = this.#run;
    if (motion.kind === 'step-back' || motion.kind === 'reverse-continue' || motion.kind === 'release')
      throw new Error(FORWARDS_ONLY);
    watcher.begin(this.machine);
    await run.wantStops(KVM_FILTERS.flatMap(({ filter, stops }) => (watcher.wants(filter) ? stops : [])));
    const everywhere = { from: 0n, to: 1n << 64n };
    await run.armTraps(watcher.wants('second-stage') ? (watcher.range('second-stage') ?? everywhere) : undefined);
    for (;;) {
      const task = motion.kind === 'continue' ? await run.pick() : this.machine.task(motion.task);
      if (!task || task.state === 'done') {
        if (task && !run.ended) return { kind: 'step', task: task.id };
        const { stuck } = run;
        if (stuck !== undefined) return { kind: 'stuck', words: stuck };
        await run.finish();
        return { kind: 'ended' };
      }
      if (motion.kind !== 'continue' && !run.canRun(task))
        return { kind: 'stuck', words: `${task.name} waits for a condition; continue lets the others run` };
      const result = await run.step(task);
      const halt = await withFrames(
        (missing) => run.fetch(missing),
        () => (result ? this.#judge(task, result.stop, watcher) : this.#matched(task, watcher)),
      );
      if (halt) return halt;
      // A stop that nobody wants is within the statement: the step goes on.
      if (motion.kind !== 'continue' && !result) return { kind: 'step', task: task.id };
      if (this.#pauseWanted) return { kind: 'pause' };
    }
  }

  #matched(task: Task, watcher: Watcher): Halt | undefined {
    const match = watcher.check(this.machine, task.id);
    return match && { kind: 'matched', match };
  }

  /** What a stop in the middle of an access means; undefined: it may go on. */
  #judge(task: Task, stop: KvmStop, watcher: Watcher): Halt | undefined {
    const fault = this.#fault(task, stop);
    const filter = FILTER_OF[stop.reason] ?? 'mmio';
    const scope: Scope = faultScope(this.machine, task, fault);
    if (!watcher.admits(filter, scope)) return undefined;
    return { kind: 'matched', match: { kind: 'exception', task: task.id, ids: [], filter, object: fault } };
  }

  #fault(task: Task, stop: KvmStop): FaultInfo {
    const guest = guestFault(this.machine.mirror!, task.vcpu, stop);
    if (guest) return guest;
    const access = task.access!;
    const table = this.#tableAt(task, stop.gpa);
    const reasons = {
      'second-stage': `KVM’s process does not map this page${stop.trap === 'write-protected' ? ' for writing' : ' yet'} (userfaultfd)`,
      mmio: 'no memslot holds it, userspace plays the device',
      'read-only': 'its memslot is read-only, userspace gets the write',
      'memory-fault': 'KVM has no memory of that kind there, and leaves it to userspace to convert the page',
    };
    return {
      vcpu: task.vcpu,
      kind: stop.reason === 'second-stage' || stop.reason === 'memory-fault' ? 'violation' : 'mmio',
      ...(stop.reason === 'memory-fault' ? { isPrivate: isPrivateFault(stop) } : {}),
      access: stop.access ?? access.kind,
      cpl: stop.cpl ?? access.cpl,
      implicit: false,
      gva: access.address,
      gpa: stop.gpa,
      target: table === undefined ? 'page' : 'table',
      guestLevel: table ?? 0,
      level: 0,
      index: 0,
      lo: 0,
      hi: 0,
      table: 0,
      errorCode: 0,
      exitInfo: 0,
      reason: reasons[stop.reason as keyof typeof reasons] ?? `KVM stopped the vCPU: ${stop.reason}`,
    };
  }

  /** The level of the guest's table that an address lies in, if the walk of the access reads it. */
  #tableAt(task: Task, gpa: bigint | undefined): number | undefined {
    const { regimes, memory } = this.machine.mirror!;
    const walk = regimes[task.vcpu]!.walk(memory, task.access!.address, { kind: 'read', user: false, look: true });
    return walk.references.find(({ table }) => gpa !== undefined && BigInt(table) === gpa >> 12n)?.level;
  }
}
