import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import * as zlib from 'node:zlib';
import type { Recording } from '../../engine/history/recording.ts';
import { TraceError } from './errors.ts';
import { openRecording } from './open.ts';
import type { ByteSource, Decompress } from './source.ts';

/**
 * Reads a recording from a file, of any size.
 * @throws TraceError whose message names the file
 */
export function readRecordingFile(path: string): Recording {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (error) {
    throw new TraceError(`cannot read ${path}: ${(error as Error).message}`);
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new TraceError(`${path} is not a file`);
    return openRecording(fileSource(path, fd, stat.size), decompress);
  } catch (error) {
    if (!(error instanceof TraceError) || error.message.includes(path)) throw error;
    throw new TraceError(
      error.message.startsWith('the file') ? error.message.replace('the file', path) : `${path}: ${error.message}`,
    );
  } finally {
    closeSync(fd);
  }
}

function fileSource(path: string, fd: number, size: number): ByteSource {
  return {
    size,
    read(offset, length) {
      const bytes = Buffer.allocUnsafe(Math.max(0, Math.min(length, size - offset)));
      let done = 0;
      while (done < bytes.length) {
        let count: number;
        try {
          count = readSync(fd, bytes, done, bytes.length - done, offset + done);
        } catch (error) {
          throw new TraceError(`cannot read ${path} at offset ${offset + done}: ${(error as Error).message}`);
        }
        if (count === 0) break;
        done += count;
      }
      return bytes.subarray(0, done);
    },
  };
}

/** zstd is in Node's zlib since 22.15. */
const zstd = (zlib as { zstdDecompressSync?: (bytes: Uint8Array, options: { maxOutputLength: number }) => Uint8Array })
  .zstdDecompressSync;

/** What this Node can undo; undefined for another algorithm. */
export const decompress: Decompress = (algorithm, bytes, size) => {
  // One more than it should be shows that it is too long, and does not fill memory.
  const options = { maxOutputLength: size + 1 };
  if (algorithm === 'zlib') return zlib.inflateSync(bytes, options);
  if (algorithm === 'zstd') return zstd?.(bytes, options);
  return undefined;
};
