import type { EntryRun, RootAnswer, TableQuery } from '../../engine/queries/answers.ts';
import { type EntryPath, type GetTable, memberOf } from './model.ts';

/** A line of the tree: a run of entries, one entry of an opened run, or a table that is on its way or cannot be shown. */
export interface Row {
  readonly key: string;
  readonly path: EntryPath;
  readonly depth: number;
  readonly run?: EntryRun;
  /** Instead of a run. */
  readonly message?: string;
  readonly expandable: boolean;
  readonly expanded: boolean;
  readonly position: number;
  readonly siblings: number;
}

export function rowKey(path: EntryPath): string {
  return path.join('/');
}

/** The tree's visible lines, in order. */
export function treeRows(
  root: RootAnswer,
  get: GetTable,
  expanded: ReadonlySet<string>,
  need: (query: TableQuery) => void,
): Row[] {
  const rows: Row[] = [];
  const visit = (query: TableQuery, path: EntryPath): void => {
    need(query);
    const table = get(query);
    if (table?.kind !== 'table') {
      const message = table ? table.message : 'reading …';
      rows.push({
        key: `${rowKey(path)}!`,
        path,
        depth: path.length,
        message,
        expandable: false,
        expanded: false,
        position: 1,
        siblings: 1,
      });
      return;
    }
    for (const [position, run] of table.runs.entries()) {
      const own = [...path, run.index];
      const key = rowKey(own);
      const child = run.recursive ? undefined : run.child;
      const members = run.count > 1 && run.entry.state === 'leaf';
      const open = expanded.has(key) && (child !== undefined || members);
      rows.push({
        key,
        path: own,
        depth: path.length,
        run,
        expandable: child !== undefined || members,
        expanded: open,
        position: position + 1,
        siblings: table.runs.length,
      });
      if (!open) continue;
      if (child) visit(child, own);
      else
        for (let index = run.index; index < run.index + run.count; index++)
          rows.push({
            key: `${rowKey([...path, index])}+`,
            path: [...path, index],
            depth: path.length + 1,
            run: memberOf(run, index),
            expandable: false,
            expanded: false,
            position: index - run.index + 1,
            siblings: run.count,
          });
    }
  };
  visit(root.table, []);
  return rows;
}

/** The line that shows an entry: its own, or its run's. Undefined while the tables above are closed. */
export function rowOfPath(rows: readonly Row[], path: EntryPath): number {
  const parent = rowKey(path.slice(0, -1));
  const index = path.at(-1)!;
  let found = -1;
  for (const [at, row] of rows.entries()) {
    if (!row.run || rowKey(row.path.slice(0, -1)) !== parent) continue;
    if (index >= row.run.index && index < row.run.index + row.run.count) found = at;
  }
  return found;
}
