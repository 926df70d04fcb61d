import assert from 'node:assert/strict';
import { test } from 'node:test';
import { psmash, rmpEntry, rmpUpdate } from '../../engine/attributes/rmp.ts';
import { explore } from '../../engine/explore/explore.ts';
import { Kind } from '../../engine/history/log.ts';
import type { Machine } from '../../engine/machine.ts';
import { backingPfn } from '../../engine/memory/memslots.ts';
import type { Program } from '../../engine/program.ts';
import { pageAnswer } from '../../engine/queries/page.ts';
import { Run } from '../../engine/run.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import { parseScenario } from '../../scenario/index.ts';

// The RMP of SEV-SNP: what its instructions answer, and what the processor refuses because of it.

const LARGE = 'memory 0 +4M huge 2M guest-memfd 2M launch 0x20_0000 +2M policy conversion = rfc-v8';

function programOf(tasks: string, machine = 'memory 0 +4M guest-memfd private 0 +64K'): Program {
  const { program, diagnostics } = parseScenario(
    `machine x86-64 {\n  ${machine}\n  second-stage tdp npt 4-level\n  vm snp\n}\n${tasks}\n`,
  );
  assert.ok(program, JSON.stringify(diagnostics));
  return program;
}

/** A run of so many steps at most, for some of these guests fault for ever. */
function ran(tasks: string, machine?: string, steps = 2_000): Machine {
  const run = new Run(programOf(tasks, machine));
  run.runToEnd(steps);
  return run.machine;
}

const entryOf = (machine: Machine, gfn: number) => {
  const slot = machine.slots.find(gfn)!;
  return rmpEntry(machine, backingPfn(slot, gfn, slot.gmem));
};

const warnings = ({ small }: Machine): string[] =>
  small.warnings.map(({ text }) => text.replace(/hpa 0x[0-9a-f]+/, 'hpa …'));

/** The #NPFs that the RMP made. */
const faults = ({ log }: Machine): FaultInfo[] =>
  Array.from({ length: log.length }, (_, at) => log.at(at)).flatMap(({ kind, object }) =>
    kind === Kind.EXIT && (object as FaultInfo).kind === 'rmp' ? [object as FaultInfo] : [],
  );

const BITS = { rmp: 2 ** 31, final: 2 ** 32, enc: 2 ** 34, sizem: 2 ** 35, vmpl: 2 ** 36 };
const has = (code: number, bit: number): boolean => Math.floor(code / bit) % 2 === 1;

test('a VMPL may do with a page what the one before it has allowed, and what it may not is an #NPF with the VMPL bit', () => {
  const machine = ran(`vcpu 0 {
  pvalidate 0x1000
  write 0x1000 = 5
  rmpadjust 0x1000 vmpl 2 r--
  vmpl 2
  read 0x1000
  expect loaded == 5
  write 0x1000 = 6
}`);
  assert.deepEqual(machine.small.failures, []);
  const [first] = faults(machine);
  assert.match(first!.reason!, /^VMPL 2 may not write hpa 0x[0-9a-f]+: it has r--$/);
  const { rmp, enc, final, vmpl, sizem } = BITS;
  for (const bit of [rmp, enc, final, vmpl]) assert.ok(has(first!.exitInfo!, bit), `bit of ${bit}`);
  assert.ok(!has(first!.exitInfo!, sizem));
  // KVM has no answer to it: the guest faults again and again.
  assert.ok(faults(machine).length > 5);
  assert.ok(machine.small.hazards.some(({ hazard }) => hazard === 'rmp-fault-loop'));
});

test('VMPL 0 may do all; others nothing, before they are given something', () => {
  const tasks = (vmpl: number): string => `vcpu 0 {\n  pvalidate 0x1000\n  vmpl ${vmpl}\n  read 0x1000\n}`;
  assert.equal(faults(ran(tasks(0))).length, 0);
  for (const vmpl of [1, 2, 3]) assert.match(faults(ran(tasks(vmpl)))[0]!.reason!, /it has ---/, `${vmpl}`);
});

test('each access needs its own right: user and supervisor fetches the same here', () => {
  const fault = (rights: string, access: string): string | undefined =>
    faults(ran(`vcpu 0 {\n  pvalidate 0x1000\n  rmpadjust 0x1000 vmpl 1 ${rights}\n  vmpl 1\n  ${access} 0x1000\n}`))[0]
      ?.reason;
  assert.equal(fault('rw-', 'write'), undefined);
  assert.equal(fault('r-x', 'fetch'), undefined);
  assert.match(fault('rw-', 'fetch')!, /may not fetch .*rw-/);
  assert.match(fault('r-x', 'write')!, /may not write .*r-x/);
  assert.match(fault('off', 'read')!, /may not read .*---/);
});

