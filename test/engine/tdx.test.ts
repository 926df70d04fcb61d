import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rootFor, secureRoot, sharedBit } from '../../engine/attributes/tdx.ts';
import { explore, isHazard } from '../../engine/explore/explore.ts';
import { LEAF, TABLE } from '../../engine/formats/compile.ts';
import type { Machine } from '../../engine/machine.ts';
import type { Program } from '../../engine/program.ts';
import { answer } from '../../engine/queries/answer.ts';
import { Run } from '../../engine/run.ts';
import { findEntry } from '../../engine/tdp/iterate.ts';
import { isPresent } from '../../engine/tdp/spte.ts';
import { parseScenario } from '../../scenario/index.ts';

// TDX: shared memory by KVM's EPT, private memory by the module's, which KVM mirrors.

function programOf(tasks: string, levels: 4 | 5 = 4, more = ''): Program {
  const { program, diagnostics } = parseScenario(`machine x86-64 {
  memory 0 +4M huge 2M guest-memfd
  second-stage tdp ept ${levels}-level
  vm tdx
  ${more}
}
${tasks}`);
  assert.ok(program, JSON.stringify(diagnostics));
  return program;
}

function ran(program: Program): Machine {
  const run = new Run(program);
  assert.ok(run.runToEnd(100_000));
  assert.equal(run.stuck(), undefined);
  assert.deepEqual(run.machine.small.failures, []);
  return run.machine;
}

/** Every entry of the mirror against the module's. @returns how many lead to pages */
function mirrored(machine: Machine): number {
  const format = machine.secondFormat;
  let pages = 0;
  const visit = (mirror: number, secure: number, level: number): void => {
    for (let index = 0; index < 512; index++) {
      const [lo, hi] = machine.entryWords(mirror, index);
      const [ownLo, ownHi] = machine.entryWords(secure, index);
      const where = `level ${level} index ${index}`;
      if (!isPresent(lo)) {
        assert.deepEqual([ownLo, ownHi], [0, 0], `${where}: the mirror has nothing, the module has`);
        continue;
      }
      const kind = format.classify(level, lo);
      assert.equal(format.classify(level, ownLo), kind, where);
      if (kind === LEAF) {
        assert.equal(format.frame(level, ownLo, ownHi), format.frame(level, lo, hi), where);
        assert.equal(level, 1, 'the module maps 4K alone');
        pages++;
      } else if (kind === TABLE) {
        const child = format.frame(level, lo, hi);
        assert.equal(format.frame(level, ownLo, ownHi), machine.page(child).external, where);
        visit(child, machine.page(child).external!, level - 1);
      }
    }
  };
  const { mirrorRoot } = machine.vcpu(0).mmu;
  visit(mirrorRoot, secureRoot(machine, mirrorRoot), format.rootLevel);
  return pages;
}

const BACK_AND_FORTH = `vcpu 0 {
  accept 0x1000
  private write 0x1000 = 2
  private read 0x1000
  expect loaded == 2
  shared write 0x2000 = 3
  convert 0x1000 +4K shared
  shared write 0x1000 = 5
  shared read 0x1000
  expect loaded == 5
  convert 0x1000 +4K private
  accept 0x1000
  private read 0x1000
  expect loaded == 0
  shared read 0x2000
  expect loaded == 3
}
`;

for (const levels of [4, 5] as const)
  test(`${levels} levels: each kind is mapped by its own tables, and a page that becomes private again is empty`, () => {
    const machine = ran(programOf(BACK_AND_FORTH, levels));
    const vcpu = machine.vcpu(0);
    assert.equal(sharedBit(machine) * 4096, levels === 4 ? 2 ** 47 : 2 ** 51);
    assert.equal(mirrored(machine), 1);
    const shared = rootFor(machine, vcpu, false);
    const leafOf = (root: number, gfn: number): number => {
      const { level, lo } = findEntry(machine, root, gfn);
      return isPresent(lo) ? level : 0;
    };
    assert.equal(leafOf(vcpu.mmu.mirrorRoot, 1), 1);
    assert.equal(leafOf(vcpu.mmu.mirrorRoot, 2), 0, 'what is shared is not in the secure EPT');
    assert.equal(leafOf(shared, 1 + sharedBit(machine)), 0, 'what is private is not in the shared EPT');
    assert.equal(leafOf(shared, 2 + sharedBit(machine)), 1);
    assert.equal(leafOf(shared, 2), 0, 'the shared EPT has nothing below the shared bit');
  });

