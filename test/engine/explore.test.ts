import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Event, type Exploration, explore, isHazard, withValues } from '../../engine/explore/explore.ts';
import type { Schedule } from '../../engine/explore/schedule.ts';
import { CONVERSION_INJECTIONS } from '../../engine/injections.ts';
import { ORDERINGS, type Ordering } from '../../engine/policies.ts';
import type { Program } from '../../engine/program.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// Every interleaving of a conversion with what can meet it, under each of the orderings that were proposed for it.

function programOf(tasks: string, ordering: Ordering = 'today', machine = 'vm snp'): Program {
  const { program, diagnostics } = parseScenario(`machine x86-64 {
  memory 0 +4M huge 2M guest-memfd
  second-stage tdp ${machine.includes('snp') ? 'npt' : 'ept'} 4-level
  ${machine}
  memory-fault stop
  policy conversion = ${ordering}
}
${tasks}`);
  assert.ok(program, JSON.stringify(diagnostics));
  return program;
}

const explored = (program: Program, reduce = true): Exploration => {
  const found = explore(program, { maxStates: 300_000, reduce });
  assert.ok(found.complete, `${found.states} states were not enough`);
  return found;
};

const eventsOf = ({ outcomes }: Exploration): Event[] => [...new Set(outcomes.map(({ event }) => event))].sort();
const hazardsOf = (found: Exploration): Event[] => eventsOf(found).filter(isHazard);

/** A page that was mapped as shared becomes private, while the guest goes on using it as shared. */
const STALE = `vcpu 0 {
  shared write 0x1000 = 1
  shared read 0x1000
}
host vmm {
  convert 0x1000 +4K private
}`;
/** The guest uses a page as soon as it is private. */
const EAGER = `vcpu 0 {
  wait until is_private(0x1000)
  pvalidate 0x1000
}
host vmm {
  convert 0x1000 +4K private
}`;
/** A thread of the host's writes to a page beside the one that becomes private. */
const NEIGHBOUR = `host vmm {
  convert 0x1000 +4K private
}
host kthread {
  private write 0x2000 = 3
}`;

// What §7.3 of the thread's designs and the races it names say of each ordering.
const MATRIX: Readonly<Record<Ordering, { stale: Event[]; eager: Event[]; neighbour: Event[] }>> = {
  today: { stale: [], eager: [], neighbour: [] },
  'rfc-v8': { stale: [], eager: ['rmp-fault-loop'], neighbour: [] },
  'under-lock': {
    stale: ['sleep-in-atomic'],
    eager: ['sleep-in-atomic'],
    neighbour: ['sleep-in-atomic'],
  },
  'split-direct-map': { stale: [], eager: [], neighbour: [] },
  'reversed-direct-map': { stale: [], eager: ['rmp-fault-loop'], neighbour: ['fatal-rmp-fault'] },
  deferred: { stale: [], eager: [], neighbour: [] },
  'no-zap': { stale: ['mixed-huge-page', 'stale-translation'], eager: ['rmp-fault-loop'], neighbour: [] },
  'flush-only': { stale: ['mixed-huge-page', 'stale-translation'], eager: ['rmp-fault-loop'], neighbour: [] },
};

for (const ordering of ORDERINGS)
  test(`${ordering}: what can go wrong, and nothing else`, () => {
    const { stale, eager, neighbour } = MATRIX[ordering];
    assert.deepEqual(hazardsOf(explored(programOf(STALE, ordering))), stale);
    assert.deepEqual(hazardsOf(explored(programOf(EAGER, ordering))), eager);
    assert.deepEqual(hazardsOf(explored(programOf(NEIGHBOUR, ordering))), neighbour);
  });

test('of today’s ordering a guest and a VMM see retries and KVM_EXIT_MEMORY_FAULT, and no more', () => {
  assert.deepEqual(eventsOf(explored(programOf(STALE))), ['memory-fault', 'retry']);
  assert.deepEqual(eventsOf(explored(programOf(EAGER))), ['retry']);
});

test('a write of the host to the private page itself is fatal under every ordering', () => {
  for (const ordering of ORDERINGS) {
    const touched = NEIGHBOUR.replace('private write 0x2000', 'private write 0x1000');
    // Today nobody assigns the page before the guest uses it.
    const used = `${touched}\nvcpu 0 {\n  wait until is_private(0x1000)\n  pvalidate 0x1000\n}`;
    const deferred = ordering === 'today' || ordering === 'deferred';
    const found = hazardsOf(explored(programOf(deferred ? used : touched, ordering)));
    assert.ok(
      found.includes('fatal-rmp-fault') || found.includes('direct-map-hole'),
      `${ordering}: ${found.join(', ') || 'nothing'}`,
    );
  }
});

