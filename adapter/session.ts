import {
  ContinuedEvent,
  DebugSession,
  Event,
  ExitedEvent,
  Handles,
  InitializedEvent,
  OutputEvent,
  ProgressEndEvent,
  ProgressStartEvent,
  ProgressUpdateEvent,
  StoppedEvent,
  TerminatedEvent,
  Thread,
} from '@vscode/debugadapter';
import type { DebugProtocol } from '@vscode/debugprotocol';
import { evaluateInteger, type Scope } from '../engine/expression.ts';
import type { Machine } from '../engine/machine.ts';
import { hex } from '../engine/memory/words.ts';
import type { Task } from '../engine/operation.ts';
import type { StopAnswer } from '../engine/queries/answers.ts';
import { listing, listings } from '../engine/queries/listing.ts';
import { parseRequest, type ViewEvent } from '../engine/queries/protocol.ts';
import { type FaultInfo, isFaultInfo } from '../engine/tdp/fault.ts';
import { parseExpression } from '../scenario/index.ts';
import { describeAddress, type Located, parseAddress } from './addresses.ts';
import { Breakpoints, currentFault, faultScope } from './breakpoints.ts';
import { firstCapabilities, targetCapabilities } from './capabilities.ts';
import { runCommand } from './console.ts';
import { dataBreakpointInfo } from './data-breakpoints.ts';
import { evaluateText } from './evaluate.ts';
import { exceptionInfo } from './exception-info.ts';
import { frameId, frameOf } from './frame-ids.ts';
import { stackFrames } from './frames.ts';
import { type LaunchArguments, parseAttach, parseLaunch } from './launch.ts';
import { loadTarget, type Say, type SessionHost } from './load.ts';
import { readMemory, writeMemory } from './memory-requests.ts';
import { RequestError } from './request-error.ts';
import { LostError } from './rsp/packet.ts';
import { setRegister } from './set-register.ts';
import { breakpointLocations, setSourceBreakpoints } from './source-breakpoints.ts';
import { listingName, listingSource } from './sources.ts';
import { describeStop, taskTitle } from './stops.ts';
import type { GuestSide } from './targets/guest.ts';
import type { Halt, Motion, Target, Watcher } from './targets/target.ts';
import { frameScopes, mirrorScopes, type Node } from './variables.ts';
import { WantedBreakpoints } from './wanted-breakpoints.ts';
import { Watches } from './watches.ts';
import { withFrames } from './with-frames.ts';

/** What a run without debugging stops at. */
const NOTHING: Watcher = {
  begin() {},
  check: () => undefined,
  wants: () => false,
  range: () => undefined,
  admits: () => false,
  hit: () => [],
};

const stopReasons: Record<StopAnswer['reason'], string> = {
  entry: 'entry',
  step: 'step',
  breakpoint: 'breakpoint',
  exception: 'exception',
  pause: 'pause',
  data: 'data breakpoint',
  end: 'pause',
  stuck: 'pause',
};

export class KvmMmuSession extends DebugSession {
  readonly #host: SessionHost;
  readonly #breakpoints = new Breakpoints((text) => this.#print(text));
  readonly #wanted = new WantedBreakpoints(this.#breakpoints);
  readonly #watches = new Watches();
  readonly #variables = new Handles<() => Node[]>();
  /** Number of this stop: part of its frames' ids, so that a frame of an earlier stop is told apart. */
  #stops = 0;
  #target: Target | undefined;
  /** Resolves when the last target has been let go of. */
  #left: Promise<void> | undefined;
  #launch: LaunchArguments | undefined;
  #running = false;
  #stop: StopAnswer | undefined;
  #stopFault: FaultInfo | undefined;
  /** Log position of the stop before this one: changes since then are marked. */
  #since = 0;
  #here = 0;
  #generation = 0;
  #showsProgress = false;
  /** A machine is being made, and nobody wants it any more. */
  #loading = false;
  #abandoned = false;
  #boots = 0;

