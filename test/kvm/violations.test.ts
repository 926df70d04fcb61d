import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import test, { after } from 'node:test';
import { Breakpoints, Condition } from '../../adapter/breakpoints.ts';
import { KVM_FILTERS } from '../../adapter/kvm/filters.ts';
import { ViolationsAfter, violationWords } from '../../adapter/kvm/violations.ts';
import { RspClient } from '../../adapter/rsp/client.ts';
import { connectSocket } from '../../adapter/rsp/node-stream.ts';
import { parseViolations, type Violation } from '../../adapter/rsp/violations.ts';
import { Client, spawnAdapter } from '../adapter/client.ts';
import { guest, native, withoutKvm, withoutSanitizers } from './kvm.ts';
import { TestMachine } from './machine.ts';

// What KVM's tracepoints tell of violations that nothing stops at, from the kernel's buffers to the debug console.

const TRACEFS = '/sys/kernel/tracing';
const INSTANCES = join(TRACEFS, 'instances');

/** Why no violation can be traced here; undefined when one can. Where root may, tracefs is mounted for as long. */
function withoutTracing(): string | undefined {
  const lacks = withoutKvm();
  if (lacks !== undefined) return lacks;
  if (process.getuid?.() !== 0) return 'tracing needs root';
  if (!existsSync(TRACEFS)) return `there is no ${TRACEFS}`;
  if (readdirSync(TRACEFS).length === 0) {
    if (spawnSync('mount', ['-t', 'tracefs', 'tracefs', TRACEFS]).status !== 0) return 'tracefs cannot be mounted';
    // Who uses it by then keeps it.
    after(() => void spawnSync('umount', [TRACEFS]));
  }
  if (!existsSync(join(TRACEFS, 'events/kvmmmu/kvm_mmu_spte_requested')))
    return 'this kernel has no tracepoint kvm_mmu_spte_requested';
  return undefined;
}

const skip = withoutTracing() ?? false;
const tracingTest = (name: string, body: () => Promise<void>): void => {
  test(name, { skip, timeout: 600_000 }, body);
};

const USER = ['--memory', '16M', '--image', guest('user.elf')];
const HEAP = 0x81_0000_0000n;

async function withMachine(args: readonly string[], work: (machine: TestMachine) => Promise<void>): Promise<void> {
  const machine = await TestMachine.start(args);
  try {
    await work(machine);
  } finally {
    machine.end();
  }
}

const instanceOf = async (client: RspClient): Promise<string> =>
  join(INSTANCES, `kvm-mmu-helper-${(await client.info()).pid}`);

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let waits = 0; waits < 400; waits++) {
    if (holds()) return;
    await new Promise((done) => setTimeout(done, 25));
  }
  assert.fail(what);
}

function symbol(name: string): bigint {
  const lines = execFileSync('nm', [guest('user.elf')], { encoding: 'utf8' }).split('\n');
  return BigInt(`0x${lines.find((line) => line.endsWith(` ${name}`))!.split(' ')[0]}`);
}

async function word(machine: TestMachine, gpa: bigint): Promise<bigint> {
  const bytes = await machine.client.readPhysical(gpa, 8);
  return new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
}

/** The page behind an address, by the guest's own tables of 4K pages. */
async function gfnOf(machine: TestMachine, address: bigint): Promise<bigint> {
  let table = (await machine.registers()).get('cr3')!;
  for (const shift of [39n, 30n, 21n, 12n]) {
    const frame = (table / 4096n) % 2n ** 40n;
    table = await word(machine, frame * 4096n + ((address >> shift) % 512n) * 8n);
  }
  return (table / 4096n) % 2n ** 40n;
}

/** Whether an event tells of a page, or of a larger one that holds it. */
const tells = ({ gfn, gpa, level = 1 }: Violation, page: bigint): boolean => {
  const first = gfn ?? (gpa === undefined ? undefined : gpa / 4096n);
  const pages = 512n ** BigInt(level - 1);
  return first !== undefined && first / pages === page / pages;
};

// ---- what the kernel's tracepoints tell

