import { hex } from '../../engine/memory/words.ts';
import type { Control } from '../kvm/control.ts';
import type { RegisterValues } from '../kvm/registers.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmStop } from '../rsp/stop.ts';
import { actionAddress, firstRegisters, type Stubs, userDone, userStack } from './stubs.ts';

/** What came of an action. */
export type Outcome =
  | { readonly kind: 'done'; readonly value: bigint }
  | {
      readonly kind: 'exception';
      readonly vector: number;
      readonly error: bigint;
      readonly rip: bigint;
      readonly cr2: bigint;
    }
  /** The vCPU has stopped for another reason, and may go on. */
  | { readonly kind: 'stop'; readonly stop: KvmStop }
  /** It cannot go on. */
  | { readonly kind: 'lost'; readonly words: string };

export interface Action {
  readonly name: Parameters<typeof actionAddress>[1];
  readonly size: 1 | 2 | 4 | 8;
  readonly address: bigint;
  readonly value: bigint;
  readonly user: boolean;
  readonly rflags: bigint;
}

const DONE = 0xffn;
const UD = 6;
const STOPS = new Set<KvmStop['reason']>(['guest-pf', 'second-stage', 'mmio', 'read-only', 'pause']);

/** A vCPU that runs the stubs: one action at a time. */
export class StubVcpu {
  readonly number: number;
  readonly #client: RspClient;
  readonly #control: Control;
  readonly #stubs: Stubs;
  #registers: RegisterValues = new Map();

  constructor(client: RspClient, control: Control, stubs: Stubs, number: number) {
    this.#client = client;
    this.#control = control;
    this.#stubs = stubs;
    this.number = number;
  }

  get #thread(): string {
    return (this.number + 1).toString(16);
  }

  /** Puts the vCPU where it waits for actions. */
  async begin(cr3: bigint): Promise<void> {
    await this.#client.writeRegisters(this.#thread, firstRegisters(this.#stubs, this.number, cr3));
    await this.#control.resume(this.number);
    const outcome = await this.#outcome();
    if (outcome.kind === 'lost') throw new Error(`the stubs do not run on this KVM: ${outcome.words}`);
  }

  /** Starts an action. A stop on the way is told; `goOn` continues it. */
  async act({ name, size, address, value, user, rflags }: Action): Promise<Outcome> {
    const stubs = this.#stubs;
    const registers = new Map(this.#registers);
    registers.set('rsi', actionAddress(stubs, name, size, user));
    registers.set('rbx', address);
    registers.set('rdx', value);
    registers.set('r11', userStack(stubs));
    registers.set('r12', rflags);
    registers.set('r13', user ? 1n : 0n);
    await this.#client.replaceRegisters(this.#thread, registers);
    return this.goOn();
  }

  async goOn(): Promise<Outcome> {
    await this.#control.resume(this.number);
    return this.#outcome();
  }

  async #outcome(): Promise<Outcome> {
    const event = await this.#control.next();
    if (event.kind === 'exited') return { kind: 'lost', words: 'the machine has ended' };
    const { stop } = event;
    if (STOPS.has(stop.reason)) return { kind: 'stop', stop };
    if (stop.reason !== 'port') return { kind: 'lost', words: lostWords(stop) };
    this.#registers = await this.#client.readRegisters(this.#thread);
    const get = (name: string): bigint => this.#registers.get(name) ?? 0n;
    if (stop.data === DONE) return { kind: 'done', value: get('r8') };
    const vector = Number(stop.data ?? 0n);
    // At the very beginning AL is what it is.
    if (get('rip') === this.#stubs.base + 2n && get('r15') === get('rsp') && get('rsi') === 0n)
      return { kind: 'done', value: 0n };
    if (vector === UD && get('r10') === userDone(this.#stubs)) return { kind: 'done', value: get('r8') };
    return { kind: 'exception', vector, error: get('r9'), rip: get('r10'), cr2: get('cr2') };
  }
}

function lostWords({ reason, words, gva }: KvmStop): string {
  switch (reason) {
    case 'shutdown':
      return `the vCPU has shut down, by a triple fault${gva === undefined ? '' : `; CR2 is ${hex(gva)}`}`;
    case 'emulation':
      return 'this KVM’s emulator does not know the instruction that the statement needs';
    default:
      return words ?? `KVM stopped the vCPU: ${reason}`;
  }
}
