import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { project } from '../../engine/history/project.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';
import { Client, errorText, spawnAdapter } from './client.ts';

// Sessions on recordings: real ones of a KVM with shadow paging (test/trace), and one of the emulator's with EPT.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

/** What the emulator would have left in tracefs. */
function emulated(name: string): { path: string; events: number } {
  const { program } = parseScenario(readFileSync(`examples/${name}`, 'utf8'));
  const run = new Run(program!);
  run.runToEnd(1_000_000);
  const lines = [...project(run.machine)].map(
    ({ step, task, event, text }) =>
      `  cpu-${task.startsWith('vCPU') ? 7 : 8}  [000] ..... ${(step / 1e6).toFixed(6)}: ${event}: ${text}\n`,
  );
  const path = join(folder, `${name}.txt`);
  writeFileSync(path, `# tracer: nop\n#\n${lines.join('')}`);
  return { path, events: lines.length };
}

async function onRecording(
  launch: object,
  work: (client: Client, first: string) => Promise<void>,
  filters: string[] = [],
) {
  const client = new Client(spawnAdapter());
  try {
    const stop = await client.start(undefined, { launch, filters });
    await work(client, stop.body?.text ?? stop.event);
  } finally {
    await client.close();
  }
}

const ask = async (client: Client, query: object) =>
  (await client.request('mmu/watch', { type: 'watch', id: JSON.stringify(query), query })).answer;
/** Goes to a moment, as a view does. */
async function seek(client: Client, position: number): Promise<void> {
  const stop = client.stop();
  await client.request('mmu/watch', { type: 'seek', position });
  await stop;
}

const words = async (client: Client, command: string): Promise<string> => {
  const stop = await client.move(command);
  return stop.body?.text ?? stop.event;
};

test('a recording is stepped both ways, and its tables are those of the moment', async () => {
  const { path, events } = emulated('huge-pages.mmu');
  await onRecording({ trace: path }, async (client, first) => {
    assert.match(
      first,
      new RegExp(`huge-pages\\.mmu\\.txt: ${events} events .*one virtual machine\\. It can be stepped`),
    );
    const empty = await ask(client, { kind: 'roots' });
    assert.deepEqual(empty.roots, []);
    assert.match(
      await words(client, 'stepIn'),
      /^After event 1 of \d+, vCPU 0: kvm_mmu_get_page: mmu_valid_gen 0x0, gfn 0x0, level 4, 8-byte, wux, nx, direct/,
    );
    assert.match(await words(client, 'stepBack'), /^The recording begins here/);
    // To the end: nothing is stopped at.
    assert.match(
      await words(client, 'continue'),
      new RegExp(`^The recording ends here, with event ${events} of ${events}`),
    );
    const { roots, certainty, why } = await ask(client, { kind: 'roots' });
    assert.equal(certainty, 'inferred');
    assert.equal(why, 'worked out from tracepoints');
    assert.equal(roots.length, 1);
    assert.equal(roots[0].format, 'EPT, 4-level');
    const top = await ask(client, roots[0].table);
    assert.equal(top.certainty, 'inferred');
    assert.ok(top.present > 0);
    // And back to before anything was.
    await seek(client, 0);
    assert.deepEqual((await ask(client, { kind: 'roots' })).roots, []);
  });
});

test('faults are stopped at, under conditions, forwards and back; breakpoints stand on events', async () => {
  const { path } = emulated('first-fault.mmu');
  await onRecording(
    { trace: path, stopOnEntry: false },
    async (client, first) => {
      assert.match(first, /^After event \d+ of \d+, vCPU 0: kvm_page_fault/);
      const second = await words(client, 'continue');
      assert.match(second, /kvm_page_fault/);
      const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
      const { source, line, name } = stackFrames[0];
      assert.match(name, /^kvm_page_fault: vcpu_id 0/);
      const { content } = await client.request('source', { source, sourceReference: source.sourceReference });
      assert.match(content.split('\n')[line - 1], /vCPU 0 +kvm_page_fault/);
      await client.request('setExceptionBreakpoints', { filters: [] });
      const { breakpoints } = await client.request('setBreakpoints', {
        source,
        breakpoints: [{ line: 2 }, { line: 1e6 }],
      });
      assert.deepEqual(
        breakpoints.map(({ verified }: { verified: boolean }) => verified),
        [true, false],
      );
      assert.match(await words(client, 'reverseContinue'), /^After event 2 of/);
      await client.request('setExceptionBreakpoints', {
        filters: [],
        filterOptions: [{ filterId: 'second-stage', condition: 'write && gpa in 0x200000..0x300000' }],
      });
      const matched = await words(client, 'continue');
      assert.match(matched, /fault_address 0x2\w{5}, error_code/);
      assert.equal((await client.request('evaluate', { expression: 'write', context: 'watch' })).result, 'true');
      const hover = (await client.request('evaluate', { expression: 'gpa:0x200000', context: 'hover' })).result;
      assert.match(hover, /KVM EPT PTE 0 = 0x600_0001_0020_0b37 rwx leaf 4K/);
    },
    ['second-stage'],
  );
});

for (const file of ['shadow.dat', 'shadow-zstd.dat', 'shadow.report.txt', 'shadow.perf.txt', 'shadow.tracefs.txt'])
  test(`${file}: a real recording opens, with tables, faults and an overview`, () =>
    onRecording({ trace: resolve('test/trace', file) }, async (client) => {
      await words(client, 'continue');
      const overview = await ask(client, { kind: 'recording' });
      assert.equal(overview.position, overview.length);
      assert.equal(overview.buckets.faults.length, 240);
      const total = (list: number[]): number => list.reduce((sum, count) => sum + count, 0);
      assert.equal(total(overview.buckets.faults), overview.faults);
      const faults = await ask(client, { kind: 'faults', first: 0, count: 10 });
      assert.equal(faults.total, overview.faults);
      // At its end the machine is gone.
      await seek(client, Math.floor(overview.length / 2));
      const roots = await ask(client, { kind: 'roots' });
      assert.ok(roots.roots.length > 0, 'it tells of roots');
      assert.match(roots.roots[0].format, /shadow/);
    }));

test('what is no recording, or has no such machine, is refused by name', async () => {
  const { path } = emulated('npt.mmu');
  const png = join(folder, 'picture.png');
  writeFileSync(png, Buffer.from('\x89PNG\r\n', 'latin1'));
  for (const [launch, expected] of [
    [{ trace: join(folder, 'nothing') }, /cannot read .*nothing.*ENOENT/],
    [{ trace: png }, /picture\.png is not a trace: it is a PNG/],
    [{ trace: path, machine: 3 }, /"machine" 3: events tell of 1 virtual machine$/],
    [{ trace: path, machine: -1 }, /"machine" must be a whole number from 0, not -1/],
    [{ trace: path, guest: 'x' }, /^"guest" does not go with a recording$/],
    [{ trace: 7 }, /"trace" must be the path of a recording, not 7/],
  ] as const) {
    const client = new Client(spawnAdapter());
    try {
      await client.initialize();
      const response = await client.raw('launch', { type: 'kvm-mmu', request: 'launch', name: 'test', ...launch });
      assert.equal(response.success, false);
      assert.match(errorText(response), expected);
    } finally {
      await client.close();
    }
  }
});