  constructor(host: SessionHost) {
    super();
    this.#host = host;
    this.setDebuggerLinesStartAt1(true);
    this.setDebuggerColumnsStartAt1(true);
  }

  // ---- beginning and end

  protected override initializeRequest(
    response: DebugProtocol.InitializeResponse,
    args: DebugProtocol.InitializeRequestArguments,
  ): void {
    this.#showsProgress = args.supportsProgressReporting === true;
    response.body = firstCapabilities(this.#host.onKvm);
    this.sendResponse(response);
  }

  protected override launchRequest(
    response: DebugProtocol.LaunchResponse,
    args: DebugProtocol.LaunchRequestArguments,
  ): void {
    this.#answer(response, () => this.#open(parseLaunch(args)));
  }

  protected override attachRequest(
    response: DebugProtocol.AttachResponse,
    args: DebugProtocol.AttachRequestArguments,
  ): void {
    this.#answer(response, () => this.#open(parseAttach(args)));
  }

  async #open(launch: LaunchArguments | { readonly error: string }): Promise<void> {
    if ('error' in launch) throw new RequestError(launch.error);
    this.#launch = launch;
    await this.#load();
    this.sendEvent(new Event('capabilities', { capabilities: targetCapabilities(this.#need()) }));
    this.sendEvent(new InitializedEvent());
  }

  async #load(): Promise<void> {
    this.#loading = true;
    const say: Say = {
      print: (text, category, line) => this.#print(text, category, line),
      console: (text) => this.sendEvent(new OutputEvent(text, 'stdout')),
      progress: (words) => {
        this.#print(`lab: ${words}\n`);
        if (booting) this.sendEvent(new ProgressUpdateEvent(booting, words));
      },
      problem: (words) => this.#print(`lab: ${words}\n`, 'stderr'),
      labConsole: (text) => this.sendEvent(new Event('mmu/labConsole', { text })),
    };
    const booting = this.#beginProgress();
    // A helper serves one client: before a machine is attached to again it is left.
    const isAttached = this.#launch!.kvm?.connect !== undefined;
    if (isAttached) await this.#target?.dispose();
    let target: Target;
    try {
      target = await loadTarget(this.#launch!, this.#host, say);
    } catch (error) {
      if (isAttached) this.#end();
      throw error;
    } finally {
      this.#loading = false;
      if (booting) this.sendEvent(new ProgressEndEvent(booting));
    }
    if (this.#abandoned) {
      await target.dispose();
      throw new RequestError('the session was ended while its machine was being made');
    }
    await this.#target?.dispose();
    this.#target = target;
    this.#since = 0;
    this.#here = 0;
    this.#stop = undefined;
    this.#stopFault = undefined;
  }

  /** A lab takes seconds to boot: clients that show progress are told. @returns the progress's id, if there is one */
  #beginProgress(): string | undefined {
    const lab = this.#launch!.lab ?? this.#launch!.kvm?.lab;
    if (!lab || !this.#showsProgress) return undefined;
    const id = `lab-${++this.#boots}`;
    this.sendEvent(new ProgressStartEvent(id, 'KVM lab'));
    return id;
  }

  protected override configurationDoneRequest(response: DebugProtocol.ConfigurationDoneResponse): void {
    this.#answer(response, () => this.#begin());
  }

  #begin(): void {
    const { machine, about, guest } = this.#need();
    const waits = this.#launch!.stopOnEntry && !this.#launch!.noDebug;
    if (about !== undefined) {
      const task = machine.task(0);
      this.#stopped({ reason: 'entry', sentence: about, task: 0, taskName: task.name, step: 0 }, undefined);
    } else if (waits && guest) this.#stopped(guest.describe({ kind: 'entry' }, 0).stop, undefined);
    else if (waits) this.#stopped(describeStop(machine, machine.task(0), { kind: 'entry' }), undefined);
    else this.#go({ kind: 'continue' });
  }

  protected override restartRequest(response: DebugProtocol.RestartResponse): void {
    this.#answer(response, async () => {
      this.#need();
      this.#generation++;
      this.#running = false;
      await this.#load();
      this.#begin();
    });
  }

  protected override terminateRequest(response: DebugProtocol.TerminateResponse): void {
    this.#answer(response, () => this.#end());
  }

  /** The process ends soon after: what the target still has to say comes first. */
  protected override async disconnectRequest(response: DebugProtocol.DisconnectResponse): Promise<void> {
    this.#generation++;
    await this.#leave();
    this.sendResponse(response);
    this.shutdown();
  }

  /** Also where the client has gone without a word. */
  override shutdown(): void {
    void this.#leave().finally(() => super.shutdown());
  }

  async #leave(): Promise<void> {
    this.#left = this.#target?.dispose() ?? this.#left;
    this.#target = undefined;
    await this.#left;
  }

