import { Recording } from '../../engine/history/recording.ts';
import type { EventFormat } from './format.ts';
import { type PageLayout, USUAL_LAYOUT } from './layout.ts';
import { Decoders, merge, PageCursor, type PageSource } from './pages.ts';

/** Pages that wait to be read. */
class PageQueue implements PageSource {
  readonly #pages: Uint8Array[] = [];
  #given = 0;

  get last(): Uint8Array | undefined {
    return this.#pages.at(-1);
  }

  add(bytes: Uint8Array, pageSize: number): void {
    for (let at = 0; at < bytes.length; at += pageSize) this.#pages.push(bytes.subarray(at, at + pageSize));
  }

  next(): Uint8Array | undefined {
    const page = this.#pages.shift();
    if (page) this.#given++;
    return page;
  }

  place(): string {
    return `page ${this.#given}`;
  }
}

interface Cpu {
  readonly cursor: PageCursor;
  readonly queue: PageQueue;
  begun: boolean;
}

/**
 * A recording that grows while it is made. Pages arrive in batches: {@link appendPages} for each CPU that has some, then
 * {@link commit}.
 *
 * Order: within a batch, events of all CPUs are merged by time. What a batch brings that is older than what is stored is
 * inserted where it belongs, so that the recording is in order after every commit; `commit` says from which index on it is
 * another. With `hold`, events stay back that are newer than the last one of the slowest CPU of the batch, which makes
 * such insertions rare: a CPU that delivered nothing may still bring older events later, since it is not waited for.
 */
export class LivePages {
  readonly recording = new Recording('pages');
  readonly #decoders: Decoders;
  readonly #layout: PageLayout;
  readonly #cpus = new Map<number, Cpu>();
  /** CPUs that have delivered since the last commit. */
  readonly #delivered = new Set<Cpu>();
  /** Cursors with a record that was held back. */
  #waiting: PageCursor[] = [];
  #origin: bigint | undefined;
  /** What is taken off times, so that the event stored first has time 0. */
  #shift: number | undefined;

  constructor(formats: readonly EventFormat[], layout: PageLayout = USUAL_LAYOUT) {
    this.#layout = layout;
    this.#decoders = new Decoders(this.recording, formats);
  }

  /**
   * Adds what reading a CPU's `trace_pipe_raw` gave: whole pages, of which the last may be shorter. The bytes must not change
   * until their events are stored.
   */
  appendPages(cpu: number, bytes: Uint8Array): void {
    let found = this.#cpus.get(cpu);
    if (!found) {
      const queue = new PageQueue();
      found = { queue, cursor: new PageCursor(cpu, queue, this.#decoders, this.#layout), begun: false };
      this.#cpus.set(cpu, found);
    }
    if (bytes.length === 0) return;
    found.queue.add(bytes, this.#layout.pageSize);
    this.#delivered.add(found);
  }

  /**
   * Stores what was added.
   * @param hold keeps back what may not be in order yet; the next commit takes it up
   * @returns the lowest index whose event is new or another
   */
  commit(hold = false): number {
    const until = hold ? this.#slowest() : Number.POSITIVE_INFINITY;
    const ready = new Set(this.#waiting);
    const fresh = [...this.#delivered].filter((cpu) => !ready.has(cpu.cursor));
    this.#delivered.clear();
    const opened = fresh.map((cpu) => ({ cpu, time: cpu.begun ? undefined : cpu.cursor.open() }));
    for (const { time } of opened) {
      if (time !== undefined && this.#origin === undefined) this.#origin = time;
    }
    for (const { cpu, time } of opened) {
      if (!cpu.begun && time === undefined) continue;
      const has = cpu.begun ? cpu.cursor.advance() : cpu.cursor.begin(this.#origin!);
      cpu.begun = true;
      if (has) ready.add(cpu.cursor);
    }
    this.#waiting = merge(
      [...ready],
      (cursor) => {
        if (this.#shift === undefined) {
          this.#shift = cursor.time;
          this.recording.base = this.#origin! + BigInt(cursor.time);
        }
        cursor.store(this.#shift);
      },
      until,
    );
    this.#decoders.report();
    return this.recording.settle().from;
  }

  /** Behind the last record of the CPU whose last record is the earliest, of those that have delivered. */
  #slowest(): number {
    let least = Number.POSITIVE_INFINITY;
    for (const { queue, cpu } of [...this.#delivered].map((each) => ({ queue: each.queue, cpu: each.cursor.cpu }))) {
      const page = queue.last;
      if (!page) continue;
      const pages = [page];
      const nothing = new Decoders(new Recording('pages'), []);
      const cursor = new PageCursor(cpu, { next: () => pages.pop(), place: () => '' }, nothing, this.#layout);
      const time = cursor.open();
      if (time === undefined) continue;
      this.#origin ??= time;
      cursor.begin(this.#origin);
      least = Math.min(least, cursor.now + 1);
    }
    return least;
  }
}