test('what the host’s memory management unmaps is shared memory alone', () => {
  const machine = ran(
    programOf(`vcpu 0 {
  accept 0x1000
  private write 0x1000 = 1
  shared write 0x2000 = 1
  wait until sptes.changed > 0 && mmu_invalidate_seq >= 2
  private read 0x1000
  shared read 0x2000
}
host mm {
  wait until faults.fixed == 2
  unmap 0 +4M
}
`),
  );
  // Of the second accesses the shared one faults again.
  assert.equal(machine.counter('faults.fixed'), 3);
});

test('guest_memfd that is given back leaves the secure EPT', () => {
  const machine = ran(
    programOf(`vcpu 0 {
  accept 0x1000
  private write 0x1000 = 1
}
host vmm {
  wait until faults.fixed == 1
  punch 0x1000 +4K
}
`),
  );
  assert.equal(mirrored(machine), 0);
  assert.equal(machine.attributes.folios.size, 0);
});

const explored = (program: Program) => {
  const found = explore(program, { maxStates: 300_000, reduce: true });
  assert.ok(found.complete, `${found.states} states`);
  return found;
};
const eventsOf = (program: Program): string[] =>
  [...new Set(explored(program).outcomes.map(({ event }) => event))].sort();

test('conversions and accesses that meet: retries and exits, and nothing worse', () => {
  const stop = 'memory-fault stop';
  const toPrivate = `vcpu 0 {
  shared write 0x1000 = 1
  shared read 0x1000
}
host vmm {
  convert 0x1000 +4K private
}`;
  assert.deepEqual(eventsOf(programOf(toPrivate, 4, stop)), ['memory-fault', 'retry']);
  const toShared = `vcpu 0 {
  accept 0x1000
  private write 0x1000 = 1
  private read 0x1000
}
host vmm {
  convert 0x1000 +4K shared
}`;
  assert.deepEqual(eventsOf(programOf(toShared, 4, `${stop}\n  private 0x1000 +4K`)), ['memory-fault', 'retry']);
});

test('without a zap the old translation is used, in either direction', () => {
  for (const [from, to] of [
    ['shared', 'private'],
    ['private', 'shared'],
  ] as const) {
    const race = `vcpu 0 {
  ${from === 'private' ? 'accept 0x1000' : ''}
  ${from} write 0x1000 = 1
  ${from} read 0x1000
}
host vmm {
  inject attributes-without-zap
  convert 0x1000 +4K ${to}
}`;
    const first = from === 'private' ? '\n  private 0x1000 +4K' : '';
    const found = eventsOf(programOf(race, 4, `memory-fault stop${first}`));
    assert.ok(found.includes('stale-translation'), `${from} to ${to}: ${found.join(', ')}`);
  }
});

test('two vCPUs in the module at once: one finds it busy and retries, and both come to an end', () => {
  const both = `vcpu 0 {
  accept 0x1000
}
vcpu 1 {
  accept 0x2000
}`;
  const found = explored(programOf(both, 4, 'private 0x1000 +8K'));
  assert.ok(found.outcomes.some(({ event }) => event === 'retry'));
  assert.deepEqual(
    found.outcomes.filter(({ event }) => isHazard(event)).map(({ text }) => text),
    [],
  );
});

test('tdx-shared-bit is found: the gfn lies beyond every slot, and the access becomes MMIO', () => {
  const tasks = (mistake: string): string =>
    `vcpu 0 {\n  ${mistake}\n  shared write 0x2000 = 3\n  shared read 0x2000\n  expect loaded == 3\n}`;
  assert.equal(ran(programOf(tasks(''))).counter('emulated'), 0);
  const run = new Run(programOf(tasks('inject tdx-shared-bit')));
  run.runToEnd(100_000);
  assert.match(run.machine.small.failures.map(({ text }) => text).join(), /expect loaded == 3/);
  assert.equal(run.machine.counter('emulated'), 2);
});

