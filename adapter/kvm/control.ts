import type { Resume, RspClient } from '../rsp/client.ts';
import type { RspError } from '../rsp/packet.ts';
import type { KvmStop, StopEvent, StoppedEvent } from '../rsp/stop.ts';

/** What a vCPU has stopped for; `exited`: the machine has ended. */
export type VcpuEvent =
  | { readonly kind: 'stopped'; readonly vcpu: number; readonly stop: KvmStop }
  | { readonly kind: 'exited'; readonly status: number };

/**
 * Which vCPUs of a machine run, and the stops that nobody has looked at. A vCPU that was told to stand still may have
 * stopped for a reason of its own a moment before: that one is kept.
 */
export class Control {
  readonly #client: RspClient;
  readonly #running = new Set<number>();
  readonly #events: VcpuEvent[] = [];
  #waiting: (() => void)[] = [];
  #lost: RspError | undefined;
  /** vCPUs that are stopped only for the others' sake. */
  readonly #held = new Set<number>();
  /** How each was let run last. */
  readonly #how = new Map<number, Resume>();
  #ended = false;

  /** `first`: what the stub said at the handshake of threads that stand still. The others run. */
  constructor(client: RspClient, vcpus: number, first: readonly StopEvent[]) {
    this.#client = client;
    const still = new Set(first.map((event) => (event.kind === 'stopped' ? numberOf(event) : -1)));
    for (let vcpu = 0; vcpu < vcpus; vcpu++) (still.has(vcpu) ? this.#held : this.#running).add(vcpu);
    client.onStop((event) => this.#take(event));
    client.onLost((error) => {
      this.#lost = error;
      this.#wake();
    });
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const go of waiting) go();
  }

  #take(event: StopEvent): void {
    if (event.kind === 'exited') {
      this.#ended = true;
      this.#running.clear();
      this.#events.push({ kind: 'exited', status: event.status ?? event.signal ?? 0 });
    } else {
      const vcpu = numberOf(event);
      this.#running.delete(vcpu);
      const stop = event.kvm ?? { reason: 'pause', exact: [], derived: [] };
      if (stop.reason === 'pause' && this.#held.has(vcpu)) {
        this.#wake();
        return;
      }
      this.#held.delete(vcpu);
      this.#events.push({ kind: 'stopped', vcpu, stop });
    }
    this.#wake();
  }

  /** The next event. @throws RspError when the connection is lost */
  async next(): Promise<VcpuEvent> {
    for (;;) {
      const event = this.#events.shift();
      if (event) return event;
      await this.#change();
    }
  }

  async #change(): Promise<void> {
    if (this.#lost) throw this.#lost;
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
    if (this.#lost && this.#events.length === 0) throw this.#lost;
  }

  async resume(vcpu: number, how: Resume = 'continue'): Promise<void> {
    this.#held.delete(vcpu);
    this.#how.set(vcpu, how);
    this.#running.add(vcpu);
    try {
      await this.#client.resume((vcpu + 1).toString(16), how);
    } catch (error) {
      this.#running.delete(vcpu);
      throw error;
    }
  }

  /** Lets a vCPU go on as it was told last: what was a step stays one. */
  again(vcpu: number): Promise<void> {
    return this.resume(vcpu, this.#how.get(vcpu));
  }

  /** Lets those go on that `standStill` has stopped. One that has stopped by itself is for whoever gets its event. */
  async release(vcpus: readonly number[]): Promise<void> {
    for (const vcpu of vcpus) if (this.#held.has(vcpu) && !this.#ended) await this.again(vcpu);
  }

  /** Lets vCPUs go on, those whose stop has been looked at. */
  async resumeAll(vcpus: readonly number[]): Promise<void> {
    for (const vcpu of vcpus) {
      const waits = this.#events.some((event) => event.kind === 'stopped' && event.vcpu === vcpu);
      if (!this.#running.has(vcpu) && !waits) await this.resume(vcpu);
    }
  }

  /** Asks for a stop that `next` will tell. */
  async interrupt(): Promise<void> {
    const [first] = this.#running;
    if (first !== undefined) await this.#client.stop((first + 1).toString(16));
  }

  /** Resolves once no vCPU runs. @returns those that did */
  async standStill(): Promise<number[]> {
    const asked = [...this.#running];
    for (const vcpu of asked) this.#held.add(vcpu);
    for (const vcpu of asked) if (this.#running.has(vcpu)) await this.#client.stop((vcpu + 1).toString(16));
    while (this.#running.size > 0) await this.#change();
    return asked;
  }

  /** Whether the machine has come to its end. */
  get ended(): boolean {
    return this.#ended;
  }
}

/** vCPUs are threads, numbered from 1 in hexadecimal. */
function numberOf({ thread }: StoppedEvent): number {
  return Number.parseInt(thread ?? '1', 16) - 1;
}
