import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseSchedule } from '../../engine/explore/schedule-text.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// A fault that is handled and taken again, for ever: others get their turn, and a run in which nothing else can happen is over.

function runOf(tasks: string, schedule?: string, policy = 'no-zap'): Run {
  const { program, diagnostics } = parseScenario(`machine x86-64 {
  vm snp
  memory 0 +4M guest-memfd
  second-stage tdp npt 4-level
  policy conversion = ${policy}
}
${tasks}`);
  assert.ok(program, JSON.stringify(diagnostics));
  return new Run(program, undefined, schedule === undefined ? [] : parseSchedule(program, schedule));
}

/** What maps the page as shared stays, and its frame is not the guest's. */
const LOOP = 'vcpu 0 {\n  shared write 0x1000 = 1\n  convert 0x1000 +4K private\n  pvalidate 0x1000\n}\n';
const MOST_STEPS = 20_000;

test('a run that goes round in circles is over, and says in which', () => {
  const run = runOf(LOOP);
  assert.ok(run.runToEnd(MOST_STEPS), 'still running');
  assert.equal(
    run.stuck(),
    'vCPU 0 goes round in circles: RMP fault at gpa 0x1000: hpa 0x100001000 is not assigned to the guest',
  );
  assert.ok(run.isCircling);
});

test('so is one in which two do', () => {
  const run = runOf(`${LOOP}vcpu 1 {\n  shared write 0 = 1\n  convert 0 +4K private\n  private write 0 = 1\n}\n`);
  assert.ok(run.runToEnd(MOST_STEPS), 'still running');
  assert.match(run.stuck()!, /^vCPU 0 goes .* at gpa 0x1000: .*; vCPU 1 goes .* at gpa 0x0: /);
});

test('who gets nowhere gives others their turn, who may help', () => {
  const race =
    'vcpu 0 {\n  wait until is_private(0x3000)\n  pvalidate 0x3000\n}\nhost vmm {\n  convert 0x3000 +4K private\n}\n';
  const run = runOf(race, 'vmm:13 vcpu0:94', 'rfc-v8');
  assert.ok(run.runToEnd(MOST_STEPS), 'still running');
  assert.equal(run.stuck(), undefined);
  assert.ok(run.ended);
});

test('who waits for a count has not waited in vain', () => {
  const run = runOf(`${LOOP}host h {\n  wait until faults.rmp > 200\n  unmap 0x1000 +4K\n}\n`);
  assert.ok(run.runToEnd(5 * MOST_STEPS), 'still running');
  assert.ok(run.ended, run.stuck());
});

test('a schedule that keeps others waiting shows no circle, and going back leads there again', () => {
  const race = `${LOOP}host vmm {\n  unmap 0x1000 +4K\n}\n`;
  const kept = runOf(race, 'vcpu0:12000');
  assert.equal(kept.followPlan(), undefined);
  assert.equal(kept.stuck(), undefined);
  assert.ok(kept.runToEnd(MOST_STEPS));
  assert.ok(kept.ended, kept.stuck());
  const run = runOf(LOOP);
  run.runToEnd(MOST_STEPS);
  const { steps } = run.machine;
  run.goTo(100);
  run.cutFuture();
  assert.equal(run.stuck(), undefined);
  run.runToEnd(MOST_STEPS);
  assert.equal(run.machine.steps, steps);
  assert.match(run.stuck()!, /goes round in circles/);
});