test('going back takes the secure EPT along', () => {
  const run = new Run(programOf(BACK_AND_FORTH));
  run.runToEnd(100_000);
  const end = run.machine.steps;
  const frames = [...run.machine.memory.frames()].map((pfn) => [pfn, [...run.machine.memory.page(pfn)].join()]);
  run.goTo(Math.floor(end / 2));
  run.goTo(0);
  assert.equal(run.machine.pages.size, 0);
  run.goTo(end);
  const again = [...run.machine.memory.frames()].map((pfn) => [pfn, [...run.machine.memory.page(pfn)].join()]);
  assert.deepEqual(again, frames);
});

test('a slot that is deleted takes its private pages out of the module’s tables, and leaves other slots’', () => {
  const { program } = parseScenario(`machine {
  memory 0 +4M guest-memfd
  memory 0x800000 +64K guest-memfd
  second-stage tdp ept 4-level
  vm tdx
  private 0 +64K
  private 0x800000 +64K
}
vcpu 0 {
  accept 0x1000
  accept 0x800000
  private write 0x1000 = 1
  private write 0x800000 = 2
  shared write 0x20000 = 3
  wait until conversions == 1
  private read 0x1000
  expect loaded == 1
}
host h {
  wait until accesses == 3
  delete slot 1
  convert 0x30000 +4K shared
}`);
  const machine = ran(program!);
  assert.equal(mirrored(machine), 1, 'the page of the slot that stays');
  assert.equal(machine.counter('faults.second'), 3, 'which needs no fault again');
});

test('a page is the guest’s when it has accepted it, and empty; accepting it twice is told', () => {
  const machine = ran(
    programOf(`vcpu 0 {
  accept 0x1000
  private write 0x1000 = 7
  accept 0x1000
  private read 0x1000
  expect loaded == 7
}`),
  );
  assert.deepEqual(
    machine.small.warnings.map(({ text }) => text),
    ['vCPU 0: TDG.MEM.PAGE.ACCEPT of 0x1000 fails: the page has been accepted (TDX_PAGE_ALREADY_ACCEPTED)'],
  );
  assert.equal(machine.attributes.pending.size, 0);
});

test('what a launch has filled needs no accepting', () => {
  const machine = ran(programOf('vcpu 0 {\n  private read 0x1000\n}', 4, 'launch 0x1000 +4K'));
  assert.deepEqual(machine.small.warnings, []);
});

test('a guest that uses memory before it has accepted it is dead, with all of its vCPUs', () => {
  const run = new Run(
    programOf(
      `vcpu 0 {
  private read 0x1000
}
vcpu 1 {
  wait until faults.second >= 2
  shared read 0x2000
}
host vmm {
  wait until faults.second >= 2
  convert 0x3000 +4K private
}`,
      4,
      'private 0x1000 +4K',
    ),
  );
  run.runToEnd(100_000);
  assert.deepEqual(
    run.machine.small.failures.map(({ line, text }) => `${line}: ${text}`),
    [
      '8: guest access before accepting gpa 0x1000 on vCPU 0: KVM_RUN fails with -EIO, and the VM is dead',
      '12: KVM_RUN fails with -EIO: the VM is dead',
    ],
  );
  assert.equal(run.machine.counter('conversions'), 1, 'userspace goes on');
});

test('a private fault that must be retried is, without a walk', () => {
  const program = programOf(
    `vcpu 0 {
  accept 0x1000
}
host vmm {
  convert 0x3000 +4K private
}`,
    4,
    'private 0x1000 +4K',
  );
  const { outcomes } = explored(program);
  const { schedule } = outcomes.find(({ event }) => event === 'retry')!;
  const plan = schedule.runs.flatMap(({ task, steps }) => Array<number>(steps).fill(task));
  const run = new Run(program, undefined, plan);
  run.runToEnd(100_000);
  assert.ok(run.machine.counter('faults.retried') > 0);
  assert.equal(run.machine.counter('exits'), 1);
});

