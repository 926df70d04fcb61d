import { Inference } from '../../engine/history/infer.ts';
import { isLeaf } from '../../engine/history/infer-pages.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { roleField } from '../../engine/kernel/role.ts';
import type { KvmTables } from '../../engine/kernel/tables.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import type { TraceFormats, TracePage } from '../rsp/trace.ts';
import { parseFormat } from '../trace/format.ts';
import { parseHeaderPage } from '../trace/layout.ts';
import { LivePages } from '../trace/live.ts';
import type { PageTaker } from './event-pump.ts';

/** Of KVM's statistics, those that count leaf entries, by level. */
const COUNTED_LEAVES = ['pages_4k', 'pages_2m', 'pages_1g'];

/** What KVM's tracepoints tell of a machine while it runs, and the tables that follow from it. */
export class EventStream implements PageTaker {
  readonly #client: RspClient;
  readonly #live: LivePages;
  readonly #inference: Inference;

  constructor(client: RspClient, info: KvmInfo, { headerPage, events }: TraceFormats) {
    this.#client = client;
    this.#live = new LivePages(
      events.map(({ system, format }) => parseFormat(format, system)),
      parseHeaderPage(headerPage),
    );
    const own = info.threads && new Map<number, number | undefined>(info.threads.map((thread, vcpu) => [thread, vcpu]));
    // The helper's first thread makes all calls that are of no vCPU.
    own?.set(info.pid, undefined);
    this.#inference = new Inference(this.recording, own, info.secondStage);
  }

  get recording(): Recording {
    return this.#live.recording;
  }

  takePages(pages: readonly TracePage[]): void {
    for (const { cpu, bytes } of pages) this.#live.appendPages(cpu, bytes);
    this.#inference.forget(this.#live.commit());
  }

  /**
   * The tables after what was taken. Nothing is read from the kernel but its own count of entries, which says whether they can be
   * right. @param lost how many events are missing
   */
  async tables(lost: number): Promise<KvmTables> {
    this.#inference.goTo(this.recording.length);
    const [machine] = this.#inference.machines();
    const { tables } = machine!;
    const why = this.#doubt(tables, await this.#counts(), lost);
    return why === undefined ? tables : { ...tables, certainty: 'stale', why };
  }

  async #counts(): Promise<Readonly<Record<string, unknown>>> {
    const { vm } = JSON.parse(await this.#client.vendor('qKvm.Stats')) as { vm?: Record<string, unknown> };
    return vm ?? {};
  }

  #doubt(built: KvmTables, counts: Readonly<Record<string, unknown>>, lost: number): string | undefined {
    if (lost > 0) return `${lost} event${lost === 1 ? ' was' : 's were'} lost`;
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
}
