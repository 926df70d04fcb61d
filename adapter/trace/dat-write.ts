import { MAGIC } from './dat.ts';
import { Option } from './dat-contents.ts';
import { TraceError } from './errors.ts';
import { parseHeaderPage } from './layout.ts';

/** What a trace.dat is made of. Texts are those of tracefs, unchanged. */
export interface TraceDatParts {
  /** `events/SYSTEM/NAME/format` of the events that the pages have, and of others if there are more. */
  readonly formats: readonly { readonly system: string; readonly text: string }[];
  /** `events/header_page` and `events/header_event`. */
  readonly headerPage: string;
  readonly headerEvent: string;
  /** By the number of the CPU: its pages in their order, as `trace_pipe_raw` gives them; what is shorter than a page is filled up. */
  readonly cpus: readonly (readonly Uint8Array[])[];
  /** Threads' names. */
  readonly comms: ReadonlyMap<number, string>;
  /** `/proc/kallsyms`, so that functions have names. */
  readonly kallsyms?: string;
  /** As `uname -sr` and the machine say it: `Linux HOST 6.18.0 x86_64`. */
  readonly uname: string;
  /** The trace clock: `local`, `mono`. */
  readonly clock: string;
}

/** Size and bytes that are written as one. */
class Growing {
  readonly #chunks: Uint8Array[] = [];
  length = 0;

  number(size: 1 | 2 | 4 | 8, value: number): void {
    const bytes = new Uint8Array(size);
    const view = new DataView(bytes.buffer);
    if (size === 8) view.setBigUint64(0, BigInt(value), true);
    else if (size === 4) view.setUint32(0, value, true);
    else if (size === 2) view.setUint16(0, value, true);
    else view.setUint8(0, value);
    this.bytes(bytes);
  }

  bytes(bytes: Uint8Array): void {
    this.#chunks.push(bytes);
    this.length += bytes.length;
  }

  /** Text and a NUL. */
  string(text: string): void {
    this.bytes(utf8(`${text}\0`));
  }

  /** Text behind its length. */
  sized(size: 4 | 8, text: string): void {
    const bytes = utf8(text);
    this.number(size, bytes.length);
    this.bytes(bytes);
  }

  whole(): Uint8Array {
    const whole = new Uint8Array(this.length);
    let at = 0;
    for (const chunk of this.#chunks) {
      whole.set(chunk, at);
      at += chunk.length;
    }
    return whole;
  }
}

const encoder = new TextEncoder();
const utf8 = (text: string): Uint8Array => encoder.encode(text);

/**
 * A trace.dat of version 6, which every trace-cmd reads (trace-cmd.dat.v6(5)), in chunks that are to be written one behind the
 * other.
 * @throws TraceError when header_page has a layout that this debugger cannot read itself, or a page is longer than it says
 */
export function* writeTraceDat(parts: TraceDatParts): Generator<Uint8Array> {
  const { pageSize } = parseHeaderPage(parts.headerPage);
  const head = new Growing();
  head.bytes(MAGIC);
  head.string('6');
  head.number(1, 0); // little-endian
  head.number(1, 8); // bytes of a long
  head.number(4, pageSize);
  head.string('header_page');
  head.sized(8, parts.headerPage);
  head.string('header_event');
  head.sized(8, parts.headerEvent);
  head.number(4, 0); // ftrace's own events
  const systems = new Map<string, string[]>();
  for (const { system, text } of parts.formats) systems.set(system, [...(systems.get(system) ?? []), text]);
  head.number(4, systems.size);
  for (const [system, texts] of systems) {
    head.string(system);
    head.number(4, texts.length);
    for (const text of texts) head.sized(8, text);
  }
  head.sized(4, parts.kallsyms ?? '');
  head.sized(4, ''); // trace_printk's formats
  head.sized(8, [...parts.comms].map(([pid, comm]) => `${pid} ${comm.replace(/\n/g, ' ')}\n`).join(''));
  head.number(4, parts.cpus.length);
  head.bytes(utf8('options  \0'));
  option(head, Option.TRACECLOCK, `[${parts.clock}]\n`);
  option(head, Option.UNAME, parts.uname);
  head.number(2, Option.DONE);
  head.bytes(utf8('flyrecord\0'));
  // Where a clock is among the options it stands again behind the table of CPUs.
  const clock = new Growing();
  clock.sized(8, `[${parts.clock}]`);
  let offset = roundUp(head.length + 16 * parts.cpus.length + clock.length, pageSize);
  const begin = offset;
  for (const [cpu, pages] of parts.cpus.entries()) {
    const long = pages.find((page) => page.length > pageSize);
    if (long)
      throw new TraceError(`a page of CPU ${cpu} has ${long.length} bytes, more than the ${pageSize} of header_page`);
    head.number(8, offset);
    head.number(8, pages.length * pageSize);
    offset += pages.length * pageSize;
  }
  head.bytes(clock.whole());
  yield head.whole();
  yield new Uint8Array(begin - head.length);
  for (const page of parts.cpus.flat()) {
    yield page;
    if (page.length < pageSize) yield new Uint8Array(pageSize - page.length);
  }
}

function option(head: Growing, id: number, text: string): void {
  head.number(2, id);
  head.sized(4, `${text}\0`);
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}
