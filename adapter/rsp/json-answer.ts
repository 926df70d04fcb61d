import { RspError } from './packet.ts';

/** Readers of a packet's answer that is JSON. All throw an RspError that names the member and what it holds. */
export interface JsonAnswer {
  /** The whole, an object. */
  parse(text: string): Record<string, unknown>;
  /** An object within it; `what` it is, for the message. */
  record(value: unknown, what: string): Record<string, unknown>;
  list(from: Record<string, unknown>, name: string): readonly unknown[];
  count(from: Record<string, unknown>, name: string): number;
  words(from: Record<string, unknown>, name: string): string;
  /** 64 bits, as `"0x…"`. */
  address(from: Record<string, unknown>, name: string): bigint;
}

export function jsonAnswer(packet: string): JsonAnswer {
  const refuse = (what: string, value: unknown, wanted: string): never => {
    throw new RspError(`${what}the answer to ${packet} is ${shown(value)}, not ${wanted}`);
  };
  const object = (what: string, value: unknown): Record<string, unknown> => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return refuse(what, value, 'an object');
    return Object.fromEntries(Object.entries(value));
  };
  const words: JsonAnswer['words'] = (from, name) => {
    const value = from[name];
    return typeof value === 'string' ? value : refuse(`${name} in `, value, 'text');
  };
  return {
    parse(text) {
      let value: unknown;
      try {
        value = JSON.parse(text);
      } catch (error) {
        throw new RspError(`the answer to ${packet} is not JSON: ${(error as Error).message}`);
      }
      return object('', value);
    },
    record: (value, what) => object(`${what} in `, value),
    list(from, name) {
      const value = from[name];
      return Array.isArray(value) ? value : refuse(`${name} in `, value, 'a list');
    },
    count(from, name) {
      const value = from[name];
      return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
        ? value
        : refuse(`${name} in `, value, 'a whole number from 0');
    },
    words,
    address(from, name) {
      const value = words(from, name);
      return /^0x[0-9a-f]{1,16}$/i.test(value)
        ? BigInt(value)
        : refuse(`${name} in `, value, '"0x…" of at most 64 bits');
    },
  };
}

/** A value for a message. */
function shown(value: unknown): string {
  if (value === undefined) return 'missing';
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}
