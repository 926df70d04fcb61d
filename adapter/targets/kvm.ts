import type { DebugProtocol } from '@vscode/debugprotocol';
import type { Scope } from '../../engine/expression.ts';
import type { Machine } from '../../engine/machine.ts';
import { hex } from '../../engine/memory/words.ts';
import type { MissingFrames } from '../../engine/mirror.ts';
import type { StopAnswer } from '../../engine/queries/answers.ts';
import { faultAnswer } from '../../engine/queries/words.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import { type Located, toHost } from '../addresses.ts';
import type { FilterName } from '../breakpoints.ts';
import type { ElfProgram } from '../elf/program.ts';
import { CodeBreakpoints } from '../kvm/code-breakpoints.ts';
import { type CodeWidth, codeWidth } from '../kvm/code-width.ts';
import { GUEST_HELP, runGuestCommand } from '../kvm/commands.ts';
import { Control } from '../kvm/control.ts';
import { disassembleRequest, instructionsAt } from '../kvm/disassemble-request.ts';
import type { Disassemble, MemoryOperands } from '../kvm/disassembly.ts';
import { eventSentence, eventWalk, guestFault, type KvmEvent, stopNodes } from '../kvm/event.ts';
import { withAddress } from '../kvm/fault-address.ts';
import { KVM_FILTERS } from '../kvm/filters.ts';
import { InsertedBreakpoints } from '../kvm/inserted.ts';
import type { KvmBuilt } from '../kvm/kvm-built.ts';
import { guestScope, viewMachine } from '../kvm/machine-view.ts';
import { GuestMemory, type Ram } from '../kvm/memory.ts';
import type { KvmPrinter } from '../kvm/printer.ts';
import { type RegisterValues, registerNodes } from '../kvm/registers.ts';
import { Traps } from '../kvm/traps.ts';
import { callers } from '../kvm/unwind.ts';
import { ViolationsAfter } from '../kvm/violations.ts';
import { within } from '../kvm/within.ts';
import type { Resume, RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import { LostError } from '../rsp/packet.ts';
import type { KvmStop, StopEvent } from '../rsp/stop.ts';
import type { ScopeNodes } from '../variables.ts';
import { withFrames } from '../with-frames.ts';
import type { GuestFrame, GuestSide } from './guest.ts';
import type { Halt, Motion, Target, TargetCapabilities, Watcher } from './target.ts';

const FORWARDS_ONLY = 'a real machine does not run backwards; the emulator does ("target": "emulator")';

const FILTER_OF: Readonly<Partial<Record<KvmStop['reason'], FilterName>>> = {
  'guest-pf': 'guest',
  'second-stage': 'second-stage',
  mmio: 'mmio',
  'read-only': 'mmio',
};

/** How long a helper has to answer that it lets go of its machine. */
const LEAVE_MS = 2000;

/** One vCPU runs while the others stand still. */
interface Alone {
  readonly vcpu: number;
  /** Whether it has come to where it was to, with a stop that nobody else wants. */
  isThere(stop: KvmStop): boolean;
}

/**
 * Whether a stop is the end of a step: the vCPU stands at another instruction, where there happens to be a breakpoint or the
 * guest's #PF handler, or behind an access that is complete. Of other stops the instruction is still to be run.
 */
const endsStep = ({ reason, completed }: KvmStop): boolean =>
  reason === 'breakpoint' || reason === 'guest-pf' || (FILTER_OF[reason] === 'mmio' && completed === true);

/** A vCPU that was stopped for the others' sake. */
const paused = (vcpu: number): KvmEvent => ({ vcpu, stop: { reason: 'pause', exact: [], derived: [] } });

export interface KvmParts extends KvmPrinter {
  readonly client: RspClient;
  /** The memfd, where it is on this machine. */
  readonly local: { read(offset: bigint, length: number): Uint8Array; close(): void } | undefined;
  readonly info: KvmInfo;
  /** Stops of the handshake. */
  readonly first: readonly StopEvent[];
  readonly program: ElfProgram | undefined;
  readonly disassemble: Disassemble;
  readonly memoryOperands: MemoryOperands;
  readonly built: KvmBuilt;
  /** Where the helper runs. */
  readonly place: { close(): void };
  /** Whether the machine is to end with the session. */
  readonly owned: boolean;
}

/** What says how wide code is. */
const WIDTH_REGISTERS = ['cs', 'gdt_base', 'cr0', 'efer'];

/** A virtual machine under KVM, through the helper. */
export class KvmTarget implements Target {
  readonly #widths: { readonly mode: string; readonly width: CodeWidth }[] = [];
  readonly name = 'kvm';
  readonly capabilities: TargetCapabilities = {
    run: true,
    stepBack: false,
    writeMemory: true,
    setRegisters: true,
    why: { stepBack: FORWARDS_ONLY },
  };
  readonly guest: GuestSide;
  readonly #parts: KvmParts;
  readonly #client: RspClient;
  readonly #control: Control;
  readonly #memory: GuestMemory;
  readonly #built: KvmBuilt;
  readonly #code = new CodeBreakpoints();
  readonly #inserted: InsertedBreakpoints;
  /** Where a call that is stepped over, or a function that is left, comes back to. */
  #returnsTo: bigint | undefined;
  #info: KvmInfo;
  #machine: Machine;
  #registers: readonly RegisterValues[] = [];
  /** What each vCPU stopped for last. */
  readonly #events: KvmEvent[];
  #turn: Promise<unknown> = Promise.resolve();
  /** A motion is under way, though every vCPU may stand still for a moment. */
  #moving = false;
  #pauseWanted = false;
  #left: Promise<void> | undefined;
  #stops = 0;
  readonly #traps: Traps;
  readonly #violations: ViolationsAfter;
  /** What the helper was told to stop for. */
  #told = '';

  private constructor(parts: KvmParts) {
    this.#parts = parts;
    this.#client = parts.client;
    this.#info = parts.info;
    const ram: Ram = {
      readNow: (offset, length) => parts.local?.read(offset, length),
      fetch: (gpa, length) => parts.client.readPhysical(gpa, length),
    };
    this.#memory = new GuestMemory(ram);
    this.#inserted = new InsertedBreakpoints(parts.client, (address) => this.#gpaOf(address), parts.print);
    this.#memory.renew(this.#info.memory, this.#inserted.patches);
    this.#built = parts.built;
    this.#machine = viewMachine(this.#info, this.#memory, [], () => this.#built.now());
    this.#control = new Control(parts.client, parts.info.vcpus, parts.first);
    this.#events = Array.from({ length: parts.info.vcpus }, (_, vcpu) => paused(vcpu));
    this.#traps = new Traps(parts.client, parts.print);
    this.#violations = new ViolationsAfter(parts.client, parts.print);
    this.#code.useProgram(parts.program);
    this.guest = this.#guestSide();
    const decoder = new TextDecoder();
    parts.client.onConsole((bytes) => parts.console(decoder.decode(bytes, { stream: true })));
  }

  /** Takes over a machine, and stops it if it runs. @throws with words when it has ended */
  static async open(parts: KvmParts): Promise<KvmTarget> {
    if (parts.first.some(({ kind }) => kind === 'exited')) throw new Error('the machine has ended already');
    const target = new KvmTarget(parts);
    await target.#control.standStill();
    await target.#refresh();
    // One that stood still has its reasons from before.
    for (const event of parts.first) {
      const vcpu = Number.parseInt((event.kind === 'stopped' && event.thread) || '1', 16) - 1;
      if (event.kind === 'stopped' && event.kvm && vcpu < parts.info.vcpus) await target.#explain(vcpu, event.kvm);
    }
    return target;
  }

  get machine(): Machine {
    return this.#machine;
  }

  pause(): void {
    this.#pauseWanted = true;
    // Whoever waits for the stop hears of a lost connection.
    this.#control.interrupt().catch(() => {});
  }

  async fetch({ frames, built }: MissingFrames): Promise<void> {
    if (built) await this.#built.fetch();
    await this.#memory.fetch(frames);
  }

  edit(): void {
    throw new Error('a real machine is changed through its guest side');
  }

  dispose(): Promise<void> {
    this.#left ??= this.#leave();
    return this.#left;
  }

  async #leave(): Promise<void> {
    this.#parts.local?.close();
    await this.#built.close();
    if (this.#parts.owned) {
      this.#client.kill();
      this.#parts.place.close();
      return;
    }
    try {
      await within(this.#client.detach(), LEAVE_MS, 'the helper does not answer');
    } catch {
      this.#client.close();
    }
  }

  // ---- moving

  async move(motion: Motion, watcher: Watcher): Promise<Halt> {
    this.#pauseWanted = false;
    this.#moving = true;
    try {
      const halt = await this.#untilHalt(motion, watcher);
      await this.#settle(watcher);
      return halt;
    } catch (error) {
      if (error instanceof LostError) throw error;
      // What the helper refuses is no loss: the machine stands where it is.
      await this.#settle(watcher);
      return { kind: 'stuck', words: (error as Error).message };
    } finally {
      this.#moving = false;
    }
  }

  /** Nothing runs any more, and everything is read anew where there is a machine. */
  #settle(watcher: Watcher): Promise<void> {
    return this.#inTurn(async () => {
      this.#moving = false;
      for (const vcpu of await this.#control.standStill()) this.#events[vcpu] = paused(vcpu);
      await this.#violations.tell(watcher);
      if (!this.#control.ended) await this.#refresh();
    });
  }

  async #untilHalt(motion: Motion, watcher: Watcher): Promise<Halt> {
    switch (motion.kind) {
      case 'continue':
        await this.#inTurn(async () => {
          await this.#tellHelper(watcher);
          await this.#control.resumeAll(Array.from({ length: this.#info.vcpus }, (_, vcpu) => vcpu));
          await this.#heedPause();
        });
        return this.#untilWanted(watcher, undefined);
      case 'step-in':
      case 'step-over':
      case 'step-out':
        await this.#inTurn(() => this.#tellHelper(watcher));
        return this.#step(motion, watcher);
      default:
        throw new Error(FORWARDS_ONLY);
    }
  }

  /** Somebody may have asked for a pause before anything ran. */
  async #heedPause(): Promise<void> {
    if (this.#pauseWanted) await this.#control.interrupt();
  }

  /** Waits until something happens that is to stop the session. `alone`: only this vCPU runs, and where to. */
  async #untilWanted(watcher: Watcher, alone: Alone | undefined): Promise<Halt> {
    for (;;) {
      const event = await this.#control.next();
      if (event.kind === 'exited') return { kind: 'ended', status: event.status };
      const { vcpu, stop } = event;
      // In turn: it must not go on while it is judged, nor while breakpoints are changed.
      const halt = await this.#inTurn(async () => {
        const wanted = await this.#judge(vcpu, stop, watcher);
        if (wanted) return wanted;
        if (alone && alone.vcpu !== vcpu) return undefined;
        if (alone?.isThere(stop)) return { kind: 'step', task: vcpu } as const;
        await this.#control.again(vcpu);
        await this.#heedPause();
        return undefined;
      });
      if (halt) return halt;
    }
  }

  /** What a stop means to the session; undefined: the vCPU may go on. */
  async #judge(vcpu: number, stop: KvmStop, watcher: Watcher): Promise<Halt | undefined> {
    await this.#look(vcpu, stop);
    const filter = FILTER_OF[stop.reason];
    if (filter) {
      const event = this.#events[vcpu]!;
      return (await this.#withFrames(() => watcher.admits(filter, this.#scope(vcpu))))
        ? { kind: 'matched', match: { kind: 'exception', task: vcpu, ids: [], filter, object: event } }
        : this.#halfway();
    }
    if (stop.reason === 'breakpoint') {
      const points = this.#code.at(this.#rip(vcpu));
      const ids = await this.#withFrames(() => watcher.hit(points, this.#scope(vcpu)));
      return ids.length > 0 ? { kind: 'matched', match: { kind: 'breakpoint', task: vcpu, ids } } : this.#halfway();
    }
    if (stop.reason === 'pause') return this.#halfway();
    if (stop.reason === 'step') return { kind: 'step', task: vcpu };
    return { kind: 'event', task: vcpu };
  }

  #halfway(): Halt | undefined {
    return this.#pauseWanted ? { kind: 'pause' } : undefined;
  }

  async #step(
    motion: Extract<Motion, { kind: 'step-in' | 'step-over' | 'step-out' }>,
    watcher: Watcher,
  ): Promise<Halt> {
    const vcpu = motion.task;
    if (motion.kind === 'step-out') {
      const caller = (await this.#withFrames(() => this.#frames(vcpu)))[1];
      return this.#runTo(vcpu, caller?.address, watcher);
    }
    const start = this.#lineHere(vcpu);
    for (;;) {
      const line = this.#lineHere(vcpu);
      const call = motion.kind === 'step-over' ? await this.#withFrames(() => this.#callAt(vcpu)) : undefined;
      let halt: Halt | undefined;
      if (call !== undefined) halt = await this.#runTo(vcpu, call, watcher);
      else {
        // A whole line at once, unless calls must be looked out for.
        const whole = !motion.byInstruction && line && motion.kind === 'step-in';
        await this.#inTurn(() => this.#letRun(vcpu, whole ? { from: line.from, to: line.to } : 'step'));
        halt = await this.#untilWanted(watcher, { vcpu, isThere: endsStep });
      }
      if (halt.kind !== 'step' || this.#pauseWanted)
        return this.#pauseWanted && halt.kind === 'step' ? { kind: 'pause' } : halt;
      if (motion.byInstruction || !start) return halt;
      const now = this.#lineHere(vcpu);
      // In the middle of another line, as after a return: on to the next beginning.
      const isBeginning = now === undefined || now.from === this.#rip(vcpu);
      if (isBeginning && !(now && now.line === start.line && now.file === start.file)) return halt;
    }
  }

  async #letRun(vcpu: number, how: Resume): Promise<void> {
    await this.#control.resume(vcpu, how);
    await this.#heedPause();
  }

  #rip(vcpu: number): bigint {
    return this.#registers[vcpu]!.get('rip') ?? 0n;
  }

  #lineHere(vcpu: number) {
    return this.#parts.program?.lineAt(this.#rip(vcpu));
  }

  /** Where a call that is next returns to; undefined when no call is. */
  #callAt(vcpu: number): bigint | undefined {
    const rip = this.#rip(vcpu);
    const [instruction] = instructionsAt(this.#parts.disassemble, this.#machine, vcpu, rip, 1, this.#width(vcpu));
    return instruction?.isCall ? rip + BigInt(instruction.bytes.length) : undefined;
  }

  /** Of a vCPU's code: asked again when it runs in another segment or mode, and not at each of many steps. */
  #width(vcpu: number): CodeWidth {
    const registers = this.#registers[vcpu]!;
    const mode = WIDTH_REGISTERS.map((name) => registers.get(name)).join();
    if (this.#widths[vcpu]?.mode !== mode)
      this.#widths[vcpu] = { mode, width: codeWidth(this.#machine, vcpu, registers) };
    return this.#widths[vcpu]!.width;
  }

  /** Runs one vCPU to an address at this depth of its stack or above; without one, until something else stops it. */
  async #runTo(vcpu: number, address: bigint | undefined, watcher: Watcher): Promise<Halt> {
    const stack = (): bigint => this.#registers[vcpu]!.get('rsp') ?? 0n;
    const depth = stack();
    try {
      await this.#inTurn(async () => {
        this.#returnsTo = address;
        if (address !== undefined) await this.#inserted.insert(address);
        await this.#letRun(vcpu, 'continue');
      });
      const isThere = ({ reason }: KvmStop): boolean =>
        reason === 'breakpoint' && this.#rip(vcpu) === address && stack() >= depth;
      return await this.#untilWanted(watcher, { vcpu, isThere });
    } finally {
      this.#returnsTo = undefined;
      if (address !== undefined && !this.#code.addresses.has(address) && !this.#control.ended)
        await this.#inTurn(() => this.#inserted.remove(address));
    }
  }

  // ---- what the helper is told

  /** Stops, traps and breakpoints as they are wanted now. Nothing runs. */
  async #tellHelper(watcher: Watcher): Promise<void> {
    const wanted = KVM_FILTERS.flatMap(({ filter, stops }) => (watcher.wants(filter) ? stops : []));
    const said = wanted.join(',');
    if (said !== this.#told) await this.#client.vendor(`QKvm.Stop:${said}`);
    this.#told = said;
    const everywhere = { from: 0n, to: 1n << 64n };
    const range = watcher.wants('second-stage') ? (watcher.range('second-stage') ?? everywhere) : undefined;
    await this.#traps.arm(this.#info, this.#info.memory.slots, range);
    await this.#violations.want(watcher.wants('violations'));
    await this.#syncBreakpoints();
  }

  #syncBreakpoints(): Promise<void> {
    const wanted = this.#code.addresses;
    if (this.#returnsTo !== undefined) wanted.add(this.#returnsTo);
    return this.#inserted.sync(wanted);
  }

  #gpaOf(address: bigint): Promise<bigint | undefined> {
    return this.#withFrames(() => {
      const host = toHost(this.#machine, { space: 'gva', vcpu: 0, address });
      return host && BigInt(host.pfn) * 4096n + BigInt(host.offset);
    });
  }

  // ---- looking

  /** Reads everything anew, with no vCPU running. */
  async #refresh(): Promise<void> {
    this.#stops++;
    const registers: RegisterValues[] = [];
    for (let vcpu = 0; vcpu < this.#info.vcpus; vcpu++)
      registers.push(await this.#client.readRegisters((vcpu + 1).toString(16)));
    this.#registers = registers;
    this.#renew();
  }

  #renew(): void {
    this.#memory.renew(this.#info.memory, this.#inserted.patches);
    this.#built.forget();
    this.#machine = viewMachine(this.#info, this.#memory, this.#registers, () => this.#built.now());
  }

  /** Looks at one vCPU that has stopped, while others may run. */
  async #look(vcpu: number, stop: KvmStop): Promise<void> {
    const values = await this.#client.readRegisters((vcpu + 1).toString(16));
    this.#registers = this.#registers.map((old, number) => (number === vcpu ? values : old));
    this.#renew();
    await this.#explain(vcpu, stop);
  }

  /** What a vCPU stopped for, and what its tables and its instruction say of that. */
  async #explain(vcpu: number, stop: KvmStop): Promise<void> {
    const event = { vcpu, stop };
    this.#events[vcpu] = event;
    this.#events[vcpu] = await this.#withFrames(() => {
      const fault = guestFault(this.#machine.mirror!, vcpu, stop);
      if (fault) return { ...event, fault };
      return withAddress(event, this.#machine, this.#registers[vcpu]!, this.#parts.memoryOperands);
    });
  }

  #withFrames<T>(ask: () => T): Promise<T> {
    return withFrames((missing) => this.fetch(missing), ask);
  }

  #scope(vcpu: number): Scope {
    return guestScope(this.#machine, vcpu, this.#registers[vcpu]!, this.#parts.program, this.#events[vcpu]);
  }

  #place(vcpu: number): string {
    const rip = this.#rip(vcpu);
    const name = this.#parts.program?.nameOf(rip);
    return name === undefined ? hex(rip) : `${name} (${hex(rip)})`;
  }

  // ---- the code that runs

  #guestSide(): GuestSide {
    return {
      describe: (halt, vcpu) => this.#describe(halt, vcpu),
      frames: (vcpu) => this.#frames(vcpu),
      scopes: (vcpu) => this.#scopes(vcpu),
      scope: (vcpu) => this.#scope(vcpu),
      setRegister: async (vcpu, name, value) => {
        await this.#client.writeRegisters((vcpu + 1).toString(16), { [name]: value });
        await this.#refresh();
      },
      write: async (at, bytes) => {
        // What is written is the guest's own, also where a breakpoint stood: they are put back when the machine goes on.
        await this.#inserted.sync(new Set());
        await this.#write(at, bytes);
        await this.#refresh();
      },
      disassemble: (vcpu, args) =>
        disassembleRequest(this.#parts.disassemble, this.#machine, vcpu, this.#parts.program, args, this.#width(vcpu)),
      sources: () => this.#parts.program?.files ?? [],
      breakableLines: (path) => {
        const file = this.#code.fileOf(path);
        return file === undefined ? [] : this.#parts.program!.breakableLines(file);
      },
      setLines: (path, wanted) => this.#whileStill(() => this.#code.setLines(path, wanted)),
      setFunctions: (wanted) => this.#whileStill(() => this.#code.setFunctions(wanted)),
      setInstructions: (wanted) => this.#whileStill(() => this.#code.setInstructions(wanted)),
      command: (text, watcher) => this.#command(text, watcher),
    };
  }

  /** Changes breakpoints; a running machine stands still for as long, and hears of them at once. */
  #whileStill(change: () => DebugProtocol.Breakpoint[]): Promise<DebugProtocol.Breakpoint[]> {
    return this.#inTurn(async () => {
      const answers = change();
      if (!this.#moving || this.#control.ended) return answers;
      const ran = await this.#control.standStill();
      try {
        if (this.#control.ended) return answers;
        await this.#refresh();
        await this.#syncBreakpoints();
      } finally {
        await this.#control.release(ran);
        // It may have been asked for while nothing ran.
        await this.#heedPause();
      }
      return answers;
    });
  }

  /** What starts the machine and what changes it while it runs happen one after the other. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => {});
    return result;
  }

  #describe(halt: Halt | { readonly kind: 'entry' }, vcpu: number): { stop: StopAnswer; fault: FaultInfo | undefined } {
    const event = this.#events[vcpu]!;
    const { fault } = event;
    const where = this.#place(vcpu);
    const [reason, sentence] = this.#words(halt, event, where);
    const walk = eventWalk(event);
    return {
      stop: {
        reason,
        sentence,
        task: vcpu,
        taskName: `vCPU ${vcpu}`,
        step: this.#stops,
        ...(walk ? { walk } : {}),
        ...(fault && reason === 'exception' ? { fault: faultAnswer(fault) } : {}),
      },
      fault: reason === 'exception' ? fault : undefined,
    };
  }

  #words(halt: Halt | { readonly kind: 'entry' }, event: KvmEvent, where: string): [StopAnswer['reason'], string] {
    switch (halt.kind) {
      case 'entry':
        return ['entry', eventSentence(event, where)];
      case 'matched':
        return [halt.match.kind === 'breakpoint' ? 'breakpoint' : 'exception', eventSentence(event, where)];
      case 'step':
        return ['step', `vCPU ${event.vcpu}: ${where} is next.`];
      case 'pause':
        return ['pause', `vCPU ${event.vcpu} is paused at ${where}.`];
      case 'ended':
        return ['end', `The guest has ended with status ${halt.status ?? 0}.`];
      case 'stuck':
        return ['stuck', `vCPU ${event.vcpu} stands at ${where}: ${halt.words}`];
      default:
        return ['stuck', eventSentence(event, where)];
    }
  }

  #frames(vcpu: number): GuestFrame[] {
    const { program } = this.#parts;
    const event = this.#events[vcpu]!;
    const chain = callers(this.#machine, vcpu, this.#registers[vcpu]!, program, event);
    return chain.map(({ address, isCall }): GuestFrame => {
      // A caller goes on behind its call: the call is what it is at.
      const line = program?.lineAt(isCall ? address - 1n : address);
      return {
        name: program?.nameOf(address) ?? hex(address),
        address,
        ...(line ? { path: line.file, line: line.line } : {}),
      };
    });
  }

  #scopes(vcpu: number): ScopeNodes[] {
    const values = this.#registers[vcpu]!;
    return [
      { name: 'Stop', hint: 'locals', nodes: () => stopNodes(this.#events[vcpu]!) },
      { name: 'Registers', hint: 'registers', nodes: () => registerNodes(vcpu, values) },
      {
        name: 'Memslots',
        nodes: () =>
          this.#info.memory.slots.map(({ id, gpa, size, flags }) => ({
            name: `slot ${id}`,
            value: `gpa ${hex(gpa)} + ${hex(size)}${flags.length > 0 ? `, ${flags.join(', ')}` : ''}`,
            memoryReference: `gpa:${hex(gpa)}`,
          })),
      },
      {
        name: 'Host',
        nodes: () => [
          { name: 'second stage', value: this.#info.secondStage },
          { name: 'MAXPHYADDR', value: `${this.#info.maxphyaddr}` },
          ...Object.entries(this.#info.has).map(([name, lacks]) => ({ name, value: lacks === '' ? 'yes' : lacks })),
        ],
      },
    ];
  }

  async #write({ space, vcpu, address }: Located, bytes: Uint8Array): Promise<void> {
    if (space === 'gva') await this.#client.writeVirtual((vcpu + 1).toString(16), address, bytes);
    else await this.#client.writePhysical(address, bytes);
  }

  async #command(text: string, watcher: Watcher): Promise<string | undefined> {
    if (text === 'help') return GUEST_HELP;
    const done = await runGuestCommand(this.#client, this.#violations, (filter) => watcher.wants(filter), text);
    if (done?.changes) {
      this.#info = await this.#client.info();
      await this.#refresh();
    }
    return done?.answer;
  }
}
