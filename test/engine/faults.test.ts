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

function faults(scenario: string): string {
  const { program } = parseScenario(scenario);
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
    const text = faults(readFileSync(`examples/${name}.mmu`, 'utf8'));
    const path = `test/golden/faults-${name}.txt`;
    if (process.env.UPDATE_GOLDEN === '1') writeFileSync(path, text);
    assert.ok(existsSync(path), `${path} is missing: run once with UPDATE_GOLDEN=1 and read what it wrote`);
    assert.equal(text, readFileSync(path, 'utf8'));
  });
}

test('a second-stage entry that is there says what it does not allow; an address beyond the tables says so', () => {
  const sentences = (second: string) =>
    faults(
      `machine x86-64 {\n  memory 0 +1M\n  memory 0x8000000 +64K read-only\n  second-stage tdp ${second} 4-level\n  maxphyaddr 52\n}\nguest g {\n  map 0x400000 -> 0x8000000 4K\n  map 0x401000 -> 0x1_0000_0000_0000 4K\n}\nvcpu 0 in g {\n  read 0x400000\n  write 0x400000\n  read 0x401000\n}\n`,
    )
      .split('\n')
      .filter((line) => /^vCPU 0 (wrote|read) gpa/.test(line));
  assert.deepEqual(sentences('ept').slice(1), [
    'vCPU 0 wrote gpa 0x8000000: EPT level-1 entry 0 does not allow writing',
    'vCPU 0 read gpa 0x1000000000000: gpa 0x1000000000000 lies beyond the 48 bits that the tables translate',
  ]);
  assert.equal(sentences('npt')[1], 'vCPU 0 wrote gpa 0x8000000: NPT level-1 entry 0 does not allow writing');
});
