import type { ComparisonAnswer } from '../../engine/queries/answers.ts';
import { comparePolicies, EndlessRun } from '../../engine/queries/comparison.ts';
import { readScenario, stepLimit } from './scenario-file.ts';
import { readOptions, UsageError } from './usage.ts';

/** Differences that are shown of each vCPU's tables. */
const DIFFERENCES_MOST = 20;
const BAR = 40;

/** `roots=today,before`: what is to be compared. */
function choices(text: string | undefined): { readonly policy: string; readonly values: readonly string[] } {
  const found = /^([\w-]+)=([\w-]+(?:,[\w-]+)+)$/.exec(text ?? '');
  if (!found) throw new UsageError('compare takes --policy NAME=VALUE,VALUE…, such as --policy roots=today,before');
  const [, policy, values] = found;
  return { policy: policy!, values: values!.split(',') };
}

/** `kvm-mmu compare`: one scenario under several policies. The exit status: 1 when it fails under the one that it chooses itself. */
export function compare(args: string[]): number {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: { policy: { type: 'string' }, json: { type: 'boolean' }, 'max-steps': { type: 'string' } },
  });
  const [path] = positionals;
  if (path === undefined || positionals.length > 1) throw new UsageError('compare takes one file');
  const limit = stepLimit(values['max-steps']);
  const program = readScenario(path);
  if (!program) return 2;
  const chosen = choices(values.policy);
  let compared: ReturnType<typeof comparePolicies>;
  try {
    compared = comparePolicies(program, chosen.policy, chosen.values, limit);
  } catch (error) {
    if (error instanceof RangeError) throw new UsageError(error.message);
    if (!(error instanceof EndlessRun)) throw error;
    console.error(`${path}, ${error.message}: give --max-steps, or end its loops`);
    return 3;
  }
  const { answer, outcomes } = compared;
  for (const { name, notes } of answer.columns) for (const note of notes) console.error(`${path}, ${name}: ${note}`);
  if (values.json)
    console.log(
      JSON.stringify(
        outcomes.map(({ name, ok, counts: { steps, ...counters } }, column) => ({
          policy: name,
          ok,
          steps,
          counters,
          tables: answer.tables.map(({ hashes }) => hashes[column]),
        })),
      ),
    );
  else print(answer);
  return answer.columns.every(({ ok }) => ok) ? 0 : 1;
}

const CHANGES = 'modes.changed';

function print({ columns, rows, tables }: ComparisonAnswer): void {
  const names = columns.map(({ name }) => name);
  const width = Math.max(12, ...names.map((name) => name.length + 2));
  const line = (title: string, cells: readonly string[]): void =>
    console.log(`${title.padEnd(24)}${cells.map((cell) => cell.padStart(width)).join('')}`);
  line('', names);
  for (const { name, values } of rows)
    line(
      name,
      values.map((value) => `${value ?? '–'}`),
    );
  const changes = rows.find(({ name }) => name === CHANGES)?.values ?? [];
  if (Math.max(0, ...changes.map(Number)) > 1) {
    console.log('\nfor each change of the guest’s mode');
    for (const { name, values } of rows.filter(({ name: each }) => each !== CHANGES && each !== 'steps'))
      line(
        name,
        values.map((value, column) => (value === null ? '–' : (value / changes[column]!).toFixed(2))),
      );
  }
  console.log();
  for (const { name, values } of rows.filter((row) => row.name !== 'steps' && new Set(row.values).size > 1)) {
    const most = Math.max(...values.map(Number));
    console.log(name);
    for (const [column, value] of values.entries())
      console.log(
        `  ${names[column]!.padEnd(width)}${value === null ? '–' : `${'█'.repeat(Math.round((value / most) * BAR)) || '▏'} ${value}`}`,
      );
  }
  for (const { vcpu, hashes, differences } of tables) {
    console.log(`\ntables of vCPU ${vcpu} at the end`);
    for (const [column, hash] of hashes.entries()) console.log(`  ${names[column]!.padEnd(width)}${hash ?? 'none'}`);
    for (const { column, lines, more } of differences) {
      if (hashes[0] === hashes[column] && lines.length === 0) continue;
      console.log(`  ${names[0]} / ${names[column]}: ${lines.length === 0 ? 'the same leaves, in other tables' : ''}`);
      for (const { address, one, other } of lines.slice(0, DIFFERENCES_MOST))
        console.log(`    ${address}: ${one} / ${other}`);
      const rest = more + Math.max(0, lines.length - DIFFERENCES_MOST);
      if (rest > 0) console.log(`    and ${rest} more`);
    }
  }
}
