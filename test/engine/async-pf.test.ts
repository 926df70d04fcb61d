import assert from 'node:assert/strict';
import { test } from 'node:test';
import { project } from '../../engine/history/project.ts';
import type { Machine } from '../../engine/machine.ts';
import type { Task } from '../../engine/operation.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// Asynchronous page faults: a vCPU whose page is swapped out is told so, or halts, and goes on when a worker has read the page.

function start(text: string): Run {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map(({ message, span }) => `${span.line}: ${message}`).join('\n'));
  return new Run(program);
}

/** Runs to the end; every expectation must hold. */
function holds(text: string): Machine {
  const run = start(text);
  assert.equal(run.runToEnd(100_000), true, 'still running');
  assert.equal(run.stuck(), undefined);
  assert.deepEqual(run.machine.small.failures, []);
  assert.deepEqual(run.machine.small.asyncPf[0]!.queue, []);
  return run.machine;
}

const SECONDS = ['tdp ept 4-level', 'tdp npt 4-level', 'shadow'];

/** A guest whose page is swapped out before `body` accesses it. */
const scenario = (second: string, body: string, more = '', paging = ' in g'): string => `machine x86-64 {
  memory 0 +64M
  second-stage ${second}
  sanitize
${more}}
guest g {
  map 0x400000 -> 0x400000 +64K rwx user
}
vcpu 0${paging} {
  write 0x400000 = 77
  wait until mmu_invalidate_seq > 0
  ${body}
}
host swapper {
  wait until accesses > 0 && faults.fixed > 0
  swap-out 0x400000 +64K
}
expect u64(0x400000) == 5
`;

const told = (machine: Machine): string[] =>
  [...project(machine)].flatMap(({ event }) => (/async/.test(event) || event === 'kvm_inj_exception' ? [event] : []));

for (const second of SECONDS) {
  test(`${second}: with paging on the guest is told of the page by #PF, and again when it is there`, () => {
    const machine = holds(scenario(second, 'async-pf 0x5000 send-always\n  write 0x400000 = 5'));
    assert.equal(machine.counter('async_pf.not_present'), 1);
    assert.equal(machine.counter('async_pf.ready'), 2, 'what slept from before is woken, too');
    assert.equal(machine.counter('async_pf.halts'), 0);
    assert.equal(machine.counter('faults.guest'), 1);
    const { cr2, errorCode } = machine.task(0);
    assert.deepEqual([cr2, errorCode], [0x1000n, 0], 'the token, and no bit of an error code');
    assert.deepEqual(told(machine), [
      'kvm_async_pf_ready',
      'kvm_try_async_get_page',
      'kvm_async_pf_not_present',
      'kvm_inj_exception',
      'kvm_async_pf_completed',
      'kvm_async_pf_ready',
    ]);
    const shared = machine.resolve(5);
    assert.equal(machine.readEntry(shared, 0), 0n, 'the guest has cleared flags and token');
  });

  test(`${second}: the kernel is told only with send-always, the user anyway`, () => {
    const kernel = holds(scenario(second, 'async-pf 0x5000\n  write 0x400000 = 5'));
    assert.deepEqual([kernel.counter('async_pf.not_present'), kernel.counter('async_pf.halts')], [0, 1]);
    const user = holds(scenario(second, 'async-pf 0x5000\n  user write 0x400000 = 5'));
    assert.deepEqual([user.counter('async_pf.not_present'), user.counter('async_pf.halts')], [1, 0]);
  });

  for (const setup of ['', 'async-pf 0x5000 send-always\n  async-pf off\n  '])
    test(`${second}: a guest that does not ask for it (${setup === '' ? 'never' : 'no more'}) halts until the page is there`, () => {
      const machine = holds(scenario(second, `${setup}write 0x400000 = 5`));
      assert.deepEqual([machine.counter('async_pf.not_present'), machine.counter('async_pf.halts')], [0, 1]);
      assert.equal(machine.counter('faults.guest'), 0);
    });

  const unpaged = (policy: string): Machine =>
    holds(scenario(second, 'async-pf 0x5000 send-always\n  write 0x400000 = 5', `  policy roots = ${policy}\n`, ''));
  for (const policy of ['today', 'posted'])
    test(`${second}: with paging off nothing is delivered (roots = ${policy}): the vCPU halts, and the page's coming ends the halt`, () => {
      const machine = unpaged(policy);
      assert.deepEqual([machine.counter('async_pf.not_present'), machine.counter('async_pf.halts')], [0, 1]);
      assert.ok(!told(machine).includes('kvm_inj_exception'));
    });
  test(`${second}: before the series of 2022 a guest without paging gets the #PF all the same`, () => {
    const machine = unpaged('before');
    assert.deepEqual([machine.counter('async_pf.not_present'), machine.counter('async_pf.halts')], [1, 0]);
    assert.ok(told(machine).includes('kvm_inj_exception'));
  });

  test(`${second}: the page is mapped when it comes, so that the access need not fault again`, () => {
    const machine = holds(scenario(second, 'write 0x400000 = 5'));
    const faults = [...project(machine)].filter(
      ({ event, text }) => event === 'kvm_page_fault' && text.includes(' address 0x0000000000400000 '),
    );
    assert.equal(faults.length, 2, 'the first, and the one that found the page swapped out');
    assert.equal(machine.counter('faults.spurious'), 0);
  });
}