function replay(program: Program, { runs }: Schedule): Run {
  const plan = runs.flatMap(({ task, steps }) => new Array<number>(steps).fill(task));
  const run = new Run(withValues(program), undefined, plan);
  for (const [step, task] of plan.entries()) {
    const next = run.pick();
    assert.equal(next?.id, task, `step ${step} is not made as planned`);
    run.step(next!);
  }
  return run;
}

test('a schedule leads where it says, by as many switches and steps', () => {
  for (const [tasks, ordering] of [
    [STALE, 'no-zap'],
    [EAGER, 'rfc-v8'],
    [NEIGHBOUR, 'reversed-direct-map'],
  ] as const) {
    const program = programOf(tasks, ordering);
    for (const { event, text, schedule } of explored(program).outcomes) {
      const { runs, switches, steps } = schedule;
      assert.equal(runs.length - 1, switches);
      const { machine } = replay(program, schedule);
      assert.equal(machine.steps, steps);
      if (!isHazard(event)) continue;
      assert.ok(
        machine.small.hazards.some((each) => each.hazard === event && each.text === text),
        `${event} is not there after ${steps} steps`,
      );
      const before = replay(program, shorter(schedule));
      assert.ok(!before.machine.small.hazards.some((each) => each.text === text), `${event} is there a step before`);
    }
  }
});

function shorter(schedule: Schedule): Schedule {
  const runs = schedule.runs.map((run) => ({ ...run }));
  runs.at(-1)!.steps--;
  return { ...schedule, runs };
}

test('the reduction loses nothing: same outcomes, by schedules as short', () => {
  let [states, ofReduced] = [0, 0];
  for (const tasks of [STALE, EAGER, NEIGHBOUR])
    for (const ordering of ['today', 'rfc-v8', 'flush-only'] as const) {
      const program = programOf(tasks, ordering);
      const [all, reduced] = [explored(program, false), explored(program)];
      const words = ({ outcomes }: Exploration): string[] =>
        outcomes.map(({ event, text, schedule }) => `${event}: ${text}: ${schedule.switches}/${schedule.steps}`).sort();
      assert.deepEqual(words(reduced), words(all), ordering);
      states += all.states;
      ofReduced += reduced.states;
    }
  assert.ok(ofReduced < 0.65 * states, `${ofReduced} of ${states}`);
});

test('conversions that cross leave store and RMP at odds where no lock is held throughout', () => {
  const crossing = `host a {
  convert 0x1000 +4K private
}
host b {
  convert 0x1000 +4K shared
}`;
  const lost = ORDERINGS.filter((ordering) =>
    hazardsOf(explored(programOf(crossing, ordering))).includes('lost-update'),
  );
  assert.deepEqual(lost, ['rfc-v8', 'under-lock', 'split-direct-map', 'reversed-direct-map', 'no-zap', 'flush-only']);
});

test('two tasks that each wait for the other make no progress', () => {
  const found = explored(
    programOf(
      'vcpu 0 {\n  wait until is_private(0x1000)\n}\nhost vmm {\n  wait until cr0 == 1\n  convert 0x1000 +4K private\n}',
    ),
  );
  assert.deepEqual(eventsOf(found), ['no-progress']);
  assert.match(found.outcomes[0]!.text, /nothing can run/);
});

test('a fault that nobody will ever end is no progress', () => {
  // The NPT goes on mapping the shared frame, as which the RMP refuses it, and no fault changes that.
  const mapped = `vcpu 0 {
  shared write 0x1000 = 1
  wait until is_private(0x1000)
  pvalidate 0x1000
}
host vmm {
  convert 0x1000 +4K private
}`;
  assert.ok(hazardsOf(explored(programOf(mapped, 'flush-only'))).includes('no-progress'));
  assert.ok(!hazardsOf(explored(programOf(mapped))).includes('no-progress'));
});

test('counters that tasks ask for tell states apart, and the number of steps is refused', () => {
  const waits = (condition: string): Program =>
    programOf(
      `vcpu 0 {\n  shared write 0x1000 = 1\n  shared write 0x1000 = 1\n}\nhost vmm {\n  wait until ${condition}\n  convert 0x1000 +4K private\n}`,
    );
  const found = explored(waits('accesses == 1'));
  // The vCPU may be through before the VMM has looked: then it waits for ever, which only a count that is part of the state can tell.
  assert.ok(eventsOf(found).includes('no-progress'));
  assert.ok(!eventsOf(explored(waits('accesses >= 1'))).includes('no-progress'));
  assert.throws(() => explored(waits('step > 3')), /explore: a task asks for step/);
});