tracingTest('after a refresh and under dirty logging the user faults again, and only tracepoints tell where', () =>
  withMachine(USER, async (machine) => {
    const { client } = machine;
    await machine.vendor('QKvm.Stop:second-stage');
    await machine.vendor('vKvm.Trap:0,1000000,touch');
    await client.traceViolations(true);
    await client.insertBreakpoint('hardware', symbol('protect'));
    const stops: string[] = [];
    const go = async (): Promise<void> => {
      for (let stop = await machine.go(); stop.reason !== 'breakpoint'; stop = await machine.go())
        stops.push(`${stop.reason} ${stop.gpa?.toString(16)}`);
    };
    // Twice at system calls of the program, which has just used the heap's first page.
    await go();
    assert.ok(stops.length > 5, 'userfaultfd tells of first touches');
    const [code, heap] = [await gfnOf(machine, symbol('program')), await gfnOf(machine, HEAP)];
    await client.takeViolations();
    assert.deepEqual(await client.takeViolations(), { lost: 0, list: [] }, 'what was taken is not told again');

    stops.length = 0;
    await machine.vendor('vKvm.Refresh');
    await go();
    const refreshed = await client.takeViolations();
    assert.equal(refreshed.lost, 0);
    assert.deepEqual(stops, [], 'the host has every page: userfaultfd tells nothing');
    for (const [what, page] of [['code', code] as const, ['heap', heap] as const])
      assert.ok(
        refreshed.list.some((each) => tells(each, page)),
        `the ${what}’s page ${page.toString(16)} is not among ${refreshed.list.map(violationWords).join('\n')}`,
      );
    for (const { event, vcpu } of refreshed.list) {
      assert.equal(vcpu, 0);
      assert.match(event, /^(kvm_page_fault|fast_page_fault|kvm_mmu_spte_requested)$/);
    }
    // With EPT the processor logs dirty pages without a fault.
    const { secondStage } = await client.info();
    if (secondStage !== 'shadow') return;
    await client.removeBreakpoint('hardware', symbol('protect'));
    await client.insertBreakpoint('hardware', symbol('unmap'));
    await machine.vendor('vKvm.Slot:flags,0,log');
    await go();
    const logged = await client.takeViolations();
    assert.deepEqual(stops, []);
    assert.ok(
      logged.list.some((each) => tells(each, heap)),
      logged.list.map(violationWords).join('\n'),
    );
    // Of a shadow MMU only the number of the page is told, and on which level it is mapped.
    const requested = logged.list.find(({ event }) => event === 'kvm_mmu_spte_requested')!;
    assert.deepEqual(Object.keys(requested).sort(), ['event', 'gfn', 'level', 'pfn', 'vcpu']);
  }),
);

/** Sets vCPUs to user code, which starts with rdi as given; tables and code lie at addresses that nothing else uses. */
async function setToUser(machine: TestMachine, code: Uint8Array, starts: readonly bigint[]): Promise<void> {
  const [tables, rip] = [0x40_0000n, 0x50_0000n];
  const write = (gpa: bigint, ...values: readonly bigint[]): Promise<void> =>
    machine.client.writePhysical(gpa, new Uint8Array(BigUint64Array.from(values).buffer));
  await write(tables, tables + 0x1007n);
  await write(tables + 0x1000n, tables + 0x2007n);
  // Pages of 2M, the user's, accessed and dirty.
  await write(tables + 0x2000n, ...Array.from({ length: 8 }, (_, index) => BigInt(index) * 0x20_0000n + 0xe7n));
  await machine.client.writePhysical(rip, code);
  for (const [vcpu, rdi] of starts.entries())
    await machine.client.writeRegisters(`${vcpu + 1}`, { cr3: tables, rip, rdi, cs: 0x2bn, ss: 0x33n });
}

tracingTest('each violation is that of the vCPU whose thread it was', () =>
  withMachine(['--memory', '16M', '--vcpus', '2', '--image', guest('user.elf')], async (machine) => {
    const { client } = machine;
    const pages = [0x600n, 0x601n];
    // incq (rdi); jmp: each counts in a page of its own.
    await setToUser(
      machine,
      Uint8Array.of(0x48, 0xff, 0x07, 0xeb, 0xfb),
      pages.map((page) => page * 4096n),
    );
    await client.traceViolations(true);
    await client.resume('all');
    const seen: Violation[] = [];
    const all = (): boolean =>
      pages.every((page, vcpu) => seen.some((each) => each.vcpu === vcpu && tells(each, page)));
    for (let waits = 0; waits < 1000 && !all(); waits++) seen.push(...(await client.takeViolations()).list);
    assert.ok(all(), seen.map(violationWords).join('\n'));
    for (const [vcpu, page] of pages.entries())
      assert.ok(seen.every((each) => each.vcpu === vcpu || each.level !== 1 || !tells(each, page)));
  }),
);

