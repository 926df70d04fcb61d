import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { Kind } from '../../engine/history/log.ts';
import { answer } from '../../engine/queries/answer.ts';
import { faultSentence, kvmErrorWords } from '../../engine/queries/words.ts';
import { Run } from '../../engine/run.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import { parseScenario } from '../../scenario/index.ts';

// Every fault of a few examples: its sentence, its error code, and the walk as a view would be told of it.

function faults(path: string): string {
  const { program } = parseScenario(readFileSync(path, 'utf8'));
  assert.ok(program);
  const run = new Run(program);
  const { machine } = run;
  let text = '';
  let position = 0;
  for (let task = run.pick(); task && machine.steps < 20_000; task = run.pick()) {
    run.step(task);
    for (; position < machine.log.length; position++) {
      const kind = machine.log.kindAt(position);
      if (kind !== Kind.EXIT && kind !== Kind.GUEST_FAULT) continue;
      const fault = machine.log.at(position).object as FaultInfo;
      text += `${faultSentence(fault)}\n    ${kvmErrorWords(fault.errorCode)}, exit information 0x${fault.exitInfo.toString(16)}\n`;
      const { answer: walk } = answer(
        machine,
        {
          kind: 'walk',
          vcpu: fault.vcpu,
          space: 'gva',
          address: `0x${fault.gva.toString(16)}`,
          access: fault.access,
          cpl: fault.cpl === 3 ? 3 : 0,
          ...(fault.implicit ? { implicit: true } : {}),
        },
        { since: 0, fault: undefined },
      );
      assert.equal(walk.kind, 'walk');
      if (walk.kind !== 'walk') continue;
      assert.equal(walk.sentence, faultSentence(fault), 'the view’s sentence is the stop’s');
      for (const reference of walk.references) {
        text += `    ${reference.number} ${reference.stage} ${reference.entry.name} ${reference.index} ${reference.entry.value} ${reference.note ?? `${reference.entry.state} ${reference.entry.rights}`}${reference.decides ? ' ←' : ''}\n`;
      }
    }
  }
  return text;
}

for (const name of ['protections', 'mmio-and-rom', 'npt']) {
  test(`${name}.mmu: every fault in words`, () => {
    const text = faults(`examples/${name}.mmu`);
    const path = `test/golden/faults-${name}.txt`;
    if (process.env.UPDATE_GOLDEN === '1') writeFileSync(path, text);
    assert.ok(existsSync(path), `${path} is missing: run once with UPDATE_GOLDEN=1 and read what it wrote`);
    assert.equal(text, readFileSync(path, 'utf8'));
  });
}
