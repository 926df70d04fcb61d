import type { Answer, AttributesQuery, Query, StopAnswer, TableQuery } from './answers.ts';

/** What a view asks and hears. The extension relays it unread; the adapter checks requests with `parseRequest`. */
export type ViewRequest =
  /** Keeps the answer current: it comes now and whenever it changes. A `watch` with the same id replaces the query. */
  | { readonly type: 'watch'; readonly id: string; readonly query: Query }
  | { readonly type: 'unwatch'; readonly id: string }
  /** Goes to a moment of a recording: after so many events. */
  | { readonly type: 'seek'; readonly position: number };

export type ViewEvent =
  /** Answers that are new or have changed. */
  | { readonly type: 'changed'; readonly answers: readonly { readonly id: string; readonly answer: Answer }[] }
  /** The session stopped, here and so. */
  | { readonly type: 'stopped'; readonly stop: StopAnswer }
  /** It runs: what is shown is the last stop. */
  | { readonly type: 'running' }
  | { readonly type: 'ended' };

/** From one view to another, through the extension: shows a table among the Page Tables. The adapter never hears of it. */
export interface ShowTable {
  readonly type: 'show-table';
  readonly table: TableQuery;
}

const MAX_ID = 200;
/** Runs that are compared at once. */
const MAX_RUNS = 8;
/** Cells of a window of memory. */
const MAX_CELLS = 4096;

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

class Invalid extends Error {}

function text(value: unknown, what: string): string {
  if (typeof value !== 'string') throw new Invalid(`${what} must be a string, not ${describe(value)}`);
  if (value.length > MAX_ID) throw new Invalid(`${what} is longer than ${MAX_ID} characters`);
  return value;
}

function describe(value: unknown): string {
  return value === null
    ? 'null'
    : Array.isArray(value)
      ? 'a list'
      : typeof value === 'number' || typeof value === 'string'
        ? JSON.stringify(value).slice(0, 40)
        : typeof value;
}

function address(value: unknown, what: string): string {
  const written = text(value, what);
  if (!/^0x[0-9a-f]{1,16}$/i.test(written))
    throw new Invalid(`${what} must be a 64-bit 0x… number, not ${describe(value)}`);
  return written.toLowerCase();
}

function integer(value: unknown, what: string, low: number, high: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < low || value > high)
    throw new Invalid(`${what} must be a whole number from ${low} to ${high}, not ${describe(value)}`);
  return value;
}

function oneOf<T extends string>(value: unknown, what: string, accepted: readonly T[]): T {
  const found = accepted.find((candidate) => candidate === value);
  if (found === undefined) throw new Invalid(`${what} must be one of ${accepted.join(', ')}, not ${describe(value)}`);
  return found;
}

function flag<K extends 'implicit' | 'private'>(
  value: Record<string, unknown>,
  name: K,
): { readonly [key in K]?: boolean } {
  const given = value[name];
  if (given === undefined) return {};
  if (typeof given !== 'boolean') throw new Invalid(`query.${name} must be true or false, not ${describe(given)}`);
  return { [name]: given } as { [key in K]: boolean };
}

function tableQuery(value: Record<string, unknown>): TableQuery {
  return {
    kind: 'table',
    space: oneOf(value.space, 'query.space', ['guest', 'nested', 'second']),
    vcpu: integer(value.vcpu, 'query.vcpu', 0, 65535),
    table: address(value.table, 'query.table'),
    level: integer(value.level, 'query.level', 1, 5),
    base: address(value.base, 'query.base'),
  };
}

/** A position of the log, where one is told. */
function position<K extends 'at' | 'since'>(value: Record<string, unknown>, name: K): { readonly [key in K]?: number } {
  if (value[name] === undefined) return {};
  const told = integer(value[name], `query.${name}`, 0, Number.MAX_SAFE_INTEGER);
  return { [name]: told } as { readonly [key in K]?: number };
}

function attributesQuery(value: Record<string, unknown>): AttributesQuery {
  const [start, end] = [address(value.start, 'query.start'), address(value.end, 'query.end')];
  if (BigInt(end) <= BigInt(start)) throw new Invalid(`query.end must lie behind query.start ${start}, not at ${end}`);
  return {
    kind: 'attributes',
    start,
    end,
    cells: integer(value.cells, 'query.cells', 1, MAX_CELLS),
    ...position(value, 'at'),
    ...position(value, 'since'),
  };
}

function query(value: unknown): Query {
  if (!isRecord(value)) throw new Invalid(`query must be an object, not ${describe(value)}`);
  const kind = oneOf(value.kind, 'query.kind', [
    'walk',
    'table',
    'roots',
    'slots',
    'costs',
    'root-cache',
    'history',
    'recording',
    'faults',
    'comparison',
    'attribute-map',
    'attributes',
    'page',
  ]);
  switch (kind) {
    case 'walk':
      return {
        kind,
        vcpu: integer(value.vcpu, 'query.vcpu', 0, 65535),
        space: oneOf(value.space, 'query.space', ['gva', 'gpa']),
        address: address(value.address, 'query.address'),
        ...(value.access === undefined
          ? {}
          : { access: oneOf(value.access, 'query.access', ['read', 'write', 'fetch']) }),
        ...(value.cpl === undefined ? {} : { cpl: integer(value.cpl, 'query.cpl', 0, 3) === 3 ? 3 : 0 }),
        ...flag(value, 'implicit'),
        ...flag(value, 'private'),
      };
    case 'table':
      return tableQuery(value);
    case 'history':
      return {
        kind,
        space: oneOf(value.space, 'query.space', ['gpa', 'hpa']),
        address: address(value.address, 'query.address'),
        size: address(value.size, 'query.size'),
      };
    case 'comparison': {
      const { values } = value;
      if (!Array.isArray(values) || values.length > MAX_RUNS)
        throw new Invalid(`query.values must be a list of at most ${MAX_RUNS}, not ${describe(values)}`);
      return {
        kind,
        policy: text(value.policy, 'query.policy'),
        values: values.map((each) => text(each, 'query.values')),
      };
    }
    case 'attribute-map':
      return { kind, ...position(value, 'at') };
    case 'attributes':
      return attributesQuery(value);
    case 'page':
      return { kind, gpa: address(value.gpa, 'query.gpa'), ...position(value, 'at') };
    case 'faults':
      return {
        kind,
        first: integer(value.first, 'query.first', 0, 2 ** 32),
        count: integer(value.count, 'query.count', 0, 1000),
      };
    default:
      return { kind };
  }
}

/** Checks what came from outside. Answers with the request, or with a message that names what is wrong. */
export function parseRequest(value: unknown): { readonly request: ViewRequest } | { readonly error: string } {
  try {
    if (!isRecord(value)) throw new Invalid(`a request must be an object, not ${describe(value)}`);
    const type = oneOf(value.type, 'type', ['watch', 'unwatch', 'seek']);
    if (type === 'seek') return { request: { type, position: integer(value.position, 'position', 0, 2 ** 32) } };
    const id = text(value.id, 'id');
    return { request: type === 'unwatch' ? { type, id } : { type, id, query: query(value.query) } };
  } catch (error) {
    if (error instanceof Invalid) return { error: error.message };
    throw error;
  }
}

/** The same for what one view says to another; undefined for anything else. */
export function parseShowTable(value: unknown): ShowTable | undefined {
  try {
    if (!isRecord(value) || value.type !== 'show-table' || !isRecord(value.table)) return undefined;
    return { type: value.type, table: tableQuery(value.table) };
  } catch (error) {
    if (error instanceof Invalid) return undefined;
    throw error;
  }
}