test('a way whose changes the log does not hold is not taken back: the exploration gives up, and tells what it has found', () => {
  const program = programOf('host h {\n  repeat 40000 as i { write 0x1000 = i + 1 }\n}');
  const { complete, states, outcomes } = explore(program, { maxStates: 300_000, reduce: true, mostChanges: 1 << 15 });
  assert.deepEqual([complete, outcomes], [false, []]);
  assert.ok(states > 30_000 && states < 80_000, `${states}`);
});

test('an exploration that is given up says so', () => {
  const found = explore(programOf(STALE), { maxStates: 50, reduce: true });
  assert.equal(found.complete, false);
  assert.equal(found.states, 50);
});

// Mistakes in today's ordering, each found by the explorer, and not without it.
const MISTAKES: Readonly<Record<string, { tasks: string; hazard: Event; text: RegExp }>> = {
  'attributes-without-zap': {
    tasks: STALE,
    hazard: 'stale-translation',
    text: /vCPU 0 reaches gpa 0x1000 through a shared translation/,
  },
  'mixed-tail': {
    tasks: STALE.replaceAll('shared read 0x1000', 'shared read 0x3000').replace('write 0x1000', 'write 0x2000'),
    hazard: 'mixed-huge-page',
    text: /a 2M page maps gfn 0x0 on/,
  },
  'edges-not-invalidated': {
    tasks: STALE.replace('shared write 0x1000 = 1', 'shared write 0x3000 = 1').replace('  shared read 0x1000\n', ''),
    hazard: 'mixed-huge-page',
    text: /a 2M page maps gfn 0x0 on/,
  },
  'seq-after-attributes': { tasks: STALE, hazard: 'stale-translation', text: /vCPU 0 reaches gpa 0x1000/ },
  'end-before-store': { tasks: STALE, hazard: 'stale-translation', text: /vCPU 0 reaches gpa 0x1000/ },
};

const OTHERWISE = [
  'mixed-1g-first',
  'mixed-unaligned',
  'begin-without-range',
  'store-fails',
  'rmp-update-fails',
  'tdx-shared-bit',
];
test('every mistake in converting memory is looked for', () => {
  assert.deepEqual([...Object.keys(MISTAKES), ...OTHERWISE].sort(), Object.keys(CONVERSION_INJECTIONS).sort());
});

for (const [mistake, { tasks, hazard, text }] of Object.entries(MISTAKES))
  test(`${mistake} is found`, () => {
    const wrong = tasks.replace('host vmm {', `host vmm {\n  inject ${mistake}`);
    const found = explored(programOf(wrong));
    const outcome = found.outcomes.find(({ event }) => event === hazard);
    assert.match(outcome?.text ?? `only ${eventsOf(found).join(', ')}`, text);
    assert.deepEqual(hazardsOf(explored(programOf(tasks))), []);
  });

test('begin-without-range is told by the kernel, and faults elsewhere retry', () => {
  const tasks = STALE.replaceAll('0x1000 =', '0x300000 =').replace('  shared read 0x1000\n', '');
  const wrong = programOf(tasks.replace('host vmm {', 'host vmm {\n  inject begin-without-range'));
  assert.deepEqual(
    eventsOf(explored(programOf(tasks))),
    ['retry'],
    'by the sequence alone, which counts for every gfn',
  );
  const run = new Run(wrong);
  run.runToEnd();
  assert.match(run.machine.small.warnings[0]?.text ?? '', /begun without a range/);
  const shortest = (program: Program): number =>
    Math.min(...explored(program).outcomes.map(({ schedule }) => schedule.steps));
  assert.ok(shortest(wrong) < shortest(programOf(tasks)), 'a retry takes less than the whole conversion');
});

test('an attribute that cannot be stored: what was stored stays, and the callback covers that alone', () => {
  const tasks = 'host vmm {\n  inject store-fails\n  convert 0x1000 +16K private\n}';
  const run = new Run(programOf(tasks, 'rfc-v8'));
  run.runToEnd();
  const { machine } = run;
  const kinds = [1, 2, 3, 4].map((gfn) => machine.attributes.store.isPrivate(gfn));
  assert.deepEqual(kinds, [true, true, false, false]);
  assert.deepEqual(
    [...machine.attributes.rmp.entries()].map(([, { gfn }]) => gfn),
    [1, 2],
  );
  assert.deepEqual(machine.small.hazards, []);
  const today = new Run(programOf(tasks));
  today.runToEnd();
  assert.equal(today.machine.attributes.store.isPrivate(1), false, 'room is made first: nothing is stored');
});

