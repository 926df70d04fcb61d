import type { RspClient } from '../rsp/client.ts';
import type { TracePage } from '../rsp/trace.ts';

/** How often events are taken while the machine runs: a buffer holds more than a machine makes in that time. */
const PULL_MS = 100;

/** Somebody who wants all pages of events: those of one CPU in their order. Their bytes stay as they are. */
export interface PageTaker {
  takePages(pages: readonly TracePage[]): void;
}

/** Takes what KVM's tracepoints tell, for all who want it, from its start on. */
export class EventPump {
  readonly #client: RspClient;
  readonly #takers: readonly PageTaker[];
  readonly #timer: ReturnType<typeof setInterval>;
  #last: Promise<void> = Promise.resolve();
  #underWay = 0;

  private constructor(client: RspClient, takers: readonly PageTaker[]) {
    this.#client = client;
    this.#takers = takers;
    // Whoever asks for tables hears of a lost connection.
    this.#timer = setInterval(() => this.#underWay === 0 && void this.pull().catch(() => {}), PULL_MS);
  }

  /** Begins to record. @throws RspError where the host cannot */
  static async start(client: RspClient, takers: readonly PageTaker[]): Promise<EventPump> {
    await client.startTrace();
    return new EventPump(client, takers);
  }

  /** Hands over all that was recorded until now. @throws RspError, LostError */
  pull(): Promise<void> {
    this.#underWay++;
    // One that is under way may have left a CPU behind already.
    this.#last = this.#last
      .catch(() => {})
      .then(() => this.#client.takeTrace())
      .then((pages) => {
        for (const taker of this.#takers) taker.takePages(pages);
      })
      .finally(() => this.#underWay--);
    return this.#last;
  }

  /** How many events were lost since the start. @throws RspError, LostError */
  async lost(): Promise<number> {
    const { dropped, overrun } = await this.#client.traceLost();
    return dropped + overrun;
  }

  /** Takes nothing more. The helper ends the recording when its client goes. */
  stop(): void {
    clearInterval(this.#timer);
  }
}
