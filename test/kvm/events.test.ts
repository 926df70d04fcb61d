import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import test, { after } from 'node:test';
import { RspClient } from '../../adapter/rsp/client.ts';
import { parseInfo } from '../../adapter/rsp/info.ts';
import { connectSocket } from '../../adapter/rsp/node-stream.ts';
import { FULL_ANSWER, parseTrace, parseTraceFormats, parseTraceLost } from '../../adapter/rsp/trace.ts';
import { parseFormat } from '../../adapter/trace/format.ts';
import { parseHeaderPage } from '../../adapter/trace/layout.ts';
import { LivePages } from '../../adapter/trace/live.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { frame, Stub } from '../adapter/rsp-stub.ts';
import { guest, native, withoutKvm } from './kvm.ts';
import { TestMachine } from './machine.ts';

// KVM's events, from the kernel's buffers through the helper into a recording.

const TRACEFS = '/sys/kernel/tracing';
const INSTANCES = join(TRACEFS, 'instances');

/** Why no event can be recorded here; undefined when one can. Where root may, tracefs is mounted for as long. */
function withoutEvents(): string | undefined {
  const lacks = withoutKvm();
  if (lacks !== undefined) return lacks;
  if (process.getuid?.() !== 0) return 'tracing needs root';
  if (!existsSync(TRACEFS)) return `there is no ${TRACEFS}`;
  if (readdirSync(TRACEFS).length === 0) {
    if (spawnSync('mount', ['-t', 'tracefs', 'tracefs', TRACEFS]).status !== 0) return 'tracefs cannot be mounted';
    // Who uses it by then keeps it.
    after(() => void spawnSync('umount', [TRACEFS]));
  }
  if (!existsSync(join(TRACEFS, 'events/kvmmmu/kvm_mmu_get_page')))
    return 'this kernel has no tracepoints of KVM’s MMU';
  return undefined;
}

const skip = withoutEvents() ?? false;
const eventsTest = (name: string, body: () => Promise<void>): void => {
  test(name, { skip, timeout: 120_000 }, body);
};

const USER = ['--memory', '16M', '--image', guest('user.elf')];
/** Walks of the guest's tables, and exits: recorded only when all is wanted. */
const LEFT_OUT = [
  'kvm_mmu_pagetable_walk',
  'kvm_mmu_paging_element',
  'kvm_mmu_set_accessed_bit',
  'kvm_mmu_set_dirty_bit',
  'kvm_mmu_walker_error',
  'kvm_entry',
  'kvm_exit',
];

async function withMachine(args: readonly string[], work: (machine: TestMachine) => Promise<void>): Promise<void> {
  const machine = await TestMachine.start(args);
  try {
    await work(machine);
  } finally {
    machine.end();
  }
}

const instanceOf = async (client: RspClient): Promise<string> =>
  join(INSTANCES, `kvm-mmu-helper-${(await client.info()).pid}-events`);

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let waits = 0; waits < 400; waits++) {
    if (holds()) return;
    await new Promise((done) => setTimeout(done, 25));
  }
  assert.fail(what);
}

async function livePages(client: RspClient): Promise<LivePages> {
  const { events, headerPage } = await client.traceFormats();
  return new LivePages(
    events.map(({ system, format }) => parseFormat(format, system)),
    parseHeaderPage(headerPage),
  );
}

/** Takes what there is; how many bytes of pages it was. */
async function take(client: RspClient, live: LivePages): Promise<number> {
  const pages = await client.takeTrace();
  for (const { cpu, bytes } of pages) live.appendPages(cpu, bytes);
  live.commit();
  return pages.reduce((sum, { bytes }) => sum + bytes.length, 0);
}

const has = (counts: ReadonlyMap<string, number>, name: string): boolean =>
  [...counts.keys()].some((key) => key.startsWith(`${name} on `));
const nameOf = (recording: Recording, index: number): string => TRACEPOINTS[recording.kind(index)]!.name;