tracingTest('the newest 4096 violations are told, and of all others how many there were', () =>
  withMachine(USER, async (machine) => {
    const { client } = machine;
    const [first, end] = [0x80_0000n, 0xf0_0000n];
    // 1: mov edi, first; 2: incq (rdi); add rdi, 4096; cmp rdi, rsi; jb 2b; jmp 1b
    const code = [0xbf, 0, 0, 0x80, 0, 0x48, 0xff, 0x07, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0x48, 0x39, 0xf7, 0x72, 0xf1];
    await setToUser(machine, Uint8Array.of(...code, 0xeb, 0xea), [first]);
    await client.writeRegisters('1', { rsi: end });
    await client.traceViolations(true);
    await client.resume('1');
    /** Each page once more, since KVM has forgotten all of them. */
    const again = async (): Promise<void> => {
      await machine.vendor('vKvm.Refresh');
      const before = await word(machine, end - 4096n);
      while ((await word(machine, end - 4096n)) < before + 2n) await new Promise((done) => setImmediate(done));
    };
    await again();
    await client.takeViolations();
    await again();
    // KVM maps neighbours with a page: fewer than there are pages.
    const { lost, list } = await client.takeViolations();
    assert.equal(lost, 0);
    assert.ok(list.length >= 100, `${list.length} of the pages`);
    // What the helper does not tell, and then what the kernel has no room for either.
    for (const wanted of [6000, 50000]) {
      const times = Math.ceil(wanted / list.length);
      for (let time = 0; time < times; time++) await again();
      // Then one page that nothing else uses.
      const last = 0x70_0000n;
      const count = await word(machine, last);
      await client.stop('1');
      await machine.stopped();
      await machine.vendor('vKvm.Refresh');
      await client.writeRegisters('1', { rip: 0x50_0005n, rdi: last, rsi: 0n });
      await client.resume('1');
      while ((await word(machine, last)) === count) await new Promise((done) => setImmediate(done));
      await client.stop('1');
      await machine.stopped();
      await client.writeRegisters('1', { rsi: end });
      await client.resume('1');
      const told = await client.takeViolations();
      assert.equal(told.list.length, 4096);
      assert.ok(
        told.list.slice(-2 * list.length).some((each) => tells(each, last / 4096n)),
        'the last is not told',
      );
      const all = told.lost + told.list.length;
      assert.ok(all > 0.9 * times * list.length && all < 1.1 * times * list.length, `${all} for ${times} times`);
    }
    assert.deepEqual((await client.takeViolations()).lost, 0, 'what was counted is not counted again');
  }),
);

// ---- what is left behind

for (const [how, end] of [
  ['a kill packet', (machine: TestMachine) => machine.client.kill()],
  ['QKvm.Violations:0', (machine: TestMachine) => machine.client.traceViolations(false)],
  ...(['SIGTERM', 'SIGINT', 'SIGHUP'] as const).map(
    (signal) =>
      [signal, async (machine: TestMachine) => void process.kill((await machine.client.info()).pid, signal)] as const,
  ),
] as const) {
  tracingTest(`the instance is gone after ${how}`, () =>
    withMachine(USER, async (machine) => {
      const instance = await instanceOf(machine.client);
      await machine.client.traceViolations(true);
      assert.ok(existsSync(instance));
      await end(machine);
      await until(`${instance} is left behind`, () => !existsSync(instance));
    }),
  );
}

