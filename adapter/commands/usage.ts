import { parseArgs } from 'node:util';

/** The command was given something it cannot use: exit status 2. */
export class UsageError extends Error {
  /** `run` is bundled apart and has a class of its own: by its name it is the same. */
  override readonly name = 'UsageError';
}

/** Options as they are declared. @throws UsageError naming the one that is unknown or lacks its value. */
export function readOptions<T extends NonNullable<Parameters<typeof parseArgs>[0]>>(config: T) {
  try {
    return parseArgs(config);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** A number as people write it, in decimal or hexadecimal, with `_` between digits. @throws UsageError */
export function readNumber(written: string, what: string): bigint {
  if (!/^(0x[0-9a-f_]+|\d[\d_]*)$/i.test(written))
    throw new UsageError(`${what} must be a number, such as 0x1000, not ${written}`);
  const value = BigInt(written.replaceAll('_', ''));
  if (value >= 1n << 64n) throw new UsageError(`${what} ${written} has more than 64 bits`);
  return value;
}
