/** What both versions of trace.dat have, and what a file of either says before its pages are read. */
import { TraceError } from './errors.ts';
import { type EventFormat, parseFormat } from './format.ts';
import { type PageLayout, parseHeaderPage } from './layout.ts';
import { type ByteSource, hexOffset, type SourceReader, text } from './source.ts';

/** Options of both versions, and of version 7 those that say where a section is, which has the same number. */
export const Option = {
  DONE: 0,
  DATE: 1,
  CPUSTAT: 2,
  BUFFER: 3,
  TRACECLOCK: 4,
  UNAME: 5,
  OFFSET: 7,
  CPUCOUNT: 8,
  VERSION: 9,
  TIME_SHIFT: 12,
  TSC2NSEC: 14,
  HEADER_INFO: 16,
  FTRACE_EVENTS: 17,
  EVENT_FORMATS: 18,
  CMDLINES: 21,
  BUFFER_TEXT: 22,
} as const;

/** A format file of the kernel has far less. */
const FORMAT_MOST = 1 << 20;
const CMDLINES_MOST = 1 << 26;
export const OPTION_MOST = 1 << 24;
/** Uncompressed: event formats of a kernel with everything are some 4 MiB. */
export const SECTION_MOST = 1 << 28;
export const NAME_MOST = 4096;
export const CPUS_MOST = 1 << 16;
export const INSTANCES_MOST = 1024;
const COUNT_MOST = 1 << 20;

/** Where the pages of one CPU lie. */
export interface CpuPages {
  readonly cpu: number;
  readonly offset: number;
  readonly size: number;
  /** They lie in chunks that are compressed. */
  readonly compressed: boolean;
  /** Undefined: what header_page says. */
  readonly pageSize: number | undefined;
}

/** What a trace.dat says, before its pages are read. */
export interface Contents {
  layout: PageLayout | undefined;
  readonly formats: EventFormat[];
  comms: string | undefined;
  kernel: string | undefined;
  clock: string | undefined;
  tsc: { multiplier: number; shift: number } | undefined;
  /** CPUs of all instances: their events make one recording. */
  readonly cpus: CpuPages[];
  /** Text in place of pages ("latency"). */
  readonly texts: ByteSource[];
  readonly problems: string[];
}

/** Runs what may find the file damaged; what was read before that is kept. */
export function attempt(contents: Contents, run: () => void): void {
  try {
    run();
  } catch (error) {
    if (!(error instanceof TraceError)) throw error;
    // One cause may show at several places.
    if (!contents.problems.includes(error.message)) contents.problems.push(error.message);
  }
}

export function limited(value: number, most: number, what: string): number {
  if (value > most) throw new TraceError(`${what} is ${value}, more than the ${most} that are accepted`);
  return value;
}

export function readHeaderInfo(reader: SourceReader, contents: Contents): void {
  const at = reader.at;
  if (reader.string(16, 'the label header_page') !== 'header_page')
    throw new TraceError(`at ${hexOffset(at)} should be "header_page"`);
  const size = limited(reader.number(8, 'the size of header_page'), FORMAT_MOST, 'the size of header_page');
  contents.layout = parseHeaderPage(reader.text(size, 'header_page'));
  const then = reader.at;
  if (reader.string(16, 'the label header_event') !== 'header_event')
    throw new TraceError(`at ${hexOffset(then)} should be "header_event"`);
  reader.skip(reader.number(8, 'the size of header_event'), 'header_event');
}

function readFormat(reader: SourceReader, contents: Contents, system: string): void {
  const size = limited(reader.number(8, 'the size of a format'), FORMAT_MOST, 'the size of a format');
  const written = reader.text(size, 'a format');
  attempt(contents, () => contents.formats.push(parseFormat(written, system)));
}

export function readFtraceFormats(reader: SourceReader, contents: Contents): void {
  const count = limited(
    reader.number(4, 'the number of ftrace’s formats'),
    COUNT_MOST,
    'the number of ftrace’s formats',
  );
  for (let i = 0; i < count; i++) readFormat(reader, contents, 'ftrace');
}

export function readEventFormats(reader: SourceReader, contents: Contents): void {
  const systems = limited(reader.number(4, 'the number of systems'), COUNT_MOST, 'the number of systems');
  for (let i = 0; i < systems; i++) {
    const system = reader.string(NAME_MOST, 'the name of a system');
    const count = limited(reader.number(4, `the number of events of ${system}`), COUNT_MOST, 'the number of events');
    for (let k = 0; k < count; k++) readFormat(reader, contents, system);
  }
}

export function readComms(reader: SourceReader, contents: Contents): void {
  const size = limited(
    reader.number(8, 'the size of the threads’ names'),
    CMDLINES_MOST,
    'the size of the threads’ names',
  );
  contents.comms = reader.text(size, 'the threads’ names');
}

/** An option that both versions have. */
export function readOption(id: number, data: Uint8Array, contents: Contents): void {
  switch (id) {
    case Option.UNAME:
      contents.kernel ??= text(data).trim();
      break;
    case Option.TRACECLOCK:
      // "local [mono] boot": the one in use is in brackets.
      contents.clock ??= /\[([^\]]+)\]/.exec(text(data))?.[1];
      break;
    case Option.CPUSTAT: {
      const stats = text(data);
      const cpu = /^CPU: (\d+)/m.exec(stats)?.[1];
      for (const [, what, count] of stats.matchAll(/^(overrun|commit overrun|dropped events): ([1-9]\d*)$/gm))
        contents.problems.push(`CPU ${cpu ?? '?'}: the kernel counted ${count} events lost (${what})`);
      break;
    }
    case Option.TSC2NSEC: {
      if (data.length < 8) break;
      const view = new DataView(data.buffer, data.byteOffset, data.length);
      const shift = view.getUint32(4, true);
      if (shift < 64) contents.tsc = { multiplier: view.getUint32(0, true), shift };
      break;
    }
    case Option.OFFSET:
    case Option.TIME_SHIFT:
      contents.problems.push(
        `the file’s ${id === Option.OFFSET ? 'time offset' : 'time shift'} is not applied: times are the clock’s own`,
      );
      break;
  }
}
