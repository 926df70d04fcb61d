import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { explore } from '../../engine/explore/explore.ts';
import type { Program } from '../../engine/program.ts';
import { parseScenario } from '../../scenario/index.ts';

// The same tasks as SPIN explores them, from models written by hand in Promela: with every reduction off, on both sides, as many states and
// as many transitions.

function programOf(ordering: string, more = ''): Program {
  const { program, diagnostics } = parseScenario(`machine x86-64 {
  memory 0 +4M huge 2M guest-memfd
  second-stage tdp npt 4-level
  vm snp
  policy conversion = ${ordering}
}
host a {
  convert 0x1000 +4K private
}
host b {
  convert 0x1000 +4K shared
}
${more}`);
  assert.ok(program, JSON.stringify(diagnostics));
  return program;
}

const MODELS: readonly (readonly [string, Program])[] = [
  ['today', programOf('today')],
  ['reversed', programOf('reversed-direct-map', 'host writer {\n  private write 0x2000 = 3\n}')],
];

const missing = ['spin', 'cc'].filter((tool) => spawnSync(tool, ['--version']).error !== undefined);
const skip = missing.length > 0 ? `${missing.join(' and ')} not installed` : false;

function run(folder: string, command: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
  assert.equal(status, 0, `${command} ${args.join(' ')}: ${error?.message ?? stdout + stderr}`);
  return stdout;
}

/** States and transitions that SPIN finds, without dead variables being left out or steps being merged. */
function spin(model: string): { states: number; transitions: number } {
  const folder = mkdtempSync(join(tmpdir(), 'spin-'));
  try {
    run(folder, 'spin', '-o1', '-o2', '-o3', '-a', resolve('test/oracle/spin', `${model}.pml`));
    run(folder, 'cc', '-O1', '-DNOREDUCE', '-DSAFETY', '-o', 'pan', 'pan.c');
    const told = run(folder, './pan', '-m100000');
    assert.match(told, /errors: 0/);
    const number = (words: RegExp): number => Number(words.exec(told)?.[1]);
    // It counts the beginning as a transition.
    return { states: number(/(\d+) states, stored/), transitions: number(/(\d+) transitions/) - 1 };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

for (const [model, program] of MODELS)
  test(`${model}: the engine finds the states and transitions that SPIN does`, { skip }, () => {
    const { states, transitions, complete } = explore(program, { maxStates: 100_000, reduce: false });
    assert.ok(complete);
    assert.deepEqual({ states, transitions }, spin(model));
  });
