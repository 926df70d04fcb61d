import { hex } from '../../engine/memory/words.ts';
import type { Control } from '../kvm/control.ts';
import type { RegisterValues } from '../kvm/registers.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmStop } from '../rsp/stop.ts';
import {
  type ActionInput,
  actionAddress,
  actionRegisters,
  DONE,
  EXITED,
  firstRegisters,
  OUTCOME,
  userDone,
} from './actions.ts';
import type { Stubs } from './stubs.ts';

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
  /** What ran was a nested guest, and now its hypervisor does. */
  | { readonly kind: 'exited' }
  /** The vCPU has stopped for another reason, and may go on. */
  | { readonly kind: 'stop'; readonly stop: KvmStop }
  /** It cannot go on. */
  | { readonly kind: 'lost'; readonly words: string };

export interface Action extends ActionInput {
  readonly name: Parameters<typeof actionAddress>[1];
  readonly size: 1 | 2 | 4 | 8;
}

const UD = 6;
const STOPS = new Set<KvmStop['reason']>([
  'guest-pf',
  'second-stage',
  'mmio',
  'read-only',
  'memory-fault',
  'hypercall',
  'pause',
]);

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
    // All at once: KVM looks at what they say together.
    const registers = await this.#client.readRegisters(this.#thread);
    await this.#replace(registers, firstRegisters(this.#stubs, this.number, cr3));
    await this.#control.resume(this.number);
    const outcome = await this.#outcome();
    if (outcome.kind === 'lost') throw new Error(`the stubs do not run on this KVM: ${outcome.words}`);
  }

  /** Starts an action. A stop on the way is told; `goOn` continues it. */
  async act({ name, size, ...input }: Action): Promise<Outcome> {
    const action = actionAddress(this.#stubs, name, size, input.user);
    await this.#replace(this.#registers, actionRegisters(this.#stubs, this.number, action, input));
    return this.goOn();
  }

  /**
   * An action at CPL0, through all stops on its way. @returns whether it is done, or a nested guest has come out
   * @throws with words when the processor refuses it
   */
  async control(name: Action['name'], address: bigint, value = 0n, size: 4 | 8 = 8): Promise<'done' | 'exited'> {
    let outcome = await this.act({ name, size, address, value, user: false, rflags: 2n });
    while (outcome.kind === 'stop') outcome = await this.goOn();
    if (outcome.kind === 'lost') throw new Error(outcome.words);
    if (outcome.kind === 'exception')
      throw new Error(
        `${name} ${hex(address)}: the processor raises exception ${outcome.vector}, error code ${hex(outcome.error)}`,
      );
    return outcome.kind;
  }

  #replace(registers: RegisterValues, changed: Readonly<Record<string, bigint>>): Promise<void> {
    return this.#client.replaceRegisters(this.#thread, new Map([...registers, ...Object.entries(changed)]));
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
    const names = OUTCOME[this.#stubs.paging];
    const get = (name: string): bigint => this.#registers.get(name) ?? 0n;
    const [value, rip] = [get(names.value), get(names.rip)];
    if (stop.data === EXITED) return { kind: 'exited' };
    if (stop.data === DONE) return { kind: 'done', value };
    const vector = Number(stop.data ?? 0n);
    if (vector === UD && rip === userDone(this.#stubs)) return { kind: 'done', value };
    return { kind: 'exception', vector, error: get(names.error), rip, cr2: get('cr2') };
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
