import {
  attempt,
  type Contents,
  CPUS_MOST,
  limited,
  NAME_MOST,
  OPTION_MOST,
  Option,
  readComms,
  readEventFormats,
  readFtraceFormats,
  readHeaderInfo,
  readOption,
  SECTION_MOST,
} from './dat-contents.ts';
import { TraceError } from './errors.ts';
import { type ByteSource, bytesSource, type Decompress, hexOffset, partOf, SourceReader } from './source.ts';
import { unzstd } from './zstd.ts';

/** Undoes the file's compression. @throws TraceError when that cannot be, or when it is damaged */
export type Undo = (bytes: Uint8Array, size: number) => Uint8Array;

/** What to do about an algorithm that this host lacks is said in the message. */
function undoing(algorithm: string, decompress: Decompress | undefined): Undo {
  return (bytes, size) => {
    let result: Uint8Array | undefined;
    try {
      result = decompress?.(algorithm, bytes, size);
      // What trace-cmd takes unless told otherwise, and older hosts have not.
      if (!result && algorithm === 'zstd') result = unzstd(bytes, size);
    } catch (error) {
      throw new TraceError(`what is compressed with ${algorithm} is damaged: ${(error as Error).message}`);
    }
    if (!result)
      throw new TraceError(
        `the trace.dat is compressed with ${algorithm}, which cannot be undone here; "trace-cmd convert -i FILE -o OTHER --compression none" writes one that is not compressed`,
      );
    if (result.length !== size)
      throw new TraceError(
        `what is compressed with ${algorithm} has ${result.length} bytes, not the ${size} it should`,
      );
    return result;
  };
}

interface Section {
  readonly id: number;
  readonly compressed: boolean;
  /** Of what is behind the header. */
  readonly offset: number;
  readonly size: number;
}

function sectionAt(source: ByteSource, offset: number): Section {
  const reader = new SourceReader(source, offset);
  const id = reader.number(2, 'a section');
  const flags = reader.number(2, `the flags of section ${id}`);
  reader.number(4, `the name of section ${id}`);
  const size = reader.number(8, `the size of section ${id}`);
  return { id, compressed: (flags & 1) !== 0, offset: reader.at, size };
}

/** A section's content, from its beginning. */
function sectionReader(source: ByteSource, offset: number, id: number, undo: Undo): SourceReader {
  const section = sectionAt(source, offset);
  if (section.id !== id) throw new TraceError(`at ${hexOffset(offset)} is section ${section.id}, not ${id}`);
  if (!section.compressed) return new SourceReader(partOf(source, section.offset, section.size), 0, `section ${id}`);
  const reader = new SourceReader(source, section.offset);
  const packed = limited(reader.number(4, `the size of section ${id}`), SECTION_MOST, `the size of section ${id}`);
  const size = limited(reader.number(4, `the size of section ${id}`), SECTION_MOST, `the size of section ${id}`);
  return new SourceReader(
    bytesSource(undo(reader.bytes(packed, `section ${id}`), size)),
    0,
    `the uncompressed section ${id}`,
  );
}

/** Sections by the options that point to them; the numbers are the same. */
const readers: ReadonlyMap<number, (reader: SourceReader, contents: Contents) => void> = new Map([
  [Option.HEADER_INFO, readHeaderInfo],
  [Option.FTRACE_EVENTS, readFtraceFormats],
  [Option.EVENT_FORMATS, readEventFormats],
  [Option.CMDLINES, readComms],
]);

/** Reads what follows the page size. @throws TraceError when the file has no options that can be read */
export function readVersion7(
  source: ByteSource,
  reader: SourceReader,
  contents: Contents,
  decompress: Decompress | undefined,
): Undo {
  const algorithm = reader.string(64, 'the compression’s name');
  reader.string(64, 'the compression’s version');
  const undo = undoing(algorithm, decompress);
  const seen = new Set<number>();
  let next = reader.number(8, 'the place of the options');
  // Options may go on elsewhere, and in a damaged file in a circle.
  while (next !== 0 && !seen.has(next)) {
    seen.add(next);
    const options = sectionReader(source, next, 0, undo);
    next = 0;
    for (;;) {
      const id = options.number(2, 'an option');
      const size = limited(options.number(4, 'the size of an option'), OPTION_MOST, 'the size of an option');
      const data = options.bytes(size, `option ${id}`);
      const option = new SourceReader(bytesSource(data), 0, `option ${id}`);
      if (id === Option.DONE) {
        if (data.length >= 8) next = option.number(8, 'the place of more options');
        break;
      }
      const read = readers.get(id);
      attempt(contents, () => {
        if (read) read(sectionReader(source, option.number(8, `the place of section ${id}`), id, undo), contents);
        else if (id === Option.BUFFER) readBuffer(source, option, contents);
        else if (id === Option.BUFFER_TEXT) {
          const section = sectionReader(source, option.number(8, 'the place of the text'), id, undo);
          contents.texts.push(section.rest());
        } else readOption(id, data, contents);
      });
    }
  }
  return undo;
}

/** One instance: where the pages of its CPUs are. */
function readBuffer(source: ByteSource, option: SourceReader, contents: Contents): void {
  const { compressed } = sectionAt(source, option.number(8, 'the place of a buffer'));
  const name = option.string(NAME_MOST, 'the name of an instance');
  const clock = option.string(NAME_MOST, 'the clock of an instance');
  // The page size is missing in some descriptions of the format, but not in files: what is left tells.
  const pageSize = option.left % CPU_BYTES === 8 ? option.number(4, 'the page size') : undefined;
  const count = limited(option.number(4, 'the number of CPUs'), CPUS_MOST, 'the number of CPUs');
  for (let i = 0; i < count; i++) {
    const cpu = limited(option.number(4, `a CPU of instance "${name}"`), CPUS_MOST, 'a CPU’s number');
    const offset = option.number(8, `the place of the pages of CPU ${cpu}`);
    const size = option.number(8, `the size of the pages of CPU ${cpu}`);
    if (size > 0) contents.clock = clock || contents.clock;
    contents.cpus.push({ cpu, offset, size, compressed, pageSize: pageSize || undefined });
  }
}

/** Of a CPU in the option BUFFER: its number, the place and size of its pages. */
const CPU_BYTES = 20;
