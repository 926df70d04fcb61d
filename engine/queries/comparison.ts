import type { CounterName } from '../counters.ts';
import { LEAF } from '../formats/compile.ts';
import { decodeEntry } from '../formats/decode.ts';
import { currentRoot, isReadable, type KvmTables, kvmMemory, kvmStage } from '../kernel/tables.ts';
import { frameToAddress, type Gfn, hex, type Pfn } from '../memory/words.ts';
import { hashTables, WordHash } from '../pgtable/hash.ts';
import { choosePolicy, DEFAULT_POLICIES, POLICY_VALUES, type Policies } from '../policies.ts';
import type { Program } from '../program.ts';
import { Run } from '../run.ts';
import type { ComparisonAnswer, ComparisonColumn, ComparisonTables } from './answers.ts';
import { emulatorBuilt } from './emulator-built.ts';

// The same scenario in several runs: what each cost, and in what the tables differ that they leave.

/** What one run cost and left. */
export interface Outcome extends ComparisonColumn {
  readonly counts: Readonly<Record<string, number>>;
  readonly built: KvmTables;
  /** Frames whose mappings are of no account: what makes the accesses on a real KVM. */
  readonly isAside?: (frame: number) => boolean;
  /** Of runs whose host frames mean nothing to each other: which guest frame is behind one, where that is known. */
  readonly gfnOf?: (pfn: Pfn) => Gfn | undefined;
}

/** What a leaf entry maps to, in words, and where: a host frame, or a guest one where host frames are not one's own alone. */
interface Leaf {
  readonly words: string;
  readonly target: string | undefined;
}

/** What is compared of the emulator's runs, in this order. */
const COUNTED: readonly CounterName[] = [
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
  'nested.entries',
  'nested.exits',
  'exits',
  'entries',
  'tlb.flushes',
  'sptes.changed',
  'expects.failed',
];
/** Differences that are told of each vCPU's tables. */
const DIFFERENCES_MOST = 200;

/** A run that does not come to an end. */
export class EndlessRun extends Error {}

/** Runs a scenario under each value of a policy. @throws RangeError naming a policy or value that there is not; EndlessRun */
export function comparePolicies(
  program: Program,
  policy: string,
  values: readonly string[],
  limit: number,
): { readonly outcomes: readonly Outcome[]; readonly answer: ComparisonAnswer } {
  const own = program.machine.policies ?? DEFAULT_POLICIES;
  const outcomes = values.map((value): Outcome => {
    const policies = choosePolicy(own, policy, value, program.machine.vm);
    if ('error' in policies) throw new RangeError(policies.error);
    return emulate(
      program,
      value,
      policies,
      policies[policy as keyof Policies] === own[policy as keyof Policies],
      limit,
    );
  });
  const policies = (Object.keys(POLICY_VALUES) as (keyof Policies)[]).map((name) => ({
    name,
    values: POLICY_VALUES[name],
    own: own[name],
  }));
  return { outcomes, answer: { ...compareOutcomes(`policy ${policy}`, outcomes, true), policies } };
}

/** @param isOwn whether the scenario itself chooses these policies: what it expects it expects of them */
function emulate(program: Program, name: string, policies: Policies, isOwn: boolean, limit: number): Outcome {
  const run = new Run({ ...program, machine: { ...program.machine, policies } });
  if (!run.runToEnd(limit)) throw new EndlessRun(`${name}: still running after ${limit} steps`);
  const { machine } = run;
  const stuck = run.stuck();
  const failures = isOwn ? machine.small.failures : [];
  const notes = failures.map(({ line, text, actual }) => `line ${line}: ${text}: ${actual}`);
  if (stuck !== undefined) notes.push(`nothing can run: ${stuck}`);
  const counters = run.counters();
  return {
    name,
    ok: notes.length === 0,
    notes,
    counts: { steps: machine.steps, ...Object.fromEntries(COUNTED.map((each) => [each, counters[each]])) },
    built: emulatorBuilt(machine),
  };
}

/** @param withAddresses whether frames of the host mean the same in all of them */
export function compareOutcomes(
  subject: string,
  outcomes: readonly Outcome[],
  withAddresses: boolean,
): ComparisonAnswer {
  const names = [...new Set(outcomes.flatMap(({ counts }) => Object.keys(counts)))];
  const rows = names
    .map((name) => ({ name, values: outcomes.map(({ counts }) => counts[name] ?? null) }))
    .filter(({ values }) => values.some((value) => value !== null && value > 0));
  const vcpus = Math.max(0, ...outcomes.flatMap(({ built }) => built.roots.map(({ vcpu }) => vcpu + 1)));
  return {
    kind: 'comparison',
    certainty: 'exact',
    subject,
    columns: outcomes.map(({ name, ok, notes }) => ({ name, ok, notes })),
    rows,
    tables: Array.from({ length: vcpus }, (_, vcpu) => compareTables(vcpu, outcomes, withAddresses)),
  };
}

