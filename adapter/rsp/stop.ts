import { quote, RspError, wordsOf } from './packet.ts';

/** Why the helper stopped a vCPU (native/PROTOCOL.md, "Why a vCPU stopped"). */
const REASONS = [
  'start',
  'pause',
  'step',
  'breakpoint',
  'guest-pf',
  'second-stage',
  'mmio',
  'read-only',
  'port',
  'halt',
  'shutdown',
  'memory-fault',
  'hypercall',
  'emulation',
  'error',
] as const;
const ACCESSES = ['read', 'write', 'fetch'] as const;
const TRAPS = ['missing', 'minor', 'write-protected'] as const;

/** The `kvm:` part of a stop reply. A field that is absent was not said. */
export interface KvmStop {
  readonly reason: (typeof REASONS)[number];
  readonly access?: (typeof ACCESSES)[number];
  readonly gva?: bigint;
  readonly gpa?: bigint;
  /** Of the instruction that made the access. */
  readonly rip?: bigint;
  /** #PF error code. */
  readonly error?: number;
  readonly cpl?: number;
  /** Bytes of an MMIO or port access, and its value. */
  readonly size?: number;
  readonly data?: bigint;
  readonly port?: number;
  readonly trap?: (typeof TRAPS)[number];
  /** Whether the instruction has run. */
  readonly completed?: boolean;
  /** Names of fields that KVM or the processor said, and of those that the helper worked out. */
  readonly exact: readonly string[];
  readonly derived: readonly string[];
  readonly errno?: number;
  /** Of `error`: what has happened, for people. */
  readonly words?: string;
}

/** A thread has stopped: a vCPU, where the stub is the helper. */
export interface StoppedEvent {
  readonly kind: 'stopped';
  /** As the stub names it; undefined when it did not say. */
  readonly thread: string | undefined;
  readonly signal: number;
  readonly kvm?: KvmStop;
}

/** The machine has ended: with a status, or by a signal. */
export interface ExitedEvent {
  readonly kind: 'exited';
  readonly status?: number;
  readonly signal?: number;
}

export type StopEvent = StoppedEvent | ExitedEvent;

/** `T05thread:1;…`, `S05`, `W00`, `X09` (GDB manual, E.3 "Stop Reply Packets"). @throws RspError */
export function parseStop(reply: string): StopEvent {
  const [, kind, digits, rest] = /^([TSWX])([0-9a-f]{2})(.*)$/is.exec(reply) ?? [];
  if (kind === undefined) throw new RspError(`${quote(reply)} is no stop reply: T, S, W or X and two digits begin one`);
  const number = Number.parseInt(digits!, 16);
  if (kind === 'W') return { kind: 'exited', status: number };
  if (kind === 'X') return { kind: 'exited', signal: number };
  let thread: string | undefined;
  let kvm: KvmStop | undefined;
  for (const pair of kind === 'T' ? rest!.split(';') : []) {
    const colon = pair.indexOf(':');
    const name = pair.slice(0, colon);
    if (name === 'thread') thread = pair.slice(colon + 1);
    else if (name === 'kvm') kvm = parseKvmStop(pair.slice(colon + 1));
  }
  return { kind: 'stopped', thread, signal: number, ...(kvm === undefined ? {} : { kvm }) };
}

/** `reason=guest-pf,gva=1000,…`. Names that are not known here are a newer helper's, and left alone. @throws RspError */
export function parseKvmStop(text: string): KvmStop {
  // Words may have commas: they reach to the end.
  const [, pairs, words] = /^(.*?)(?:,words=(.*))?$/s.exec(text)!;
  const fields = new Map(
    pairs!.split(',').map((pair): [string, string] => {
      const equals = pair.indexOf('=');
      if (equals < 1) throw new RspError(`${quote(pair)} in a stop’s kvm: field is not name=value`);
      return [pair.slice(0, equals), pair.slice(equals + 1)];
    }),
  );
  const big = <K extends string>(name: K) => optional(fields, name, hexField);
  const small = <K extends string>(name: K) => optional(fields, name, (at, value) => Number(hexField(at, value)));
  const reason = fields.get('reason');
  if (reason === undefined) throw new RspError(`a stop’s kvm: field ${quote(text)} has no reason`);
  return {
    reason: oneOf(REASONS, 'reason', reason),
    ...optional(fields, 'access', (name, value) => oneOf(ACCESSES, name, value)),
    ...big('gva'),
    ...big('gpa'),
    ...big('rip'),
    ...small('error'),
    ...small('cpl'),
    ...small('size'),
    ...big('data'),
    ...small('port'),
    ...optional(fields, 'trap', (name, value) => oneOf(TRAPS, name, value)),
    ...optional(fields, 'completed', (name, value) => oneOf(['0', '1'], name, value) === '1'),
    exact: names(fields.get('exact')),
    derived: names(fields.get('derived')),
    ...small('errno'),
    ...(words === undefined ? {} : { words: wordsOf(words) }),
  };
}

function optional<K extends string, T>(
  fields: ReadonlyMap<string, string>,
  name: K,
  read: (name: string, value: string) => T,
): { [P in K]?: T } {
  const value = fields.get(name);
  const found: { [P in K]?: T } = {};
  if (value !== undefined) found[name] = read(name, value);
  return found;
}

function hexField(name: string, value: string): bigint {
  if (!/^[0-9a-f]{1,16}$/i.test(value))
    throw new RspError(`${name}=${quote(value)} in a stop’s kvm: field is no number of at most 16 hexadecimal digits`);
  return BigInt(`0x${value}`);
}

function oneOf<T extends string>(among: readonly T[], name: string, value: string): T {
  const found = among.find((candidate) => candidate === value);
  if (found === undefined)
    throw new RspError(`${name}=${quote(value)} in a stop’s kvm: field is none of ${among.join(', ')}`);
  return found;
}

function names(value: string | undefined): string[] {
  return value === undefined || value === '' ? [] : value.split('+');
}
