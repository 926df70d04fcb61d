import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rmpEntry } from '../../engine/attributes/rmp.ts';
import { explore, isHazard } from '../../engine/explore/explore.ts';
import { Kind } from '../../engine/history/log.ts';
import { project } from '../../engine/history/project.ts';
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
  const machine = ended(tasks, more, vm);
  assert.deepEqual(machine.small.failures, []);
  return machine;
}

/** The same, where something may fail. */
function ended(tasks: string, more?: readonly string[], vm?: string): Machine {
  const run = new Run(programOf(tasks, more, vm));
  assert.ok(run.runToEnd(200_000));
  assert.equal(run.stuck(), undefined);
  return run.machine;
}

/** The guest's own, and no other VMPL's. */
const OWN = { asid: 1, rights: 0 };

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
  assert.deepEqual(rmpEntry(machine, gmemFrame(machine, 1)), { gfn: 1, level: 1, validated: true, ...OWN });
});

const PAGED = `guest k {
  map 0x400000 -> 0x600000 +64K rw- private
  map 0x500000 -> 0x100000 +64K rw- shared
}
vcpu 0 in k {
  write 0x400000 = 7
  read 0x400000
  expect loaded == 7
  write 0x500000 = 8
  read 0x500000
  expect loaded == 8
  map 0x500000 -> 0x100000 4K rw- private
  invlpg 0x500000
  convert 0x100000 +4K private
  PVALIDATE
  write 0x500000 = 9
  read 0x500000
  expect loaded == 9
}`;

for (const [vm, accept] of [
  ['snp', 'pvalidate 0x500000'],
  ['tdx', 'accept 0x100000'],
] as const)
  test(`${vm}: a guest’s own entries say which memory is private`, () => {
    const machine = ran(PAGED.replace('PVALIDATE', accept), ['memory 0 +8M guest-memfd', 'launch 0x600000 +2M'], vm);
    for (const counter of ['exits.memory_fault', 'faults.rmp', 'faults.vc'] as const)
      assert.equal(machine.counter(counter), 0, counter);
    // The other way round the page is of the wrong kind, and the VMM converts it.
    const wrong = PAGED.replace('0x100000 +64K rw- shared', '0x100000 +64K rw- private').replace(
      / {2}write 0x500000 = 8[^}]*/,
      '  write 0x500000 = 8\n',
    );
    const other = ended(wrong, ['memory 0 +8M guest-memfd', 'launch 0x600000 +2M'], vm);
    assert.equal(other.counter('exits.memory_fault'), 1);
    // What nobody has accepted is a #VC of SNP's; of TDX, whose guest wants no #VE, its end.
    assert.equal(other.counter('faults.vc'), vm === 'snp' ? 1 : 0);
    assert.deepEqual(
      other.small.failures.map(({ text }) => text),
      vm === 'snp'
        ? []
        : ['guest access before accepting gpa 0x100000 on vCPU 0: KVM_RUN fails with -EIO, and the VM is dead'],
    );
  });

test('tables in memory that nobody launched are refused, and so are kinds where there are none', () => {
  assert.throws(
    () => new Run(programOf(PAGED.replace('PVALIDATE', ''), ['memory 0 +8M guest-memfd'])),
    /guest k, line \d+: its tables at gpa 0x7ff000 are not in launched memory/,
  );
  const errors = (text: string): string => JSON.stringify(parseScenario(text).diagnostics);
  assert.match(
    errors('guest k {\n map 0x400000 -> 0x1000 4K rw- shared\n}\nvcpu 0 in k {}'),
    /private and shared are for the 4- and 5-level tables/,
  );
  assert.match(
    errors('machine {\n memory 0 +4M\n vm snp\n second-stage tdp npt 4-level\n maxphyaddr 52\n}\nvcpu 0 {}'),
    /bit 51 of an address says whether memory is private; at most 51/,
  );
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
  assert.deepEqual(rmpEntry(whole, gmemFrame(whole, 0x234)), { gfn: 0x234, level: 2, validated: true, ...OWN });
  const parts = ran(
    `vcpu 0 {
  convert 0x200000 +2M private
  pvalidate 0x200000
  convert 0x201000 +4K shared
}`,
    large,
  );
  assert.equal(parts.counter('faults.rmp'), 1, 'PVALIDATE of less than the RMP has is a fault with SIZEM');
  assert.deepEqual(parts.small.warnings, []);
  assert.equal(parts.attributes.rmp.size, 511, 'a part of 2M that becomes shared goes');
  const small = ran(
    'vcpu 0 {\n  convert 0x200000 +2M private\n  pvalidate 0x200000\n  pvalidate 0x200000 2M\n}',
    large,
  );
  assert.match(
    small.small.warnings.map(({ text }) => text).join(),
    /PVALIDATE of 0x200000 fails with FAIL_SIZEMISMATCH \(6\)/,
  );
});

