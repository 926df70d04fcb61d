import { XMLParser } from 'fast-xml-parser';
import { quote, RspError } from './packet.ts';

/** A register of a target description, and where a `g` packet has it. */
export interface RegisterPlace {
  readonly name: string;
  /** As `p` and `P` number it. */
  readonly number: number;
  /** In the bytes of a `g` packet. */
  readonly offset: number;
  readonly bytes: number;
}

/**
 * Registers of a target description (GDB manual, G.2), in the order of their numbers: a register without `regnum` has the
 * number after the one before it, and a `g` packet has them in that order without gaps. A description that includes others
 * (`xi:include`) is to be put together first.
 *
 * @throws RspError
 */
export function parseTargetDescription(xml: string): RegisterPlace[] {
  const parser = new XMLParser({
    ignoreAttributes: false,
    attributeNamePrefix: '',
    parseAttributeValue: false,
    isArray: (name) => name === 'feature' || name === 'reg',
  });
  let parsed: unknown;
  try {
    parsed = parser.parse(xml, true);
  } catch (error) {
    throw new RspError(`the target description is not XML: ${(error as Error).message}`);
  }
  const found: { name: string; number: number; bytes: number }[] = [];
  let next = 0;
  for (const feature of list(member(member(parsed, 'target'), 'feature'))) {
    for (const reg of list(member(feature, 'reg'))) {
      const name = attribute(reg, 'name');
      if (name === undefined) throw new RspError(`register ${next} of the target description has no name`);
      const bits = whole(attribute(reg, 'bitsize'), `bitsize of register ${name}`);
      if (bits === 0 || bits % 8 !== 0)
        throw new RspError(`register ${name} of the target description has ${bits} bits, not a number of bytes`);
      const written = attribute(reg, 'regnum');
      const number = written === undefined ? next : whole(written, `regnum of register ${name}`);
      found.push({ name, number, bytes: bits / 8 });
      next = number + 1;
    }
  }
  if (found.length === 0) throw new RspError('the target description has no registers');
  found.sort((a, b) => a.number - b.number);
  let offset = 0;
  return found.map(({ name, number, bytes }) => {
    const place = { name, number, offset, bytes };
    offset += bytes;
    return place;
  });
}

function member(from: unknown, name: string): unknown {
  return typeof from === 'object' && from !== null
    ? Object.entries(from).find(([key]) => key === name)?.[1]
    : undefined;
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function attribute(from: unknown, name: string): string | undefined {
  const value = member(from, name);
  return typeof value === 'string' ? value : undefined;
}

function whole(text: string | undefined, what: string): number {
  if (text === undefined || !/^\d{1,6}$/.test(text))
    throw new RspError(`${what} in the target description is ${quote(text ?? 'missing')}, not a whole number`);
  return Number(text);
}

/** A register's value in the bytes of a `g` packet, little-endian. @throws RspError when the packet ends before it */
export function readRegister(bytes: Uint8Array, { name, offset, bytes: size }: RegisterPlace): bigint {
  if (offset + size > bytes.length)
    throw new RspError(`register ${name} would end at byte ${offset + size} of registers that have ${bytes.length}`);
  let value = 0n;
  for (let at = offset + size - 1; at >= offset; at--) value = (value << 8n) | BigInt(bytes[at]!);
  return value;
}

/** A value as a register's bytes, little-endian. @throws RspError when the register has no room for it */
export function registerBytes({ name, bytes: size }: RegisterPlace, value: bigint): Uint8Array {
  if (value < 0n || value >> BigInt(8 * size) !== 0n)
    throw new RspError(`0x${value.toString(16)} does not fit register ${name}, which has ${8 * size} bits`);
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at++) bytes[at] = Number((value >> BigInt(8 * at)) & 0xffn);
  return bytes;
}
