import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rmpEntry } from '../../engine/attributes/rmp.ts';
import { explore, isHazard } from '../../engine/explore/explore.ts';
import { Kind } from '../../engine/history/log.ts';
import type { Machine } from '../../engine/machine.ts';
import { backingPfn } from '../../engine/memory/memslots.ts';
import type { Program } from '../../engine/program.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// Private and shared memory, one conversion after the other: what the store, the RMP, guest_memfd and the direct map come to.

const MEMORY = 'memory 0 +4M huge 2M guest-memfd';

function programOf(tasks: string, more: readonly string[] = [], vm = 'snp'): Program {
  const lines = more.some((line) => line.startsWith('memory ')) ? more : [MEMORY, ...more];
  const { program, diagnostics } = parseScenario(
    `machine x86-64 {\n  ${lines.join('\n  ')}\n  second-stage tdp ${vm === 'snp' ? 'npt' : 'ept'} 4-level\n  vm ${vm}\n}\n${tasks}\n`,
  );
  assert.ok(program, JSON.stringify(diagnostics));
  return program;
}

function ran(tasks: string, more?: readonly string[], vm?: string): Machine {
  const run = new Run(programOf(tasks, more, vm));
  assert.ok(run.runToEnd(200_000));
  assert.equal(run.stuck(), undefined);
  assert.deepEqual(run.machine.small.failures, []);
  return run.machine;
}

const gmemFrame = (machine: Machine, gfn: number): number => {
  const slot = machine.slots.find(gfn)!;
  return backingPfn(slot, gfn, slot.gmem);
};

/** Kinds of entries in the log, from the first that a kind has on. */
const logged = (machine: Machine, ...kinds: Kind[]): Kind[] =>
  Array.from({ length: machine.log.length }, (_, at) => machine.log.kindAt(at)).filter((kind) => kinds.includes(kind));

test('a guest of SNP: from a mismatch to a page of its own, which it accepts, and back', () => {
  const machine = ran(`vcpu 0 {
  shared write 0x1000 = 1
  private read 0x2000
  expect exits.memory_fault == 1 && is_private(0x2000)
  convert 0x1000 +4K private
  pvalidate 0x1000
  private write 0x1000 = 2
  private read 0x1000
  expect loaded == 2
  convert 0x1000 +4K shared
  shared read 0x1000
  expect loaded == 1
}`);
  // The private read of a page that nobody accepted is #VC.
  assert.equal(machine.counter('faults.vc'), 1);
  assert.deepEqual(rmpEntry(machine, gmemFrame(machine, 1)), { gfn: 1, level: 1, validated: true });
});

test('what a launch puts into memory is assigned and accepted, and the rest of private memory is not there yet', () => {
  const machine = ran('vcpu 0 {\n  private write 0x100000 = 1\n  pvalidate 0x200000\n}', [
    'private 0x100000 +2M',
    'launch 0x100000 +64K',
  ]);
  assert.equal(machine.counter('faults.vc'), 0);
  assert.equal(machine.attributes.folios.size, 17);
  assert.equal(machine.attributes.rmp.size, 17);
});

test('2M in the RMP: accepted as such, split by PSMASH where the guest accepts 4K', () => {
  const large = ['memory 0 +4M huge 2M guest-memfd 2M', 'policy conversion = rfc-v8'];
  const whole = ran(
    'vcpu 0 {\n  convert 0x200000 +2M private\n  pvalidate 0x200000 2M\n  private write 0x234000 = 1\n}',
    large,
  );
  assert.equal(whole.attributes.rmp.size, 1);
  assert.deepEqual(rmpEntry(whole, gmemFrame(whole, 0x234)), { gfn: 0x234, level: 2, validated: true });
  const parts = ran(
    `vcpu 0 {
  convert 0x200000 +2M private
  pvalidate 0x200000
  convert 0x201000 +4K shared
}`,
    large,
  );
  assert.equal(parts.counter('faults.rmp'), 0, 'the sizes differ for PVALIDATE alone');
  assert.match(
    parts.small.warnings.map(({ text }) => text).join(),
    /PVALIDATE of 0x200000 fails: the RMP has the page in another size/,
  );
  assert.equal(parts.attributes.rmp.size, 511, 'a part of 2M that becomes shared splits it');
});

