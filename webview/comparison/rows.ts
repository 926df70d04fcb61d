import type { ComparisonAnswer } from '../../engine/queries/answers.ts';

export interface Cell {
  /** As it is written. */
  readonly words: string;
  /** Of the row's greatest, 0 … 1; undefined where a run does not tell. */
  readonly share: number | undefined;
}

export interface ComparedRow {
  readonly name: string;
  readonly cells: readonly Cell[];
  /** Whether the runs differ in it. */
  readonly differs: boolean;
}

const CHANGES = 'modes.changed';

/** How often each run's guest changed its mode, by which the others can be divided; undefined where that says nothing. */
export function modeChanges({ rows }: ComparisonAnswer): readonly number[] | undefined {
  const changes = rows.find(({ name }) => name === CHANGES)?.values.map((value) => value ?? 0);
  return changes?.every((value) => value > 1) ? changes : undefined;
}

/** The rows as they are shown: what differs first, in the order of counting. @param perChange divided by changes of mode */
export function comparedRows(answer: ComparisonAnswer, perChange: boolean): readonly ComparedRow[] {
  const changes = perChange ? modeChanges(answer) : undefined;
  const rows = answer.rows
    .filter(({ name }) => !(changes && name === CHANGES))
    .map(({ name, values }): ComparedRow => {
      const shown = values.map((value, column) => (value === null ? null : value / (changes?.[column] ?? 1)));
      const most = Math.max(0, ...shown.map((value) => value ?? 0));
      return {
        name,
        cells: shown.map((value) => ({
          words: value === null ? 'not told' : changes ? value.toFixed(2) : value.toLocaleString('en'),
          share: value === null ? undefined : most === 0 ? 0 : value / most,
        })),
        differs: new Set(values).size > 1,
      };
    });
  return [...rows.filter(({ differs }) => differs), ...rows.filter(({ differs }) => !differs)];
}

/** What two runs' tables have in common, in words. */
export function tablesWords(answer: ComparisonAnswer, vcpu: number): string {
  const found = answer.tables.find((each) => each.vcpu === vcpu)!;
  const names = answer.columns.map(({ name }) => name);
  const told = found.hashes.some((hash) => hash !== null);
  const same = told ? new Set(found.hashes).size === 1 : found.differences.every(({ lines }) => lines.length === 0);
  if (same) return 'The runs leave the same tables.';
  const others = found.differences.filter(({ lines }) => lines.length > 0).map(({ column }) => names[column]!);
  if (others.length === 0) return 'The runs leave the same leaves, in other tables.';
  return `${others.join(' and ')} ${others.length === 1 ? 'leaves' : 'leave'} other leaves than ${names[0]}.`;
}
