import { RspClient } from '../../adapter/rsp/client.ts';
import { spawnHelper } from '../../adapter/rsp/node-stream.ts';
import type { StopEvent, StoppedEvent } from '../../adapter/rsp/stop.ts';
import { native } from './kvm.ts';

/** A helper's machine in a test: its stops are waited for in their order. */
export class TestMachine {
  readonly client: RspClient;
  readonly #events: StopEvent[] = [];
  readonly #waiting: ((event: StopEvent) => void)[] = [];
  #failed: ((error: Error) => void) | undefined;
  console = '';

  private constructor(args: readonly string[], helper: string) {
    this.client = new RspClient(spawnHelper(helper, args));
    this.client.onStop((event) => {
      const next = this.#waiting.shift();
      if (next) next(event);
      else this.#events.push(event);
    });
    this.client.onConsole((bytes) => {
      this.console += new TextDecoder().decode(bytes);
    });
    this.client.onLost((error) => this.#failed?.(error));
  }

  static async start(args: readonly string[], helper = native('kvm-mmu-helper')): Promise<TestMachine> {
    const machine = new TestMachine(args, helper);
    await machine.client.handshake();
    return machine;
  }

  /** The next stop. */
  next(): Promise<StopEvent> {
    const event = this.#events.shift();
    if (event) return Promise.resolve(event);
    return new Promise((resolve, reject) => {
      this.#failed = reject;
      this.#waiting.push(resolve);
    });
  }

  /** Lets a vCPU go on, and waits for its stop. */
  async go(how: 'continue' | 'step' = 'continue', thread = '1'): Promise<NonNullable<StoppedEvent['kvm']>> {
    await this.client.resume(thread, how);
    return this.stopped();
  }

  async stopped(): Promise<NonNullable<StoppedEvent['kvm']>> {
    const event = await this.next();
    if (event.kind !== 'stopped' || !event.kvm) throw new Error(`not a stop: ${JSON.stringify(event)}`);
    return event.kvm;
  }

  async exited(): Promise<number | undefined> {
    const event = await this.next();
    if (event.kind !== 'exited') throw new Error(`not an end: ${event.kind}`);
    return event.status;
  }

  registers(thread = '1'): Promise<Map<string, bigint>> {
    return this.client.readRegisters(thread);
  }

  vendor(packet: string): Promise<string> {
    return this.client.vendor(packet);
  }

  end(): void {
    this.client.kill();
  }
}