tracingTest('the instance is gone when the stream ends, while the guest runs', async () => {
  const child = spawn(native('kvm-mmu-helper'), USER, { stdio: ['pipe', 'ignore', 'inherit'] });
  const ended = new Promise((done) => child.on('exit', done));
  const instance = join(INSTANCES, `kvm-mmu-helper-${child.pid}`);
  // With acknowledgements nobody waits for.
  const packet = (text: string): string =>
    `$${text}#${([...text].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % 256).toString(16).padStart(2, '0')}`;
  child.stdin.write(packet('QKvm.Violations:1'));
  await until('no instance is made', () => existsSync(instance));
  child.stdin.end(packet('vCont;c'));
  assert.equal(await ended, 0);
  assert.ok(!existsSync(instance));
});

tracingTest('a client that goes takes its tracing with it, and the helper waits for the next', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
  const socket = join(folder, 'socket');
  const child = spawn(native('kvm-mmu-helper'), [...USER, '--listen', socket], { stdio: 'ignore' });
  try {
    await until('the helper does not listen', () => existsSync(socket));
    const instance = join(INSTANCES, `kvm-mmu-helper-${child.pid}`);
    const first = new RspClient(connectSocket(socket));
    await first.handshake();
    await first.traceViolations(true);
    assert.ok(existsSync(instance));
    await first.detach();
    await until(`${instance} is left behind`, () => !existsSync(instance));
    const second = new RspClient(connectSocket(socket));
    await second.handshake();
    await assert.rejects(second.takeViolations(), /violations are not traced: QKvm\.Violations:1 first/);
    // Between clients, too, a signal ends it.
    await second.detach();
    const ended = new Promise((done) => child.on('exit', (code) => done(code)));
    child.kill('SIGTERM');
    assert.equal(await ended, 0);
  } finally {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  }
});

tracingTest('what SIGKILL leaves behind is removed by the next helper, what is in use is not', async () => {
  const live = await TestMachine.start(USER);
  const killed = await TestMachine.start(USER);
  try {
    const [used, stale] = [await instanceOf(live.client), await instanceOf(killed.client)];
    await live.client.traceViolations(true);
    await killed.client.traceViolations(true);
    const { pid } = await killed.client.info();
    process.kill(pid, 'SIGKILL');
    await until('the helper lives on', () => !existsSync(`/proc/${pid}`));
    // Any helper that starts now removes it, those of other tests too.
    await withMachine(USER, async () => {
      assert.ok(!existsSync(stale), 'the next helper has not removed it');
      assert.ok(existsSync(used), 'that of a helper that lives is gone');
    });
    assert.deepEqual(await live.client.takeViolations(), { lost: 0, list: [] });
  } finally {
    live.end();
    killed.end();
  }
});

// ---- hosts that lack something

for (const [host, command, words] of [
  [
    'without tracefs',
    ['-m', 'sh', '-c', `umount ${TRACEFS}; umount -R /sys/kernel/debug; exec "$@"`, 'sh'],
    /tracefs is not mounted: mount -t tracefs tracefs \/sys\/kernel\/tracing/,
  ],
  ['in a PID namespace', ['-f', '-p', '--kill-child'], /the helper runs in a PID namespace/],
] as const) {
  tracingTest(`${host} the helper says so, and what to do`, async () => {
    const machine = await TestMachine.start([...command, resolve(native('kvm-mmu-helper')), ...USER], 'unshare');
    try {
      assert.match((await machine.client.info()).has.violations!, words);
      await assert.rejects(machine.client.traceViolations(true), words);
      await assert.rejects(machine.client.takeViolations(), /violations are not traced/);
      await assert.rejects(machine.vendor('QKvm.Violations:2'), /violations are traced with 1 and not with 0/);
    } finally {
      machine.end();
    }
  });
}

// ---- sessions

const LAUNCH = { target: 'kvm', guest: resolve(guest('user.elf')), memory: '16M' };

async function withSession(condition: string | undefined, work: (client: Client) => Promise<void>): Promise<void> {
  const client = new Client(spawnAdapter());
  try {
    const option = { filterId: 'violations', ...(condition === undefined ? {} : { condition }) };
    await client.start(undefined, { launch: { ...LAUNCH, stopOnEntry: true }, filters: [], filterOptions: [option] });
    await client.request('setFunctionBreakpoints', { breakpoints: [{ name: 'protect' }, { name: 'unmap' }] });
    await work(client);
  } finally {
    await client.close();
  }
}