test('2M in the RMP behind a mapping of 4K is split at the fault that it makes, and mapped anew', () => {
  const machine = ran(
    `vcpu 0 {
  private write 0x200000 = 1
  wait until slots.generation > 1
  private write 0x201000 = 2
  private read 0x200000
  expect loaded == 1
}
host vmm {
  wait until accesses == 1
  log dirty slot 0 on
}`,
    ['memory 0 +4M huge 2M guest-memfd 2M', 'policy conversion = rfc-v8', 'launch 0x200000 +2M'],
  );
  assert.equal(machine.counter('faults.rmp'), 1);
  assert.equal(machine.attributes.rmp.size, 512);
  assert.deepEqual(machine.small.hazards, []);
});

test('a hole in guest_memfd: what was mapped goes, and the pages are the host’s again', () => {
  const machine = ran(`vcpu 0 {
  convert 0x1000 +8K private
  pvalidate 0x1000
  pvalidate 0x2000
  private write 0x2000 = 7
}
host vmm {
  wait until accesses == 1 && faults.fixed == 2
  punch 0x1000 +4K
  expect mmu_invalidate_seq == 2
}`);
  assert.equal(rmpEntry(machine, gmemFrame(machine, 1)), undefined);
  assert.notEqual(rmpEntry(machine, gmemFrame(machine, 2)), undefined);
  assert.equal(machine.attributes.folios.size, 1);
});

test('a conversion over two slots and a gap is clipped to them, and stored throughout', () => {
  const machine = ran('host vmm {\n  convert 0x3000 +16K private\n}', [
    'memory 0 +16K guest-memfd',
    'memory 0x6000 +16K guest-memfd',
    'policy conversion = rfc-v8',
  ]);
  const pages = [...machine.attributes.rmp.entries()].map(([, { gfn }]) => gfn);
  assert.deepEqual(pages, [3, 6]);
  assert.deepEqual(
    [...machine.attributes.store.runs(0, 16)],
    [
      { start: 0, end: 3, isPrivate: false },
      { start: 3, end: 7, isPrivate: true },
      { start: 7, end: 16, isPrivate: false },
    ],
  );
});

test('today: nothing to do is nothing done, and without a slot the attribute is stored alone', () => {
  const nothing = ran('host vmm {\n  convert 0x1000 +4K shared\n}');
  assert.deepEqual(logged(nothing, Kind.ATTRIBUTES, Kind.INVALIDATE), []);
  const nowhere = ran('host vmm {\n  convert 0x8000_0000 +4K private\n}');
  assert.deepEqual(logged(nowhere, Kind.ATTRIBUTES, Kind.INVALIDATE), [Kind.ATTRIBUTES]);
  const somewhere = ran('host vmm {\n  convert 0x1000 +4K private\n}');
  // Begun, extended to the 2M around it, stored, ended.
  assert.deepEqual(logged(somewhere, Kind.ATTRIBUTES, Kind.INVALIDATE), [
    Kind.INVALIDATE,
    Kind.INVALIDATE,
    Kind.ATTRIBUTES,
    Kind.INVALIDATE,
  ]);
});

test('large pages come and go with the mix of their block', () => {
  const machine = ran(`vcpu 0 {
  shared write 0x3000 = 1
  expect level(0x3000) == 2
  convert 0x1000 +4K private
  shared write 0x3000 = 2
  expect level(0x3000) == 1
  convert 0x1000 +4K shared
  shared write 0x1000 = 3
  expect level(0x1000) == 2
}`);
  assert.deepEqual(machine.small.hazards, []);
});

