import { highWord, lowWord } from '../memory/words.ts';
import type { Format } from './compile.ts';
import { type EntryKind, fieldMask } from './format.ts';

export interface Rights {
  readonly write: boolean;
  readonly execute: boolean;
  /** Has no effect in a format without a user bit. */
  readonly user: boolean;
}

export const ALL_RIGHTS: Rights = { write: true, execute: true, user: true };

/** An entry as two words. */
export interface Entry {
  readonly lo: number;
  readonly hi: number;
}

/**
 * Sets fields by name on top of `entry`.
 * @throws RangeError when the format has no such field there or the value does not fit it.
 */
export function withFields(
  format: Format,
  level: number,
  kind: EntryKind,
  entry: bigint,
  values: Readonly<Record<string, number>>,
): bigint {
  for (const [name, value] of Object.entries(values)) {
    const field = format.fields(level, kind).find((candidate) => candidate.name === name);
    if (!field) {
      const names = format.fields(level, kind).map((candidate) => candidate.name);
      throw new RangeError(
        `${format.level(level).entry} has no field ${name}; it has ${[...new Set(names)].join(', ')}`,
      );
    }
    const mask = fieldMask(field);
    const shifted = BigInt(value) << BigInt(field.bits[1]);
    if (value < 0 || (shifted & ~mask) !== 0n)
      throw new RangeError(`${value} does not fit ${name} (bits ${field.bits.join(':')})`);
    entry = (entry & ~mask) | shifted;
  }
  return entry;
}

function rightsBits(format: Format, level: number, kind: EntryKind, rights: Rights): bigint {
  const { roles } = format.spec;
  const on: Record<string, number> = {};
  if (roles.read === undefined) for (const name of roles.present) on[name] = 1;
  else on[roles.read] = 1;
  on[roles.write] = rights.write ? 1 : 0;
  if (roles.user) on[roles.user] = rights.user ? 1 : 0;
  if (roles.execute) on[roles.execute] = rights.execute ? 1 : 0;
  if (roles.noExecute && !rights.execute) on[roles.noExecute] = 1;
  return withFields(format, level, kind, 0n, on);
}

/** A table entry that restricts nothing. */
export function encodeTable(format: Format, level: number, frame: number): Entry {
  const value = rightsBits(format, level, 'table', ALL_RIGHTS) | (BigInt(frame) << 12n);
  return { lo: lowWord(value), hi: highWord(value) };
}

/**
 * A leaf of a level. `extra` sets further fields by name.
 * @throws RangeError when the level cannot hold a leaf or the frame is not aligned to it.
 */
export function encodeLeaf(
  format: Format,
  level: number,
  frame: number,
  rights: Rights,
  extra: Readonly<Record<string, number>> = {},
): Entry {
  if (!format.isLargeLevel(level)) throw new RangeError(`${format.level(level).entry} cannot map a page`);
  if (frame % format.span[level]! !== 0)
    throw new RangeError(`frame 0x${frame.toString(16)} is not aligned to level ${level}`);
  const large = level > 1 ? { [format.spec.roles.largePage]: 1 } : {};
  const value =
    withFields(format, level, 'leaf', rightsBits(format, level, 'leaf', rights), { ...large, ...extra }) |
    (BigInt(frame) << 12n);
  return { lo: lowWord(value), hi: highWord(value) };
}
