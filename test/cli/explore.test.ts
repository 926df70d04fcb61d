import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cli, file } from './cli.ts';

// `kvm-mmu explore`: what can go wrong under which ordering of a conversion, and how.

const RACE = `machine x86-64 {
  memory 0 +4M huge 2M guest-memfd
  second-stage tdp npt 4-level
  vm snp
  memory-fault stop
}
vcpu 0 {
  wait until is_private(0x1000)
  pvalidate 0x1000
}
host vmm {
  convert 0x1000 +4K private
}
host kthread {
  private write 0x2000 = 3
}
`;
const race = file('race.mmu', RACE);

interface Row {
  readonly name: string;
  readonly complete: boolean;
  readonly outcomes: readonly { event: string; hazard: boolean; policy: string; schedule: string; command: string }[];
}

test('a table of orderings and hazards, and the schedule to each', () => {
  const { status, out, err } = cli('explore', race, '--policy', 'conversion=all');
  assert.equal(status, 0, err);
  const [header, ...lines] = out.split('\n');
  assert.deepEqual(header!.trim().split(/ {2,}/), [
    'states',
    'transitions',
    'rmp-fault-loop',
    'fatal-rmp-fault',
    'sleep-in-atomic',
    'retry',
    'rmp-fault',
  ]);
  const cells = (row: string): string[] =>
    lines
      .find((line) => line.startsWith(row))!
      .split(/ {2,}/)
      .slice(3);
  const happens = (row: string): boolean[] => cells(row).map((cell) => cell !== '·');
  assert.deepEqual(happens('O1 rfc-v8'), [true, false, false, true, true]);
  assert.deepEqual(happens('O2 under-lock'), [false, false, true, true, false]);
  assert.deepEqual(happens('O4 reversed-direct-map'), [true, true, false, true, true]);
  assert.deepEqual(happens('O8 today'), [false, false, false, true, false]);
  assert.match(
    out,
    /O1 rfc-v8: rmp-fault-loop: .*\n {2}vCPU 0's RMP fault at gpa 0x1000 .*\n {2}again every \d+ steps.*\n {2}kvm-mmu run \S+race\.mmu --policy conversion=rfc-v8 --schedule "vmm:\d+ vcpu0:\d+"\n/,
  );
});

test('a schedule leads there when it is run, under the policy that stands beside it', () => {
  const { out } = cli('explore', race, '--policy', 'conversion=reversed-direct-map', '--json');
  const [row] = JSON.parse(out) as Row[];
  const fatal = row!.outcomes.find(({ event }) => event === 'fatal-rmp-fault')!;
  assert.equal(fatal.hazard, true);
  assert.equal(fatal.policy, 'conversion=reversed-direct-map');
  assert.equal(
    fatal.command,
    `kvm-mmu run ${race} --policy conversion=reversed-direct-map --schedule "${fatal.schedule}"`,
  );
  const ran = cli('run', race, '--policy', fatal.policy, '--schedule', fatal.schedule);
  assert.equal(ran.status, 1);
  assert.match(ran.err, /kthread writes hpa 0x140002000 through the direct map/);
  const straight = cli('run', race, '--policy', fatal.policy, '--policy', 'attribute-zap=zap');
  assert.equal(straight.status, 0, 'in the default order nothing happens');
});

test('expect never fails where it can happen, and names ordering and line', () => {
  const strict = file('strict.mmu', `${RACE}expect never fatal-rmp-fault\n`);
  const all = cli('explore', strict, '--policy', 'conversion=today,reversed-direct-map');
  assert.equal(all.status, 1);
  assert.match(all.err, /strict\.mmu:17: expect never fatal-rmp-fault \(O4 reversed-direct-map\): kthread writes/);
  assert.equal(cli('explore', strict).status, 0);
  assert.equal(cli('run', strict).status, 0);
});