test('what a conversion does to what maps the range: it must zap', () => {
  const race =
    'vcpu 0 {\n  shared write 0x1000 = 1\n  shared read 0x1000\n}\nhost vmm {\n  convert 0x1000 +4K private\n}';
  const hazards = (zap: string): string[] => {
    const program = programOf(race, [
      'memory-fault stop',
      'policy conversion = rfc-v8',
      `policy attribute-zap = ${zap}`,
    ]);
    const found = explore(program, { maxStates: 100_000, reduce: true });
    assert.ok(found.complete);
    return [...new Set(found.outcomes.map(({ event }) => event).filter(isHazard))].sort();
  };
  assert.deepEqual(hazards('zap'), []);
  assert.deepEqual(hazards('flush'), ['mixed-huge-page', 'stale-translation']);
  assert.deepEqual(hazards('none'), ['mixed-huge-page', 'stale-translation']);
});

test('in place a page has one frame: the host’s write to its neighbour is fatal while a large entry of the direct map covers both', () => {
  const neighbour = 'host vmm {\n  convert 0x1000 +4K private\n}\nhost kthread {\n  shared write 0x2000 = 1\n}';
  const hazards = (ordering: string): string[] => {
    const program = programOf(neighbour, ['policy guest-memfd = in-place', `policy conversion = ${ordering}`]);
    return [
      ...new Set(
        explore(program, { maxStates: 100_000, reduce: true })
          .outcomes.map(({ event }) => event)
          .filter(isHazard),
      ),
    ];
  };
  assert.deepEqual(hazards('reversed-direct-map'), ['fatal-rmp-fault']);
  assert.deepEqual(hazards('rfc-v8'), []);
  const machine = ran(
    'vcpu 0 {\n  shared write 0x1000 = 5\n  convert 0x1000 +4K private\n  pvalidate 0x1000\n  private read 0x1000\n  expect loaded == 5\n}',
    ['policy guest-memfd = in-place'],
  );
  assert.equal(gmemFrame(machine, 1), backingPfn(machine.slots.find(1)!, 1));
});

test('a software-protected guest: the attribute alone says which memory an access is to', () => {
  const machine = ran(
    `vcpu 0 {
  write 0x1000 = 1
  convert 0x1000 +4K private
  write 0x1000 = 2
  read 0x1000
  expect loaded == 2
  convert 0x1000 +4K shared
  read 0x1000
  expect loaded == 1
}`,
    [],
    'software-protected',
  );
  assert.equal(machine.counter('exits.memory_fault'), 0);
  assert.equal(machine.attributes.rmp.size, 0);
  const race = 'vcpu 0 {\n  write 0x1000 = 1\n  read 0x1000\n}\nhost vmm {\n  convert 0x1000 +4K private\n}';
  const found = explore(programOf(race, ['memory-fault stop'], 'software-protected'), {
    maxStates: 100_000,
    reduce: true,
  });
  assert.deepEqual([...new Set(found.outcomes.map(({ event }) => event))].sort(), ['memory-fault', 'retry']);
});

test('private memory in a slot without guest_memfd is a fault that no conversion ends', () => {
  const run = new Run(
    programOf('vcpu 0 {\n  private read 0x1000\n}', ['memory 0 +4M', 'private 0 +4M', 'memory-fault stop']),
  );
  run.runToEnd(10_000);
  assert.match(run.machine.small.failures[0]!.text, /KVM_EXIT_MEMORY_FAULT: gpa 0x1000/);
});

test('going back takes attributes, RMP, guest_memfd and direct map along', () => {
  const run = new Run(
    programOf('vcpu 0 {\n  shared write 0x1000 = 1\n  convert 0x1000 +16K private\n  convert 0x2000 +4K shared\n}', [
      'policy conversion = rfc-v8',
    ]),
  );
  const state = (): string =>
    JSON.stringify([
      [...run.machine.attributes.store.runs(0, 1024)],
      ...(['rmp', 'folios', 'split', 'holes', 'mixed'] as const).map((name) =>
        [...run.machine.attributes[name].entries()].sort(([a], [b]) => a - b),
      ),
    ]);
  const states = [state()];
  for (let task = run.pick(); task; task = run.pick()) {
    run.step(task);
    states.push(state());
  }
  for (const step of [states.length - 1, 60, 33, 0, 48]) {
    run.goTo(step);
    assert.equal(state(), states[step], `step ${step}`);
  }
  assert.ok(new Set(states).size > 10);
});
