import { type Format, LEAF } from '../../engine/formats/compile.ts';
import { decodeEntry } from '../../engine/formats/decode.ts';
import type { CounterName, Machine, Vcpu } from '../../engine/machine.ts';
import { frameToAddress, hex } from '../../engine/memory/words.ts';
import { hashTables } from '../../engine/pgtable/hash.ts';
import { choosePolicy, DEFAULT_POLICIES, type Policies } from '../../engine/policies.ts';
import { Run } from '../../engine/run.ts';
import { readScenario, stepLimit } from './scenario-file.ts';
import { readOptions, UsageError } from './usage.ts';

/** What a run of a scenario has cost and left, under one policy. */
interface Outcome {
  readonly name: string;
  readonly ok: boolean;
  readonly steps: number;
  readonly counters: Readonly<Record<CounterName, number>>;
  /** Hash of each vCPU's tables at the end; undefined where it has none. */
  readonly hashes: readonly (string | undefined)[];
  readonly leaves: readonly ReadonlyMap<number, string>[];
}

/** What is compared, in this order; rows of zeros are left out. */
const ROWS: readonly CounterName[] = [
  'modes.changed',
  'roots.unloads',
  'roots.released',
  'roots.built',
  'roots.freed',
  'roots.hits',
  'roots.misses',
  'tables.built',
  'tables.reused',
  'tables.zapped',
  'tables.freed',
  'faults.second',
  'faults.guest',
  'exits',
  'entries',
  'tlb.flushes',
  'sptes.changed',
  'expects.failed',
];
/** Differences that are shown of each vCPU's tables. */
const DIFFERENCES_MOST = 20;
const BAR = 40;

interface Choices {
  readonly policy: keyof Policies;
  readonly runs: readonly { readonly name: string; readonly policies: Policies }[];
}

/** `roots=today,before`: what is to be compared, each with the policies that it means. */
function choices(text: string | undefined, own: Policies): Choices {
  const found = /^([\w-]+)=([\w-]+(?:,[\w-]+)+)$/.exec(text ?? '');
  if (!found) throw new UsageError('compare takes --policy NAME=VALUE,VALUE…, such as --policy roots=today,before');
  const [, name, values] = found;
  const runs = values!.split(',').map((value) => {
    const policies = choosePolicy(own, name!, value);
    if ('error' in policies) throw new UsageError(policies.error);
    return { name: value, policies };
  });
  return { policy: name as keyof Policies, runs };
}

/** Leaf entries of a vCPU's tables in words, by the frame of the address that they translate. */
function leavesOf(machine: Machine, vcpu: Vcpu, format: Format): Map<number, string> {
  const leaves = new Map<number, string>();
  const visit = (table: number, level: number, first: number): void => {
    for (let index = 0; index < format.entries[level]!; index++) {
      const [lo, hi] = machine.entryWords(table, index);
      const state = format.classify(level, lo);
      if (state === 0) continue;
      const frame = first + index * format.span[level]!;
      if (state !== LEAF) {
        visit(format.frame(level, lo, hi), level - 1, frame);
        continue;
      }
      const { rights, address } = decodeEntry(format, level, lo, hi);
      leaves.set(frame, `level ${level}, ${rights}, hpa ${address}`);
    }
  };
  if (vcpu.root >= 0) visit(vcpu.root, format.rootLevel, 0);
  return leaves;
}