test('rows of --json say which policies they are of, and which expectations hold', () => {
  interface Judged {
    policy?: string;
    policies: Record<string, string>;
    expects: { text: string; line: number; holds: boolean | null }[];
  }
  const text = `${RACE}expect never fatal-rmp-fault\nexpect is_private(0x1000) expect is_private(0x2000)\nexpect exits > 0\n`;
  const strict = file('judged.mmu', text);
  const args = ['explore', strict, '--policy', 'conversion=reversed-direct-map,today', '--json'];
  const rows = JSON.parse(cli(...args).out) as Judged[];
  assert.deepEqual(
    rows.map(({ policy }) => policy),
    ['conversion=reversed-direct-map', 'conversion=today'],
  );
  const others = [
    { text: 'expect is_private(0x1000)', line: 18, holds: true },
    { text: 'expect is_private(0x2000)', line: 18, holds: false },
    { text: 'expect exits > 0', line: 19, holds: null },
  ];
  for (const [index, holds] of [false, true].entries())
    assert.deepEqual(rows[index]!.expects, [{ text: 'expect never fatal-rmp-fault', line: 17, holds }, ...others]);
  const [own] = JSON.parse(cli('explore', strict, '--max-states', '20', '--json').out) as Judged[];
  assert.equal(own!.policy, undefined);
  assert.equal(own!.policies.conversion, 'today');
  assert.deepEqual(
    own!.expects.map(({ holds }) => holds),
    [null, null, null, null],
  );
});

test('expectations that fail in some order fail the exploration, each with its schedule', () => {
  const crossing = file(
    'crossing.mmu',
    `machine x86-64 {
  vm snp
  memory 0 +4M guest-memfd
  second-stage tdp npt 4-level
}
host a { convert 0x1000 +4K private }
host b {
  convert 0x1000 +4K shared
  expect !is_private(0x1000)
}
expect is_private(0x1000)
expect warnings == 0
expect !is_private(0x2000)
`,
  );
  const { status, out, err } = cli('explore', crossing);
  assert.equal(status, 1);
  assert.match(
    out,
    /\nfinal-expectation: when every task has ended.*\n {2}line 11: expect is_private\(0x1000\): it is false\n/,
  );
  assert.match(out, /\nexpectation: an expect of a task .*\n {2}line 9: expect !is_private\(0x1000\): it is false\n/);
  assert.doesNotMatch(out, /expectation \(harmless\)/);
  assert.match(err, /crossing\.mmu:11: expect is_private\(0x1000\): it is false\n/);
  assert.match(err, /crossing\.mmu:9: expect !is_private\(0x1000\): it is false\n/);
  assert.match(err, /not judged, because counters are no part of a state: expect warnings == 0 \(line 12\)\n/);
  assert.doesNotMatch(err, /0x2000/, 'what holds is not told');
  const [row] = JSON.parse(cli('explore', crossing, '--json').out) as Row[];
  for (const event of ['expectation', 'final-expectation']) {
    const { schedule } = row!.outcomes.find((outcome) => outcome.event === event)!;
    const line = event === 'expectation' ? 9 : 11;
    assert.match(cli('run', crossing, '--schedule', schedule).err, new RegExp(`crossing\\.mmu:${line}: expect`));
  }
});

test('a counter that a task waits for is part of a state, and is judged in the end', () => {
  const counted = file(
    'counted.mmu',
    'vcpu 0 { read 0x1000 }\nhost h { wait until accesses > 0 }\nexpect accesses == 2\n',
  );
  const { status, err } = cli('explore', counted);
  assert.equal(status, 1);
  assert.match(err, /counted\.mmu:3: expect accesses == 2: left is 1, right is 2/);
  assert.doesNotMatch(err, /not judged/);
});

test('where states run out nothing is claimed of what was not tried', () => {
  const none = cli('explore', race, '--max-states', '20');
  assert.equal(none.status, 3);
  assert.match(none.out, /\nNothing was found so far, but not everything was tried\.\n/);
  assert.match(none.out, /given up after 20 states, and nothing was found so far: give --max-states/);
  assert.doesNotMatch(none.out, /Nothing went wrong|not with fewer/);
  const policy = 'conversion=reversed-direct-map,today';
  const [first, second] = JSON.parse(cli('explore', race, '--policy', policy, '--json').out) as { states: number }[];
  const between = Math.floor((first!.states + second!.states) / 2);
  const { out } = cli('explore', race, '--policy', policy, '--max-states', `${between}`);
  assert.match(out, /\nO8 today .* · /, 'cannot happen');
  assert.match(out, /\nO4 reversed-direct-map +\d+\+/);
  assert.match(out, /steps, and not with fewer where no \+ is\.\n.*\?: not found so far, and it may still happen\.\n/);
  const few = cli('explore', race, '--policy', 'conversion=under-lock', '--max-states', '600').out;
  assert.match(few, /after A switches between tasks and B steps\.\n/);
  assert.doesNotMatch(few, /not with fewer|·/);
});

