import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Program, Statement, TaskProgram } from './program.ts';
import { Run } from './run.ts';

const span = { line: 1, column: 1, endLine: 1, endColumn: 2 };
const number = (value: bigint | number) => ({ kind: 'number', value: BigInt(value) }) as const;
const access = (kind: 'read' | 'write' | 'fetch', address: bigint | number): Statement => ({
  kind: 'access',
  access: kind,
  address: number(address),
  size: 8,
  implicit: false,
  span,
});

function program(
  tasks: readonly (Partial<TaskProgram> & Pick<TaskProgram, 'body'>)[],
  change: Partial<Program['machine']> = {},
): Program {
  return {
    machine: {
      slots: [{ id: 0, base: 0n, size: 64n << 20n, readonly: false, pageLevel: 1 }],
      second: 'ept',
      maxPhyAddr: 46,
      features: ['1g-pages'],
      ...change,
    },
    guests: [
      {
        name: 'kernel',
        span,
        mappings: [
          {
            gva: 0x400000n,
            size: 0x200000n,
            gpa: 0x200000n,
            pageLevel: 2,
            write: true,
            execute: true,
            user: false,
            fields: {},
            span,
          },
        ],
      },
    ],
    tasks: tasks.map((task, index) => ({ kind: 'vcpu', name: `${index}`, guest: 'kernel', span, ...task })),
    expects: [],
  };
}

for (const second of ['ept', 'npt'] as const) {
  test(`a first touch faults once for each guest table and once for the page (${second})`, () => {
    const run = new Run(program([{ body: [access('write', 0x400000), access('read', 0x400008)] }], { second }));
    assert.equal(run.runToEnd(10_000), true);
    const counters = run.counters();
    // PML4, PDPT and PD of the guest, and the page.
    assert.equal(counters['faults.second'], 4);
    assert.equal(counters['faults.fixed'], 4);
    assert.equal(counters['tlb.hits'], 2);
  });
}

test('going back and forth ends in the same state', () => {
  const run = new Run(
    program([{ body: [access('write', 0x400000), access('write', 0x401000)] }, { body: [access('write', 0x400000)] }]),
  );
  run.runToEnd();
  const { steps } = run.machine;
  const after = JSON.stringify([...run.machine.pages.values()]);
  const counters = JSON.stringify(run.counters());
  run.goTo(10);
  assert.equal(run.machine.steps, 10);
  run.goTo(steps);
  assert.equal(JSON.stringify([...run.machine.pages.values()]), after);
  assert.equal(JSON.stringify(run.counters()), counters);
});
