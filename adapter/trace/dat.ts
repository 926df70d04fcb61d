/**
 * The files of trace-cmd, `trace.dat`: version 6, whose parts follow one another, and version 7, whose parts are sections that
 * options point to and that may be compressed (trace-cmd.dat.v6(5), trace-cmd.dat.v7(5)).
 */
import { Recording } from '../../engine/history/recording.ts';
import { attempt, type Contents, type CpuPages } from './dat-contents.ts';
import { ChunkedPages, FilePages } from './dat-pages.ts';
import { readVersion6 } from './dat6.ts';
import { readVersion7, type Undo } from './dat7.ts';
import { TraceError } from './errors.ts';
import { isPageSize } from './layout.ts';
import { Decoders, PageCursor, readPages } from './pages.ts';
import { type ByteSource, type Decompress, hexOffset, SourceReader } from './source.ts';
import { readText } from './text.ts';

/** The first bytes of every trace.dat: 0x17 0x08 0x44 "tracing". */
export const MAGIC = Uint8Array.of(0x17, 0x08, 0x44, 0x74, 0x72, 0x61, 0x63, 0x69, 0x6e, 0x67);

/** Whether bytes begin as a trace.dat does. */
export function isTraceDat(head: Uint8Array): boolean {
  return MAGIC.every((byte, i) => head[i] === byte);
}

/**
 * Reads a trace.dat.
 * @throws TraceError when nothing of it can be used; less than that is among the recording's problems
 */
export function readTraceDat(source: ByteSource, decompress?: Decompress): Recording {
  const reader = new SourceReader(source);
  if (!isTraceDat(reader.bytes(MAGIC.length, 'the magic number')))
    throw new TraceError('the file is not a trace.dat: it does not begin with 17 08 44 "tracing"');
  const version = reader.string(16, 'the version');
  if (version !== '6' && version !== '7')
    throw new TraceError(`the trace.dat is of version ${JSON.stringify(version)}; 6 and 7 can be read`);
  const endian = reader.number(1, 'the byte order');
  if (endian !== 0)
    throw new TraceError(
      endian === 1
        ? 'the trace.dat is of a big-endian machine: only little-endian ones can be read'
        : `the trace.dat’s byte order is ${endian}, neither 0 (little) nor 1 (big)`,
    );
  const long = reader.number(1, 'the size of a long');
  if (long !== 4 && long !== 8) throw new TraceError(`the trace.dat’s long has ${long} bytes, neither 4 nor 8`);
  reader.number(4, 'the page size');
  const contents: Contents = {
    layout: undefined,
    formats: [],
    comms: undefined,
    kernel: undefined,
    clock: undefined,
    tsc: undefined,
    cpus: [],
    texts: [],
    problems: [],
  };
  let undo: Undo | undefined;
  attempt(contents, () => {
    if (version === '6') readVersion6(source, reader, contents);
    else undo = readVersion7(source, reader, contents, decompress);
  });
  return assemble(source, contents, undo);
}

/** Most bytes of pages that are in memory at once, of all CPUs together; and of one CPU. */
const AHEAD_TOGETHER = 1 << 26;
const AHEAD_MOST = 1 << 22;

function assemble(source: ByteSource, contents: Contents, undo: Undo | undefined): Recording {
  const { layout, problems } = contents;
  const used = usedPages(source, contents);
  const [first] = contents.texts;
  if (used.length === 0 && first) return finish(readText(first), contents);
  if (!layout || contents.formats.length === 0 || used.length === 0) {
    const lacks = !layout
      ? 'no header_page'
      : contents.formats.length === 0
        ? 'no format of an event'
        : 'no pages of any CPU';
    throw new TraceError([`the trace.dat has ${lacks}`, ...problems.slice(0, 3)].join('; '));
  }
  const recording = new Recording('trace.dat');
  const decoders = new Decoders(recording, contents.formats);
  const ahead = Math.min(AHEAD_MOST, Math.floor(AHEAD_TOGETHER / used.length));
  const cursors = used.map((pages) => {
    const own = { ...layout, pageSize: pages.pageSize ?? layout.pageSize };
    const from =
      pages.compressed && undo
        ? new ChunkedPages(source, pages, own.pageSize, undo, problems)
        : new FilePages(source, pages, own.pageSize, ahead, problems);
    return new PageCursor(pages.cpu, from, decoders, own);
  });
  readPages(cursors, decoders);
  decoders.report();
  return finish(recording, contents);
}

/** The pages that the file can have: of a damaged one, tables may say anything. */
function usedPages(source: ByteSource, contents: Contents): CpuPages[] {
  let left = source.size;
  return contents.cpus.filter(({ cpu, size, offset, pageSize }) => {
    if (size === 0) return false;
    const badPage = pageSize !== undefined && !isPageSize(pageSize);
    const fits = offset < source.size && left > 0 && !badPage;
    if (!fits)
      contents.problems.push(
        `the pages of CPU ${cpu} are left out: they should be ${size} bytes at ${hexOffset(offset)}${badPage ? `, in pages of ${pageSize}` : ''}, of a file of ${source.size}`,
      );
    left -= size;
    return fits;
  });
}

/** Adds what the file says besides its events. */
function finish(recording: Recording, contents: Contents): Recording {
  recording.kernel = contents.kernel;
  recording.clock = contents.clock;
  // "PID NAME" lines, as tracefs's saved_cmdlines has them.
  for (const [, pid, comm] of (contents.comms ?? '').matchAll(/^(\d{1,10}) (.+)$/gm))
    recording.name(Number(pid), comm!);
  if (contents.tsc) recording.rescale(contents.tsc.multiplier, contents.tsc.shift);
  recording.problems.push(...contents.problems);
  const { late } = recording.settle();
  if (late > 0) recording.problems.push(`${late} events stand behind later ones of their CPU, and were put in order`);
  return recording;
}