const WRITTEN = `vcpu 0 {
  accept 0x1000
  private write 0x1000 = 1
  private read 0x1000
}
host kthread {
  private write 0x1000 = 2
}`;

test('the host’s write to a page of the guest’s is a machine check for who reads it', () => {
  const found = explored(programOf(WRITTEN, 4, 'private 0x1000 +4K'));
  const outcome = found.outcomes.find(({ event }) => event === 'poisoned-memory');
  assert.match(outcome?.text ?? '', /^vCPU 0 takes a machine check at 0x1000: the host has written to the page/);
  assert.equal(outcome?.schedule.switches, 2);
});

test('a page that comes back from the host is whole again, once it is accepted', () => {
  const run = new Run(
    programOf(
      `vcpu 0 {
  accept 0x1000
  wait until conversions == 1
  convert 0x1000 +4K private
  accept 0x1000
  private read 0x1000
  expect loaded == 0
}
host kthread {
  wait until accesses == 1 && faults.fixed == 1
  private write 0x1000 = 2
  convert 0x1000 +4K shared
}`,
      4,
      'private 0x1000 +4K',
    ),
  );
  run.runToEnd(100_000);
  assert.deepEqual(run.machine.small.failures, []);
  assert.equal(run.machine.attributes.poisoned.size, 0);
  assert.equal(run.machine.counter('hazards'), 0);
});

test('what a launch has put into a page is gone when it has been shared, or freed: the next page waits for the guest', () => {
  const end = (tasks: string): string => {
    const run = new Run(programOf(tasks, 4, 'launch 0x100000 +64K'));
    run.runToEnd(100_000);
    return run.machine.small.failures.map(({ text }) => text).join();
  };
  const there = '  private read 0x100000\n  private read 0x101000\n';
  assert.equal(end(`vcpu 0 {\n${there}}`), '');
  const twice = '  convert 0x101000 +4K shared\n  convert 0x101000 +4K private\n';
  assert.match(end(`vcpu 0 {\n${twice}${there}}`), /guest access before accepting gpa 0x101000/);
  assert.match(
    end(`vcpu 0 {\n  wait until mmu_invalidate_seq >= 1\n${there}}\nhost vmm {\n  punch 0x101000 +4K\n}`),
    /guest access before accepting gpa 0x101000/,
  );
});

test('the alias of an address with the shared bit is the page itself', () => {
  const machine = ran(programOf('vcpu 0 {\n  shared write 0x1000 = 1\n}'));
  const { answer: found } = answer(machine, { kind: 'page', gpa: '0x800000001000' }, { since: 0, fault: undefined });
  assert.ok(found.kind === 'page');
  assert.equal(found.gpa, '0x1000');
});

test('accept names a page by its guest-physical address: with paging on, without a translation in the TLB, and unmapped too', () => {
  const machine = ran(
    programOf(
      `guest k {
  tables at 0x20_0000
  map 0x50_0000 -> 0x1000 4K rw- private
}
vcpu 0 in k {
  accept 0x1000
  accept 0x2000
  write 0x50_0000 = 3
  read 0x50_0000
  expect loaded == 3
}
`,
      4,
      'launch 0x20_0000 +64K\n  private 0x1000 +8K',
    ),
  );
  assert.deepEqual(machine.small.warnings, []);
  assert.equal(mirrored(machine) >= 2, true);
  assert.equal(machine.attributes.pending.size, 0);
  assert.equal(machine.attributes.folios.size > 2, true);
  const refused = ran(programOf('vcpu 0 {\n  accept (1 << 47)\n  accept 0x1001\n}\n')).small.warnings;
  assert.deepEqual(
    refused.map(({ text }) => text),
    ['0x800000000000', '0x1001'].map(
      (where) => `vCPU 0: TDG.MEM.PAGE.ACCEPT of ${where} fails: no private page begins there (TDX_OPERAND_INVALID)`,
    ),
  );
});
