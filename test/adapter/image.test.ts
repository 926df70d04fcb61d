import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { elfCore, ImageMaker, qemuNote, x86Image } from '../image-fixture.ts';
import { Client, errorText, spawnAdapter } from './client.ts';

// Sessions on images of memory: nothing runs, and everything can be looked at.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, bytes: Buffer): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

async function withImage(launch: object, work: (client: Client, body: Record<string, unknown>) => Promise<void>) {
  const client = new Client(spawnAdapter());
  try {
    const initialize = { adapterID: 'kvm-mmu', linesStartAt1: true, columnsStartAt1: true, pathFormat: 'path' };
    await client.request('initialize', initialize);
    const initialized = client.event('initialized');
    await client.request('launch', { type: 'kvm-mmu', request: 'launch', name: 'image', ...launch });
    await initialized;
    const stopped = client.event('stopped');
    await client.request('configurationDone');
    await work(client, (await stopped).body as Record<string, unknown>);
  } finally {
    client.close();
  }
}

const core = () =>
  file(
    'core',
    elfCore(
      [{ paddr: 0, data: x86Image() }],
      Buffer.concat([qemuNote(0x8005_0033n, 0x1000n, 0xa0n), qemuNote(0x8005_0033n, 0x5000n, 0xa0n)]),
    ),
  );

test('a core is stopped at once: its CPUs, registers, memory and addresses', () =>
  withImage({ image: core() }, async (client, stopped) => {
    assert.equal(stopped.reason, 'entry');
    assert.equal(
      stopped.description ?? stopped.text,
      'core: 64K of memory of an x86 machine, 2 CPUs, x86-64, 4-level. It does not run.',
    );
    const { threads } = await client.request('threads');
    assert.deepEqual(
      threads.map(({ name }: { name: string }) => name),
      ['CPU 0', 'CPU 1'],
    );
    const { stackFrames } = await client.request('stackTrace', { threadId: 2 });
    assert.equal(stackFrames.length, 1);
    assert.equal(stackFrames[0].name, 'x86-64, 4-level');
    const { scopes } = await client.request('scopes', { frameId: stackFrames[0].id });
    const { variables } = await client.request('variables', { variablesReference: scopes[0].variablesReference });
    assert.deepEqual(
      variables.map(({ name, value }: { name: string; value: string }) => `${name} ${value}`),
      ['CR0 0x80050033', 'CR3 0x5000', 'CR4 0xa0', 'EFER 0xd01'],
    );
    const evaluate = async (expression: string, context: string) =>
      (await client.request('evaluate', { expression, context })).result as string;
    assert.equal(
      await evaluate('gva:0x400123', 'hover'),
      [
        'gva 0x40_0123 (CPU 0) → gpa 0x8123 [also gpa:, hpa:]',
        'PML4E 0 = 0x2067 rwxu table',
        'PDPTE 0 = 0x3067 rwxu table',
        'PDE 2 = 0x4067 rwxu table',
        'PTE 0 = 0x8065 r-xu leaf 4K',
      ].join('\n'),
    );
    assert.match(await evaluate('gva:0x700000', 'hover'), /PDE 3|4M|0x10_0000/);
    assert.equal(await evaluate('cr3', 'watch'), '0x1000');
    assert.match(await evaluate('walk 0xffffffff80000000', 'repl'), /is gpa 0xa000: 4 memory references/);
    const { data } = await client.request('readMemory', { memoryReference: '0xffffffff80000000', count: 8 });
    assert.equal(Buffer.from(data, 'base64').length, 8);
    const pte = await client.request('readMemory', { memoryReference: 'gpa:0x4000', count: 8 });
    assert.equal(Buffer.from(pte.data, 'base64').readBigUInt64LE(), 0x8065n);
  }));

test('what an image cannot do it says', () =>
  withImage({ image: core() }, async (client) => {
    const refusal = async (command: string, args: object) => errorText(await client.raw(command, args));
    const still = 'an image is one moment of a machine: it does not run';
    for (const command of ['continue', 'next', 'stepIn', 'stepOut', 'stepBack', 'reverseContinue'])
      assert.equal(await refusal(command, { threadId: 1 }), still, command);
    assert.equal(
      await refusal('writeMemory', { memoryReference: 'gpa:0x4000', data: 'AAAA' }),
      'an image is read-only',
    );
    assert.equal(
      await refusal('setVariable', { variablesReference: 1, name: 'CR3', value: '0' }),
      'an image is read-only',
    );
    assert.equal(
      await refusal('evaluate', { expression: 'faults.second', context: 'watch' }),
      'faults.second is neither an address nor a register of this image',
    );
    const { breakpoints } = await client.request('setBreakpoints', {
      source: { path: '/x.mmu' },
      breakpoints: [{ line: 1 }],
    });
    assert.deepEqual(breakpoints, [{ verified: false, message: still }]);
    const watched = await client.request('dataBreakpointInfo', { name: 'gpa:0x4000' });
    assert.deepEqual(watched, { dataId: null, description: still });
    // It can be opened anew, as one that has been written again since.
    const again = client.event('stopped');
    await client.request('restart');
    assert.equal((await again).body.reason, 'entry');
    const { threads } = await client.request('threads');
    assert.equal(threads.length, 2);
    const terminated = client.event('terminated');
    await client.request('terminate');
    await terminated;
  }));

