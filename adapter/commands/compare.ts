import type { Program } from '../../engine/program.ts';
import type { ComparisonAnswer } from '../../engine/queries/answers.ts';
import { compareOutcomes, comparePolicies, EndlessRun, type Outcome } from '../../engine/queries/comparison.ts';
import { type HelperPlace, thisMachine } from '../kvm/place.ts';
import { Lab } from '../lab/boot.ts';
import { runEmulated, runRecorded } from './compare-targets.ts';
import { LAB_OPTIONS, labsOf, printerOf } from './lab-options.ts';
import { readPolicies, type WrittenPolicies, withPolicies } from './policy-option.ts';
import { fitsKvm } from './run-kvm.ts';
import { readScenario, stepLimit } from './scenario-file.ts';
import { readOptions, UsageError } from './usage.ts';

/** Differences that are shown of each vCPU's tables. */
const DIFFERENCES_MOST = 20;
const BAR = 40;
/** Steps of each run unless told: a minute's work. */
const STEPS_MOST = 20_000_000;

/** `roots=today,before`: what is to be compared, and what is chosen for all. */
function choices(written: readonly string[]): Required<WrittenPolicies> & { readonly compared: object } {
  const { fixed, compared } = readPolicies(written, 'NAME=VALUE,VALUE…, such as --policy roots=today,before');
  if (!compared) throw new UsageError('compare takes --policy NAME=VALUE,VALUE…, such as --policy roots=today,before');
  return { fixed, compared };
}

/** `kvm-mmu compare`: one scenario under several policies, or on several targets. The exit status: 1 when it fails where it must not. */
export function compare(args: string[]): number | Promise<number> {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: {
      policy: { type: 'string', multiple: true },
      target: { type: 'string' },
      helper: { type: 'string' },
      ...LAB_OPTIONS,
      json: { type: 'boolean' },
      'max-steps': { type: 'string' },
    },
  });
  const [path] = positionals;
  if (path === undefined || positionals.length > 1) throw new UsageError('compare takes one file');
  const limit = stepLimit(values['max-steps'], STEPS_MOST);
  const ofTargets = values.target !== undefined || values.kernel !== undefined;
  if (ofTargets && values.policy !== undefined)
    throw new UsageError('compare takes --policy, or --target and --kernel: a real KVM has no policies to choose');
  if (values.kernel === undefined && (values.param !== undefined || values.modules !== undefined))
    throw new UsageError('--param and --modules are for labs: say --kernel, too');
  const wanted = ofTargets ? targets(values) : choices(values.policy ?? []);
  const program = readScenario(path);
  if (!program) return 2;
  const finish = ({ answer, outcomes }: Compared): number => {
    tell(path, answer, outcomes, values.json === true);
    return answer.columns.every(({ ok }) => ok) ? 0 : 1;
  };
  if ('compared' in wanted) {
    const { fixed, compared } = wanted;
    try {
      return finish(comparePolicies(withPolicies(program, fixed), compared.policy, compared.values, limit));
    } catch (error) {
      return refused(path, error);
    }
  }
  if (!fitsKvm(path, program)) return 2;
  return compareOn(program, wanted.places, limit).then(finish, (error) => refused(path, error));
}

interface Compared {
  readonly answer: ComparisonAnswer;
  readonly outcomes: readonly Outcome[];
}

/** Runs that cannot be made; other errors are faults of ours. */
function refused(path: string, error: unknown): number {
  if (error instanceof RangeError) throw new UsageError(error.message);
  const ends = error instanceof EndlessRun ? ': give a larger --max-steps, or end its loops' : '';
  console.error(`${path}, ${(error as Error).message}${ends}`);
  return 3;
}

/** `--target emulator,kvm --kernel A --kernel B`: where the scenario is to run. */
function targets(values: Parameters<typeof labsOf>[0] & { target?: string; helper?: string; console?: boolean }): {
  readonly places: readonly Place[];
} {
  const named = (values.target?.split(',') ?? []).map((name): Place => {
    if (name === 'emulator') return { name };
    if (name === 'kvm') return { name, open: () => Promise.resolve(thisMachine(values.helper)) };
    throw new UsageError(`--target must be of emulator and kvm, not ${name}; a kernel in a lab is --kernel`);
  });
  const labs = values.kernel === undefined ? [] : labsOf(values);
  const places = [
    ...named,
    ...labs.map(
      (launch): Place => ({
        name: launch.kernel,
        open: (say) => Lab.boot(launch, printerOf(values.console === true, say)),
      }),
    ),
  ];
  if (places.length < 2)
    throw new UsageError('compare takes two targets or more: --target emulator,kvm, or with --kernel');
  return { places };
}

interface Place {
  readonly name: string;
  /** Absent: the emulator. @param say how its words begin */
  readonly open?: (say: string) => Promise<HelperPlace & { readonly release?: string }>;
}

/** One after the other: labs are slow, and a machine has few cores. */
async function compareOn(program: Program, places: readonly Place[], limit: number): Promise<Compared> {
  const outcomes: Outcome[] = [];
  for (const { name, open } of places) {
    if (!open) {
      outcomes.push(runEmulated(program, limit));
      continue;
    }
    const place = await open(name);
    outcomes.push(await runRecorded(program, place.release ?? name, place, limit));
  }
  return { outcomes, answer: compareOutcomes('target', outcomes, false) };
}

function tell(path: string, answer: ComparisonAnswer, outcomes: readonly Outcome[], json: boolean): void {
  for (const { name, notes } of answer.columns) for (const note of notes) console.error(`${path}, ${name}: ${note}`);
  if (!json) {
    print(answer);
    return;
  }
  const column = answer.subject.startsWith('policy') ? 'policy' : 'target';
  console.log(
    JSON.stringify(
      outcomes.map(({ name, ok, counts: { steps, ...counters } }, index) => ({
        [column]: name,
        ok,
        ...(steps === undefined ? {} : { steps }),
        counters,
        tables: answer.tables.map(({ hashes }) => hashes[index]),
        ...(column === 'policy'
          ? {}
          : { differences: answer.tables.map(({ differences }) => differences[index - 1]?.lines ?? []) }),
      })),
    ),
  );
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
    const isHashed = hashes.some((hash) => hash !== null);
    if (isHashed)
      for (const [column, hash] of hashes.entries()) console.log(`  ${names[column]!.padEnd(width)}${hash ?? 'none'}`);
    for (const { column, lines, more } of differences) {
      if (isHashed && hashes[0] === hashes[column] && lines.length === 0) continue;
      const same = isHashed ? 'the same leaves, in other tables' : 'the same leaves';
      console.log(`  ${names[0]} / ${names[column]}: ${lines.length === 0 ? same : ''}`);
      for (const { address, one, other } of lines.slice(0, DIFFERENCES_MOST))
        console.log(`    ${address}: ${one} / ${other}`);
      const rest = more + Math.max(0, lines.length - DIFFERENCES_MOST);
      if (rest > 0) console.log(`    and ${rest} more`);
    }
  }
}
