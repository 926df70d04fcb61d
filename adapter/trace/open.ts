import type { Recording } from '../../engine/history/recording.ts';
import { isTraceDat, MAGIC, readTraceDat } from './dat.ts';
import { TraceError } from './errors.ts';
import { type ByteSource, bytesSource, type Decompress } from './source.ts';
import { readText } from './text.ts';

/** What files begin with that people take for recordings, and what is to be done about them. */
const others: readonly (readonly [head: string, words: string])[] = [
  ['PERFILE2', 'it is a perf.data: "perf script" makes text of it that can be read'],
  ['\x7fELF', 'it is an ELF file'],
  ['\x1f\x8b', 'it is compressed with gzip'],
  ['\x28\xb5\x2f\xfd', 'it is compressed with zstd'],
  ['\xfd7zXZ', 'it is compressed with xz'],
  ['\xff\xd8\xff', 'it is a JPEG'],
  ['\x89PNG', 'it is a PNG'],
  ['PK\x03\x04', 'it is a zip archive'],
];

const HEAD = 64;

/**
 * Reads a recording, whatever it is: a trace.dat of trace-cmd, or text of tracefs, `trace-cmd report` or `perf script`. What is wrong
 * with it without making it useless is among its problems.
 * @param decompress undoes the compression of a trace.dat of version 7, where the host can
 * @throws TraceError when it is no recording, or nothing of it can be used
 */
export function openRecording(from: Uint8Array | ByteSource, decompress?: Decompress): Recording {
  const source = from instanceof Uint8Array ? bytesSource(from) : from;
  if (source.size === 0) throw new TraceError('the file is not a trace: it is empty');
  const head = source.read(0, HEAD);
  if (isTraceDat(head)) return readTraceDat(source, decompress);
  const latin = String.fromCharCode(...head);
  const other = others.find(([begin]) => latin.startsWith(begin));
  if (other) throw new TraceError(`the file is not a trace: ${other[1]}`);
  if (head.length < MAGIC.length && MAGIC.subarray(0, head.length).every((byte, i) => head[i] === byte))
    throw new TraceError(`the file is the first ${head.length} bytes of a trace.dat`);
  const recording = readText(source);
  if (recording.length > 0 || recording.unknown.size > 0) return recording;
  const why = recording.problems[0] ? `; ${recording.problems[0]}` : '';
  throw new TraceError(`the file is not a trace: it begins with ${shown(head)}${why}`);
}

/** The first bytes, as text where they are some. */
function shown(head: Uint8Array): string {
  const some = head.subarray(0, 24);
  if (some.every((byte) => (byte >= 0x20 && byte < 0x7f) || byte === 9 || byte === 10 || byte === 13))
    return JSON.stringify(String.fromCharCode(...some));
  return Array.from(some.subarray(0, 12), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
}