/** Events of a thread by name and CPU, those that the recording does not understand left out. */
function count(recording: Recording, thread: number): Map<string, number> {
  const counts = new Map<string, number>();
  for (let i = 0; i < recording.length; i++) {
    if (recording.pid(i) !== thread) continue;
    const name = `${nameOf(recording, i)} on ${recording.cpu(i)}`;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}

const assertInOrder = (recording: Recording): void => {
  for (let i = 1; i < recording.length; i++) assert.ok(recording.time(i - 1) <= recording.time(i), `at event ${i}`);
};

/** An instance of the test's own, whose text the kernel makes. */
async function besides(
  thread: number,
  names: readonly string[],
  work: () => Promise<void>,
): Promise<Map<string, number>> {
  const instance = join(INSTANCES, `kvm-mmu-test-${process.pid}`);
  mkdirSync(instance);
  try {
    writeFileSync(join(instance, 'buffer_size_kb'), '8192');
    writeFileSync(join(instance, 'set_event_pid'), `${thread}`);
    for (const name of names) {
      const [system] = ['kvm', 'kvmmmu'].filter((each) => existsSync(join(TRACEFS, 'events', each, name)));
      writeFileSync(join(instance, 'events', system!, name, 'enable'), '1');
    }
    await work();
    const counts = new Map<string, number>();
    for (const [, cpu, name] of readFileSync(join(instance, 'trace'), 'utf8').matchAll(
      /^ .*?\[(\d+)\].*?\d: (\w+): /gm,
    )) {
      const key = `${name} on ${Number(cpu)}`;
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    return counts;
  } finally {
    rmdirSync(instance);
  }
}

const sorted = (counts: ReadonlyMap<string, number>): [string, number][] => [...counts].sort();

for (const all of [false, true])
  eventsTest(`${all ? 'all events' : 'events'} of a guest's whole run are those that another instance sees`, () =>
    withMachine(USER, async (machine) => {
      const { client } = machine;
      const { threads, has: capabilities } = await client.info();
      assert.equal(capabilities.events, '');
      assert.equal(threads?.length, 1);
      const thread = threads[0]!;
      const live = await livePages(client);
      const { events } = await client.traceFormats();
      const recorded = events.map(({ name }) => name).filter((name) => all || !LEFT_OUT.includes(name));
      await client.startTrace(all);
      let taken = 0;
      let takings = 0;
      const seen = await besides(thread, recorded, async () => {
        await client.resume('1');
        const ended = machine.exited();
        let running = true;
        void ended.then(() => {
          running = false;
        });
        // While it runs, too.
        for (; running; takings++) taken += await take(client, live);
        assert.equal(await ended, 0);
      });
      taken += await take(client, live);
      assert.equal(await take(client, live), 0, 'what was taken is not given again');
      assert.ok(takings > 0 && taken > 0);
      const { recording } = live;
      assert.deepEqual(recording.problems, []);
      assert.deepEqual(recording.losses, []);
      assert.deepEqual(await client.traceLost(), { overrun: 0, dropped: 0 });
      assertInOrder(recording);
      const own = count(recording, thread);
      assert.deepEqual(sorted(own), sorted(seen));
      for (const name of ['kvm_mmu_get_page', 'kvm_mmu_set_spte']) assert.ok(has(own, name), `there is no ${name}`);
      for (const name of LEFT_OUT.slice(0, 2)) assert.equal(has(own, name), all, name);
      await client.stopTrace();
    }),
  );

eventsTest('one recording can be changed to record all, and back', () =>
  withMachine(USER, async ({ client }) => {
    const instance = await instanceOf(client);
    const enabled = (name: string): string =>
      readFileSync(join(instance, 'events/kvmmmu', name, 'enable'), 'utf8').trim();
    for (const all of [false, true, false]) {
      await client.startTrace(all);
      // Times of several CPUs are put in order.
      assert.match(readFileSync(join(instance, 'trace_clock'), 'utf8'), /\[mono\]/);
      assert.equal(enabled('kvm_mmu_paging_element'), all ? '1' : '0');
      assert.equal(enabled('kvm_mmu_get_page'), '1');
    }
  }),
);

eventsTest('threads are those that tracepoints name, of each vCPU its own', () =>
  withMachine([...USER, '--vcpus', '2'], async ({ client }) => {
    const { pid, threads } = await client.info();
    assert.equal(threads?.length, 2);
    assert.notEqual(threads[0], threads[1]);
    for (const thread of threads) assert.ok(existsSync(`/proc/${pid}/task/${thread}`));
  }),
);

eventsTest('another thread’s events are recorded: what the notifier of a slot drops', () =>
  withMachine(USER, async (machine) => {
    const { client } = machine;
    const { pid, threads, secondStage } = await client.info();
    const live = await livePages(client);
    await client.startTrace();
    await machine.go('step');
    await machine.vendor('vKvm.Discard:0,1000');
    await take(client, live);
    // The server's thread, which is the process's first.
    const own = count(live.recording, pid);
    assert.ok(has(own, 'kvm_unmap_hva_range'), `${[...own.keys()]} with ${secondStage}`);
    assert.ok(!threads!.includes(pid));
  }),
);

eventsTest('a machine that makes events without end keeps nobody from being answered', () =>
  withMachine([...USER, '--vcpus', '2'], async (machine) => {
    const { client } = machine;
    const live = await livePages(client);
    await client.startTrace(true);
    // jmp to itself, in kernel code that is walked at each instruction where KVM emulates it.
    await client.writePhysical(0x60_0000n, Uint8Array.of(0xeb, 0xfe));
    await client.writeRegisters('2', { rip: 0x60_0000n });
    await client.resume('2');
    const begun = Date.now();
    while (Date.now() - begun < 2000) {
      const before = Date.now();
      await take(client, live);
      assert.ok(Date.now() - before < 5000, `${Date.now() - before} ms for one answer`);
    }
    await client.stop('2');
    await machine.stopped();
    for (let takings = 0; (await take(client, live)) > 0; takings++) assert.ok(takings < 10);
    assertInOrder(live.recording);
  }),
);

eventsTest('what a full buffer loses is told, by pages and in numbers', () =>
  withMachine(USER, async (machine) => {
    const { client } = machine;
    const live = await livePages(client);
    await client.startTrace(true);
    writeFileSync(join(await instanceOf(client), 'buffer_size_kb'), '8');
    await client.resume('1');
    assert.equal(await machine.exited(), 0);
    await take(client, live);
    const { overrun } = await client.traceLost();
    assert.ok(overrun > 0);
    const { losses } = live.recording;
    assert.ok(losses.length > 0);
    assert.equal(
      losses.reduce((sum, loss) => sum + (loss.count ?? 0), 0),
      overrun,
    );
    await client.stopTrace();
    await client.startTrace();
    assert.deepEqual(await client.traceLost(), { overrun: 0, dropped: 0 }, 'a new recording has lost nothing');
  }),
);

// ---- what is left behind

for (const [how, end] of [
  ['a kill packet', (machine: TestMachine) => machine.client.kill()],
  ['QKvm.Trace:0', (machine: TestMachine) => machine.client.stopTrace()],
  ['SIGTERM', async (machine: TestMachine) => void process.kill((await machine.client.info()).pid, 'SIGTERM')],
] as const) {
  eventsTest(`the events' instance is gone after ${how}, and violations have their own`, () =>
    withMachine(USER, async (machine) => {
      const instance = await instanceOf(machine.client);
      await machine.client.traceViolations(true);
      await machine.client.startTrace();
      assert.ok(existsSync(instance));
      assert.ok(existsSync(instance.replace('-events', '')));
      await end(machine);
      await until(`${instance} is left behind`, () => !existsSync(instance));
    }),
  );
}

eventsTest('a client that goes takes its recording with it', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
  const socket = join(folder, 'socket');
  const child = spawn(native('kvm-mmu-helper'), [...USER, '--listen', socket], { stdio: 'ignore' });
  try {
    await until('the helper does not listen', () => existsSync(socket));
    const instance = join(INSTANCES, `kvm-mmu-helper-${child.pid}-events`);
    const first = new RspClient(connectSocket(socket));
    await first.handshake();
    await first.startTrace();
    assert.ok(existsSync(instance));
    first.close();
    await until(`${instance} is left behind`, () => !existsSync(instance));
    const second = new RspClient(connectSocket(socket));
    await second.handshake();
    await assert.rejects(second.takeTrace(), /events are not recorded: QKvm\.Trace:1 first/);
    await assert.rejects(second.traceLost(), /events are not recorded: QKvm\.Trace:1 first/);
    await second.stopTrace();
    second.close();
  } finally {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  }
});

eventsTest('the next helper removes what SIGKILL leaves behind, and nothing that is in use', async () => {
  const live = await TestMachine.start(USER);
  const killed = await TestMachine.start(USER);
  try {
    const [used, stale] = [await instanceOf(live.client), await instanceOf(killed.client)];
    await live.client.startTrace();
    await killed.client.startTrace();
    const { pid } = await killed.client.info();
    process.kill(pid, 'SIGKILL');
    await until('the helper lives on', () => !existsSync(`/proc/${pid}`));
    await withMachine(USER, async () => {
      assert.ok(!existsSync(stale), 'the next helper has not removed it');
      assert.ok(existsSync(used), 'that of a helper that lives is gone');
    });
    await live.client.takeTrace();
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
  eventsTest(`${host} the helper says that it cannot record events, and why`, async () => {
    const machine = await TestMachine.start([...command, resolve(native('kvm-mmu-helper')), ...USER], 'unshare');
    try {
      const { has, threads } = await machine.client.info();
      assert.match(has.events!, words);
      assert.equal(threads === undefined, host !== 'without tracefs');
      await assert.rejects(machine.client.startTrace(), words);
      await assert.rejects(machine.client.traceFormats(), words);
      await assert.rejects(machine.client.takeTrace(), /events are not recorded/);
      await assert.rejects(
        machine.vendor('QKvm.Trace:2'),
        /events are recorded with 1, all of them with 1,all, and not with 0/,
      );
    } finally {
      machine.end();
    }
  });
}

// ---- parts

const page = (cpu: number, length: number, bytes: number): number[] => [
  ...[cpu & 255, cpu >> 8, length & 255, (length >> 8) & 255, (length >> 16) & 255, 0],
  ...Array<number>(bytes).fill(7),
];

test('an answer to qKvm.Trace is pages of CPUs', () => {
  const answer = Uint8Array.of(0x62, ...page(0x0102, 3, 3), ...page(0, 1, 1));
  assert.deepEqual(
    parseTrace(answer).map(({ cpu, bytes }) => [cpu, [...bytes]]),
    [
      [0x102, [7, 7, 7]],
      [0, [7]],
    ],
  );
  assert.deepEqual(parseTrace(Uint8Array.of(0x62)), []);
});

for (const [bytes, words] of [
  [[0x63], /begins with "c", not with b/],
  [[0x62, 1, 0, 3], /ends within the 6 bytes before a page, at 1/],
  [[0x62, ...page(0, 4, 3)], /at 1 has 4 bytes: from 1 to 3 are possible/],
  [[0x62, ...page(0, 1, 1), ...page(0, 0, 2)], /at 8 has 0 bytes: from 1 to 2 are possible/],
  [[0x62, ...page(0, 0x10001, 0x10001)], /at 1 has 65537 bytes: from 1 to 65536 are possible/],
] as const) {
  test(`qKvm.Trace answered with ${bytes.slice(0, 12)}… is refused in words`, () => {
    assert.throws(() => parseTrace(Uint8Array.from(bytes)), words);
  });
}

test('pages are taken until an answer is not full, and errors are words', async () => {
  const full = `b${String.fromCharCode(...page(1, 0x1000, 0)).padEnd(6)}${'\x01'.repeat(0x1000)}`;
  const answers = [
    `b${full.slice(1).repeat(FULL_ANSWER / 0x1000)}`,
    `b${full.slice(1).repeat(2)}`,
    'b',
    'E.events are not recorded',
    '',
  ];
  const stub = new Stub((packet) =>
    packet === 'qKvm.Trace' ? frame(answers.shift()!) : packet === '?' ? frame('OK') : frame(''),
  );
  const client = new RspClient(stub);
  await client.handshake();
  assert.equal((await client.takeTrace()).length, FULL_ANSWER / 0x1000 + 2);
  assert.deepEqual(await client.takeTrace(), []);
  await assert.rejects(client.takeTrace(), /"qKvm\.Trace": events are not recorded/);
  await assert.rejects(client.takeTrace(), /does not know the packet "qKvm\.Trace"/);
});

test('answers about events are read, and what they lack is named', () => {
  const formats = {
    clock: 'mono',
    uname: 'Linux h 6.1 x86_64',
    headerPage: '\tfield',
    headerEvent: '#',
    events: [{ system: 'kvmmmu', name: 'a', format: 'name: a\n' }],
  };
  assert.deepEqual(parseTraceFormats(JSON.stringify({ ...formats, newer: 1 })), formats);
  assert.throws(() => parseTraceFormats('{}'), /clock in the answer to qKvm\.TraceFormats is missing, not text/);
  assert.throws(
    () => parseTraceFormats(JSON.stringify({ ...formats, events: [{ system: 'kvm' }] })),
    /name in the answer to qKvm\.TraceFormats is missing/,
  );
  assert.deepEqual(parseTraceLost('{"overrun":3,"dropped":0}'), { overrun: 3, dropped: 0 });
  assert.throws(() => parseTraceLost('{"overrun":-1,"dropped":0}'), /overrun in the answer to qKvm\.TraceLost is -1/);
});

test('a vCPU’s thread in qKvm.Info is a number', () => {
  const info = {
    ...{ version: 1, pid: 1, secondStage: 'npt', memory: { fd: 3, inode: 4, slots: [] }, vcpus: 1, maxphyaddr: 48 },
    ...{ vendor: '', has: {} },
  };
  assert.deepEqual(parseInfo(JSON.stringify({ ...info, threads: [42, 43] })).threads, [42, 43]);
  assert.ok(!('threads' in parseInfo(JSON.stringify(info))));
  assert.throws(
    () => parseInfo(JSON.stringify({ ...info, threads: ['42'] })),
    /a thread in the answer to qKvm\.Info is "42"/,
  );
});
