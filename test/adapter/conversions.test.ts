import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { explore } from '../../engine/explore/explore.ts';
import { scheduleText } from '../../engine/explore/schedule-text.ts';
import { choosePolicy, DEFAULT_POLICIES } from '../../engine/policies.ts';
import { parseScenario } from '../../scenario/index.ts';
import { Client, errorText, spawnAdapter, stopText } from './client.ts';

// Sessions about private and shared memory, and the schedules that an exploration has found in them.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const RACE = `machine x86-64 {
  memory 0 +4M huge 2M guest-memfd
  second-stage tdp npt 4-level
  vm snp
  memory-fault stop
}
vcpu 0 {
  shared write 0x1000 = 1
  shared read 0x1000
}
host vmm {
  convert 0x1000 +4K private
}
`;
const path = join(folder, 'race.mmu');
writeFileSync(path, RACE);

async function withClient(work: (client: Client) => Promise<void>): Promise<void> {
  const client = new Client(spawnAdapter());
  try {
    await work(client);
  } finally {
    await client.close();
  }
}

test('a schedule that was found opens as a session, which stops where it goes wrong, and goes back', () =>
  withClient(async (client) => {
    const { program } = parseScenario(RACE);
    const policies = choosePolicy(DEFAULT_POLICIES, 'conversion', 'no-zap');
    assert.ok(program && !('error' in policies));
    const chosen = { ...program, machine: { ...program.machine, policies } };
    const found = explore(chosen, { maxStates: 10_000, reduce: true });
    const outcome = found.outcomes.find(({ event }) => event === 'stale-translation');
    assert.ok(outcome);
    const launch = { policies: { conversion: 'no-zap' }, schedule: scheduleText(chosen, outcome.schedule) };
    const stop = await client.start(path, { launch, filters: ['hazard'] });
    const text = await stopText(client, stop);
    assert.match(text, /^exception: Hazard of a conversion: a 2M page maps gfn 0x0 on/);
    const next = await stopText(client, await client.move('continue'));
    assert.match(next, /^exception: Hazard of a conversion: vCPU 0 reaches gpa 0x1000 through a shared translation/);
    assert.match(await stopText(client, await client.move('reverseContinue')), /a 2M page maps gfn 0x0 on/);
    // The schedule still leads on from there.
    assert.match(await stopText(client, await client.move('continue')), /vCPU 0 reaches gpa 0x1000/);
  }));

test('a schedule ends in a stop, and steps of one task wait for the others as it has them', () =>
  withClient(async (client) => {
    const launch = { schedule: 'vcpu0:56 vmm:12 vcpu0:4', stopOnEntry: true };
    await client.start(path, { launch, filters: [] });
    const { threads } = (await client.request('threads')) as { threads: { id: number; name: string }[] };
    const vmm = threads.find(({ name }) => name.startsWith('vmm'))!;
    assert.match(await stopText(client, await client.move('stepIn', vmm.id)), /kvm_vm_set_mem_attributes/);
    const costs = await client.request('evaluate', { expression: 'accesses', context: 'repl' });
    assert.match(costs.result, /^1/, 'the vCPU came first');
    assert.match(await stopText(client, await client.move('continue')), /The schedule ends here, after 72 steps/);
    assert.equal((await client.move('continue')).event, 'terminated');
  }));

test('a schedule that cannot be followed stops where it cannot, says why, and leaves the rest to the default order', () =>
  withClient(async (client) => {
    await client.start(path, { launch: { schedule: 'vmm:900 vcpu0:4', stopOnEntry: true }, filters: [] });
    assert.match(
      await stopText(client, await client.move('continue')),
      /The schedule cannot be followed any further, after (\d+) steps: vmm has ended after \1 of 900 steps\./,
    );
    assert.equal((await client.move('continue')).event, 'terminated');
  }));

test('a mismatch and an RMP fault are stops of their own', () =>
  withClient(async (client) => {
    const faults = join(folder, 'faults.mmu');
    const converts = RACE.replace('memory-fault stop', 'memory-fault convert').replace(
      /vcpu 0[^}]*}/,
      'vcpu 0 {\n  wait until is_private(0x1000)\n  shared read 0x1000\n}',
    );
    writeFileSync(faults, converts);
    const stop = await client.start(faults, {
      filterOptions: [{ filterId: 'memory-fault', condition: '!private && gpa == 0x1000' }],
      filters: [],
    });
    assert.match(
      await stopText(client, stop),
      /^exception: vCPU 0 read gpa 0x1000: .*: the access was shared, the page is not; KVM_EXIT_MEMORY_FAULT; vmm_memory_fault is next/,
    );
  }));

test('an RMP fault says why', () =>
  withClient(async (client) => {
    const eager = join(folder, 'eager.mmu');
    writeFileSync(
      eager,
      RACE.replace(/vcpu 0[^}]*}/, 'vcpu 0 {\n  wait until is_private(0x1000)\n  pvalidate 0x1000\n}'),
    );
    const launch = { policies: { conversion: 'rfc-v8' }, schedule: 'vmm:13 vcpu0:94' };
    const stop = await client.start(eager, { launch, filters: ['rmp'] });
    assert.match(
      await stopText(client, stop),
      /^exception: vCPU 0 read gpa 0x1000: hpa 0x140001000 is not assigned to the guest; npf_interception is next/,
    );
    const { exceptionId, details } = await client.request('exceptionInfo', { threadId: 1 });
    assert.equal(exceptionId, 'RMP fault');
    assert.ok(details);
  }));

test('a fault that is taken for ever stops the session, as stuck', () =>
  withClient(async (client) => {
    const circle = join(folder, 'circle.mmu');
    const machine = RACE.replace(/vcpu 0[\s\S]*/, '');
    writeFileSync(
      circle,
      `${machine}vcpu 0 {\n  shared write 0x1000 = 1\n  convert 0x1000 +4K private\n  pvalidate 0x1000\n}\n`,
    );
    const launch = { policies: { conversion: 'no-zap' }, stopOnEntry: true };
    await client.start(circle, { launch, filters: [] });
    const words = /Nothing gets on: vCPU 0 goes round in circles: RMP fault at gpa 0x1000: hpa 0x\w+ is not assigned/;
    assert.match(await stopText(client, await client.move('continue')), words);
    assert.match(await stopText(client, await client.move('continue')), words);
  }));

for (const [schedule, words] of [
  ['vcpu1:3', /"schedule": there is no task vcpu1; there are vcpu0, vmm/],
  ['vcpu0=3', /"schedule": vcpu0=3 is not of the form TASK:STEPS/],
  ['', /"schedule" must be text such as/],
] as const)
  test(`schedule “${schedule}” is refused in words`, () =>
    withClient(async (client) => {
      await client.initialize();
      const response = await client.raw('launch', { type: 'kvm-mmu', request: 'launch', program: path, schedule });
      assert.equal(response.success, false);
      assert.match(errorText(response), words);
    }));
