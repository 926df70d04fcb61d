// Tables made up for the tests of this folder.
import type { EntryRun, RootAnswer, TableAnswer, TableQuery } from '../../engine/queries/answers.ts';
import { type GetTable, tableKey } from './model.ts';

/** What a run is made of: `[first index, entries, what]`; a table leads to more runs. */
export type Shape = readonly (readonly [index: number, count: number, what: 'absent' | 'leaf' | Shape])[];

const span = (level: number): number => 4096 * 512 ** (level - 1);

function run(
  query: TableQuery,
  index: number,
  count: number,
  what: 'absent' | 'leaf' | Shape,
  tables: Map<string, TableAnswer>,
): EntryRun {
  const size = span(query.level);
  const input = BigInt(query.base) + BigInt(index * size);
  const state = typeof what === 'string' ? what : 'table';
  const child: TableQuery | undefined =
    typeof what === 'string'
      ? undefined
      : {
          ...query,
          table: `${query.table}${index.toString(16)}`,
          level: query.level - 1,
          base: `0x${input.toString(16)}`,
        };
  if (child && typeof what !== 'string') add(child, what, tables);
  return {
    index,
    count,
    input: `0x${input.toString(16)}`,
    size,
    entry: {
      format: 'x86-64',
      level: query.level,
      number: query.level,
      name: 'PTE',
      value: state === 'absent' ? '0x0' : '0x5007',
      state,
      rights: state === 'absent' ? '---' : 'rwxu',
      ...(state === 'absent' ? {} : { address: '0x5000' }),
      fields: [{ name: 'address', bits: [51, 12], value: '0x5000', words: '0x5000', meaning: '', setBy: 'software' }],
      problems: [],
    },
    ...(child ? { child } : {}),
    faulting: false,
  };
}

function add(query: TableQuery, shape: Shape, tables: Map<string, TableAnswer>): void {
  const runs = shape.map(([index, count, what]) => run(query, index, count, what, tables));
  tables.set(tableKey(query), { kind: 'table', certainty: 'exact', query, name: '', format: '', present: 0, runs });
}

/** A root of a guest's tables, and what answers for them. */
export function tree(shape: Shape, level = 4): { root: RootAnswer; get: GetTable; tables: Map<string, TableAnswer> } {
  const table: TableQuery = { kind: 'table', space: 'guest', vcpu: 0, table: '0x1', level, base: '0x0' };
  const tables = new Map<string, TableAnswer>();
  add(table, shape, tables);
  const root: RootAnswer = {
    id: 'r',
    title: '',
    space: 'guest',
    vcpus: [0],
    table,
    format: '',
    levels: Array.from({ length: level }, (_, depth) => ({
      level: level - depth,
      number: level - depth,
      entry: ['PTE', 'PDE', 'PDPTE', 'PML4E'][level - depth - 1]!,
      span: span(level - depth),
      entries: 512,
    })),
    canonical: true,
    present: 1,
    invalid: false,
  };
  return { root, get: (query) => tables.get(tableKey(query)), tables };
}

/** Four pages at 0x400000: entry 0 of the upper tables, then entry 2, then entries 0 to 3. */
export const FOUR_PAGES: Shape = [
  [
    0,
    1,
    [
      [
        0,
        1,
        [
          [0, 2, 'absent'],
          [
            2,
            1,
            [
              [0, 4, 'leaf'],
              [4, 508, 'absent'],
            ],
          ],
          [3, 509, 'absent'],
        ],
      ],
      [1, 511, 'absent'],
    ],
  ],
  [1, 511, 'absent'],
];