/** What is compared of two runs: both tables at the end, by addresses. */
function differences(a: ReadonlyMap<number, string>, b: ReadonlyMap<number, string>): string[] {
  const lines: string[] = [];
  for (const frame of [...new Set([...a.keys(), ...b.keys()])].sort((x, y) => x - y)) {
    const [one, other] = [a.get(frame) ?? 'nothing', b.get(frame) ?? 'nothing'];
    if (one !== other) lines.push(`${hex(frameToAddress(frame))}: ${one} / ${other}`);
  }
  return lines;
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
  const outcomes: Outcome[] = [];
  const own = program.machine.policies ?? DEFAULT_POLICIES;
  const { policy, runs } = choices(values.policy, own);
  for (const { name, policies } of runs) {
    const session = new Run({ ...program, machine: { ...program.machine, policies } });
    if (!session.runToEnd(limit)) {
      console.error(`${path}, ${name}: still running after ${limit} steps: give --max-steps, or end its loops`);
      return 3;
    }
    const { machine } = session;
    const isShadow = machine.config.second === 'shadow';
    const formatOf = ({ mmu }: Vcpu): Format => (isShadow ? machine.shadowFormat(mmu) : machine.secondFormat);
    // What a scenario expects it expects under the policy that it chooses itself.
    const isOwn = policies[policy] === own[policy];
    if (isOwn)
      for (const { line, text, actual } of machine.small.failures)
        console.error(`${path}:${line}, ${name}: ${text}: ${actual}`);
    const stuck = session.stuck();
    if (stuck !== undefined) console.error(`${path}, ${name}: nothing can run: ${stuck}`);
    outcomes.push({
      name,
      ok: (!isOwn || machine.small.failures.length === 0) && stuck === undefined,
      steps: machine.steps,
      counters: session.counters(),
      hashes: machine.vcpus.map((vcpu) =>
        vcpu.root < 0 ? undefined : hashTables(machine.memory, { format: formatOf(vcpu), root: vcpu.root }),
      ),
      leaves: machine.vcpus.map((vcpu) => leavesOf(machine, vcpu, formatOf(vcpu))),
    });
  }
  if (values.json)
    console.log(
      JSON.stringify(
        outcomes.map(({ name, ok, steps, counters, hashes }) => ({
          policy: name,
          ok,
          steps,
          counters,
          tables: hashes,
        })),
      ),
    );
  else print(outcomes);
  return outcomes.every(({ ok }) => ok) ? 0 : 1;
}

function print(outcomes: readonly Outcome[]): void {
  const width = Math.max(12, ...outcomes.map(({ name }) => name.length + 2));
  const row = (title: string, cells: readonly string[]): void =>
    console.log(`${title.padEnd(24)}${cells.map((cell) => cell.padStart(width)).join('')}`);
  row(
    '',
    outcomes.map(({ name }) => name),
  );
  row(
    'steps',
    outcomes.map(({ steps }) => `${steps}`),
  );
  const rows = ROWS.filter((name) => outcomes.some(({ counters }) => counters[name] > 0));
  for (const name of rows)
    row(
      name,
      outcomes.map(({ counters }) => `${counters[name]}`),
    );
  const changes = Math.max(...outcomes.map(({ counters }) => counters['modes.changed']));
  if (changes > 1) {
    console.log('\nfor each change of the guest’s mode');
    for (const name of rows.slice(1))
      row(
        name,
        outcomes.map(({ counters }) => (counters[name] / counters['modes.changed']).toFixed(2)),
      );
  }
  console.log();
  for (const name of rows.filter((each) => new Set(outcomes.map(({ counters }) => counters[each])).size > 1)) {
    const most = Math.max(...outcomes.map(({ counters }) => counters[name]));
    console.log(name);
    for (const { name: policy, counters } of outcomes)
      console.log(
        `  ${policy.padEnd(width)}${'█'.repeat(Math.round((counters[name] / most) * BAR)) || '▏'} ${counters[name]}`,
      );
  }
  const [first, ...others] = outcomes;
  for (const [vcpu, hash] of first!.hashes.entries()) {
    console.log(`\ntables of vCPU ${vcpu} at the end`);
    for (const { name, hashes } of outcomes) console.log(`  ${name.padEnd(width)}${hashes[vcpu] ?? 'none'}`);
    for (const other of others) {
      if (other.hashes[vcpu] === hash) continue;
      const lines = differences(first!.leaves[vcpu]!, other.leaves[vcpu]!);
      console.log(`  ${first!.name} / ${other.name}: ${lines.length === 0 ? 'the same leaves, in other tables' : ''}`);
      for (const line of lines.slice(0, DIFFERENCES_MOST)) console.log(`    ${line}`);
      if (lines.length > DIFFERENCES_MOST) console.log(`    and ${lines.length - DIFFERENCES_MOST} more`);
    }
  }
}
