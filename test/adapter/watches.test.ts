import assert from 'node:assert/strict';
import test from 'node:test';
import { Watches } from '../../adapter/watches.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

test('a walk that is watched is told again when only the RMP has changed', () => {
  const { program, diagnostics } = parseScenario(`machine x86-64 {
  vm snp
  memory 0 +4M guest-memfd
  second-stage tdp npt 4-level
  launch 0 +16K
}
vcpu 0 {
  read 0x1000
  pvalidate 0x1000 off
  read 0x2000
}
`);
  assert.ok(program, JSON.stringify(diagnostics));
  const run = new Run(program);
  const { machine } = run;
  const watches = new Watches();
  const moment = () => ({ since: machine.log.length, fault: undefined });
  const step = (until: () => boolean): void => {
    while (!until()) run.step(run.pick()!);
  };
  step(() => machine.counter('accesses') === 1 && machine.tasks[0]!.pc === 1);
  watches.set('walk', { kind: 'walk', vcpu: 0, space: 'gva', address: '0x1000', access: 'read' });
  const first = watches.ask(machine, 'walk', moment());
  assert.ok(first.kind === 'walk' && first.outcome.status === 'done');
  watches.changed(machine, moment());
  step(() => machine.tasks[0]!.pc === 2);
  const [told] = watches.changed(machine, moment());
  assert.ok(told?.answer.kind === 'walk' && told.answer.outcome.status === 'refused', JSON.stringify(told));
});
