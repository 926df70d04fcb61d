import type { EntryRun, ErrorAnswer, RootAnswer, TableAnswer, TableQuery } from '../../engine/queries/answers.ts';

/** An entry's place in a tree of tables: its index in the root table, in the table below, and so on. */
export type EntryPath = readonly number[];

/** A table's answer, if it has arrived. */
export type GetTable = (query: TableQuery) => TableAnswer | ErrorAnswer | undefined;

/** The same for the same table in the same place: names the question to the host. */
export function tableKey(query: TableQuery): string {
  return `table ${query.space} ${query.vcpu} ${query.table} ${query.level} ${query.base}`;
}

/** Bytes that an entry of a level covers. */
export function entrySpan(level: number): number {
  return 2 ** (12 + 9 * (level - 1));
}

/** Bytes that a root's tables translate. */
export function totalSize(root: Pick<RootAnswer, 'table'>): number {
  return entrySpan(root.table.level) * 512;
}

/** Bytes from the start of the address space to an entry. */
export function positionOf(path: EntryPath, rootLevel: number): number {
  return path.reduce((sum, index, depth) => sum + index * entrySpan(rootLevel - depth), 0);
}

/** The way to an entry of a level that translates a position. */
export function pathOf(position: number, rootLevel: number, level: number): EntryPath {
  return Array.from(
    { length: rootLevel - level + 1 },
    (_, depth) => Math.floor(position / entrySpan(rootLevel - depth)) % 512,
  );
}

/** Where an address lies in a root's tables; undefined outside of what they translate. */
export function positionOfAddress(address: string, root: Pick<RootAnswer, 'table'>): number | undefined {
  const bits = BigInt(Math.log2(totalSize(root)));
  const value = BigInt(address);
  const low = BigInt.asUintN(Number(bits), value);
  // The upper half of a guest's space is written sign-extended.
  const canonical = root.table.space === 'guest' ? BigInt.asUintN(64, BigInt.asIntN(Number(bits), value)) : low;
  return canonical === value ? Number(low) : undefined;
}

/** The address at a position, as it is written. */
export function addressAt(position: number, root: Pick<RootAnswer, 'table'>): bigint {
  const bits = Math.log2(totalSize(root));
  const value = BigInt(Math.floor(position));
  return root.table.space === 'guest' ? BigInt.asUintN(64, BigInt.asIntN(bits, value)) : value;
}

export function runAt(table: TableAnswer, index: number): EntryRun | undefined {
  return table.runs.find((run) => index >= run.index && index < run.index + run.count);
}

/** The table that holds an entry, as far as the answers lead there. */
export function tableOf(path: EntryPath, root: Pick<RootAnswer, 'table'>, get: GetTable): TableAnswer | undefined {
  let query: TableQuery | undefined = root.table;
  for (const [depth, index] of path.entries()) {
    const table: TableAnswer | ErrorAnswer | undefined = query && get(query);
    if (table?.kind !== 'table') return undefined;
    if (depth === path.length - 1) return table;
    query = runAt(table, index)?.child;
  }
  return undefined;
}

export function runOf(path: EntryPath, root: Pick<RootAnswer, 'table'>, get: GetTable): EntryRun | undefined {
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

/** The smallest range that holds everything mapped; undefined when nothing is. `need` hears of tables that must be asked for first. */
export function mappedRange(
  root: Pick<RootAnswer, 'table'>,
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
    if (!first || !last) return query === root.table ? undefined : { start, size: entrySpan(query.level) * 512 };
    if (first === last && first.child && !first.recursive) {
      start += first.index * first.size;
      query = first.child;
      continue;
    }
    return { start: start + first.index * first.size, size: (last.index + last.count - first.index) * first.size };
  }
}