test('views ask an image what they ask the emulator', () =>
  withImage({ image: core() }, async (client) => {
    const watch = async (id: string, query: object) =>
      (await client.request('mmu/watch', { type: 'watch', id, query })).answer as Record<string, unknown>;
    const roots = (await watch('roots', { kind: 'roots' })).roots as Record<string, unknown>[];
    assert.deepEqual(
      roots.map(({ title, vcpus, present, canonical }) => [title, vcpus, present, canonical]),
      [
        ['CR3 0x1000', [0], 2, true],
        ['CR3 0x5000', [1], 1, true],
      ],
    );
    const table = await watch('table', roots[0]!.table as object);
    assert.equal(table.kind, 'table');
    assert.equal(table.present, 2);
    const walk = await watch('walk', {
      kind: 'walk',
      vcpu: 0,
      space: 'gva',
      address: '0x400123',
      access: 'write',
      cpl: 3,
    });
    assert.equal(walk.sentence, 'gva 0x400123: #PF, error code 0x7 P|W|U: PTE 0 is read-only (W=0)');
    const slots = await watch('slots', { kind: 'slots' });
    assert.equal((slots.slots as unknown[]).length, 1);
  }));

test('arm64 and raw images by their registers: two ranges are two roots', () => {
  const image = new ImageMaker(16);
  image.entry(0, 0, 0x4000_1003n).entry(1, 0, 0x4000_5741n).entry(2, 511, 0x4000_3003n).entry(3, 0, 0x4000_0701n);
  const registers = {
    ttbr0: '0x40000000',
    ttbr1: '0x40002000',
    tcr: `0x${(25n | (25n << 16n) | (2n << 30n) | (5n << 32n)).toString(16)}`,
  };
  return withImage({ image: file('arm', image.bytes), map: ['0x40000000@0'], registers }, async (client, stopped) => {
    assert.match(String(stopped.description ?? stopped.text), /arm64 machine, arm64 stage-1, 4K, 3 levels, 39 bits/);
    const { answer } = await client.request('mmu/watch', { type: 'watch', id: 'roots', query: { kind: 'roots' } });
    assert.deepEqual(
      answer.roots.map((root: Record<string, { base: string }>) => [root.title, root.table!.base]),
      [
        ['TTBR0_EL1 0x40000000', '0x0'],
        ['TTBR1_EL1 0x40002000', '0xffffff8000000000'],
      ],
    );
    const { result } = await client.request('evaluate', { expression: 'gva:0xffffffffc0000010', context: 'hover' });
    assert.match(result, /→ gpa 0x4000_0010/);
    const upper = await client.request('mmu/watch', { type: 'watch', id: 't', query: answer.roots[1].table });
    assert.equal(upper.answer.runs.at(-1).input, '0xffffffffc0000000');
  });
});

test('launches that cannot be say why', async () => {
  const image = core();
  const raw = file('plain', x86Image());
  const refused = async (launch: object): Promise<string> => {
    const client = new Client(spawnAdapter());
    try {
      await client.request('initialize', { adapterID: 'kvm-mmu', pathFormat: 'path' });
      return errorText(await client.raw('launch', { type: 'kvm-mmu', request: 'launch', ...launch }));
    } finally {
      client.close();
    }
  };
  assert.match(await refused({ image: join(folder, 'none') }), /cannot read .*none/);
  assert.match(await refused({ image: 7 }), /"image" must be the path of an image, not 7/);
  assert.match(await refused({ image, program: 'x.mmu' }), /"program" is for scenarios, and "image" is given/);
  assert.match(await refused({ program: 'x.mmu', registers: {} }), /"registers" is for images: "image" is missing/);
  assert.match(await refused({ image, registers: { cr9: 1 } }), /"registers" has no "cr9"; there are cr0, cr3/);
  assert.match(
    await refused({ image, registers: { cr3: 'here' } }),
    /register "cr3" must be a number or text such as "0x1000", not "here"/,
  );
  assert.match(await refused({ image: raw }), /does not say where page tables begin/);
  assert.match(
    await refused({ image: raw, registers: { cr3: '0x1000' }, map: ['x'] }),
    /"map" must be GPA@OFFSET or GPA\+SIZE@OFFSET, not x/,
  );
  assert.match(
    await refused({ image: raw, registers: { cr3: '0x99999000' } }),
    /CR3 0x99999000: the root table lies at/,
  );
  assert.match(await refused({ image, paging: 'huge' }), /"paging" must be "32-bit", "pae"/);
});
