import { Inference } from '../../engine/history/infer.ts';
import { isLeaf } from '../../engine/history/infer-pages.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { roleField } from '../../engine/kernel/role.ts';
import type { KvmTables } from '../../engine/kernel/tables.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import { parseFormat } from '../trace/format.ts';
import { parseHeaderPage } from '../trace/layout.ts';
import { LivePages } from '../trace/live.ts';

/** How often events are taken while the machine runs: a buffer holds more than a machine makes in that time. */
const PULL_MS = 100;
/** Of KVM's statistics, those that count leaf entries, by level. */
const COUNTED_LEAVES = ['pages_4k', 'pages_2m', 'pages_1g'];

/** What KVM's tracepoints tell of a machine while it runs, and the tables that follow from it. */
export class EventStream {
  readonly recording: Recording;
  readonly #client: RspClient;
  readonly #live: LivePages;
  readonly #inference: Inference;
  readonly #timer: ReturnType<typeof setInterval>;
  #pulling: Promise<void> | undefined;
  #lost = 0;

  private constructor(client: RspClient, live: LivePages, inference: Inference) {
    this.#client = client;
    this.#live = live;
    this.recording = live.recording;
    this.#inference = inference;
    // Whoever asks for tables hears of a lost connection.
    this.#timer = setInterval(() => void this.pull().catch(() => {}), PULL_MS);
  }

  /** Begins to record. @throws RspError where the host cannot */
  static async start(client: RspClient, info: KvmInfo): Promise<EventStream> {
    const { headerPage, events } = await client.traceFormats();
    const live = new LivePages(
      events.map(({ system, format }) => parseFormat(format, system)),
      parseHeaderPage(headerPage),
    );
    const own = info.threads && new Map(info.threads.map((thread, vcpu) => [thread, vcpu]));
    const inference = new Inference(live.recording, own, info.secondStage);
    await client.startTrace();
    return new EventStream(client, live, inference);
  }

  /** Takes what was recorded since the last time. */
  pull(): Promise<void> {
    this.#pulling ??= this.#pull().finally(() => {
      this.#pulling = undefined;
    });
    return this.#pulling;
  }

  async #pull(): Promise<void> {
    for (const { cpu, bytes } of await this.#client.takeTrace()) this.#live.appendPages(cpu, bytes);
    this.#inference.forget(this.#live.commit());
  }

  /** The tables as of now. Nothing is read from the kernel but its own count of entries, which says whether they can be right. */
  async tables(): Promise<KvmTables> {
    await this.pull();
    const { dropped, overrun } = await this.#client.traceLost();
    this.#lost = dropped + overrun;
    this.#inference.goTo(this.recording.length);
    const [machine] = this.#inference.machines();
    const { tables } = machine!;
    const why = this.#doubt(tables, await this.#counts());
    return why === undefined ? tables : { ...tables, certainty: 'stale', why };
  }

  async #counts(): Promise<Readonly<Record<string, unknown>>> {
    const { vm } = JSON.parse(await this.#client.vendor('qKvm.Stats')) as { vm?: Record<string, unknown> };
    return vm ?? {};
  }

  #doubt(built: KvmTables, counts: Readonly<Record<string, unknown>>): string | undefined {
    if (this.#lost > 0) return `${this.#lost} event${this.#lost === 1 ? ' was' : 's were'} lost`;
    const leaves = [0, 0, 0];
    for (const { role, entries } of built.tables.values()) {
      const level = roleField(role, 'level');
      for (let index = 0; index < 512; index++)
        if (level <= 3 && isLeaf(level, entries[2 * index]!)) leaves[level - 1]!++;
    }
    const differing = COUNTED_LEAVES.findIndex(
      (name, index) => typeof counts[name] === 'number' && counts[name] !== leaves[index],
    );
    if (differing < 0) return undefined;
    const name = COUNTED_LEAVES[differing]!;
    return `KVM counts ${name} ${counts[name]}, and events tell of ${leaves[differing]}: something was not traced`;
  }

  /** Takes nothing more. The helper ends the recording when its client goes. */
  abandon(): void {
    clearInterval(this.#timer);
  }
}
