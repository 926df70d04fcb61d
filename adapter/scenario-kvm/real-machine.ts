import { type PagingName, pagingName } from '../../engine/guest/registers.ts';
import { x86Regime } from '../../engine/guest/x86-regime.ts';
import type { Machine } from '../../engine/machine.ts';
import { type Mirror, type MissingFrames, makeMirror } from '../../engine/mirror.ts';
import type { Program } from '../../engine/program.ts';
import { createMachine } from '../../engine/run.ts';
import { Control } from '../kvm/control.ts';
import type { KvmBuilt } from '../kvm/kvm-built.ts';
import { guestCpu } from '../kvm/machine-view.ts';
import type { GuestMemory } from '../kvm/memory.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import type { StopEvent } from '../rsp/stop.ts';
import { withFrames } from '../with-frames.ts';
import { COUNTED } from './fit.ts';
import type { Stubs } from './stubs.ts';
import { StubVcpu } from './vcpu.ts';

/** What a scenario's machine under KVM is made of. */
export interface RealMachineParts {
  readonly client: RspClient;
  readonly info: KvmInfo;
  /** Stops of the handshake. */
  readonly first: readonly StopEvent[];
  readonly memory: GuestMemory;
  readonly built: KvmBuilt;
  readonly program: Program;
  /** Of each paging mode of the guests. */
  readonly stubs: ReadonlyMap<PagingName, Stubs>;
  /** Where words for people go. */
  print(text: string): void;
}

/** The machine under KVM that a scenario runs on, and the engine's, which keeps what is the scenario's and shows the real memory. */
export class RealMachine {
  /** The engine's. */
  readonly machine: Machine;
  readonly client: RspClient;
  readonly memory: GuestMemory;
  readonly stubs: ReadonlyMap<PagingName, Stubs>;
  readonly vcpus: readonly StubVcpu[];
  readonly print: (text: string) => void;
  readonly #built: KvmBuilt;
  readonly #mirror: { -readonly [K in keyof Mirror]: Mirror[K] };
  #info: KvmInfo;

  constructor({ client, info, first, memory, built, program, stubs, print }: RealMachineParts) {
    this.client = client;
    this.memory = memory;
    this.stubs = stubs;
    this.print = print;
    this.#built = built;
    this.#info = info;
    this.#mirror = { ...makeMirror(memory, [], 'memslots'), counted: COUNTED, built: () => built.now() };
    this.machine = createMachine(program, undefined, this.#mirror);
    const control = new Control(client, info.vcpus, first);
    this.vcpus = this.machine.vcpus.map(({ id }) => new StubVcpu(client, control, this.stubsOf(id), id));
  }

  /** What the helper has told of it last. */
  get info(): KvmInfo {
    return this.#info;
  }

  /** Those of a vCPU's paging mode. */
  stubsOf(vcpu: number): Stubs {
    return this.stubs.get(pagingName(this.machine.vcpu(vcpu).registers))!;
  }

  /** After a change of its slots or attributes. */
  async askInfo(): Promise<void> {
    this.#info = await this.client.info();
  }

  /** Memory is read anew, and registers decide how it is translated. */
  renew(): void {
    this.memory.renew(this.#info.memory, new Map());
    this.#built.forget();
    const cpu = guestCpu(this.#info);
    this.#mirror.regimes = this.machine.vcpus.map(({ registers, guestMode }) =>
      x86Regime(registers, cpu, guestMode?.nested && { kind: 'npt', root: guestMode.nested.pgd, levels: 4 }),
    );
  }

  async fetch({ frames, built }: MissingFrames): Promise<void> {
    if (built) await this.#built.fetch();
    await this.memory.fetch(frames);
  }

  /** Asks the engine's machine, again for as long as it lacks memory. `ask` must not change anything before it has all. */
  withFrames<T>(ask: () => T): Promise<T> {
    return withFrames((missing) => this.fetch(missing), ask);
  }
}
