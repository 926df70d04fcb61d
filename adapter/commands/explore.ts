import { ORDERING_SPECS } from '../../engine/attributes/convert.ts';
import {
  EVENTS,
  type Event,
  type Exploration,
  explore as exploreAll,
  isBroken,
  isHazard,
  type Outcome,
} from '../../engine/explore/explore.ts';
import { scheduleText } from '../../engine/explore/schedule-text.ts';
import { MachineError } from '../../engine/machine.ts';
import { DEFAULT_POLICIES, type Ordering } from '../../engine/policies.ts';
import type { Expectation, Program } from '../../engine/program.ts';
import { type ChosenPolicy, readPolicies, withPolicies } from './policy-option.ts';
import { readScenario } from './scenario-file.ts';
import { readOptions, UsageError } from './usage.ts';

interface Row {
  /** What was chosen, as it is shown: `O1 rfc-v8`; empty where nothing was. */
  readonly name: string;
  readonly chosen: readonly ChosenPolicy[];
  readonly program: Program;
  readonly found: Exploration;
}

/** `kvm-mmu explore`: every interleaving of a scenario’s tasks. The exit status: 1 when what must never happen can, or an expectation may not hold. */
export function explore(args: string[]): number {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: {
      policy: { type: 'string', multiple: true },
      'max-states': { type: 'string' },
      unreduced: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  const [path] = positionals;
  if (path === undefined || positionals.length > 1) throw new UsageError('explore takes one file');
  const maxStates = Number(values['max-states'] ?? 1_000_000);
  if (!Number.isInteger(maxStates) || maxStates < 1)
    throw new UsageError(`--max-states must be a whole number above 0, not ${values['max-states']}`);
  const program = readScenario(path);
  if (!program) return 2;
  const rows: Row[] = [];
  for (const variant of variants(program, values.policy ?? [])) {
    try {
      rows.push({ ...variant, found: exploreAll(variant.program, { maxStates, reduce: !values.unreduced }) });
    } catch (error) {
      if (!(error instanceof MachineError)) throw error;
      console.error(`${path}: ${error.message}`);
      return 2;
    }
  }
  if (values.json) console.log(JSON.stringify(rows.map((row) => asJson(path, row))));
  else tell(path, rows, maxStates);
  for (const line of new Set(rows.flatMap((row) => unjudgedWords(path, row)))) console.error(line);
  const broken = rows.flatMap((row) => brokenExpectations(path, row));
  for (const line of broken) console.error(line);
  if (broken.length > 0) return 1;
  return rows.every(({ found }) => found.complete) ? 0 : 3;
}

/** The program under each value of a policy, or as it is. */
function variants(program: Program, written: readonly string[]): Omit<Row, 'found'>[] {
  const form = 'NAME=VALUE,VALUE… or NAME=all, such as --policy conversion=all';
  const { fixed, compared } = readPolicies(written, form);
  // One value alone has its name in the table, too.
  const { policy, values } = compared ?? (fixed.length === 1 ? { ...fixed[0]!, values: [fixed[0]!.value] } : NO_POLICY);
  if (policy === '') return [{ name: '', chosen: fixed, program: withPolicies(program, fixed) }];
  return values.map((value) => {
    const chosen = [...(compared ? fixed : []), { policy, value }];
    const id = policy === 'conversion' ? `${ORDERING_SPECS[value as Ordering]?.id} ` : '';
    return { name: `${id}${value}`, chosen, program: withPolicies(program, chosen) };
  });
}

const NO_POLICY = { policy: '', values: [] };

const policyWords = ({ policy, value }: ChosenPolicy): string => `${policy}=${value}`;

/** The command that runs a schedule. */
function commandOf(path: string, { chosen, program }: Row, { schedule }: Outcome): string {
  const words = ['kvm-mmu run', /^[\w./+-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`];
  words.push(...chosen.map((each) => `--policy ${policyWords(each)}`));
  // What is so from the beginning needs none.
  if (schedule.steps > 0) words.push(`--schedule "${scheduleText(program, schedule)}"`);
  return words.join(' ');
}

/** Of what happens more than once, the one that takes least. */
function firstOf({ outcomes }: Pick<Exploration, 'outcomes'>, event: Event): Outcome | undefined {
  let best: Outcome | undefined;
  for (const outcome of outcomes) {
    if (outcome.event !== event) continue;
    const { switches, steps } = outcome.schedule;
    const isBetter =
      !best ||
      switches < best.schedule.switches ||
      (switches === best.schedule.switches && steps < best.schedule.steps);
    if (isBetter) best = outcome;
  }
  return best;
}

/** What there is to tell of an event: all ways in which it happens; of expectations those of each one. */
function waysOf(found: Exploration, event: Event): Outcome[][] {
  const ways = new Map<string, Outcome[]>();
  for (const outcome of found.outcomes) {
    if (outcome.event !== event) continue;
    const key = `${outcome.line ?? ''} ${outcome.expected ?? ''}`;
    const known = ways.get(key);
    if (known) known.push(outcome);
    else ways.set(key, [outcome]);
  }
  return [...ways.values()].sort(([a], [b]) => (a!.line ?? 0) - (b!.line ?? 0));
}

function toldOf(found: Exploration, event: Event): Outcome[] {
  return waysOf(found, event).map((outcomes) => firstOf({ outcomes }, event)!);
}

interface JudgedExpectation {
  readonly text: string;
  readonly line: number;
  /** Null: states ran out before it failed, or no state can answer. */
  readonly holds: boolean | null;
}

/** What the scenario expects, and whether it holds whoever runs when. */
function judged({ program, found }: Row): JudgedExpectation[] {
  const holds = (fails: boolean): boolean | null => (fails ? false : found.complete ? true : null);
  const fails = (text: string, { line }: { line: number }): boolean =>
    found.outcomes.some((outcome) => outcome.expected === text && outcome.line === line);
  const never = (program.never ?? []).map(({ hazard, span }) => ({
    text: `expect never ${hazard}`,
    line: span.line,
    holds: holds(firstOf(found, hazard) !== undefined),
  }));
  const others = [...expectationsOf(program.tasks), ...program.expects].map((expectation) => ({
    text: `expect ${expectation.text}`,
    line: expectation.span.line,
    holds: found.unjudged.includes(expectation) ? null : holds(fails(expectation.text, expectation.span)),
  }));
  return [...never, ...others].sort((a, b) => a.line - b.line);
}

/** The expectations among tasks’ statements. */
function expectationsOf(node: object): Expectation[] {
  const { kind, expectation } = node as { kind?: unknown; expectation?: Expectation };
  if (kind === 'expect' && expectation) return [expectation];
  return Object.values(node).flatMap((value) =>
    typeof value === 'object' && value !== null ? expectationsOf(value) : [],
  );
}

function brokenExpectations(path: string, { name, program, found }: Row): string[] {
  const where = name === '' ? '' : ` (${name})`;
  const never = (program.never ?? []).flatMap(({ hazard, span }) => {
    const outcome = firstOf(found, hazard);
    return outcome ? [`${path}:${span.line}: expect never ${hazard}${where}: ${outcome.text}`] : [];
  });
  const others = (Object.keys(EVENTS) as Event[])
    .filter(isBroken)
    .flatMap((event) => toldOf(found, event))
    .map(({ line, text }) => `${path}:${line}:${where} ${text}`);
  return [...never, ...others];
}

/** Expectations that cannot be judged, in one line. */
function unjudgedWords(path: string, { found }: Row): string[] {
  if (found.unjudged.length === 0) return [];
  const words = found.unjudged.map(({ text, span }) => `expect ${text} (line ${span.line})`).join(', ');
  return [`${path}: not judged, because counters are no part of a state: ${words}`];
}

function tell(path: string, rows: readonly Row[], maxStates: number): void {
  const events = (Object.keys(EVENTS) as Event[]).filter((event) => rows.some(({ found }) => firstOf(found, event)));
  const header = ['', 'states', 'transitions', ...events];
  const lines = rows.map(({ name, found }) => [
    name,
    `${found.states}${found.complete ? '' : '+'}`,
    `${found.transitions}`,
    ...events.map((event) => {
      const outcome = firstOf(found, event);
      if (outcome) return `${outcome.schedule.switches}/${outcome.schedule.steps}`;
      return found.complete ? '·' : '?';
    }),
  ]);
  const widths = header.map((title, column) => Math.max(title.length, ...lines.map((line) => line[column]!.length)));
  for (const line of [header, ...lines])
    console.log(
      line
        .map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)))
        .join('  ')
        .trimEnd(),
    );
  for (const line of keyOf(rows, events.length > 0)) console.log(line);
  for (const row of rows) {
    const { name, found } = row;
    if (!found.complete)
      console.log(
        `\n${name || 'It'} was given up after ${found.states} states${found.outcomes.length === 0 ? ', and nothing was found so far' : ''}: ${found.states < maxStates ? 'its steps change more than can be taken back: give' : 'give --max-states, or'} a smaller scenario`,
      );
    for (const event of events) {
      const isHarmless = !isHazard(event) && !isBroken(event);
      for (const outcomes of waysOf(found, event)) {
        const outcome = firstOf({ outcomes }, event)!;
        const others = outcomes.length - 1;
        console.log(`\n${name === '' ? '' : `${name}: `}${event}${isHarmless ? ' (harmless)' : ''}: ${EVENTS[event]}`);
        const where = outcome.line === undefined ? '' : `line ${outcome.line}: `;
        const more = others > 0 ? `; and in ${others} other ${others === 1 ? 'way' : 'ways'}` : '';
        console.log(`  ${where}${outcome.text}${more}`);
        if (outcome.round !== undefined)
          console.log(`  again every ${outcome.round} steps, as long as nobody else runs`);
        console.log(`  ${commandOf(path, row, outcome)}`);
      }
    }
  }
}

/** What the table's cells mean. Where states ran out, what was found need not be the shortest, and what was not can still be. */
function keyOf(rows: readonly Row[], anything: boolean): string[] {
  const givenUp = rows.filter(({ found }) => !found.complete).length;
  if (!anything && givenUp === 0) return ['Nothing went wrong, and nothing had to be tried again.'];
  if (!anything) return ['Nothing was found so far, but not everything was tried.'];
  const least = ['and not with fewer', 'and not with fewer where no + is', ''];
  const claim = least[givenUp === 0 ? 0 : givenUp < rows.length ? 1 : 2]!;
  const key = `A/B: it happens after A switches between tasks and B steps${claim && `, ${claim}`}.`;
  if (givenUp === 0) return [key];
  return [key, '+: there are more states; ?: not found so far, and it may still happen.'];
}

function asJson(path: string, row: Row): unknown {
  const { name, chosen, program, found } = row;
  const { states, transitions, complete, outcomes, unjudged } = found;
  return {
    name,
    ...(chosen.length > 0 ? { policy: chosen.map(policyWords).join(' ') } : {}),
    policies: program.machine.policies ?? DEFAULT_POLICIES,
    states,
    transitions,
    complete,
    outcomes: outcomes.map((outcome) => {
      const { event, text, line, schedule, round } = outcome;
      return {
        event,
        hazard: isHazard(event),
        broken: isBroken(event),
        text,
        ...(line === undefined ? {} : { line }),
        ...(chosen.length > 0 ? { policy: chosen.map(policyWords).join(' ') } : {}),
        schedule: scheduleText(program, schedule),
        command: commandOf(path, row, outcome),
        switches: schedule.switches,
        steps: schedule.steps,
        ...(round === undefined ? {} : { round }),
      };
    }),
    expects: judged(row),
    unjudged: unjudged.map(({ text, span }) => ({ text: `expect ${text}`, line: span.line })),
  };
}
