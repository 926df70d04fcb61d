import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Client, spawnAdapter } from '../adapter/client.ts';
import { guest } from '../kvm/kvm.ts';
import { KERNELS, labTest, longLabTest } from './lab.ts';

// Sessions in labs, through the adapter's process: the same debugger, on upstream KVM.

const [kernel] = KERNELS;

/** Processes of QEMU that an adapter has. */
function qemusOf(adapter: number): number {
  const { stdout } = spawnSync('pgrep', ['-P', `${adapter}`, 'qemu'], { encoding: 'utf8' });
  return stdout.split('\n').filter((line) => line !== '').length;
}

const foldersOf = (adapter: number): string[] =>
  readdirSync(tmpdir()).filter((name) => name.startsWith(`kvm-mmu-lab-${adapter}-`));

type Ask = (query: object) => Promise<{ [name: string]: never }>;

async function inLab(
  launch: object,
  filters: readonly string[],
  work: (client: Client, ask: Ask, first: string) => Promise<void>,
): Promise<void> {
  const transport = spawnAdapter();
  const client = new Client(transport);
  try {
    const stop = await client.start(undefined, { launch, filters, patience: 90 });
    const ask: Ask = async (query) =>
      (await client.request('mmu/watch', { type: 'watch', id: JSON.stringify(query), query })).answer;
    await work(client, ask, stop.body?.text ?? stop.event);
    assert.equal(qemusOf(transport.process.pid!), 1, 'a lab is one QEMU');
  } finally {
    await client.close();
  }
  await once(transport.process, 'exit');
  assert.deepEqual(foldersOf(transport.process.pid!), [], 'no folder is left');
}

const USER = { guest: resolve(guest('user.elf')), memory: '16M' };

for (const [npt, format, columns, testWhen] of [
  [1, /^NPT, 5-level$/, 5, longLabTest],
  [0, /^KVM shadow, 4-level$/, 4, labTest],
] as const)
  testWhen(`npt=${npt}: a guest's page fault, and the tables that KVM has built for it`, () =>
    inLab({ ...USER, lab: { kernel, params: { npt } } }, ['guest'], async (client, ask, first) => {
      assert.match(first, /^vCPU 0 wrote gva 0x81ffffffe8 at CPL 3: PDPTE 7 is not present; the guest gets #PF/);
      const said = client.events.filter(({ event }) => event === 'output').map(({ body }) => body.output);
      assert.ok(
        said.some((line) => /^lab: kvm_amd\.ko npt=\d/.test(line)),
        'modules and their parameters are told',
      );
      assert.ok(said.some((line) => /^lab: ready after \d+\.\d s/.test(line)));
      assert.ok(
        client.events.some(({ event }) => event === 'mmu/labConsole'),
        'the console is passed on',
      );
      const { roots, certainty } = (await ask({ kind: 'roots' })) as unknown as {
        roots: { format: string; certainty?: string; table: object; present: number }[];
        certainty: string;
      };
      assert.equal(certainty, 'exact');
      const built = roots.find(({ certainty: own }) => own === 'exact');
      assert.ok(built, 'KVM has a root');
      assert.match(built.format, format);
      const top = (await ask(built.table)) as unknown as {
        page: string;
        certainty: string;
        runs: { child?: object }[];
      };
      assert.match(top.page, /^gfn 0x[0-9a-f]+, level \d, 8-byte, wux, nx wp/);
      assert.ok(
        top.runs.some(({ child }) => child),
        'it leads to tables',
      );
      const walk = (await ask({ kind: 'walk', vcpu: 0, space: 'gva', address: '0x100000' })) as unknown as {
        secondLevels: object[];
        sentence: string;
        references: { stage: string }[];
      };
      assert.equal(walk.secondLevels.length, columns);
      assert.match(
        walk.sentence,
        /^gva 0x100000 is gpa 0x100000: \d memory references; KVM (maps it to hpa|has not mapped)/,
      );
      assert.ok(walk.references.some(({ stage }) => stage === 'second'));
      const hover = await client.request('evaluate', { expression: 'gva:0x100000', context: 'hover' });
      assert.match(hover.result, /\nKVM PML4E 0 = /);
    }),
  );

labTest('tables from events, in a lab, say that they are inferred', () =>
  inLab({ ...USER, kvmTables: 'events', lab: { kernel, params: { npt: 1 } } }, ['guest'], async (_client, ask) => {
    const { certainty, why, roots } = (await ask({ kind: 'roots' })) as unknown as {
      certainty: string;
      why: string;
      roots: { certainty?: string; format: string }[];
    };
    assert.equal(certainty, 'inferred', why);
    assert.equal(why, 'worked out from tracepoints');
    assert.ok(roots.some((root) => root.certainty === 'inferred' && root.format === 'NPT, 5-level'));
  }),
);

labTest('a session that is ended while its lab boots, or whose adapter is killed, leaves nothing', async () => {
  for (const end of ['disconnect', 'kill'] as const) {
    const transport = spawnAdapter();
    const client = new Client(transport);
    await client.initialize();
    void client.raw('launch', { type: 'kvm-mmu', request: 'launch', name: 'lab', ...USER, lab: { kernel } });
    const begun = Date.now();
    while (qemusOf(transport.process.pid!) === 0 && Date.now() < begun + 30_000)
      await new Promise((done) => setTimeout(done, 50));
    const { stdout } = spawnSync('pgrep', ['-P', `${transport.process.pid}`, 'qemu'], { encoding: 'utf8' });
    const qemu = Number(stdout.trim());
    if (end === 'disconnect') await client.close();
    else process.kill(transport.process.pid!, 'SIGKILL');
    const deadline = Date.now() + 10_000;
    // Also where nobody has asked how it died, a dead process has no files.
    const isThere = (): boolean => existsSync(`/proc/${qemu}/fd/1`);
    while (isThere() && Date.now() < deadline) await new Promise((done) => setTimeout(done, 50));
    assert.equal(isThere(), false, `QEMU goes with the adapter: ${end}`);
  }
});

for (const [paging, testWhen] of [
  ['32-bit', longLabTest],
  ['pae', labTest],
] as const)
  testWhen(`a scenario of a ${paging} guest stops at its page fault, and its tables and KVM's are there`, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
    const path = join(folder, 'narrow.mmu');
    writeFileSync(
      path,
      `machine x86-64 { memory 0 +16M }\nguest g ${paging} { map 0x400000 -> 0x200000 +4K rwx }\nvcpu 0 in g {\n  write 0x400000 = 7\n  user read 0x400000\n  read 0x400000\n}\n`,
    );
    const client = new Client(spawnAdapter());
    try {
      const launch = { target: 'kvm', lab: { kernel, params: { npt: 0 } } };
      const stop = await client.start(path, { launch, filters: ['guest'], patience: 90 });
      assert.match(
        stop.body?.text ?? stop.event,
        /^vCPU 0 read gva 0x400000 at CPL 3: PTE 0 is for the supervisor .* error code 0x5 P\|U; line 5 goes on\.$/,
      );
      const { answer } = await client.request('mmu/watch', {
        type: 'watch',
        id: 'w',
        query: { kind: 'walk', vcpu: 0, space: 'gva', address: '0x400000' },
      });
      assert.equal(answer.outcome.gpa, '0x200000');
    } finally {
      await client.close();
      rmSync(folder, { recursive: true, force: true });
    }
  });
