import type { EntryRun, ErrorAnswer, RootAnswer, TableAnswer, TableQuery } from '../../engine/queries/answers.ts';

/** An entry's place in a tree of tables: its index in the root table, in the table below, and so on. */
export type EntryPath = readonly number[];

/** A table's answer, if it has arrived. */
export type GetTable = (query: TableQuery) => TableAnswer | ErrorAnswer | undefined;

/** The same for the same table in the same place: names the question to the host. */
export function tableKey(query: TableQuery): string {
  return `table ${query.space} ${query.vcpu} ${query.table} ${query.level} ${query.base}`;
}

/** What the model knows of a root. */
export type Root = Pick<RootAnswer, 'table' | 'levels' | 'canonical'>;

/** Tables that a search looks into at most. */
const SEARCHED_MOST = 1000;

/**
 * Where a table hangs: the root that it is, or below which it is found, and the way to the entry that points to it (empty for
 * a root). `waiting` while tables on the way have to be asked for, of which `need` hears.
 */
export function findTable(
  target: TableQuery,
  roots: readonly RootAnswer[],
  get: GetTable,
  need: (query: TableQuery) => void,
): { readonly root: RootAnswer; readonly path: EntryPath } | 'waiting' | undefined {
  const same = roots.filter(({ table }) => table.space === target.space);
  const root = same.find(({ table }) => table.table === target.table && table.level === target.level);
  if (root) return { root, path: [] };
  // Of roots that share the table, the one of the vCPU that was asked about.
  same.sort((a, b) => Number(b.vcpus.includes(target.vcpu)) - Number(a.vcpus.includes(target.vcpu)));
  const queue = same.map((each) => ({ root: each, query: each.table, path: [] as EntryPath }));
  const seen = new Set<string>();
  let waiting = false;
  for (let at = 0; at < queue.length && seen.size < SEARCHED_MOST; at++) {
    const { root: of, query, path } = queue[at]!;
    if (query.level <= target.level || seen.has(tableKey(query))) continue;
    seen.add(tableKey(query));
    need(query);
    const table = get(query);
    waiting ||= table === undefined;
    if (table?.kind !== 'table') continue;
    for (const { child, index, recursive } of table.runs) {
      if (!child || recursive) continue;
      const way = [...path, index];
      if (child.table === target.table && child.level === target.level) return { root: of, path: way };
      queue.push({ root: of, query: child, path: way });
    }
  }
  return waiting ? 'waiting' : undefined;
}

/** Bytes that a root's tables translate. */
export function totalSize({ levels: [top] }: Root): number {
  return top!.span * top!.entries;
}

/** Bytes from the start of the address space to an entry. */
export function positionOf(path: EntryPath, { levels }: Root): number {
  return path.reduce((sum, index, depth) => sum + index * levels[depth]!.span, 0);
}

/** The way to an entry of a level that translates a position. */
export function pathOf(position: number, { levels }: Root, level: number): EntryPath {
  return levels.filter((each) => each.level >= level).map(({ span, entries }) => Math.floor(position / span) % entries);
}

/** Where an address lies in a root's tables; undefined outside of what they translate. */
export function positionOfAddress(address: string, root: Root): number | undefined {
  const bits = Math.log2(totalSize(root));
  const value = BigInt(address) - BigInt(root.table.base);
  const low = BigInt.asUintN(bits, value);
  // The upper half of a guest's space is written sign-extended.
  const written = root.canonical ? BigInt.asUintN(64, BigInt.asIntN(bits, value)) : low;
  return written === value ? Number(low) : undefined;
}

/** The address at a position, as it is written. */
export function addressAt(position: number, root: Root): bigint {
  const bits = Math.log2(totalSize(root));
  const value = BigInt(Math.floor(position));
  return BigInt(root.table.base) + (root.canonical ? BigInt.asUintN(64, BigInt.asIntN(bits, value)) : value);
}

export function runAt(table: TableAnswer, index: number): EntryRun | undefined {
  return table.runs.find((run) => index >= run.index && index < run.index + run.count);
}

/** The table that holds an entry, as far as the answers lead there. */
export function tableOf(path: EntryPath, root: Root, get: GetTable): TableAnswer | undefined {
  let query: TableQuery | undefined = root.table;
  for (const [depth, index] of path.entries()) {
    const table: TableAnswer | ErrorAnswer | undefined = query && get(query);
    if (table?.kind !== 'table') return undefined;
    if (depth === path.length - 1) return table;
    query = runAt(table, index)?.child;
  }
  return undefined;
}

export function runOf(path: EntryPath, root: Root, get: GetTable): EntryRun | undefined {
  const table = tableOf(path, root, get);
  return table && runAt(table, path.at(-1)!);
}

/** One entry of a run: the run's first with the address moved on. The other attributes are equal, that is why it is a run. */
export function memberOf(run: EntryRun, index: number): EntryRun {
  const offset = BigInt(index - run.index) * BigInt(run.size);
  if (run.count === 1 || offset === 0n) return { ...run, count: 1 };
  const moved = (value: string) => `0x${(BigInt(value) + offset).toString(16)}`;
  const { entry } = run;
  const leaf = entry.state === 'leaf' && entry.address !== undefined;
  return {
    ...run,
    index,
    count: 1,
    input: moved(run.input),
    entry: leaf
      ? {
          ...entry,
          value: moved(entry.value),
          address: moved(entry.address!),
          fields: entry.fields.map((field) =>
            field.name === 'address' ? { ...field, value: moved(field.value), words: moved(field.value) } : field,
          ),
        }
      : entry,
  };
}

/** Bytes that a table of a level covers. */
function tableSize({ levels }: Root, level: number): number {
  const { span, entries } = levels.find((each) => each.level === level)!;
  return span * entries;
}

/** The smallest range that holds everything mapped; undefined when nothing is. `need` hears of tables that must be asked for first. */
export function mappedRange(
  root: Root,
  get: GetTable,
  need: (query: TableQuery) => void,
): { readonly start: number; readonly size: number } | undefined {
  let query = root.table;
  let start = 0;
  for (;;) {
    const table = get(query);
    if (!table) need(query);
    const runs = table?.kind === 'table' ? table.runs.filter(({ entry }) => entry.state !== 'absent') : [];
    const first = runs[0];
    const last = runs.at(-1);
    if (!first || !last) return query === root.table ? undefined : { start, size: tableSize(root, query.level) };
    if (first === last && first.child && !first.recursive) {
      start += first.index * first.size;
      query = first.child;
      continue;
    }
    return { start: start + first.index * first.size, size: (last.index + last.count - first.index) * first.size };
  }
}