test('rights are of a page: what is taken back is not found in a TLB', () => {
  const machine = ran(`vcpu 0 {
  pvalidate 0x1000
  rmpadjust 0x1000 vmpl 1 rw-
  vmpl 1
  write 0x1000 = 1
  wait until accesses == 2
  write 0x1000 = 2
}
vcpu 1 {
  wait until accesses == 1
  rmpadjust 0x1000 vmpl 1 r--
  shared read 0x10_0000
}`);
  assert.match(faults(machine)[0]!.reason!, /^VMPL 1 may not write .*: it has r--$/);
});

test('RMPADJUST and PVALIDATE tell what was wrong', () => {
  const told = (...lines: string[]): string[] =>
    warnings(ran(`vcpu 0 {\n  pvalidate 0x1000\n  ${lines.join('\n  ')}\n}`)).map((text) => text.replace(/^.*?: /, ''));
  assert.deepEqual(told('rmpadjust 0x1000 vmpl 0 rwx'), ['RMPADJUST of 0x1000 fails with FAIL_PERMISSION (2)']);
  assert.deepEqual(told('rmpadjust 0x1000 vmpl 1 r--', 'vmpl 1', 'rmpadjust 0x1000 vmpl 1 r--'), [
    'RMPADJUST of 0x1000 fails with FAIL_PERMISSION (2)',
  ]);
  assert.deepEqual(
    told('rmpadjust 0x1000 vmpl 1 r--', 'vmpl 1', 'rmpadjust 0x1000 vmpl 2 rw-'),
    ['RMPADJUST of 0x1000 fails with FAIL_PERMISSION (2)'],
    'no more than the VMPL has itself',
  );
  assert.deepEqual(told('rmpadjust 0x1000 vmpl 1 r--', 'vmpl 1', 'pvalidate 0x1000'), [
    'PVALIDATE of 0x1000 fails with FAIL_PERMISSION (2)',
  ]);
  assert.deepEqual(told('rmpadjust 0 2M vmpl 1 r--'), ['#VC at 0x0: the guest has not accepted hpa … (PVALIDATE)']);
  assert.deepEqual(told('pvalidate 0', 'rmpadjust 0 2M vmpl 1 r--'), [
    'RMPADJUST of 0x0 fails with FAIL_SIZEMISMATCH (6)',
  ]);
  assert.deepEqual(told('pvalidate 0 2M'), ['PVALIDATE of 0x0 fails with FAIL_SIZEMISMATCH (6)']);
  assert.deepEqual(told('pvalidate 0x1000'), ['PVALIDATE of 0x1000 changes nothing (CF): it is as it was']);
  assert.deepEqual(told('pvalidate 0x1000 off', 'pvalidate 0x1000 off'), [
    'PVALIDATE of 0x1000 changes nothing (CF): it is as it was',
  ]);
});

test('what is not validated any more is #VC, though its translation was in the TLB', () => {
  const machine = ran('vcpu 0 {\n  pvalidate 0x1000\n  write 0x1000 = 1\n  pvalidate 0x1000 off\n  read 0x1000\n}');
  assert.equal(machine.counter('faults.vc'), 1);
});

test('RMPADJUST of 4K where the RMP has 2M is an #NPF with SIZEM, and KVM’s PSMASH keeps rights and acceptance', () => {
  const machine = ran(
    `vcpu 0 {
  rmpadjust 0x20_0000 2M vmpl 3 rw-
  rmpadjust 0x20_1000 vmpl 3 r--
}`,
    LARGE,
  );
  const [only, ...more] = faults(machine);
  assert.deepEqual(more, []);
  assert.ok(has(only!.exitInfo!, BITS.sizem));
  assert.equal(only!.reason, 'RMPADJUST names a page of 4K where the RMP has 2M');
  assert.deepEqual(entryOf(machine, 0x200), { gfn: 0x200, level: 1, validated: true, asid: 1, rights: 0x300 });
  assert.deepEqual(entryOf(machine, 0x201), { gfn: 0x201, level: 1, validated: true, asid: 1, rights: 0x100 });
});

