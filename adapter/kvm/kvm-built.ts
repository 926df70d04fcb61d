import type { KvmTables } from '../../engine/kernel/tables.ts';
import { type Mirror, MissingFrames } from '../../engine/mirror.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import { LostError } from '../rsp/packet.ts';
import { parseTables } from '../rsp/tables.ts';
import { EventStream } from './event-stream.ts';
import type { TableSource } from './table-source.ts';

/** What KVM has built for a machine, asked for at most once a stop, and only when somebody wants it. */
export class KvmBuilt {
  readonly #client: RspClient;
  readonly #info: KvmInfo;
  readonly #print: (text: string) => void;
  /** Where events are recorded, whoever tells of tables. */
  readonly events: EventStream | undefined;
  readonly source: TableSource;
  #tables: KvmTables | undefined;
  /** Why it cannot be read, though it was thought to be. */
  #problem: string | undefined;
  /** What was said last, so that it is not said at each stop. */
  #said: string | undefined;

  private constructor(
    client: RspClient,
    info: KvmInfo,
    print: (text: string) => void,
    source: TableSource,
    events: EventStream | undefined,
  ) {
    this.#client = client;
    this.#info = info;
    this.#print = print;
    this.source = source;
    this.events = events;
  }

  /**
   * Before a machine first runs: events tell only of what comes after. Without `wanted` the kernel is asked where it can be, else its
   * events. @throws Error in words where what is wanted cannot be had
   */
  static async open(
    client: RspClient,
    info: KvmInfo,
    print: (text: string) => void,
    wanted: TableSource | undefined,
  ): Promise<KvmBuilt> {
    const { tables = 'this helper cannot read them', events = 'this helper has none' } = info.has;
    if (wanted === 'kernel' && tables !== '') throw new Error(`KVM’s tables cannot be read from the kernel: ${tables}`);
    if (wanted === 'events' && events !== '') throw new Error(`KVM’s events cannot be recorded: ${events}`);
    const source = wanted ?? (tables === '' ? 'kernel' : events === '' ? 'events' : 'none');
    if (wanted === undefined && source !== 'kernel')
      print(
        `KVM’s own tables cannot be read from the kernel: ${tables}; ${source === 'events' ? 'they are worked out from its tracepoints' : `nor can its events be recorded: ${events}`}\n`,
      );
    return new KvmBuilt(
      client,
      info,
      print,
      source,
      source === 'events' ? await EventStream.start(client, info) : undefined,
    );
  }

  /** The machine has run: what was read is no longer so. */
  forget(): void {
    this.#tables = undefined;
    this.#problem = undefined;
  }

  /** @returns undefined where it cannot be had. @throws MissingFrames while it has not been read */
  now(): ReturnType<NonNullable<Mirror['built']>> {
    if (this.source === 'none' || this.#problem !== undefined) return undefined;
    if (!this.#tables) throw new MissingFrames([], true);
    return { tables: this.#tables, maxPhyAddr: this.#info.maxphyaddr };
  }

  async fetch(): Promise<void> {
    try {
      this.#tables = this.events
        ? await this.events.tables()
        : parseTables(await this.#client.vendor('qKvm.Tables'), this.#info.secondStage).tables;
    } catch (error) {
      if (error instanceof LostError) throw error;
      this.#problem = (error as Error).message;
      if (this.#problem !== this.#said) this.#print(`KVM’s own tables cannot be read: ${this.#problem}\n`);
      this.#said = this.#problem;
    }
  }

  /** The machine is let go of. */
  close(): void {
    this.events?.abandon();
  }
}