function compareTables(vcpu: number, outcomes: readonly Outcome[], withAddresses: boolean): ComparisonTables {
  const leaves = outcomes.map((outcome) => leavesOf(outcome, vcpu, withAddresses));
  const hashes = withAddresses ? outcomes.map(({ built }) => hashOf(built, vcpu)) : leaves.map(hashLeaves);
  return {
    vcpu,
    hashes,
    differences: outcomes.slice(1).map((_, index) => {
      const lines = differences(leaves[0]!, leaves[index + 1]!);
      return {
        column: index + 1,
        lines: lines.slice(0, DIFFERENCES_MOST),
        more: Math.max(0, lines.length - DIFFERENCES_MOST),
      };
    }),
  };
}

/** MAXPHYADDR of the widest host: the formats of KVM's tables only leave out bits beyond. */
const WIDEST = 52;

function treeOf(built: KvmTables, vcpu: number) {
  const root = currentRoot(built, vcpu);
  return root && isReadable(built.kind, root) ? kvmStage(built, root, WIDEST).tree : undefined;
}

function hashOf(built: KvmTables, vcpu: number): string | null {
  const tree = treeOf(built, vcpu);
  return tree ? hashTables(kvmMemory(built), tree) : null;
}

/** Of tables on several hosts the leaves alone; null where it is not known of each which guest frame it maps. */
function hashLeaves(leaves: ReadonlyMap<number, Leaf>): string | null {
  const hash = new WordHash();
  for (const [frame, { words, target }] of [...leaves].sort(([a], [b]) => a - b)) {
    if (target === undefined) return null;
    for (const letter of `${frame} ${words} ${target}\n`) hash.add(letter.charCodeAt(0));
  }
  return leaves.size === 0 ? null : hash.digest();
}

/** Leaf entries of a vCPU's tables, by the frame of the address that they translate. */
function leavesOf({ built, isAside, gfnOf }: Outcome, vcpu: number, withAddresses: boolean): Map<number, Leaf> {
  const leaves = new Map<number, Leaf>();
  const tree = treeOf(built, vcpu);
  if (!tree) return leaves;
  const { format } = tree;
  const memory = kvmMemory(built);
  const visit = (table: number, level: number, first: number): void => {
    if (!memory.has(table)) return;
    const page = memory.page(table);
    for (let index = 0; index < format.entries[level]!; index++) {
      const [lo, hi] = [page[2 * index]!, page[2 * index + 1]!];
      const state = format.classify(level, lo);
      if (state === 0) continue;
      const frame = first + index * format.span[level]!;
      if (isAside?.(frame)) continue;
      if (state !== LEAF) {
        visit(format.frame(level, lo, hi), level - 1, frame);
        continue;
      }
      const { rights, address } = decodeEntry(format, level, lo, hi);
      const gfn = withAddresses ? undefined : gfnOf?.(format.frame(level, lo, hi));
      const target = withAddresses
        ? `hpa ${address}`
        : gfn === undefined
          ? undefined
          : `gpa ${hex(frameToAddress(gfn))}`;
      leaves.set(frame, { words: `level ${level}, ${rights}`, target });
    }
  };
  visit(tree.root, format.rootLevel, 0);
  return leaves;
}

function differences(a: ReadonlyMap<number, Leaf>, b: ReadonlyMap<number, Leaf>) {
  const frames = [...new Set([...a.keys(), ...b.keys()])].sort((x, y) => x - y);
  return frames.flatMap((frame) => {
    const [one, other] = [a.get(frame), b.get(frame)];
    // Where it is not known what one of them leads to, they may be the same.
    const isSame = one?.words === other?.words && (!one?.target || !other?.target || one.target === other.target);
    return isSame ? [] : [{ address: hex(frameToAddress(frame)), one: leafWords(one), other: leafWords(other) }];
  });
}

function leafWords(leaf: Leaf | undefined): string {
  if (!leaf) return 'nothing';
  return leaf.target === undefined ? leaf.words : `${leaf.words}, ${leaf.target}`;
}