test('a frame that is another guest’s, or this one’s as another page, is refused', () => {
  const refused = (how: string): string => {
    const machine = ran(`vcpu 0 {
  pvalidate 0x1000
  write 0x1000 = 1
  wait until rmp.updates == 3
  read 0x1000
}
host evil {
  wait until accesses == 1
  rmpupdate 0x1000 shared
  rmpupdate 0x1000 private ${how}
}`);
    return faults(machine)[0]!.reason!;
  };
  assert.match(refused('asid 2'), /^hpa 0x[0-9a-f]+ is assigned to another guest \(ASID 2\)$/);
  assert.match(refused('as 0x5000'), /^hpa 0x[0-9a-f]+ is assigned as gfn 0x5, not this one$/);
  // Given back as it was, it is not accepted any more.
  const machine = ran(`vcpu 0 {
  pvalidate 0x1000
  wait until rmp.updates == 3
  read 0x1000
}
host evil {
  wait until rmp.updates == 1
  rmpupdate 0x1000 shared
  rmpupdate 0x1000 private
}`);
  assert.deepEqual([faults(machine).length, machine.counter('faults.vc')], [0, 1]);
});

test('RMPUPDATE answers FAIL_INPUT and FAIL_OVERLAP; the kernel repeats the latter until somebody has split the 2M', () => {
  const machine = ran('vcpu 0 {}', LARGE);
  const slot = machine.slots.find(0x200)!;
  const pfn = backingPfn(slot, 0x200, slot.gmem);
  assert.equal(rmpUpdate(machine, pfn + 1, 2, undefined), 'FAIL_INPUT');
  assert.equal(rmpUpdate(machine, pfn, 2, { gfn: 0x201, asid: 1 }), 'FAIL_INPUT');
  assert.equal(rmpUpdate(machine, pfn + 1, 1, undefined), 'FAIL_OVERLAP');
  psmash(machine, pfn);
  assert.equal(rmpUpdate(machine, pfn, 2, undefined), 'FAIL_OVERLAP');
  assert.equal(rmpUpdate(machine, pfn + 1, 1, undefined), 'SUCCESS');
  assert.equal(entryOf(machine, 0x201), undefined);

  const host = 'host h {\n  rmpupdate 0x20_1000 shared\n}\n';
  const events = (tasks: string): string[] => {
    const { outcomes } = explore(programOf(tasks, LARGE), { maxStates: 5_000, reduce: true });
    return [...new Set(outcomes.map(({ event }) => event))].sort();
  };
  assert.deepEqual(events(host), ['no-progress'], 'nobody splits it');
  // A guest has it split; what is the host's then the guest cannot have.
  const split = `${host}vcpu 0 {\n  rmpadjust 0x20_1000 vmpl 1 r--\n}`;
  assert.deepEqual(events(split), ['no-progress', 'rmp-fault', 'rmp-fault-loop']);
  const run = new Run(programOf(split, LARGE));
  const [vcpu, h] = run.machine.tasks;
  for (let steps = 0; entryOf(run.machine, 0x201)?.level === 2; steps++) {
    assert.ok(steps < 200);
    run.step(vcpu!);
  }
  for (let steps = 0; entryOf(run.machine, 0x201); steps++) {
    assert.ok(steps < 10);
    run.step(h!);
  }
  assert.equal(entryOf(run.machine, 0x202)?.level, 1);
});

test('an entry in use is asked for again, by RMPUPDATE and by PSMASH', () => {
  const retried = (tasks: string, machine?: string): string[] => warnings(ran(tasks, machine));
  assert.deepEqual(retried('host h {\n  inject rmp-in-use\n  rmpupdate 0x1000 private\n}'), [
    'h: RMPUPDATE of hpa … returns FAIL_OVERLAP (4): another processor is at it; the kernel tries again',
  ]);
  assert.deepEqual(retried('vcpu 0 {\n  inject rmp-in-use\n  pvalidate 0x1000\n}'), [
    'vCPU 0: RMPUPDATE of hpa … returns FAIL_OVERLAP (4): another processor is at it; the kernel tries again',
  ]);
  assert.deepEqual(retried('vcpu 0 {\n  inject rmp-in-use\n  pvalidate 0x20_1000\n}', LARGE), [
    'vCPU 0: PSMASH of hpa … returns FAIL_INUSE (3): another processor is at it; the kernel tries again',
    'vCPU 0: PVALIDATE of 0x201000 changes nothing (CF): it is as it was',
  ]);
});

