import { errorCodeWords } from '../../engine/guest/permission.ts';
import { type ConformCase, type Host, makeCase, simpler } from './cases.ts';
import { isSame, observed } from './compare.ts';
import { decodeResult } from './encode.ts';
import { EngineVerdict, type Outcome } from './engine.ts';
import type { ConformGuest } from './guest.ts';

/** Cases of a batch: enough that what a batch costs by itself does not count, few enough to see progress. */
const BATCH = 8192;
/** Mismatches that are shrunk and told: further ones are mostly the same. */
const TOLD = 3;
/** Rounds of shrinking: far more than a case has bits. */
const ROUNDS = 500;

/** A case of which engine and KVM say different things. */
export interface Difference {
  readonly case: ConformCase;
  readonly engine: Outcome;
  readonly kvm: Outcome;
}

export interface Mismatch extends Difference {
  readonly number: number;
  /** The simplest case found that differs; undefined when the case alone, without those before it, does not. */
  readonly shrunk: Difference | undefined;
}

export interface Agreement {
  readonly cases: number;
  readonly seconds: number;
  /** How often each thing came of a case on KVM. */
  readonly outcomes: ReadonlyMap<string, number>;
  /** How many cases differ in the batch that was the last because of them. */
  readonly differing: number;
  readonly mismatches: readonly Mismatch[];
}

export interface Wanted {
  readonly seed: number;
  /** Number of the first case. */
  readonly first: number;
  readonly cases: number;
}

interface Batch {
  readonly first: number;
  readonly cases: readonly ConformCase[];
  readonly verdicts: readonly Outcome[];
}

/**
 * Compares engine and KVM, case by case, and ends with the first batch in which they differ. While the guest runs a batch
 * the next one is made.
 */
export async function conform(
  guest: ConformGuest,
  host: Host,
  { seed, first, cases }: Wanted,
  progress: (done: number) => void = () => {},
): Promise<Agreement> {
  const engine = new EngineVerdict(host);
  const begin = performance.now();
  const end = first + cases;
  const outcomes = new Map<string, number>();
  const prepare = (from: number): Batch => {
    const made = Array.from({ length: Math.min(BATCH, end - from) }, (_, at) => makeCase(seed, from + at, host));
    return { first: from, cases: made, verdicts: made.map((each) => engine.outcome(each)) };
  };
  let differing: Omit<Mismatch, 'shrunk'>[] = [];
  let done = 0;
  for (let batch = prepare(first); batch.cases.length > 0 && differing.length === 0; ) {
    await guest.start(batch.cases);
    const next = prepare(batch.first + batch.cases.length);
    const results = await guest.finish(batch.cases.length);
    differing = compareBatch(batch, results, outcomes);
    done += batch.cases.length;
    progress(done);
    batch = next;
  }
  const seconds = (performance.now() - begin) / 1000;
  const mismatches: Mismatch[] = [];
  for (const each of differing.slice(0, TOLD))
    mismatches.push({ ...each, shrunk: await shrink(guest, engine, each.case) });
  return { cases: done, seconds, outcomes, differing: differing.length, mismatches };
}

function compareBatch(batch: Batch, results: DataView, outcomes: Map<string, number>): Omit<Mismatch, 'shrunk'>[] {
  const differing: Omit<Mismatch, 'shrunk'>[] = [];
  batch.cases.forEach((each, at) => {
    const kvm = observed(each, decodeResult(results, at));
    const engine = batch.verdicts[at]!;
    const name = kvm.kind === '#PF' ? `#PF ${errorCodeWords(kvm.error)}` : kvm.kind;
    outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
    if (!isSame(engine, kvm)) differing.push({ number: batch.first + at, case: each, engine, kvm });
  });
  return differing;
}

/** Makes a case that differs simpler as long as it does, trying on KVM all ways at once. */
async function shrink(guest: ConformGuest, engine: EngineVerdict, from: ConformCase): Promise<Difference | undefined> {
  let found = (await differences(guest, engine, [from]))[0];
  for (let round = 0; found && round < ROUNDS; round++) {
    const next: Difference | undefined = (await differences(guest, engine, simpler(found.case)))[0];
    if (!next) break;
    found = next;
  }
  return found;
}

async function differences(
  guest: ConformGuest,
  engine: EngineVerdict,
  cases: readonly ConformCase[],
): Promise<Difference[]> {
  const results = await guest.run(cases);
  return cases
    .map((each, at) => ({
      case: each,
      engine: engine.outcome(each),
      kvm: observed(each, decodeResult(results, at)),
    }))
    .filter(({ engine: verdict, kvm }) => !isSame(verdict, kvm));
}
