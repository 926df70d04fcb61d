import type { KvmTables } from '../../engine/kernel/tables.ts';
import { type Mirror, MissingFrames } from '../../engine/mirror.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import { LostError } from '../rsp/packet.ts';
import { parseTables } from '../rsp/tables.ts';
import { EventPump } from './event-pump.ts';
import { EventStream } from './event-stream.ts';
import { SavedEvents } from './saved-events.ts';
import type { TableSource, WantedOfKvm } from './wanted.ts';
import { within } from './within.ts';

/** How long a helper has to hand over its last events. */
const LAST_MS = 5000;

/** What KVM has built for a machine, asked for at most once a stop, and only when somebody wants it. */
export class KvmBuilt {
  readonly #client: RspClient;
  readonly #info: KvmInfo;
  readonly #print: (text: string) => void;
  /** Where events are recorded. */
  readonly #pump: EventPump | undefined;
  readonly #saved: SavedEvents | undefined;
  /** Where tables are worked out from events. */
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
    recorded: { readonly pump?: EventPump; readonly events?: EventStream; readonly saved?: SavedEvents },
  ) {
    this.#client = client;
    this.#info = info;
    this.#print = print;
    this.source = source;
    this.#pump = recorded.pump;
    this.#saved = recorded.saved;
    this.events = recorded.events;
  }

  /**
   * Before a machine first runs: events tell only of what comes after. Without `tables` the kernel is asked where it can be, else its
   * events; `record` is the file that becomes a trace.dat of them. @throws Error in words where what is wanted cannot be had
   */
  static async open(
    client: RspClient,
    info: KvmInfo,
    print: (text: string) => void,
    wanted: WantedOfKvm,
  ): Promise<KvmBuilt> {
    const { tables = 'this helper cannot read them', events = 'this helper has none' } = info.has;
    if (wanted.tables === 'kernel' && tables !== '')
      throw new Error(`KVM’s tables cannot be read from the kernel: ${tables}`);
    if ((wanted.tables === 'events' || wanted.record !== undefined) && events !== '')
      throw new Error(`KVM’s events cannot be recorded: ${events}`);
    const source = wanted.tables ?? (tables === '' ? 'kernel' : events === '' ? 'events' : 'none');
    if (wanted.tables === undefined && source !== 'kernel')
      print(
        `KVM’s own tables cannot be read from the kernel: ${tables}; ${source === 'events' ? 'they are worked out from its tracepoints' : `nor can its events be recorded: ${events}`}\n`,
      );
    if (source !== 'events' && wanted.record === undefined) return new KvmBuilt(client, info, print, source, {});
    const formats = await client.traceFormats();
    const stream = source === 'events' ? new EventStream(client, info, formats) : undefined;
    const saved = wanted.record === undefined ? undefined : new SavedEvents(wanted.record, formats, info, print);
    try {
      const pump = await EventPump.start(
        client,
        [stream, saved].filter((each) => each !== undefined),
      );
      return new KvmBuilt(client, info, print, source, {
        pump,
        ...(stream ? { events: stream } : {}),
        ...(saved ? { saved } : {}),
      });
    } catch (error) {
      saved?.abandon();
      throw error;
    }
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
        ? await this.events.tables(await this.pull())
        : parseTables(await this.#client.vendor('qKvm.Tables'), this.#info.secondStage).tables;
    } catch (error) {
      if (error instanceof LostError) throw error;
      this.#problem = (error as Error).message;
      if (this.#problem !== this.#said) this.#print(`KVM’s own tables cannot be read: ${this.#problem}\n`);
      this.#said = this.#problem;
    }
  }

  /** Takes the events of until now. @returns how many were lost since the beginning. @throws RspError, LostError */
  async pull(): Promise<number> {
    await this.#pump!.pull();
    return this.#pump!.lost();
  }

  /** Before the machine is let go of. */
  async close(): Promise<void> {
    this.#pump?.stop();
    // A helper that is gone, or hangs, takes nothing away from what it has told.
    const lost = this.#saved && (await within(this.pull(), LAST_MS, '').catch(() => undefined));
    this.#saved?.close(lost);
  }
}
