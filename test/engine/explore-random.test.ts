import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Random } from '../../adapter/conform/random.ts';
import { type Exploration, explore } from '../../engine/explore/explore.ts';
import { ORDERINGS } from '../../engine/policies.ts';
import { parseScenario } from '../../scenario/index.ts';

// Random tasks that convert, touch and free the same few pages: with the reduction and without, what can happen is the same, and takes as
// many switches and steps.

const RUNS = Math.max(6, Math.floor(Number(process.env.FUZZ_RUNS ?? 2000) / 1000));
/** Larger state spaces are left out, and counted. */
const MOST_STATES = 30_000;

function programText(seed: number): string {
  const numbers = new Random(seed, 7);
  const next = (limit: number): number => numbers.below(limit);
  const pick = <T>(list: readonly T[]): T => list[next(list.length)]!;
  const snp = next(2) === 0;
  const page = (): string => pick(['0x1000', '0x2000']);
  const kind = (): string => pick(['private', 'shared']);
  const guest = (): string =>
    pick([
      () => `${kind()} write ${page()} = ${1 + next(9)}`,
      () => `${kind()} read ${page()}`,
      () => `${snp ? 'pvalidate' : 'accept'} ${page()}`,
      () => `wait until is_private(${page()})`,
    ])();
  const host = (): string =>
    pick([
      () => `convert ${page()} +4K ${kind()}`,
      () => `convert 0x1000 +8K ${kind()}`,
      () => `punch ${page()} +4K`,
      () => `${kind()} write ${page()} = 3`,
    ])();
  const body = (statement: () => string, most: number): string =>
    Array.from({ length: 1 + next(most) }, () => `  ${statement()}\n`).join('');
  return `machine x86-64 {
  memory 0 +4M huge 2M guest-memfd
  second-stage tdp ${snp ? 'npt' : 'ept'} 4-level
  vm ${snp ? 'snp' : 'tdx'}
  memory-fault ${pick(['stop', 'convert'])}
  policy conversion = ${pick(ORDERINGS)}
${next(2) === 0 ? '  private 0x1000 +8K\n' : ''}}
vcpu 0 {
${body(guest, 2)}}
host vmm {
${body(host, 2)}}
${next(3) === 0 ? `host other {\n${body(host, 1)}}\n` : ''}`;
}

const words = ({ outcomes }: Exploration): string[] =>
  outcomes.map(({ event, text, schedule }) => `${event}: ${text}: ${schedule.switches}/${schedule.steps}`).sort();

test('random tasks: the reduction loses nothing', () => {
  let compared = 0;
  let events = 0;
  for (let seed = 1; seed <= RUNS; seed++) {
    const text = programText(seed);
    const { program, diagnostics } = parseScenario(text);
    assert.ok(program, JSON.stringify(diagnostics));
    const all = explore(program, { maxStates: MOST_STATES, reduce: false });
    if (!all.complete) continue;
    const reduced = explore(program, { maxStates: MOST_STATES, reduce: true });
    assert.ok(reduced.complete && reduced.states <= all.states);
    assert.deepEqual(words(reduced), words(all), `seed ${seed}:\n${text}`);
    compared++;
    events += all.outcomes.length;
  }
  console.log(`${compared} of ${RUNS} programs compared, ${events} outcomes`);
  assert.ok(compared >= RUNS / 3 && events > 0);
});