test('a page’s row tells whose it is, and what its other VMPLs may', () => {
  const rowOf = (tasks: string): string => {
    const { rows } = pageAnswer(ran(tasks), '0x1000', undefined);
    return rows.find(({ name }) => name === 'RMP entry')!.words;
  };
  assert.equal(
    rowOf('vcpu 0 {\n  pvalidate 0x1000\n  rmpadjust 0x1000 vmpl 2 r-x\n}'),
    'the guest’s, as gpa 0x1000, 4K, validated, VMPL 1 ---, VMPL 2 r-x, VMPL 3 ---',
  );
  assert.equal(
    rowOf('host h {\n  rmpupdate 0x1000 private asid 9\n}'),
    'another guest’s (ASID 9), as gpa 0x1000, 4K, not validated',
  );
});

test('conversions scattered by a loop', () => {
  const machine = ran('host h {\n  repeat 4 as i { convert (0x10_0000 + 8K * i) +4K private }\n}');
  const kinds = Array.from({ length: 8 }, (_, page) => machine.attributes.store.isPrivate(0x100 + page));
  assert.deepEqual(kinds, [true, false, true, false, true, false, true, false]);
  const { failures } = ran('host h {\n  repeat 2 as i { convert (4K + i) +4K private }\n}').small;
  assert.deepEqual(
    failures.map(({ text }) => text),
    ['convert: start 0x1001 is not a multiple of 4K'],
  );
});

test('an instruction on a page leaves no translation: what it could not validate is a #VC all the same', () => {
  for (const first of ['pvalidate 0x1000 off', 'pvalidate 0x0 2M'])
    assert.equal(ran(`vcpu 0 {\n  ${first}\n  write 0x1000 = 1\n  read 0x1000\n}`).counter('faults.vc'), 2, first);
  const adjusted = ran('vcpu 0 {\n  pvalidate 0x1000 off\n  rmpadjust 0x1000 vmpl 1 rw-\n}');
  assert.equal(adjusted.counter('faults.vc'), 1);
  assert.equal(entryOf(adjusted, 1)?.rights, 0);
});

test('what an instruction on a page answers does not depend on what the TLB has', () => {
  for (const instruction of ['rmpadjust 0x20_1000 vmpl 1 rw-', 'pvalidate 0x20_1000 off']) {
    const machine = ran(`vcpu 0 {\n  read 0x20_1000\n  ${instruction}\n}`, LARGE);
    assert.equal(faults(machine).length, 1, instruction);
    assert.equal(entryOf(machine, 0x201)?.level, 1, instruction);
  }
});

test('at a VMPL without any right to a page PVALIDATE and RMPADJUST end: they are not its to do', () => {
  for (const instruction of ['pvalidate 0x1000', 'rmpadjust 0x1000 vmpl 1 r--'])
    assert.deepEqual(
      warnings(ran(`vcpu 0 {\n  vmpl 1\n  ${instruction}\n}`)).map((text) => text.replace(/.* fails/, 'fails')),
      ['fails with FAIL_PERMISSION (2)'],
    );
  // It may give away no more than it has: nothing.
  assert.match(
    warnings(ran('vcpu 0 {\n  pvalidate 0x1000\n  vmpl 1\n  rmpadjust 0x1000 vmpl 2 r--\n}')).join(),
    /FAIL_PERMISSION \(2\)/,
  );
});

test('addresses that no page of the size begins at are FAIL_INPUT', () => {
  assert.deepEqual(
    warnings(
      ran('vcpu 0 {\n  pvalidate 0x1234\n  pvalidate 0x20_1000 2M off\n  rmpadjust 0x20_1000 2M vmpl 1 r--\n}', LARGE),
    ),
    [
      'vCPU 0: PVALIDATE of 0x1234 fails with FAIL_INPUT (1)',
      'vCPU 0: PVALIDATE of 0x201000 fails with FAIL_INPUT (1)',
      'vCPU 0: RMPADJUST of 0x201000 fails with FAIL_INPUT (1)',
    ],
  );
});

const IN_PLACE = 'memory 0 +4M guest-memfd private 0 +64K policy guest-memfd = in-place';

