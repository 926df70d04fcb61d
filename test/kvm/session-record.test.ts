import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import test, { after } from 'node:test';
import { readRecordingFile } from '../../adapter/trace/file.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { Client, errorText, spawnAdapter } from '../adapter/client.ts';
import { guest, helperOf, withoutRecording } from './kvm.ts';

// Sessions on KVM that save its events.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-saved-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const skip = withoutRecording() ?? false;
const recordTest = (name: string, body: () => Promise<void>): void => {
  test(name, { skip, timeout: 60_000 }, body);
};

const GUEST = { target: 'kvm', guest: resolve(guest('user.elf')), memory: '16M' };

let files = 0;
const file = (): string => join(folder, `session${files++}.dat`);

const output = (client: Client): string =>
  client.events
    .filter(({ event }) => event === 'output')
    .map(({ body }) => body.output)
    .join('');

function assertRecorded(path: string): Recording {
  const recording = readRecordingFile(path);
  const indices = Array.from({ length: recording.length }, (_, index) => index);
  const names = new Set(indices.map((index) => TRACEPOINTS[recording.kind(index)]!.name));
  for (const name of ['kvm_mmu_get_page', 'kvm_mmu_set_spte']) assert.ok(names.has(name), `${path} has ${name}`);
  const comms = new Set(indices.map((index) => recording.comm(recording.pid(index))));
  assert.ok(comms.has('vcpu0'), [...comms].join());
  return recording;
}

interface Built {
  readonly certainty: string;
  readonly why?: string;
  /** Of each root of KVM's, how many entries it has. */
  readonly present: readonly number[];
}

/** What a session says of the tables that KVM has. */
async function built(client: Client): Promise<Built> {
  const { answer } = await client.request('mmu/watch', { type: 'watch', id: 'roots', query: { kind: 'roots' } });
  const roots = answer.roots as readonly { space: string; present: number }[];
  return { ...answer, present: roots.filter(({ space }) => space === 'second').map(({ present }) => present) };
}

for (const kvmTables of ['kernel', 'events', 'none'])
  recordTest(`a session saves its events, its tables from: ${kvmTables}; they open as a recording`, async () => {
    const record = file();
    const client = new Client(spawnAdapter());
    await client.start(undefined, { filters: ['guest'], launch: { ...GUEST, kvmTables, record } });
    const live = await built(client);
    await client.close();
    assert.match(output(client), new RegExp(`KVM’s events are saved in ${record}: none lost\n`));
    assert.deepEqual(assertRecorded(record).losses, []);

    const past = new Client(spawnAdapter());
    await past.start(undefined, { filters: [], launch: { trace: record } });
    await past.move('continue');
    const read = await built(past);
    await past.close();
    assert.equal(live.certainty === 'exact', kvmTables !== 'events', live.why);
    // What the kernel alone knows is not in events; what was worked out of them is worked out again.
    assert.match(read.certainty, /^(inferred|stale)$/, read.why);
    assert.equal(read.present.length, 1);
    if (kvmTables === 'events') assert.deepEqual(read.present, live.present);
  });

recordTest(
  'what a session has recorded is saved also when its adapter is ended, its client or its helper gone',
  async () => {
    for (const how of ['TERM', 'client', 'helper'] as const) {
      const record = file();
      const transport = spawnAdapter();
      const { process: adapter } = transport;
      const client = new Client(transport);
      await client.start(undefined, { filters: ['guest'], launch: { ...GUEST, record } });
      const exit = once(adapter, 'exit');
      if (how === 'TERM') adapter.kill('SIGTERM');
      if (how === 'client') {
        adapter.stdin!.end();
        adapter.stdout!.destroy();
      }
      if (how === 'helper') {
        // The machine's last events are taken by now.
        await new Promise((done) => setTimeout(done, 300));
        process.kill(helperOf(adapter.pid!), 'SIGKILL');
        await client.move('continue');
        await client.close();
        assert.match(output(client), /saved in .*: those of the last moments may be missing\n/);
      }
      await exit;
      assertRecorded(record);
    }
    assert.deepEqual(
      readdirSync(folder).filter((name) => name.startsWith('.')),
      [],
      'nothing else is left',
    );
  },
);

recordTest('a file that cannot be written, and a machine without events, are refused in words', async () => {
  const refused = async (launch: object): Promise<string> => {
    const client = new Client(spawnAdapter());
    try {
      await client.initialize();
      return errorText(await client.raw('launch', { type: 'kvm-mmu', request: 'launch', name: 'test', ...launch }));
    } finally {
      await client.close();
    }
  };
  assert.match(await refused({ ...GUEST, record: '/nowhere/a.dat' }), /^\/nowhere\/a\.dat cannot be written: /);
  assert.match(await refused({ ...GUEST, record: folder }), /is there, and it is no file/);
  assert.match(await refused({ ...GUEST, record: 7 }), /^"record" must be the path of a file/);
  assert.match(
    await refused({ program: resolve('examples/on-kvm.mmu'), record: file() }),
    /^"record" is for "target": "kvm": it saves what KVM’s tracepoints tell/,
  );
  assert.equal(existsSync(join(folder, `session${files - 1}.dat`)), false);
});