const told = (client: Client): string[] =>
  client.events
    .filter(({ event }) => event === 'output')
    .flatMap(({ body }) => String(body.output).split('\n'))
    .filter((line) => line.startsWith('after the fact: '));
const command = async (client: Client, expression: string): Promise<string> =>
  (await client.request('evaluate', { expression, context: 'repl' })).result;

tracingTest('a session prints violations at the next stop, and the command lists them', () =>
  withSession(undefined, async (client) => {
    assert.match(await command(client, 'violations'), /^violations are not traced: /);
    await client.move('continue');
    const first = told(client).length;
    assert.ok(first > 0);
    await command(client, 'refresh');
    await client.move('continue');
    const lines = told(client).slice(first);
    assert.ok(lines.length > 0);
    for (const line of lines)
      assert.match(line, /^after the fact: vCPU 0: .*\b(gpa|gva|gfn) 0x[0-9a-f]+.*, event (kvm|fast)_\w+$/);
    assert.deepEqual(
      (await command(client, 'violations')).split('\n'),
      lines.map((line) => line.replace('after the fact: ', '')),
    );
    await client.request('setExceptionBreakpoints', { filters: [] });
    await client.move('continue');
    assert.equal(told(client).length, first + lines.length, 'turned off, nothing is printed');
    assert.match(await command(client, 'violations'), /^violations are not traced: /);
  }),
);

tracingTest('a session prints the violations that its condition admits, up to the guest’s end', () =>
  withSession('gfn == 0x10c && event == kvm_mmu_spte_requested && hits <= 2', async (client) => {
    await client.request('setFunctionBreakpoints', { breakpoints: [] });
    assert.equal((await client.move('continue')).event, 'terminated');
    const lines = told(client);
    // With EPT or NPT a page is mapped once.
    assert.ok(lines.length === 1 || lines.length === 2, lines.join('\n'));
    for (const line of lines) assert.match(line, /: gfn 0x10c, .* event kvm_mmu_spte_requested$/);
  }),
);

// ---- parts

test('formats and pages of the trace buffers are read as they are, hostile ones refused', {
  skip: withoutSanitizers() ?? false,
}, () => {
  const { status, stdout, stderr } = spawnSync(native('records-check'), ['1', '100000'], { encoding: 'utf8' });
  assert.equal(status, 0, stdout + stderr);
});

test('an answer to qKvm.Violations has what the event tells, and nothing else', () => {
  const answer = {
    lost: 3,
    list: [
      { vcpu: 1, event: 'kvm_page_fault', gpa: '0x1008', error: '0x182', rip: '0xffffffffffffffff', newer: {} },
      { vcpu: 0, event: 'kvm_mmu_spte_requested', gfn: '0x10c', pfn: '0x1', level: 2 },
    ],
  };
  assert.deepEqual(parseViolations(JSON.stringify(answer)), {
    lost: 3,
    list: [
      { vcpu: 1, event: 'kvm_page_fault', gpa: 0x1008n, error: 0x182n, rip: 2n ** 64n - 1n },
      { vcpu: 0, event: 'kvm_mmu_spte_requested', gfn: 0x10cn, pfn: 1n, level: 2 },
    ],
  });
});

const one = (change: object): string =>
  JSON.stringify({ lost: 0, list: [{ vcpu: 0, event: 'kvm_page_fault', gpa: '0x1000', ...change }] });
for (const [text, words] of [
  ['', /the answer to qKvm\.Violations is not JSON/],
  ['[]', /the answer to qKvm\.Violations is \[\], not an object/],
  ['{"list":[]}', /lost in the answer to qKvm\.Violations is missing, not a whole number/],
  ['{"lost":1.5,"list":[]}', /lost in .* is 1\.5, not a whole number/],
  ['{"lost":0,"list":{}}', /list in .* is \{\}, not a list/],
  ['{"lost":0,"list":[null]}', /a violation in .* is null, not an object/],
  [one({ vcpu: -1 }), /vcpu in .* is -1, not a whole number/],
  [one({ event: 7 }), /event in .* is 7, not text/],
  [one({ gpa: 4096 }), /gpa in .* is 4096, not text/],
  [one({ gfn: '0x10000000000000000' }), /gfn in .*, not "0x…" of at most 64 bits/],
  [one({ error: '2' }), /error in .*, not "0x…"/],
  [one({ level: '1' }), /level in .* is "1", not a whole number/],
] as const) {
  test(`qKvm.Violations answered with ${text} is refused in words`, () => {
    assert.throws(() => parseViolations(text), words);
  });
}

