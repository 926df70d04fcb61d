import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { LoggedMap } from '../../engine/logged-map.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';
import { randomProgram } from '../lab/programs.ts';
import { randomNestedProgram } from './nested-programs.ts';

/** Everything that a machine is, in one string: two machines in the same state give the same. */
function snapshot(run: Run): string {
  const { machine } = run;
  const frames = [...machine.memory.frames()]
    .map((pfn) => [pfn, hashPage(machine.memory.page(pfn))])
    .filter(([, hash]) => hash !== 0);
  return JSON.stringify(
    {
      steps: machine.steps,
      small: { ...machine.small, counters: [...machine.small.counters] },
      slots: machine.slots.list,
      generation: machine.slots.generation,
      locks: machine.locks,
      invalidation: machine.invalidation,
      shadow: Object.values(machine.shadow).map((map) => [...map.entries()].sort(([a], [b]) => a - b)),
      attributes: Object.values(machine.attributes).flatMap((map) =>
        map instanceof LoggedMap ? [[...map.entries()].sort(([a], [b]) => a - b)] : [],
      ),
      privateRanges: machine.slots.list.flatMap(({ base, pages }) => [
        ...machine.attributes.store.runs(base, base + pages),
      ]),
      pages: [...machine.pages.values()].sort((a, b) => a.pfn - b.pfn),
      vcpus: machine.vcpus.map((vcpu) => ({
        registers: vcpu.registers,
        mmus: vcpu.mmus,
        guestMode: vcpu.guestMode && { ...vcpu.guestMode, nested: vcpu.guestMode.nested?.pgd },
        saved: vcpu.saved,
        smm: vcpu.smm,
        requests: vcpu.requests,
        tlb: vcpu.tlb.list(),
      })),
      frames,
    },
    (_, value: unknown) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value),
  );
}

function hashPage(page: Uint32Array): number {
  let hash = 0;
  for (let word = 0; word < page.length; word++)
    if (page[word] !== 0) hash = Math.imul(hash ^ page[word]! ^ word, 0x9e3779b1) | 1;
  return hash;
}

const scenarios: (readonly [name: string, text: string])[] = [
  ...readdirSync('examples')
    .filter((name) => name.endsWith('.mmu'))
    .map((name) => [name, readFileSync(`examples/${name}`, 'utf8')] as const),
  ...[1, 2].map(
    (seed) =>
      [
        `nested EPT, program ${seed}`,
        randomNestedProgram(seed, { second: 'tdp ept 4-level', stage: '4-level', statements: 12, host: true }),
      ] as const,
  ),
  ...[1, 2].map(
    (seed) =>
      [
        `direct shadow pages, program ${seed}`,
        randomProgram(seed, { second: 'tdp ept 4-level', statements: 30, host: true, guest: true }).replace(
          '  second-stage',
          '  policy tdp-mmu = off\n  policy roots = before\n  second-stage',
        ),
      ] as const,
  ),
  ...['tdp ept 4-level', 'shadow'].map(
    (second) =>
      [
        `asynchronous page faults, ${second}`,
        `machine {\n  memory 0 +64M\n  second-stage ${second}\n}\nguest g {\n  map 0x400000 -> 0x200000 +16K rwx user\n}\nvcpu 0 in g {\n  async-pf 0x5000\n  repeat 3 {\n    user write 0x400000\n    write 0x401000\n    wait until (step & 7) == 0\n  }\n}\nhost h {\n  repeat 3 {\n    wait until accesses > 0\n    swap-out 0x200000 +16K\n  }\n}\n`,
      ] as const,
  ),
  ...[1, 2, 3].map(
    (seed) =>
      [
        `shadow paging, program ${seed}`,
        randomProgram(seed, { second: 'shadow', statements: 30, host: true, guest: true }),
      ] as const,
  ),
];

for (const [name, text] of scenarios) {
  test(`${name}: going back to any step and forward again gives the same states`, () => {
    const { program, diagnostics } = parseScenario(text);
    assert.ok(program, JSON.stringify(diagnostics));
    const run = new Run(program);
    for (let task = run.pick(); task && run.machine.steps < 6000; task = run.pick()) run.step(task);
    const end = run.machine.steps;
    const known = new Map([[end, snapshot(run)]]);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: end }), { maxLength: 6 }), (steps) => {
        for (const step of [...steps, end]) {
          run.goTo(step);
          const now = snapshot(run);
          assert.equal(now, known.get(step) ?? now, `state after step ${step}`);
          known.set(step, now);
        }
      }),
      { numRuns: 10 },
    );
  });
}