test('an RMPUPDATE that fails leaves the attribute changed, logged or returned', () => {
  for (const [policy, words] of [
    ['logged', /it is logged, and the attribute stays changed/],
    ['returned', /KVM_SET_MEMORY_ATTRIBUTES fails with -EFAULT/],
  ] as const) {
    const program = programOf(
      'host vmm {\n  inject rmp-update-fails\n  convert 0x1000 +4K private\n}',
      'rfc-v8',
      `vm snp\n  policy attribute-errors = ${policy}`,
    );
    const run = new Run(program);
    run.runToEnd();
    const { machine } = run;
    assert.match(machine.small.warnings.at(-1)?.text ?? '', words);
    assert.deepEqual(
      machine.small.hazards.map(({ hazard }) => hazard),
      ['lost-update'],
    );
    assert.ok(machine.attributes.store.isPrivate(1));
  }
});

test('in which step a read was made tells no states apart', () => {
  const states = (access: string): number =>
    explored(programOf(`vcpu 0 {\n  ${access}\n}\nvcpu 1 {\n  ${access}\n}`)).states;
  assert.equal(states('shared read 0x3000'), states('shared write 0x3000 = 1'));
});

test('a task that ends where it should not is told: a dead VM, an RMPUPDATE that fails, an invariant', () => {
  const failures = (program: Program): string[] =>
    explored(program).outcomes.flatMap(({ event, text }) => (event === 'failure' ? [text] : []));
  const tdx = `vm tdx\n  second-stage tdp ept 4-level`;
  const { program: early } = parseScenario(`machine {
  memory 0 +4M guest-memfd
  ${tdx}
  private 0x1000 +4K
}
vcpu 0 {
  accept 0x1000
}
vcpu 1 {
  private read 0x1000
}
`);
  assert.deepEqual(
    new Set(failures(early!)),
    new Set([
      'guest access before accepting gpa 0x1000 on vCPU 1: KVM_RUN fails with -EIO, and the VM is dead',
      'KVM_RUN fails with -EIO: the VM is dead',
    ]),
  );
  assert.match(
    failures(
      programOf('vcpu 0 {\n  inject rmp-update-fails\n  convert 0x1000 +4K private\n  pvalidate 0x1000\n}'),
    ).join(),
    /KVM_RUN failed: the vCPU cannot go on/,
  );
  assert.match(
    failures(
      programOf('host vmm {\n  inject mixed-tail\n  convert 0x200000 +8K private\n}', 'today', 'vm snp\n  sanitize'),
    ).join(),
    /sanitizer: 2M from gfn 0x200 on hold private and shared pages, and are not noted as mixed/,
  );
});

test('what a guest uses and has not accepted is told, and is its own to handle', () => {
  const found = explored(programOf('vcpu 0 {\n  convert 0x1000 +4K private\n  private write 0x1000 = 1\n}'));
  assert.match(
    found.outcomes.find(({ event }) => event === 'not-validated')?.text ?? '',
    /vCPU 0: #VC at 0x1000: the guest has not accepted hpa 0x\w+ \(PVALIDATE\)/,
  );
});

test('who waits for what cannot be told ends, and says why', () => {
  const program = programOf(
    'host a {\n  delete slot 0\n}\nhost b {\n  wait until hpa(0x1000) == 0\n  convert 0x1000 +4K private\n}',
  );
  const found = explored(program);
  assert.match(found.outcomes.find(({ event }) => event === 'failure')?.text ?? '', /hpa\(0x1000\): no memory slot/);
  const run = new Run(program);
  run.runToEnd(10_000);
  assert.match(run.machine.small.failures[0]?.text ?? '', /hpa\(0x1000\): no memory slot/);
});

test('who is stuck is told by the schedule that leads there, and not as one that goes round in circles', () => {
  const program = programOf(
    'host a {\n  repeat 2 {\n    wait until !is_private(0x1000)\n    convert 0x1000 +4K private\n  }\n}',
  );
  const outcomes = (reduce: boolean) =>
    explored(program, reduce).outcomes.map(({ event, text, schedule }) => `${event}: ${text}: ${schedule.steps}`);
  assert.deepEqual(outcomes(true), outcomes(false));
  assert.equal(outcomes(true).length, 1);
  assert.match(outcomes(true)[0]!, /^no-progress: nothing can run: a cannot go on: /);
});