test('too many states, and what cannot be read', () => {
  const few = cli('explore', race, '--max-states', '100');
  assert.equal(few.status, 3);
  assert.match(few.out, /given up after 100 states/);
  for (const [args, words] of [
    [['--policy', 'conversion=o9'], /policy conversion cannot be o9; it is today, rfc-v8/],
    [['--policy', 'conversion'], /--policy takes NAME=VALUE/],
    [['--policy', 'convrsion=all'], /unknown policy convrsion/],
    [['--max-states', 'many'], /--max-states must be a whole number above 0, not many/],
  ] as const) {
    const { status, err } = cli('explore', race, ...args);
    assert.equal(status, 2);
    assert.match(err, words);
  }
  for (const [args, words] of [
    [['--policy', 'conversion=o9'], /policy conversion cannot be o9; it is today, rfc-v8/],
    [['--policy', 'convrsion=today'], /unknown policy convrsion; there are/],
    [['--policy', 'conversion=today,rfc-v8'], /--policy conversion: a run has one value; kvm-mmu compare takes more/],
    [['--policy', 'roots=today', '--policy', 'roots=before'], /--policy roots is given twice/],
    [['--policy', 'roots=today', '--target', 'kvm'], /--policy is for the emulator: a real KVM has no policies/],
    [['--schedule', ''], /--schedule: it is empty/],
    [['--schedule', 'vmm:0'], /--schedule: vmm:0 has no steps/],
  ] as const) {
    const { status, err } = cli('run', race, ...args);
    assert.equal(status, 2, args.join(' '));
    assert.match(err, words);
  }
  const odd = cli('run', race, '--schedule', 'vmm:3 nobody:2');
  assert.equal(odd.status, 2);
  assert.match(odd.err, /--schedule: there is no task nobody; there are vcpu0, vmm, kthread/);
});

test('a schedule that cannot be followed is told: who cannot go on, where, and why', () => {
  for (const [schedule, words] of [
    ['vcpu0:56 vmm:2', /race\.mmu: schedule: vcpu0 waits after 1 of 56 steps, at line 8\n/],
    ['vmm:500 vcpu0:1', /race\.mmu: schedule: vmm has ended after \d+ of 500 steps\n/],
  ] as const) {
    const { status, out, err } = cli('run', race, '--schedule', schedule);
    assert.equal(status, 3);
    assert.match(err, words);
    assert.equal(out, '');
  }
  const two = file('two.mmu', 'host a { log dirty slot 0 on }\nhost b { log dirty slot 0 on }\n');
  const blocked = cli('run', two, '--schedule', 'a:3 b:9');
  assert.equal(blocked.status, 3);
  assert.match(blocked.err, /schedule: b waits for slots_lock after \d of 9 steps, at line 2\n/);
});

test('run tells the hazards that it met', () => {
  const args = ['run', race, '--policy', 'conversion=rfc-v8', '--schedule', 'vmm:13 vcpu0:94'];
  const { status, out, err } = cli(...args);
  assert.equal(status, 0, err);
  assert.match(out, /\nhazards +\d+\n/);
  assert.match(err, /race\.mmu: hazard: rmp-fault-loop: vCPU 0's RMP fault at gpa 0x1000 is left as it is/);
  const { hazards } = JSON.parse(cli(...args, '--json').out) as { hazards: { hazard: string; text: string }[] };
  assert.deepEqual(
    hazards.map(({ hazard }) => hazard),
    ['rmp-fault-loop'],
  );
});

test('a run that goes round in circles fails at once, with words', () => {
  const circle = file(
    'circle.mmu',
    'machine x86-64 {\n  vm snp\n  memory 0 +4M guest-memfd\n  second-stage tdp npt 4-level\n}\nvcpu 0 { shared write 0x1000 = 1 convert 0x1000 +4K private pvalidate 0x1000 }\n',
  );
  const { status, out, err } = cli('run', circle, '--policy', 'conversion=no-zap', '--max-steps', '20000');
  assert.equal(status, 1);
  assert.match(err, /circle\.mmu: nothing gets on: vCPU 0 goes round in circles: RMP fault at gpa 0x1000: /);
  assert.match(out, /failed: nothing gets on\n/);
});