  #end(exitCode?: number): void {
    // A lab takes seconds to boot: who ends the session meanwhile does not wait for it.
    if (this.#loading && !this.#abandoned) {
      this.#abandoned = true;
      if (!this.#target) this.sendEvent(new TerminatedEvent());
    }
    if (!this.#target) return;
    this.#generation++;
    void this.#leave();
    this.#running = false;
    this.#view({ type: 'ended' });
    if (exitCode !== undefined) this.sendEvent(new ExitedEvent(exitCode));
    this.sendEvent(new TerminatedEvent());
  }

  // ---- helpers

  #need(): Target {
    if (!this.#target) throw new RequestError('no machine is running: launch a scenario first');
    return this.#target;
  }

  #needGuest(): GuestSide {
    const { guest, name } = this.#need();
    if (!guest) throw new RequestError(`there is no guest code here to do this with: the target is ${name}`);
    return guest;
  }

  /** The target, stopped. */
  #stoppedTarget(): Target {
    const target = this.#need();
    if (this.#running) throw new RequestError('the machine is running: pause it first');
    return target;
  }

  /** @throws RequestError with the target's reason, if it cannot do a thing */
  #must(ability: 'run' | 'stepBack' | 'writeMemory' | 'setRegisters'): void {
    const { capabilities } = this.#need();
    if (!capabilities[ability]) throw new RequestError(capabilities.why[ability] ?? `this target cannot ${ability}`);
  }

  #withFrames<T>(work: () => T | Promise<T>): Promise<T> {
    return withFrames(
      (missing) => this.#target?.fetch?.(missing) ?? Promise.reject(new Error('the machine is gone')),
      work,
    );
  }

  /** Answers a request with what `work` makes of it, or with its error in words: for people unless who asked shows it by itself. */
  async #answer(response: DebugProtocol.Response, work: () => void | Promise<void>, showUser = true): Promise<void> {
    try {
      await this.#withFrames(work);
      this.sendResponse(response);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      this.sendErrorResponse(response, { id: 1, format: '{text}', variables: { text }, showUser });
    }
  }

  #print(text: string, category: 'console' | 'stderr' | 'important' = 'console', line?: number): void {
    const event: DebugProtocol.OutputEvent = new OutputEvent(text, category);
    if (line !== undefined) Object.assign(event.body, { source: this.#programSource(), line });
    this.sendEvent(event);
  }

  #programSource(): DebugProtocol.Source {
    const { program } = this.#launch!;
    return { name: program.replace(/^.*[/\\]/, ''), path: program };
  }

  get #watcher(): Watcher {
    return this.#launch!.noDebug ? NOTHING : this.#breakpoints;
  }

  #view(event: ViewEvent): void {
    this.sendEvent(new Event('mmu/changed', event));
  }

  #task(threadId: number): Task {
    return this.#need().machine.task(threadId - 1);
  }

  // ---- moving

  #go(motion: Motion): void {
    const target = this.#stoppedTarget();
    const generation = this.#generation;
    this.#running = true;
    this.#variables.reset();
    this.#since = this.#here;
    this.#view({ type: 'running' });
    target.move(motion, this.#watcher).then(
      (halt) => {
        if (generation === this.#generation) this.#halted(halt, motion);
      },
      (error: unknown) => {
        if (generation !== this.#generation) return;
        this.#running = false;
        // A machine that is gone says why; everything else that is thrown is an error of ours.
        if (error instanceof LostError) this.#print(`the machine is lost: ${error.message}\n`, 'stderr');
        else this.#print(`the ${target.name} failed: ${(error as Error)?.stack ?? error}\n`, 'stderr');
        this.#end(70);
      },
    );
  }

  #halted(halt: Halt, motion: Motion): void {
    const { machine, guest } = this.#need();
    this.#running = false;
    if (guest) {
      this.#guestHalted(guest, halt, motion);
      return;
    }
    const asked = 'task' in motion ? motion.task : machine.small.current;
    const task = machine.task(halt.kind === 'matched' ? halt.match.task : 'task' in halt ? halt.task : asked);
    const fault = halt.kind === 'matched' ? halt.match.object : undefined;
    if (halt.kind === 'ended' && !this.#launch!.stopAtEnd) {
      this.#summary(machine);
      this.#end(machine.small.failures.length > 0 ? 1 : 0);
      return;
    }
    if (halt.kind === 'ended') this.#summary(machine);
    const stop = describeStop(machine, task, halt);
    if (halt.kind === 'blocked')
      this.sendEvent(
        new Event('mmu/blocked', {
          task: task.id,
          name: task.name,
          lock: halt.lock,
          owners: halt.owners.map((owner) => machine.task(owner).name),
        }),
      );
    this.#stopped(stop, isFaultInfo(fault) ? fault : currentFault(task), halt.kind === 'matched' ? halt.match.ids : []);
  }

  #guestHalted(guest: GuestSide, halt: Halt, motion: Motion): void {
    if (halt.kind === 'ended') {
      this.#print(`the guest has ended with status ${halt.status ?? 0}\n`);
      this.#end(halt.status ?? 0);
      return;
    }
    const asked = 'task' in motion ? motion.task : 0;
    const vcpu = halt.kind === 'matched' ? halt.match.task : 'task' in halt ? halt.task : asked;
    const { stop, fault } = guest.describe(halt, vcpu);
    this.#stopped(stop, fault, halt.kind === 'matched' ? halt.match.ids : []);
  }

  #stopped(stop: StopAnswer, fault: FaultInfo | undefined, hit: readonly number[] = []): void {
    const { machine } = this.#need();
    this.#stops++;
    this.#stop = stop;
    this.#stopFault = fault;
    if (this.#since > machine.log.length) this.#since = machine.log.length;
    this.#here = machine.log.length;
    const event: DebugProtocol.StoppedEvent = new StoppedEvent(stopReasons[stop.reason], stop.task + 1, stop.sentence);
    event.body.description = stop.sentence;
    event.body.allThreadsStopped = true;
    if (hit.length > 0) event.body.hitBreakpointIds = [...hit];
    this.sendEvent(event);
    this.#view({ type: 'stopped', stop });
    this.#showChanged();
  }

  /** Tells the views what is different now. */
  #showChanged(): void {
    const { machine } = this.#need();
    const generation = this.#stops;
    this.#withFrames(() => this.#watches.changed(machine, this.#moment())).then(
      (answers) => {
        if (generation === this.#stops) this.#view({ type: 'changed', answers });
      },
      (error: unknown) => this.#print(`the views are not up to date: ${(error as Error).message}\n`, 'stderr'),
    );
  }

  #moment() {
    return { since: this.#since, fault: this.#stopFault };
  }

  #summary(machine: Machine): void {
    for (const failure of machine.small.failures)
      this.#print(`line ${failure.line}: ${failure.text}: ${failure.actual}\n`, 'stderr', failure.line);
    const counters = machine.counterList().filter(([, value]) => value > 0);
    this.#print(`${machine.steps} steps; ${counters.map(([name, value]) => `${name} ${value}`).join(', ')}\n`);
  }

  #motion(response: DebugProtocol.Response, motion: () => Motion): void {
    this.#answer(response, () => {
      this.#stoppedTarget();
      this.#must('run');
      const wanted = motion();
      if (wanted.kind === 'continue') response.body = { allThreadsContinued: true };
      // The response must be on its way before the first stopped event.
      queueMicrotask(() => {
        if (this.#target && !this.#running) this.#go(wanted);
      });
    });
  }

  #back(kind: 'step-back' | 'reverse-continue', threadId: number): Motion {
    this.#must('stepBack');
    return { kind, task: this.#task(threadId).id };
  }

  #stepMotion(
    kind: 'step-in' | 'step-over' | 'step-out',
    { threadId, granularity }: DebugProtocol.NextArguments,
  ): Motion {
    return { kind, task: this.#task(threadId).id, byInstruction: granularity === 'instruction' };
  }

  protected override continueRequest(response: DebugProtocol.ContinueResponse): void {
    this.#motion(response, () => ({ kind: 'continue' }));
  }
  protected override nextRequest(response: DebugProtocol.NextResponse, args: DebugProtocol.NextArguments): void {
    this.#motion(response, () => this.#stepMotion('step-over', args));
  }
  protected override stepInRequest(response: DebugProtocol.StepInResponse, args: DebugProtocol.StepInArguments): void {
    this.#motion(response, () => this.#stepMotion('step-in', args));
  }
  protected override stepOutRequest(
    response: DebugProtocol.StepOutResponse,
    args: DebugProtocol.StepOutArguments,
  ): void {
    this.#motion(response, () => this.#stepMotion('step-out', args));
  }
  protected override stepBackRequest(
    response: DebugProtocol.StepBackResponse,
    args: DebugProtocol.StepBackArguments,
  ): void {
    this.#motion(response, () => this.#back('step-back', args.threadId));
  }
  protected override reverseContinueRequest(
    response: DebugProtocol.ReverseContinueResponse,
    args: DebugProtocol.ReverseContinueArguments,
  ): void {
    this.#motion(response, () => this.#back('reverse-continue', args.threadId));
  }
  protected override pauseRequest(response: DebugProtocol.PauseResponse): void {
    this.#answer(response, () => this.#need().pause());
  }

  // ---- breakpoints

  protected override setBreakPointsRequest(
    response: DebugProtocol.SetBreakpointsResponse,
    args: DebugProtocol.SetBreakpointsArguments,
  ): void {
    this.#answer(response, async () => {
      const { source, breakpoints: wanted = [] } = args;
      if (!source) throw new RequestError('setBreakpoints needs a source');
      const target = this.#need();
      const breakpoints = await setSourceBreakpoints(target, this.#wanted, this.#launch!.program, source, wanted);
      response.body = { breakpoints };
    });
  }

  protected override setFunctionBreakPointsRequest(
    response: DebugProtocol.SetFunctionBreakpointsResponse,
    args: DebugProtocol.SetFunctionBreakpointsArguments,
  ): void {
    this.#answer(response, async () => {
      response.body = { breakpoints: await this.#needGuest().setFunctions(args.breakpoints) };
    });
  }

  protected override setInstructionBreakpointsRequest(
    response: DebugProtocol.SetInstructionBreakpointsResponse,
    args: DebugProtocol.SetInstructionBreakpointsArguments,
  ): void {
    this.#answer(response, async () => {
      response.body = { breakpoints: await this.#needGuest().setInstructions(args.breakpoints) };
    });
  }

  protected override disassembleRequest(
    response: DebugProtocol.DisassembleResponse,
    args: DebugProtocol.DisassembleArguments,
  ): void {
    this.#answer(response, () => {
      this.#stoppedTarget();
      response.body = { instructions: this.#needGuest().disassemble(this.#focusedVcpu(), args) };
    });
  }

  protected override breakpointLocationsRequest(
    response: DebugProtocol.BreakpointLocationsResponse,
    args: DebugProtocol.BreakpointLocationsArguments,
  ): void {
    this.#answer(response, () => {
      response.body = { breakpoints: breakpointLocations(this.#need(), args) };
    });
  }

  protected override setExceptionBreakPointsRequest(
    response: DebugProtocol.SetExceptionBreakpointsResponse,
    args: DebugProtocol.SetExceptionBreakpointsArguments,
  ): void {
    this.#answer(response, () => {
      const options = [...args.filters.map((filterId) => ({ filterId })), ...(args.filterOptions ?? [])];
      response.body = { breakpoints: this.#wanted.setFilters(options) };
    });
  }

  protected override dataBreakpointInfoRequest(
    response: DebugProtocol.DataBreakpointInfoResponse,
    args: DebugProtocol.DataBreakpointInfoArguments,
  ): void {
    this.#answer(response, () => {
      const { name, variablesReference } = args;
      const nodes = variablesReference ? (this.#variables.get(variablesReference) ?? (() => [])) : undefined;
      const locate = (text: string): Located | undefined => parseAddress(text, 'gva', this.#focusedVcpu());
      response.body = dataBreakpointInfo(this.#need(), name, nodes, locate);
    });
  }

  protected override setDataBreakpointsRequest(
    response: DebugProtocol.SetDataBreakpointsResponse,
    args: DebugProtocol.SetDataBreakpointsArguments,
  ): void {
    this.#answer(response, () => {
      response.body = { breakpoints: this.#wanted.setData(args.breakpoints) };
    });
  }

  protected override exceptionInfoRequest(response: DebugProtocol.ExceptionInfoResponse): void {
    this.#answer(response, () => {
      const stop = this.#stop;
      if (!stop) throw new RequestError('the session has not stopped');
      response.body = exceptionInfo(stop, () => this.#need().machine);
    });
  }

  // ---- looking

  protected override threadsRequest(response: DebugProtocol.ThreadsResponse): void {
    this.#answer(response, () => {
      const { machine } = this.#need();
      response.body = { threads: machine.tasks.map((task) => new Thread(task.id + 1, taskTitle(machine, task))) };
    });
  }

  protected override stackTraceRequest(
    response: DebugProtocol.StackTraceResponse,
    args: DebugProtocol.StackTraceArguments,
  ): void {
    this.#answer(response, () => {
      const target = this.#stoppedTarget();
      const task = this.#task(args.threadId);
      const frames = stackFrames(
        target,
        task,
        (depth) => frameId(this.#stops, { task: task.id, depth }),
        this.#programSource(),
      );
      const start = args.startFrame ?? 0;
      const end = args.levels ? start + args.levels : undefined;
      response.body = { stackFrames: frames.slice(start, end), totalFrames: frames.length };
    });
  }

  protected override scopesRequest(response: DebugProtocol.ScopesResponse, args: DebugProtocol.ScopesArguments): void {
    this.#answer(
      response,
      () => {
        const { machine, guest, about } = this.#stoppedTarget();
        const ref = frameOf(this.#stops, args.frameId);
        if (!ref) throw new RequestError('this frame belongs to an earlier stop');
        const task = machine.task(ref.task);
        const scopes = guest
          ? guest.scopes(task.vcpu)
          : about !== undefined
            ? mirrorScopes(machine, task)
            : frameScopes(machine, task, task.stack[ref.depth]);
        response.body = {
          scopes: scopes.map((scope) => ({
            name: scope.name,
            variablesReference: this.#variables.create(scope.nodes),
            expensive: false,
            ...(scope.hint ? { presentationHint: scope.hint } : {}),
          })),
        };
      },
      false,
    );
  }

  protected override variablesRequest(
    response: DebugProtocol.VariablesResponse,
    args: DebugProtocol.VariablesArguments,
  ): void {
    this.#answer(
      response,
      () => {
        const nodes = this.#variables.get(args.variablesReference);
        if (!nodes) throw new RequestError('these variables belong to an earlier stop');
        const all = nodes();
        const start = args.start ?? 0;
        response.body = {
          variables: all.slice(start, args.count ? start + args.count : undefined).map((node) => this.#variable(node)),
        };
      },
      false,
    );
  }

  #variable(node: Node): DebugProtocol.Variable {
    return {
      name: node.name,
      value: node.value,
      ...(node.type ? { type: node.type } : {}),
      variablesReference: node.children ? this.#variables.create(node.children) : 0,
      ...(node.evaluateName ? { evaluateName: node.evaluateName } : {}),
      ...(node.memoryReference ? { memoryReference: node.memoryReference } : {}),
      ...(node.register ? {} : { presentationHint: { attributes: ['readOnly'] } }),
    };
  }

  protected override setVariableRequest(
    response: DebugProtocol.SetVariableResponse,
    args: DebugProtocol.SetVariableArguments,
  ): void {
    this.#answer(response, async () => {
      const target = this.#stoppedTarget();
      this.#must('setRegisters');
      const node = this.#variables
        .get(args.variablesReference)?.()
        .find((candidate) => candidate.name === args.name);
      if (!node?.register) throw new RequestError(`${args.name} cannot be set; registers and their bits can`);
      const { expression, error } = parseExpression(args.value);
      if (!expression) throw new RequestError(error ?? `cannot read ${args.value}`);
      const value = evaluateInteger(expression, this.#scope(undefined), args.name);
      const next = await setRegister(target, node.register, value);
      response.body = { value: node.register.bit === undefined ? hex(next) : value === 0n ? '0' : '1' };
      this.#refresh();
    });
  }

  /** Tells the views what an edit changed. */
  #refresh(): void {
    const { machine } = this.#need();
    this.#here = machine.log.length;
    this.#showChanged();
  }

  protected override sourceRequest(response: DebugProtocol.SourceResponse, args: DebugProtocol.SourceArguments): void {
    this.#answer(response, () => {
      const recorded = this.#target?.guest?.text?.(args.source?.sourceReference ?? args.sourceReference);
      if (recorded !== undefined) {
        response.body = { content: recorded };
        return;
      }
      const fn = listingName(args.source ?? { sourceReference: args.sourceReference });
      if (fn === undefined) throw new RequestError('there is no such source');
      response.body = { content: listing(fn).text, mimeType: 'text/x-kvmfn' };
    });
  }

  protected override loadedSourcesRequest(response: DebugProtocol.LoadedSourcesResponse): void {
    this.#answer(response, () => {
      const { guest, machine } = this.#need();
      if (guest) {
        response.body = { sources: guest.sources().map((path) => ({ name: path.replace(/^.*\//, ''), path })) };
        return;
      }
      const { mirror } = machine;
      response.body = { sources: mirror ? [] : [this.#programSource(), ...listings().map(listingSource)] };
    });
  }

  // ---- evaluating

  #focusedTask(frameId: number | undefined): Task {
    const { machine } = this.#need();
    const ref = frameId === undefined ? undefined : frameOf(this.#stops, frameId);
    return machine.task(ref?.task ?? this.#stop?.task ?? 0);
  }

  #focusedVcpu(frameId?: number): number {
    return Math.max(0, this.#focusedTask(frameId).vcpu);
  }

  #scope(frameId: number | undefined): Scope {
    const task = this.#focusedTask(frameId);
    const { guest } = this.#need();
    if (guest) return guest.scope(task.vcpu);
    return faultScope(
      this.#need().machine,
      task,
      currentFault(task) ?? (task.id === this.#stop?.task ? this.#stopFault : undefined),
    );
  }

  protected override evaluateRequest(
    response: DebugProtocol.EvaluateResponse,
    args: DebugProtocol.EvaluateArguments,
  ): void {
    this.#answer(response, async () => {
      const target = this.#stoppedTarget();
      const { machine, guest } = target;
      const vcpu = this.#focusedVcpu(args.frameId);
      const text = args.expression.trim();
      const isCommand = args.context === 'repl';
      const changed = isCommand ? await guest?.command(text, this.#watcher) : undefined;
      if (changed !== undefined) this.#refresh();
      const told = changed ?? (isCommand ? runCommand(machine, vcpu, this.#moment(), text) : undefined);
      response.body =
        told === undefined
          ? evaluateText(target, text, args.context, vcpu, () => this.#scope(args.frameId))
          : { result: told, variablesReference: 0 };
    });
  }

  // ---- memory

  #locate(reference: string): { space: 'gva' | 'gpa' | 'hpa'; vcpu: number; address: bigint } {
    const located = parseAddress(reference, 'gva', this.#focusedVcpu());
    if (!located)
      throw new RequestError(`${reference} is no memory reference: use 0x…, gva:VCPU:0x…, gpa:0x… or hpa:0x…`);
    return located;
  }

  protected override readMemoryRequest(
    response: DebugProtocol.ReadMemoryResponse,
    args: DebugProtocol.ReadMemoryArguments,
  ): void {
    this.#answer(response, () => {
      const { machine } = this.#stoppedTarget();
      response.body = readMemory(machine, this.#locate(args.memoryReference), args);
    });
  }

  protected override writeMemoryRequest(
    response: DebugProtocol.WriteMemoryResponse,
    args: DebugProtocol.WriteMemoryArguments,
  ): void {
    this.#answer(response, async () => {
      const target = this.#stoppedTarget();
      this.#must('writeMemory');
      response.body = await writeMemory(target, this.#locate(args.memoryReference), args);
      this.#refresh();
    });
  }

  // ---- views

  protected override customRequest(command: string, response: DebugProtocol.Response, args: unknown): void {
    const ask = (): void => {
      switch (command) {
        case 'mmu/watch':
          response.body = this.#watch(args);
          return;
        case 'mmu/hover':
          response.body = this.#hover(args);
          return;
        case 'mmu/letOwnerRun':
          this.#letOwnerRun(args);
          return;
        default:
          throw new RequestError(`unknown request ${command}`);
      }
    };
    // Views and hovers have places of their own for what cannot be answered.
    this.#answer(response, ask, command === 'mmu/letOwnerRun');
  }

  #watch(args: unknown): unknown {
    const parsed = parseRequest(args);
    if ('error' in parsed) throw new RequestError(`a view asked for something that cannot be: ${parsed.error}`);
    const { request } = parsed;
    if (request.type === 'seek') {
      if (!this.#stoppedTarget().guest?.recorded) throw new RequestError('only a recording has moments to go to');
      this.#go({ kind: 'seek', position: request.position, task: 0 });
      return {};
    }
    if (request.type === 'unwatch') {
      this.#watches.delete(request.id);
      return {};
    }
    this.#watches.set(request.id, request.query);
    if (!this.#stop || this.#running) return { running: true };
    return { answer: this.#watches.ask(this.#need().machine, request.id, this.#moment()), stop: this.#stop };
  }

  #hover(args: unknown): unknown {
    const { machine } = this.#stoppedTarget();
    const text = typeof args === 'object' && args !== null && 'text' in args ? args.text : undefined;
    if (typeof text !== 'string') throw new RequestError('mmu/hover needs a text');
    const located = parseAddress(text, 'gpa', this.#focusedVcpu());
    return { lines: located ? describeAddress(machine, located) : [] };
  }

  #letOwnerRun(args: unknown): void {
    const { machine } = this.#stoppedTarget();
    const id =
      typeof args === 'object' && args !== null && 'task' in args && typeof args.task === 'number' ? args.task : -1;
    const waiting = machine.task(id);
    if (!waiting.wants) throw new RequestError(`${waiting.name} waits for no lock`);
    const owner = machine.owners(waiting.wants)[0];
    if (!owner) throw new RequestError(`nobody holds ${waiting.wants}`);
    const lock = waiting.wants;
    queueMicrotask(() => {
      this.sendEvent(new ContinuedEvent(owner.id + 1, true));
      this.#go({ kind: 'release', lock, task: owner.id });
    });
  }
}
