// The explorer beside SPIN, on the same model: states a second, on one core, with every reduction off.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { performance } from 'node:perf_hooks';
import { explore } from '../engine/explore/explore.ts';
import type { Program } from '../engine/program.ts';
import { parseScenario } from '../scenario/index.ts';

const row = (what: string, unit: string, value: number, ratio: string): void =>
  console.log(`${what.padEnd(44)} ${Math.round(value).toString().padStart(10)} ${unit.padEnd(14)} ${ratio}`);

function programOf(tasks: string, ordering: string): Program {
  const { program, diagnostics } = parseScenario(`machine x86-64 {
  memory 0 +4M huge 2M guest-memfd
  second-stage tdp npt 4-level
  vm snp
  memory-fault stop
  policy conversion = ${ordering}
}
${tasks}`);
  if (!program) throw new Error(diagnostics.map(({ message }) => message).join('\n'));
  return program;
}

/** States a second, from the quickest of some rounds. */
function speedOf(program: Program, reduce: boolean): { readonly states: number; readonly perSecond: number } {
  let best = 0;
  let states = 0;
  for (let round = 0; round < 5; round++) {
    const begin = performance.now();
    ({ states } = explore(program, { maxStates: 10_000_000, reduce }));
    best = Math.max(best, (1000 * states) / (performance.now() - begin));
  }
  return { states, perSecond: best };
}

const crossing = `host a {
  convert 0x1000 +4K private
}
host b {
  convert 0x1000 +4K shared
}
host writer {
  private write 0x2000 = 3
}`;

/** SPIN's, of the same model: it is run a thousand times, for one run is over before it can be measured. */
function spinSpeed(): number | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'spin-'));
  try {
    execFileSync('spin', ['-o1', '-o2', '-o3', '-a', resolve('test/oracle/spin/reversed.pml')], { cwd: folder });
    execFileSync('cc', ['-O2', '-DNOREDUCE', '-DSAFETY', '-o', 'pan', 'pan.c'], { cwd: folder });
    const script = 'for i in $(seq 200); do ./pan -m100000 -w20 >out; done';
    writeFileSync(join(folder, 'run.sh'), script);
    const begin = performance.now();
    execFileSync('sh', ['run.sh'], { cwd: folder });
    const seconds = (performance.now() - begin) / 1000;
    const states = Number(/(\d+) states, stored/.exec(readFileSync(join(folder, 'out'), 'utf8'))?.[1]);
    return (200 * states) / seconds;
  } catch (error) {
    console.log(`SPIN is not measured: ${(error as Error).message.split('\n')[0]}`);
    return undefined;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const model = speedOf(programOf(crossing, 'reversed-direct-map'), false);
const spin = spinSpeed();
row(
  `${model.states} states of two conversions and a write`,
  'states/s',
  model.perSecond,
  spin ? `${(model.perSecond / spin).toFixed(3)} × SPIN, with its start` : '',
);

const race = programOf(
  `vcpu 0 {
  shared write 0x1000 = 1
  shared read 0x1000
}
host vmm {
  convert 0x1000 +4K private
}
host kthread {
  private write 0x2000 = 3
}`,
  'today',
);
const whole = speedOf(race, false);
const reduced = speedOf(race, true);
row(`${whole.states} states of a conversion and faults`, 'states/s', whole.perSecond, '');
row(
  `${reduced.states} of them, reduced`,
  'states/s',
  reduced.perSecond,
  `${(whole.states / whole.perSecond / (reduced.states / reduced.perSecond)).toFixed(2)} × as quick as the whole`,
);