/** A run in which the vCPU has met the swapped page and sleeps, before the worker has begun. */
function asleep(policy: string, send: string): { readonly run: Run; readonly vcpu: Task; readonly worker: Task } {
  const run = start(scenario('tdp ept 4-level', `${send}\n  write 0x400000 = 5`, `  policy roots = ${policy}\n`));
  const vcpu = run.machine.task(0);
  const worker = run.machine.tasks.find(({ name }) => name === 'kworker')!;
  for (let step = 0; step < 10_000 && vcpu.state !== 'halted'; step++) {
    const task = run.pick();
    assert.ok(task && task !== worker);
    run.step(task);
  }
  assert.equal(vcpu.state, 'halted');
  return { run, vcpu, worker };
}

const setPaging = (run: Run, on: boolean): void => {
  const { cr0 } = run.machine.vcpu(0).registers;
  const pg = 1n << 31n;
  const lme = 1n << 8n;
  const { efer } = run.machine.vcpu(0).registers;
  if (!on) run.edit({ kind: 'register', vcpu: 0, register: 'cr0', value: cr0 & ~pg });
  if (!on) run.edit({ kind: 'register', vcpu: 0, register: 'efer', value: efer & ~lme & ~(1n << 10n) });
  if (on) run.edit({ kind: 'register', vcpu: 0, register: 'efer', value: efer | lme });
  if (on) run.edit({ kind: 'register', vcpu: 0, register: 'cr0', value: cr0 | pg });
};

for (const policy of ['before', 'posted'])
  test(`roots = ${policy}: each change of CR0.PG clears the queue, and a guest that sleeps on it sleeps on`, () => {
    for (const isWorkerFirst of [false, true]) {
      const { run, vcpu, worker } = asleep(policy, 'async-pf 0x5000 send-always');
      assert.equal(run.machine.small.asyncPf[0]!.queue.length, 1);
      if (isWorkerFirst) while (worker.state !== 'done') run.step(worker);
      setPaging(run, false);
      assert.deepEqual(run.machine.small.asyncPf[0]!.queue, [], 'PG 1 → 0');
      setPaging(run, true);
      assert.deepEqual(run.machine.small.asyncPf[0]!.queue, [], 'PG 0 → 1');
      run.runToEnd(10_000);
      assert.equal(vcpu.state, 'halted');
      assert.match(run.stuck()!, /^vCPU 0 is halted until a page is swapped in/);
    }
  });

test('roots = today: the queue outlives changes of CR0.PG, and 0 → 1 has KVM look at it again', () => {
  const { run, vcpu, worker } = asleep('today', 'async-pf 0x5000 send-always');
  while (worker.state !== 'done') run.step(worker);
  setPaging(run, false);
  assert.equal(run.machine.small.asyncPf[0]!.queue.length, 1);
  run.machine.setRequests(run.machine.vcpu(0), 0);
  setPaging(run, true);
  assert.equal(run.machine.vcpu(0).requests & 128, 128, 'KVM_REQ_APF_READY');
  assert.ok(run.runToEnd(10_000));
  assert.equal(vcpu.state, 'done');
  assert.deepEqual(run.machine.small.failures, []);
});

test('in a nested guest nothing is delivered, for L1 has not asked for such VM exits: the vCPU halts', () => {
  const machine = holds(`machine x86-64 {
  memory 0 +64M
  sanitize
}
guest g {
}
nested stage {
  map 0 -> 0x200_0000 +4M
}
guest inner in stage {
  map 0x400000 -> 0x10000 +64K
}
vcpu 0 in g {
  async-pf 0x5000 send-always
  enter inner { write 0x400000 = 77 }
  wait until mmu_invalidate_seq > 0
  enter inner { write 0x400000 = 5 }
}
host swapper {
  wait until nested.exits > 0
  swap-out 0x201_0000 +4K
}
expect u64(0x201_0000) == 5
`);
  assert.deepEqual([machine.counter('async_pf.not_present'), machine.counter('async_pf.halts')], [0, 1]);
});

test('the program ends the same, whether the guest is told, halts, or nothing is swapped out', () => {
  const memory = (text: string): bigint[] => {
    const machine = holds(text);
    return Array.from({ length: 512 }, (_, index) => machine.readEntry(machine.resolve(0x400), index));
  };
  const body = (setup: string): string =>
    `${setup}write 0x400000 = 5\n  repeat 16 as i { write 0x400008 + i * 8 = i * 3 }`;
  const plain = memory(scenario('tdp ept 4-level', body('')).replace('swap-out', 'unmap'));
  for (const second of SECONDS)
    for (const setup of ['', 'async-pf 0x5000\n  ', 'async-pf 0x5000 send-always\n  '])
      for (const policy of ['today', 'posted', 'before'])
        assert.deepEqual(memory(scenario(second, body(setup), `  policy roots = ${policy}\n`)), plain);
});

test('what cannot be is told by name', () => {
  const words = (body: string): string[] =>
    parseScenario(scenario('tdp ept 4-level', body)).diagnostics.map(({ message }) => message);
  assert.deepEqual(words('async-pf 0x5004'), ['async-pf 0x5004: the area is aligned to 64 bytes (KVM_ASYNC_PF_EN)']);
  assert.deepEqual(words('async-pf 0x8000_0000'), ['async-pf 0x80000000: there is no memory slot']);
  assert.deepEqual(words('swap-out 0 +4K'), ['swap-out: only the host can do this; it belongs in a host block']);
});