test('2M in the RMP behind a mapping of 4K is split at the fault that it makes, and mapped anew', () => {
  const machine = ran(
    `vcpu 0 {
  private write 0x200000 = 1
  wait until conversions == 1 && !is_private(0x202000)
  private write 0x201000 = 2
  private read 0x200000
  expect loaded == 1
}
host vmm {
  wait until accesses == 1
  convert 0x202000 +4K shared
}`,
    ['memory 0 +4M huge 2M guest-memfd 2M', 'launch 0x200000 +2M'],
  );
  assert.equal(machine.counter('faults.rmp'), 1);
  assert.equal(machine.attributes.rmp.size, 512);
  assert.deepEqual(machine.small.hazards, []);
});

test('RMPUPDATE that fails at a fault ends KVM_RUN', () => {
  const machine = ended(
    'host vmm {\n  inject rmp-update-fails\n  convert 0x8000 +4K shared\n}\nvcpu 0 {\n  wait until conversions == 1\n  private write 0x1000 = 1\n}',
    ['private 0x1000 +4K'],
  );
  assert.equal(machine.counter('rmp.updates'), 0);
  const words = machine.small.failures.map(({ text }) => text);
  assert.deepEqual(words, ['KVM_RUN failed: the vCPU cannot go on']);
  assert.match(machine.small.warnings[0]!.text, /^RMPUPDATE of hpa 0x\w+ fails$/);
});

test('a part of 2M that is shared in place is split in the RMP and in the direct map at the fault', () => {
  const machine = ran(
    'vcpu 0 {\n  private write 0x1000 = 7\n  convert 0x1000 +4K shared\n  shared write 0x1000 = 1\n  private write 0x2000 = 2\n}\nhost h {\n  wait until accesses == 3\n  shared write 0x1000 = 3\n}',
    ['memory 0 +4M huge 2M guest-memfd 2M', 'policy guest-memfd = in-place', 'launch 0 +2M'],
  );
  assert.deepEqual(machine.small.failures, []);
  assert.deepEqual(machine.small.hazards, []);
  assert.equal(rmpEntry(machine, gmemFrame(machine, 1)), undefined);
  assert.deepEqual(rmpEntry(machine, gmemFrame(machine, 2)), { gfn: 2, level: 1, validated: true, ...OWN });
});

test('memory that was given back is the host’s, whether the RMP had it as 2M or the hole is of a page of it', () => {
  const freed = (hole: string): Machine =>
    ran(
      `vcpu 0 {\n  private write 0x1000 = 7\n}\nhost vmm {\n  wait until accesses == 1\n  punch ${hole}\n  private write 0x1000 = 2\n}`,
      ['memory 0 +4M huge 2M guest-memfd 2M', 'launch 0 +2M'],
    );
  assert.equal(freed('0 +2M').attributes.rmp.size, 0);
  assert.equal(freed('0x1000 +4K').attributes.rmp.size, 511);
  assert.equal(freed('0x1000 +4K').attributes.folios.size, 511);
  assert.equal(freed('0 +1T').attributes.rmp.size, 0, 'and a hole may be larger than what there is');
});

test('by orderings in which the RMP follows the conversion, private memory has entries from the start', () => {
  const machine = ran('vcpu 0 {\n  pvalidate 0x1000\n  private write 0x1000 = 1\n}', [
    'policy conversion = rfc-v8',
    'private 0 +8K',
  ]);
  assert.deepEqual(machine.small.hazards, []);
  assert.equal(machine.attributes.holes.size, 2, 'and the kernel’s direct map leaves it out');
});

test('a slot with a guest_memfd is neither moved nor logged, and a fault under way outlives it', () => {
  const warned = (statement: string): string[] =>
    ended(`host h {\n  ${statement}\n}`).small.warnings.map(({ text }) => text);
  const words = 'slot 0 has a guest_memfd, and can only be deleted: KVM_SET_USER_MEMORY_REGION fails with -EINVAL';
  assert.deepEqual(warned('move slot 0 to 0x10000000'), [words]);
  assert.deepEqual(warned('log dirty slot 0 on'), [words]);
  assert.deepEqual(warned('delete slot 0'), []);
  const race = programOf('vcpu 0 { private read 0x1000 }\nhost h { delete slot 0 }', ['private 0x1000 +4K']);
  assert.ok(explore(race, { maxStates: 100_000, reduce: true }).complete);
});

test('the sanitizer compares notes of mixed blocks with the attributes', () => {
  const text = 'host vmm {\n  inject mixed-tail\n  convert 0x2000 +8K private\n}';
  const machine = ended(text, ['sanitize']);
  assert.match(
    machine.small.warnings[0]!.text,
    /^sanitizer: 2M from gfn 0x0 on hold private and shared pages, and are not noted as mixed/,
  );
  assert.deepEqual(ran(text.replace('  inject mixed-tail\n', ''), ['sanitize']).small.warnings, []);
});

