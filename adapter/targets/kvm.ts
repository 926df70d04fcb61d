import type { DebugProtocol } from '@vscode/debugprotocol';
import type { Scope } from '../../engine/expression.ts';
import type { Machine } from '../../engine/machine.ts';
import { hex } from '../../engine/memory/words.ts';
import type { StopAnswer } from '../../engine/queries/answers.ts';
import { faultAnswer } from '../../engine/queries/words.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import { type Located, toHost } from '../addresses.ts';
import type { FilterName } from '../breakpoints.ts';
import type { ElfProgram } from '../elf/program.ts';
import { CodeBreakpoints } from '../kvm/code-breakpoints.ts';
import { GUEST_HELP, runGuestCommand } from '../kvm/commands.ts';
import { Control } from '../kvm/control.ts';
import { disassembleRequest, instructionsAt } from '../kvm/disassemble-request.ts';
import type { Disassemble, MemoryOperands } from '../kvm/disassembly.ts';
import { eventSentence, eventWalk, guestFault, type KvmEvent, stopNodes } from '../kvm/event.ts';
import { withAddress } from '../kvm/fault-address.ts';
import { KVM_FILTERS } from '../kvm/filters.ts';
import { guestScope, viewMachine } from '../kvm/machine-view.ts';
import { GuestMemory, type Ram } from '../kvm/memory.ts';
import type { KvmPrinter } from '../kvm/printer.ts';
import { type RegisterValues, registerNodes } from '../kvm/registers.ts';
import { Traps } from '../kvm/traps.ts';
import { callers } from '../kvm/unwind.ts';
import { ViolationsAfter } from '../kvm/violations.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
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
  /** Whether the machine is to end with the session. */
  readonly owned: boolean;
}

