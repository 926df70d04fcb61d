import { highWord, lowWord, toBigint } from '../memory/words.ts';
import type { Format } from './compile.ts';
import { ALL_RIGHTS as ALL, type EntryKind, EXEC, fieldMask, READ, USER, WRITE } from './format.ts';

export interface Rights {
  readonly write: boolean;
  readonly execute: boolean;
  /** Has no effect in a format that does not tell users' rights; in arm64 stage 2 it tells of execution alone. */
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

/** Rights as the format counts them. User rights are those of the supervisor, or none. */
function rightsMask(rights: Rights): number {
  const mask = READ | (rights.write ? WRITE : 0) | (rights.execute ? EXEC : 0);
  return rights.user ? mask : mask & ~USER;
}

/** Sets every field that withholds rights to the value that takes the fewest of those wanted and the most of the others. */
function rightsBits(format: Format, level: number, kind: EntryKind, wanted: number): bigint {
  let entry = 0n;
  for (const field of format.fields(level, kind)) {
    if (!field.withholds) continue;
    const [high, low] = field.bits;
    let best = 0;
    let score = Number.NEGATIVE_INFINITY;
    for (let value = 0; value < 2 ** (high - low + 1); value++) {
      const taken = field.withholds[value] ?? 0;
      const points = bitCount(taken & ~wanted) - 8 * bitCount(taken & wanted);
      if (points > score) [best, score] = [value, points];
    }
    entry |= BigInt(best) << BigInt(low);
  }
  return entry;
}

function bitCount(mask: number): number {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++;
  return count;
}

/** The bits that make an entry present, and a table or a leaf. */
function markBits(format: Format, level: number, kind: EntryKind): bigint {
  const { roles, leaf } = format.spec;
  const marks: Record<string, number> = {};
  if (roles.present.length === 1) marks[roles.present[0]!] = 1;
  const [mark] = leaf.fields;
  if (leaf.when === 'clear') marks[mark!] = kind === 'table' || level === 1 ? 1 : 0;
  else if (leaf.fields.length === 1 && kind === 'leaf' && level > 1) marks[mark!] = 1;
  return withFields(format, level, kind, 0n, marks);
}

function addressBits(format: Format, frame: number): bigint {
  return toBigint(format.frameLo(frame), format.frameHi(frame));
}

/** A table entry that restricts nothing. */
export function encodeTable(format: Format, level: number, frame: number): Entry {
  const value = rightsBits(format, level, 'table', ALL) | markBits(format, level, 'table') | addressBits(format, frame);
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
  if (frame > format.lastFrame[level]!)
    throw new RangeError(
      `${format.level(level).entry} cannot map frame 0x${frame.toString(16)}: it has too few address bits`,
    );
  if (frame % format.span[level]! !== 0)
    throw new RangeError(`frame 0x${frame.toString(16)} is not aligned to level ${format.number(level)}`);
  const bits = rightsBits(format, level, 'leaf', rightsMask(rights)) | markBits(format, level, 'leaf');
  const value = withFields(format, level, 'leaf', bits, extra) | addressBits(format, frame);
  return { lo: lowWord(value), hi: highWord(value) };
}

/** The bits of a leaf by which its rights are said. */
export function rightsFields(format: Format, level: number): Entry {
  if (level === 0) return { lo: 0, hi: 0 };
  const mask = format
    .fields(level, 'leaf')
    .filter(({ withholds }) => withholds !== undefined)
    .reduce((bits, field) => bits | fieldMask(field), 0n);
  return { lo: lowWord(mask), hi: highWord(mask) };
}

/** A leaf's attributes, without its address, as a leaf of another level says them. */
export function moveLeaf(format: Format, from: number, to: number, lo: number, hi: number): Entry {
  const { address, addressHigh } = format.spec.roles;
  const { fields: marks, when } = format.spec.leaf;
  let value = 0n;
  const source = toBigint(lo, hi);
  const targets = format.fields(to, 'leaf');
  for (const field of format.fields(from, 'leaf')) {
    if (field.name === address || field.name === addressHigh?.name) continue;
    // Fields keep their names where levels put them at different bits, as the PAT bit of x86.
    const same = targets.filter(({ name }) => name === field.name);
    const target = same.find(({ bits }) => bits[1] === field.bits[1]) ?? same[0];
    if (!target) continue;
    value |= ((source & fieldMask(field)) >> BigInt(field.bits[1])) << BigInt(target.bits[1]);
  }
  if (when === 'clear' || marks.length === 1) {
    const mark = targets.find(({ name }) => marks.includes(name));
    const mask = mark ? fieldMask(mark) : 0n;
    value = (value & ~mask) | (markBits(format, to, 'leaf') & mask);
  }
  return { lo: lowWord(value), hi: highWord(value) };
}