test('the sanitizer finds 1G blocks that were judged before their 2M blocks, and 2M blocks that were converted in part', () => {
  const breach = (mistake: string): string =>
    ended(`host vmm {\n  inject ${mistake}\n  convert 0x2000 +8K private\n}`, [
      'memory 0 +2G huge 1G guest-memfd',
      'sanitize',
    ])
      .small.warnings.map(({ text }) => text)
      .join();
  assert.match(
    breach('mixed-1g-first'),
    /^sanitizer: 1G from gfn 0x0 on hold private and shared pages, and are not noted/,
  );
  assert.match(
    breach('mixed-unaligned'),
    /^sanitizer: 2M from gfn 0x0 on hold private and shared pages, and are not noted/,
  );
});

test('a 2M of which a part was converted before is converted page by page', () => {
  for (const [first, second, assigned] of [
    ['0x200000 +4K private', '0x200000 +2M private', 512],
    ['0x205000 +4K private', '0x200000 +2M private', 512],
    ['0x205000 +4K private', '0x200000 +2M shared', 0],
  ] as const) {
    const machine = ran(`host vmm {\n  convert ${first}\n  convert ${second}\n}`, [
      'memory 0 +4M huge 2M guest-memfd 2M',
      'policy conversion = rfc-v8',
    ]);
    assert.equal(machine.attributes.rmp.size, assigned, second);
    assert.equal(machine.counter('hazards'), 0);
  }
});

test('KVM’s error code says that an access of SNP was to private memory, in the tracepoint too', () => {
  const machine = ran('vcpu 0 {\n  convert 0x1000 +4K private\n  pvalidate 0x1000\n}');
  const faults = [...project(machine)].filter(({ event }) => event === 'kvm_page_fault').map(({ text }) => text);
  assert.match(faults.at(-1)!, /error_code 0x2000500000004$/);
});

test('without the guest’s key private memory is ciphertext: for a read without the C-bit, and for the host', () => {
  const values = (vm: string): string[] => {
    const machine = ended(
      `vcpu 0 {
  private write 0x1000 = 77
  private read 0x1000
  expect loaded == 77
  wait until conversions == 1
  ${vm === 'snp' ? 'shared' : 'private'} read 0x1000
  expect loaded != 77
}
host h {
  wait until accesses >= 2
  private read 0x1000
  expect loaded != 77
  convert 0x8000 +4K private
}`,
      ['launch 0x1000 +4K'],
      vm,
    );
    return machine.small.failures.map(({ text }) => text);
  };
  assert.deepEqual(values('snp'), []);
  assert.deepEqual(values('tdx'), ['expect loaded != 77'], 'of TDX the guest alone reads it');
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

test('a conversion that comes to more RMP entries than are kept is refused in words, and today’s takes a terabyte at once', () => {
  const tasks = 'host vmm {\n  convert 0 +1T private\n}';
  const machine = ended(tasks, ['memory 0 +1T guest-memfd', 'policy conversion = rfc-v8']);
  assert.match(
    machine.small.failures[0]!.text,
    /by policy conversion = rfc-v8 268435456 entries of the RMP change, and more than 4194304 are not kept/,
  );
  assert.deepEqual(ran(tasks, ['memory 0 +1T guest-memfd']).attributes.rmp.size, 0);
});

test('the RMP is asked of the guest’s own tables too: sizes that differ are mended, what is not accepted is a #VC', () => {
  const large = ['memory 0 +8M huge 2M guest-memfd 2M', 'launch 0 +2M'];
  const guest = 'guest g {\n  tables at 0x8000\n  map 0x400000 -> 0x1000 4K rw-\n}\n';
  const machine = ran(
    `${guest}vcpu 0 in g {\n  wait until conversions == 1\n  write 0x400000 = 1\n}\nhost vmm {\n  convert 0x2000 +4K shared\n}`,
    large,
  );
  const [fault] = [...project(machine)].filter(({ event }) => event === 'kvm_rmp_fault');
  // P, U, RMP, GUEST_PAGE, ENC, SIZEM, and KVM's own bit.
  assert.match(fault!.text, /gpa 0000000000008000 .* error_code 0x2000e80000005 rmp_level 2 psmash_ret 0/);
  const lost = ran(
    `${guest}vcpu 0 in g {\n  wait until conversions == 2\n  read 0x400000\n}\nhost vmm {\n  convert 0x9000 +4K shared\n  punch 0x9000 +4K\n  convert 0x9000 +4K private\n}`,
    ['memory 0 +4M huge 2M guest-memfd', 'launch 0 +64K'],
  );
  assert.equal(lost.counter('faults.vc'), 1);
  assert.equal(lost.counter('faults.guest'), 0);
});