/** A virtual machine under KVM, through the helper. */
export class KvmTarget implements Target {
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
  readonly #code = new CodeBreakpoints();
  /** Breakpoints that the helper has, by address. */
  readonly #inserted = new Map<bigint, 'software' | 'hardware'>();
  /** The bytes that software breakpoints replace, by guest-physical address. */
  readonly #patches = new Map<bigint, number>();
  #info: KvmInfo;
  #machine: Machine;
  #registers: readonly RegisterValues[] = [];
  /** What each vCPU stopped for last. */
  readonly #events: KvmEvent[];
  #turn: Promise<unknown> = Promise.resolve();
  #pauseWanted = false;
  #disposed = false;
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
    this.#memory.renew(this.#info.memory.slots, this.#patches);
    this.#machine = viewMachine(this.#info, this.#memory, []);
    this.#control = new Control(parts.client, parts.info.vcpus, parts.first);
    this.#events = Array.from({ length: parts.info.vcpus }, (_, vcpu) => ({
      vcpu,
      stop: { reason: 'start', exact: [], derived: [] } as KvmStop,
    }));
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

  fetch(frames: readonly number[]): Promise<void> {
    return this.#memory.fetch(frames);
  }

  edit(): void {
    throw new Error('a real machine is changed through its guest side');
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#parts.local?.close();
    if (this.#parts.owned) this.#client.kill();
    else this.#client.detach().catch(() => {});
  }

  // ---- moving

  async move(motion: Motion, watcher: Watcher): Promise<Halt> {
    this.#pauseWanted = false;
    let halt: Halt;
    switch (motion.kind) {
      case 'continue':
        await this.#inTurn(async () => {
          await this.#tellHelper(watcher);
          await this.#control.resumeAll(Array.from({ length: this.#info.vcpus }, (_, vcpu) => vcpu));
        });
        await this.#heedPause();
        halt = await this.#untilWanted(watcher, undefined);
        break;
      case 'step-in':
      case 'step-over':
      case 'step-out':
        await this.#inTurn(() => this.#tellHelper(watcher));
        halt = await this.#step(motion, watcher);
        break;
      default:
        throw new Error(FORWARDS_ONLY);
    }
    if (halt.kind !== 'ended') await this.#control.standStill();
    await this.#violations.tell(watcher);
    if (halt.kind !== 'ended') await this.#refresh();
    return halt;
  }

  /** Somebody may have asked for a pause before anything ran. */
  async #heedPause(): Promise<void> {
    if (this.#pauseWanted) await this.#control.interrupt();
  }

  /** Waits until something happens that is to stop the session. `alone`: only this vCPU runs. */
  async #untilWanted(watcher: Watcher, alone: number | undefined): Promise<Halt> {
    for (;;) {
      const event = await this.#control.next();
      if (event.kind === 'exited') return { kind: 'ended', status: event.status };
      const halt = await this.#judge(event.vcpu, event.stop, watcher);
      if (halt) return halt;
      if (alone === undefined || alone === event.vcpu) await this.#control.resume(event.vcpu);
      await this.#heedPause();
    }
  }

  /** What a stop means to the session; undefined: the vCPU may go on. */
  async #judge(vcpu: number, stop: KvmStop, watcher: Watcher): Promise<Halt | undefined> {
    await this.#look(vcpu, stop);
    const filter = FILTER_OF[stop.reason];
    if (filter) {
      const event = this.#events[vcpu]!;
      return watcher.admits(filter, this.#scope(vcpu))
        ? { kind: 'matched', match: { kind: 'exception', task: vcpu, ids: [], filter, object: event } }
        : this.#halfway();
    }
    if (stop.reason === 'breakpoint') {
      const ids = watcher.hit(this.#code.at(this.#registers[vcpu]!.get('rip')!), this.#scope(vcpu));
      return ids.length > 0 ? { kind: 'matched', match: { kind: 'breakpoint', task: vcpu, ids } } : this.#halfway();
    }
    if (stop.reason === 'pause') return this.#pauseWanted ? { kind: 'pause' } : undefined;
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
      const caller = this.guest.frames(vcpu)[1];
      if (!caller) return this.#runTo(vcpu, undefined, watcher);
      return this.#runTo(vcpu, caller.address, watcher);
    }
    const start = this.#lineHere(vcpu);
    for (;;) {
      const line = this.#lineHere(vcpu);
      const rip = this.#rip(vcpu);
      const call = motion.kind === 'step-over' ? this.#callAt(vcpu, rip) : undefined;
      let halt: Halt | undefined;
      if (call !== undefined) halt = await this.#runTo(vcpu, call, watcher);
      else {
        // A whole line at once, unless calls must be looked out for.
        const whole = !motion.byInstruction && line && motion.kind === 'step-in';
        await this.#control.resume(vcpu, whole ? { from: line.from, to: line.to } : 'step');
        halt = await this.#untilWanted(watcher, vcpu);
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

  #rip(vcpu: number): bigint {
    return this.#registers[vcpu]!.get('rip') ?? 0n;
  }

  #lineHere(vcpu: number) {
    return this.#parts.program?.lineAt(this.#rip(vcpu));
  }

  /** Where a call at an address returns to; undefined when no call is there. */
  #callAt(vcpu: number, rip: bigint): bigint | undefined {
    const [instruction] = instructionsAt(this.#parts.disassemble, this.#machine, vcpu, rip, 1);
    return instruction?.isCall ? rip + BigInt(instruction.bytes.length) : undefined;
  }

  /** Runs one vCPU to an address at this depth of its stack or above; without one, until something else stops it. */
  async #runTo(vcpu: number, address: bigint | undefined, watcher: Watcher): Promise<Halt> {
    const depth = this.#registers[vcpu]!.get('rsp') ?? 0n;
    const own = address !== undefined && !this.#inserted.has(address);
    if (own) await this.#insert(address);
    try {
      for (;;) {
        await this.#control.resume(vcpu);
        await this.#heedPause();
        const event = await this.#control.next();
        if (event.kind === 'exited') return { kind: 'ended', status: event.status };
        const halt = await this.#judge(event.vcpu, event.stop, watcher);
        if (halt) return halt;
        const arrived = event.stop.reason === 'breakpoint' && this.#rip(vcpu) === address;
        if (arrived && (this.#registers[vcpu]!.get('rsp') ?? 0n) >= depth) return { kind: 'step', task: vcpu };
      }
    } finally {
      if (own) await this.#remove(address).catch(() => {});
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

  async #syncBreakpoints(): Promise<void> {
    const wanted = this.#code.addresses;
    for (const address of [...this.#inserted.keys()]) if (!wanted.has(address)) await this.#remove(address);
    for (const address of wanted) {
      if (this.#inserted.has(address)) continue;
      try {
        await this.#insert(address);
      } catch (error) {
        this.#parts.print(`no breakpoint at ${hex(address)}: ${(error as Error).message}\n`);
      }
    }
  }

  /** In memory where it is mapped, else in a debug register. */
  async #insert(address: bigint): Promise<void> {
    const host = toHost(this.#machine, { space: 'gva', vcpu: 0, address });
    if (!host) {
      await this.#client.insertBreakpoint('hardware', address);
      this.#inserted.set(address, 'hardware');
      return;
    }
    const original = new Uint8Array(this.#machine.pageBytes(host.pfn))[host.offset]!;
    await this.#client.insertBreakpoint('software', address);
    this.#inserted.set(address, 'software');
    this.#patches.set(BigInt(host.pfn) * 4096n + BigInt(host.offset), original);
  }

  async #remove(address: bigint): Promise<void> {
    const kind = this.#inserted.get(address);
    if (!kind) return;
    await this.#client.removeBreakpoint(kind, address);
    this.#inserted.delete(address);
    this.#patches.clear();
    for (const [other, how] of this.#inserted) {
      const host = how === 'software' ? toHost(this.#machine, { space: 'gva', vcpu: 0, address: other }) : undefined;
      if (host)
        this.#patches.set(
          BigInt(host.pfn) * 4096n + BigInt(host.offset),
          new Uint8Array(this.#machine.pageBytes(host.pfn))[host.offset]!,
        );
    }
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
    this.#memory.renew(this.#info.memory.slots, this.#patches);
    this.#machine = viewMachine(this.#info, this.#memory, this.#registers);
  }

  /** Looks at one vCPU that has stopped, while others may run. */
  async #look(vcpu: number, stop: KvmStop): Promise<void> {
    const values = await this.#client.readRegisters((vcpu + 1).toString(16));
    this.#registers = this.#registers.map((old, number) => (number === vcpu ? values : old));
    this.#renew();
    const event = { vcpu, stop };
    this.#events[vcpu] = event;
    this.#events[vcpu] = await withFrames(
      (frames) => this.#memory.fetch(frames),
      () => {
        const fault = guestFault(this.#machine.mirror!, vcpu, stop);
        return fault ? { ...event, fault } : withAddress(event, this.#machine, values, this.#parts.memoryOperands);
      },
    );
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
        await this.#write(at, bytes);
        await this.#refresh();
      },
      disassemble: (vcpu, args) =>
        disassembleRequest(this.#parts.disassemble, this.#machine, vcpu, this.#parts.program, args),
      sources: () => this.#parts.program?.files ?? [],
      breakableLines: (path) => {
        const file = this.#code.fileOf(path);
        return file === undefined ? [] : this.#parts.program!.breakableLines(file);
      },
      setLines: (path, wanted) => this.#whileStill(() => this.#code.setLines(path, wanted)),
      setFunctions: (wanted) => this.#whileStill(() => this.#code.setFunctions(wanted)),
      setInstructions: (wanted) => this.#whileStill(() => this.#code.setInstructions(wanted)),
      command: (text) => this.#command(text),
    };
  }

  /** Changes breakpoints; a running machine stands still for as long, and hears of them at once. */
  #whileStill(change: () => DebugProtocol.Breakpoint[]): Promise<DebugProtocol.Breakpoint[]> {
    return this.#inTurn(async () => {
      const answers = change();
      if (!this.#control.anyRuns) return answers;
      const ran = await this.#control.standStill();
      await this.#refresh();
      await this.#syncBreakpoints();
      await this.#control.resumeAll(ran);
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
        return ['entry', `vCPU ${event.vcpu} has not begun: ${where} is next.`];
      case 'matched':
        return [halt.match.kind === 'breakpoint' ? 'breakpoint' : 'exception', eventSentence(event, where)];
      case 'step':
        return ['step', `vCPU ${event.vcpu}: ${where} is next.`];
      case 'pause':
        return ['pause', `vCPU ${event.vcpu} is paused at ${where}.`];
      case 'ended':
        return ['end', `The guest has ended with status ${halt.status ?? 0}.`];
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

  async #command(text: string): Promise<string | undefined> {
    if (text === 'help') return GUEST_HELP;
    const done = await runGuestCommand(this.#client, this.#violations, text);
    if (done?.changes) {
      this.#info = await this.#client.info();
      await this.#refresh();
    }
    return done?.answer;
  }
}