test('a read of a shared frame that is assigned is let through at any VMPL, and a write behind it is not', () => {
  const tasks = (last: string): string => `vcpu 0 {
  shared write 0x10_0000 = 1
  vmpl 1
  wait until rmp.updates == 1
  shared read 0x10_0000
  ${last}
}
host h {
  wait until accesses == 1
  rmpupdate 0x10_0000 private
}`;
  const read = new Run(programOf(tasks('expect vmpl == 1'), IN_PLACE));
  assert.ok(read.runToEnd(2_000));
  assert.deepEqual([read.stuck(), read.machine.small.failures], [undefined, []]);
  const [first] = faults(ran(tasks('shared write 0x10_0000 = 2'), IN_PLACE));
  assert.match(first?.reason ?? '', /is assigned to a guest, and the access is not private$/);
});

test('a host that repeats RMPUPDATE for ever is told, with what it repeats', () => {
  const run = new Run(programOf('host h {\n  rmpupdate 0x20_1000 shared\n}', LARGE));
  assert.ok(run.runToEnd(20_000));
  assert.match(run.stuck() ?? '', /^h goes round in circles in rmpupdate: RMPUPDATE; while entries of another size/);
  // A guest that has it split gets its turn.
  const split = new Run(
    programOf(
      'host h {\n  rmpupdate 0x20_1000 shared\n}\nvcpu 0 {\n  rmpadjust 0x20_1000 vmpl 1 r--\n  write 0x30_0000 = 1\n}',
      LARGE,
    ),
  );
  split.runToEnd(20_000);
  assert.equal(split.machine.tasks.find(({ name }) => name === 'h')!.state, 'done');
});

test('a page that goes while KVM handles its RMP fault: its frame is still the one that was looked up', () => {
  for (const host of ['delete slot 0', 'convert 0x20_1000 +4K shared', 'punch 0x20_0000 +2M']) {
    const program = programOf(
      `vcpu 0 {\n  inject rmp-in-use\n  rmpadjust 0x20_1000 vmpl 1 rw-\n}\nhost h {\n  ${host}\n}`,
      LARGE,
    );
    const run = new Run(program);
    const [vcpu, h] = run.machine.tasks;
    for (let steps = 0; vcpu!.stack.at(-1)?.fn !== 'sev_handle_rmp_fault'; steps++) {
      assert.ok(steps < 200);
      run.step(vcpu!);
    }
    run.step(vcpu!);
    for (let steps = 0; h!.state !== 'done' && h!.state !== 'blocked'; steps++) {
      assert.ok(steps < 2_000);
      run.step(h!);
    }
    run.runToEnd(2_000);
    assert.ok(run.machine.small.warnings.length > 0, host);
    for (const { text } of run.machine.small.warnings) assert.doesNotMatch(text, /NaN/, host);
    // By this ordering a page that has been punched is mapped again, and in the RMP no more: that is a loop.
    const loops = run.machine.small.hazards.filter(({ hazard }) => hazard === 'rmp-fault-loop');
    assert.equal(loops.length > 0, host.startsWith('punch'), host);
  }
});

test('who has a frame is told: of the map’s changes, of the host’s own access, and where the RMP disagrees', () => {
  const run = new Run(
    programOf(
      'vcpu 0 {\n  pvalidate 0x1000\n}\nhost h {\n  wait until rmp.updates == 1\n  rmpupdate 0x1000 private as 0x5000\n  private write 0x1000 = 1\n}',
    ),
  );
  run.runToEnd(2_000);
  assert.match(run.machine.small.failures.map(({ text }) => text).join(), /the guest’s, gfn 0x5/);
  const machine = ran(
    'host h {\n  rmpupdate 0x1000 private asid 9\n  convert 0x1000 +4K shared\n  convert 0x1000 +4K private\n}',
    `${LARGE.replace('launch 0x20_0000 +2M', 'private 0x20_0000 +2M')}`,
  );
  assert.ok(machine.counter('rmp.updates') > 0);
});

test('an RMP fault whose page has become shared meanwhile is no loop', () => {
  const program = programOf(
    'vcpu 0 {\n  rmpadjust 0x20_1000 vmpl 1 rw-\n}\nhost h {\n  convert 0x20_1000 +4K shared\n}',
    LARGE.replace('rfc-v8', 'today'),
  );
  const { complete, outcomes } = explore(program, { maxStates: 50_000, reduce: true });
  assert.ok(complete);
  const events = outcomes.map(({ event }) => event);
  assert.ok(events.includes('rmp-fault') && !events.includes('rmp-fault-loop'), events.join());
});