/** What is printed of violations under a condition. */
async function printed(condition: string, list: readonly Violation[], lost = 0): Promise<string[]> {
  const lines: string[] = [];
  const say = (text: string): void => void lines.push(text.trimEnd());
  const breakpoints = new Breakpoints(say);
  breakpoints.filters.set('violations', condition === '' ? undefined : new Condition(condition));
  const client = {
    info: async () => ({ has: { violations: '' } }),
    traceViolations: async () => {},
    takeViolations: async () => ({ lost, list }),
  };
  const violations = new ViolationsAfter(client as unknown as RspClient, say);
  await violations.want(true);
  await violations.tell(breakpoints);
  return lines;
}

const FAULT: Violation = { vcpu: 1, event: 'kvm_page_fault', gpa: 0x10c008n, error: 0x182n, rip: 0x1000n };
const REQUESTED: Violation = { vcpu: 0, event: 'kvm_mmu_spte_requested', gfn: 0x10cn, pfn: 0x55n, level: 1 };

test('conditions ask for what events tell; of an event that does not tell it nothing is claimed', async () => {
  const fault = 'after the fact: vCPU 1: gpa 0x10c008, error code 0x182, rip 0x1000, event kvm_page_fault';
  const requested = 'after the fact: vCPU 0: gfn 0x10c, pfn 0x55, level 1, event kvm_mmu_spte_requested';
  const both = [FAULT, REQUESTED];
  assert.deepEqual(await printed('', both), [fault, requested]);
  // A page's number and addresses in it are told by either.
  assert.deepEqual(await printed('gfn == 0x10c && gpa in 0x10c000..0x10d000', both), [fault, requested]);
  assert.deepEqual(await printed('gpa in 0x10c001..0x10d000', both), [fault]);
  assert.deepEqual(await printed('event == kvm_page_fault', both), [fault]);
  assert.deepEqual(await printed('vcpu == 0', both), [requested]);
  const untold = 'after the fact: 1 of which the event does not tell what the condition asks for';
  assert.deepEqual(await printed('level == 1', both), [requested, untold]);
  assert.deepEqual(await printed('error_code & 2', both), [fault, untold]);
  assert.deepEqual(await printed('vcpu == 0 || error_code == 1', both), [requested]);
  // A name that no event has is said, and stops nothing from being told.
  const [complaint, ...rest] = await printed('nonsense', [FAULT]);
  assert.match(complaint!, /^condition: unknown name nonsense; there are vcpu, event, gva, gpa, gfn,/);
  assert.deepEqual(rest, [fault]);
});

test('many violations do not flood the console, and what was lost is counted', async () => {
  const lines = await printed('', Array<Violation>(250).fill(REQUESTED), 12);
  assert.equal(lines.length, 102);
  assert.deepEqual(lines.slice(100), [
    'after the fact: 150 more; the command violations lists all of this stop',
    'after the fact: 12 more were lost',
  ]);
});

test('a host that cannot trace is told of once, and not asked again', async () => {
  const lines: string[] = [];
  let asked = 0;
  const client = {
    info: async () => {
      asked++;
      return { has: { violations: 'tracefs is not mounted: mount it' } };
    },
    traceViolations: () => assert.fail('it is lacking'),
    takeViolations: () => assert.fail('nothing is recorded'),
  };
  const violations = new ViolationsAfter(client as unknown as RspClient, (text) => lines.push(text));
  const breakpoints = new Breakpoints(() => {});
  for (const wanted of [true, true, false, false]) {
    await violations.want(wanted);
    await violations.tell(breakpoints);
  }
  assert.deepEqual(lines, ['violations cannot be told after the fact: tracefs is not mounted: mount it\n']);
  assert.equal(asked, 1);
});

test('the filter is one of real machines, and off by default', () => {
  const filter = KVM_FILTERS.find((each) => each.filter === 'violations')!;
  assert.equal(filter.default, false);
  assert.equal(filter.label, 'Violations after the fact (tracepoints)');
});
