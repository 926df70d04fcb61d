import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Client, errorText, spawnAdapter, stopText } from './client.ts';

// Sessions with the adapter's own process, as any debug client would hold them. Run from the project's folder, after a build.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

function scenario(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

async function withClient(work: (client: Client) => Promise<void>): Promise<void> {
  const client = new Client(spawnAdapter());
  try {
    await work(client);
  } finally {
    await client.close();
  }
}

/** Compares with `test/golden/NAME`; UPDATE_GOLDEN=1 writes it anew. */
function golden(name: string, text: string): void {
  const path = `test/golden/${name}`;
  if (process.env.UPDATE_GOLDEN === '1') writeFileSync(path, text);
  assert.ok(existsSync(path), `${path} is missing: run once with UPDATE_GOLDEN=1 and read what it wrote`);
  assert.equal(text, readFileSync(path, 'utf8'));
}

/** The line of a step in a function's listing. */
async function stepLine(client: Client, fn: string, step: string): Promise<number> {
  const { content } = await client.request('source', { source: { path: `${fn}.kvmfn` }, sourceReference: 0 });
  return content.split('\n').findIndex((line: string) => line.startsWith(`  ${step} `)) + 1;
}

const MACHINE = `machine x86-64 {
  memory 0 +64M
  second-stage tdp ept 4-level
}
guest kernel {
  map 0x400000 -> 0x200000 2M rwx supervisor
}
`;

test('the first fault, step by step to its end', () =>
  withClient(async (client) => {
    const program = scenario(
      'first.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  write 0x400000 = 0x1234\n  read 0x400000\n}\n`,
    );
    let text = await stopText(
      client,
      await client.start(program, { filterOptions: [{ filterId: 'second-stage', condition: '!table' }], filters: [] }),
    );
    for (let i = 0; i < 30; i++) text += `${await stopText(client, await client.move('stepIn'))}`;
    golden('first-fault.txt', text);
  }));

test('every variable of every frame at a stop', () =>
  withClient(async (client) => {
    const program = scenario('variables.mmu', `${MACHINE}vcpu 0 in kernel {\n  write 0x400000 = 0x1234\n}\n`);
    await client.start(program, { filterOptions: [{ filterId: 'second-stage', condition: '!table' }], filters: [] });
    await client.request('setBreakpoints', {
      source: { path: 'kvm_tdp_mmu_map.kvmfn' },
      breakpoints: [{ line: await stepLine(client, 'kvm_tdp_mmu_map', 'set') }],
    });
    let text = await stopText(client, await client.move('continue'));
    const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
    const list = async (reference: number, indent: string, depth: number): Promise<void> => {
      const { variables } = await client.request('variables', { variablesReference: reference });
      for (const variable of variables) {
        text += `${indent}${variable.name} = ${variable.value}${variable.memoryReference ? ` @${variable.memoryReference}` : ''}\n`;
        if (variable.variablesReference && depth > 0) await list(variable.variablesReference, `${indent}  `, depth - 1);
      }
    };
    for (const frame of [stackFrames[0], stackFrames.at(-1)]) {
      text += `${frame.name}\n`;
      const { scopes } = await client.request('scopes', { frameId: frame.id });
      for (const scope of scopes) {
        text += `  ${scope.name}\n`;
        await list(scope.variablesReference, '    ', 2);
      }
    }
    golden('variables.txt', text);
  }));

test('hovers, watches and console commands', () =>
  withClient(async (client) => {
    const program = scenario(
      'hover.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  write 0x400000 = 0x1234\n  read 0x400000\n  read 0x800000\n}\n`,
    );
    await client.start(program, { filters: ['guest'] });
    let text = '';
    for (const [context, expression] of [
      ['hover', '0x200000'],
      ['hover', 'gva:0x400008'],
      ['hover', 'gva:0x800000'],
      ['hover', 'gpa:0x80000000'],
      ['hover', 'hpa:0x100200000'],
      ['hover', 'cr0.wp'],
      ['watch', 'u64(0x200000)'],
      ['watch', 'gpa:0x200000'],
      ['watch', 'faults.second + 1'],
      ['watch', 'gva == 0x800000 && read'],
      ['watch', 'nothing'],
      ['watch', '1 +'],
      ['repl', 'walk 0x400000'],
      ['repl', 'history 0x400000'],
      ['repl', 'help'],
      ['repl', 'walk'],
    ]) {
      const response = await client.raw('evaluate', { expression, context });
      text += `${context} ${expression}\n${(response.success ? response.body.result : errorText(response)).replace(/^/gm, '    ')}\n`;
    }
    golden('hover.txt', text);
  }));

test('breakpoints on lines, with conditions, hit counts and log messages', () =>
  withClient(async (client) => {
    const program = scenario(
      'lines.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  repeat 5 as i {\n    write 0x400000 + i * 8 = i\n  }\n  read 0x400000\n}\n`,
    );
    await client.request('initialize', { adapterID: 'kvm-mmu', pathFormat: 'path' });
    await client.request('launch', { type: 'kvm-mmu', request: 'launch', program });
    const { breakpoints } = await client.request('setBreakpoints', {
      source: { path: program },
      breakpoints: [
        { line: 10, condition: 'i == 3' },
        { line: 10, hitCondition: '2' },
        { line: 11 },
        { line: 10, logMessage: 'i is {i}' },
        { line: 99 },
        { line: 10, condition: 'i ==' },
      ],
    });
    assert.deepEqual(
      breakpoints.map((point: { verified: boolean; line?: number }) => [point.verified, point.line]),
      [
        [true, 10],
        [true, 10],
        [true, 12],
        [true, 10],
        [false, undefined],
        [false, 10],
      ],
    );
    await client.request('setExceptionBreakpoints', { filters: [] });
    const stops: string[] = [];
    let stop = client.stop();
    await client.request('configurationDone');
    for (let event = await stop; event.event === 'stopped'; event = await stop) {
      const { result } = await client.request('evaluate', { expression: 'accesses', context: 'watch' });
      stops.push(`${event.body.hitBreakpointIds.join()} after ${result} accesses`);
      stop = client.stop();
      await client.request('continue', { threadId: 1 });
    }
    assert.deepEqual(stops, ['2 after 1 accesses', '1 after 3 accesses', '3 after 5 accesses']);
    const said = client.events.filter((event) => event.event === 'output').map((event) => event.body.output);
    assert.deepEqual(
      said.filter((line) => line.startsWith('i is')),
      ['i is 0x0\n', 'i is 0x1\n', 'i is 0x2\n', 'i is 0x3\n', 'i is 0x4\n'],
    );
  }));

test('exception filters stop on what their conditions say', () =>
  withClient(async (client) => {
    const program = scenario(
      'filters.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  repeat 8 as i { write 0x400000 + i * 4K }\n}\n`,
    );
    const stop = await client.start(program, {
      filters: [],
      filterOptions: [
        { filterId: 'second-stage', condition: 'gpa in 0x200000..0x300000 && write && level == 1 && hits >= 3' },
      ],
    });
    assert.equal(
      stop.body.text,
      'vCPU 0 wrote gpa 0x203000: EPT level-1 entry 3 is not present; handle_ept_violation is next.',
    );
    const info = await client.request('exceptionInfo', { threadId: 1 });
    assert.equal(info.exceptionId, 'EPT violation');
    assert.equal(info.details.stackTrace, 'error code 0x100000002 W, final address');
  }));

test('pause is answered within 50 ms in an endless loop', () =>
  withClient(async (client) => {
    const program = scenario('endless.mmu', `${MACHINE}vcpu 0 in kernel {\n  loop { write 0x400000 }\n}\n`);
    const first = client.start(program, { filters: [] });
    first.catch(() => {});
    await client.event('mmu/changed', (event) => event.body.type === 'running');
    await new Promise((resolve) => setTimeout(resolve, 300));
    const times: number[] = [];
    for (let i = 0; i < 5; i++) {
      const stop = i === 0 ? first : client.stop();
      const begin = performance.now();
      await client.request('pause', { threadId: 1 });
      const event = await stop;
      times.push(performance.now() - begin);
      assert.equal(event.body.reason, 'pause');
      await client.request('continue', { threadId: 1 });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    times.sort((a, b) => a - b);
    // The promise is 50 ms for each; the median keeps a busy machine from failing it.
    assert.ok(times[2]! < 50, `pauses took ${times.map((time) => time.toFixed(1)).join(', ')} ms`);
  }));

test('stepping back leads through the same stops, and reverse continue to the fault before', () =>
  withClient(async (client) => {
    const program = scenario(
      'back.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  write 0x400000\n  write 0x401000\n  write 0x402000\n}\n`,
    );
    await client.start(program, { launch: { stopOnEntry: true } });
    const forward: string[] = [];
    for (let i = 0; i < 3; i++) forward.push((await client.move('continue')).body.text);
    assert.equal((await client.move('reverseContinue')).body.text, forward[1]);
    assert.equal((await client.move('reverseContinue')).body.text, forward[0]);
    assert.match((await client.move('reverseContinue')).body.text, /as far back as the history goes/);
    assert.equal((await client.move('continue')).body.text, forward[0]);
    await client.request('setExceptionBreakpoints', { filters: [] });
    const places: string[] = [];
    const place = async () => {
      const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
      return stackFrames.map((frame: { name: string; line: number }) => `${frame.name}:${frame.line}`).join(' ');
    };
    for (let i = 0; i < 6; i++) {
      places.push(await place());
      await client.move('next');
    }
    places.push(await place());
    // A step back does not enter functions that have returned: it goes to the last place at this depth or above.
    const depth = (where: string) => where.split(' ').length;
    for (let i = 6; i > 0; ) {
      let before = i - 1;
      while (before >= 0 && depth(places[before]!) > depth(places[i]!)) before--;
      if (before < 0) break;
      await client.move('stepBack');
      assert.equal(await place(), places[before]);
      i = before;
    }
  }));

test('memory is read and written, registers are set, and views hear of it', () =>
  withClient(async (client) => {
    const program = scenario(
      'memory.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  write 0x400000 = 0x1122334455667788\n  read 0x400000\n}\n`,
    );
    await client.start(program, { filters: [], lines: [10] });
    const read = async (memoryReference: string, count = 8) =>
      (await client.request('readMemory', { memoryReference, count })).data as string;
    assert.equal(Buffer.from(await read('0x400000'), 'base64').readBigUInt64LE(), 0x1122334455667788n);
    assert.equal(await read('gpa:0x200000'), await read('0x400000'));
    assert.equal(await read('gva:0:0x400000'), await read('0x400000'));
    await client.request('writeMemory', {
      memoryReference: 'gpa:0x200000',
      data: Buffer.from([1, 2, 3]).toString('base64'),
    });
    assert.deepEqual([...Buffer.from(await read('0x400000', 4), 'base64')], [1, 2, 3, 0x55]);
    const end = await client.request('readMemory', { memoryReference: 'gpa:0x3fffff8', count: 16 });
    assert.equal(end.unreadableBytes, 8);
    const bad = await client.raw('readMemory', { memoryReference: 'xyz', count: 1 });
    assert.match(errorText(bad), /xyz is no memory reference/);
    const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
    const { scopes } = await client.request('scopes', { frameId: stackFrames[0].id });
    const registers = scopes.find((scope: { name: string }) => scope.name === 'Registers').variablesReference;
    assert.equal(
      (await client.request('setVariable', { variablesReference: registers, name: 'cpl', value: '1 + 2' })).value,
      '0x3',
    );
    assert.match(
      errorText(await client.raw('setVariable', { variablesReference: registers, name: 'cr4', value: '0x1020' })),
      /cr4.la57 cannot change while paging is on/,
    );
    // The edit is part of the schedule: going back takes it away, and the write is as it was.
    await client.move('stepBack');
    await client.move('next');
    assert.equal(Buffer.from(await read('0x400000'), 'base64').readBigUInt64LE(), 0x1122334455667788n);
  }));

test('views are answered now and whenever their answer changes', () =>
  withClient(async (client) => {
    const program = scenario('views.mmu', `${MACHINE}vcpu 0 in kernel {\n  write 0x400000\n}\n`);
    await client.start(program, { filterOptions: [{ filterId: 'second-stage', condition: '!table' }], filters: [] });
    const reply = await client.request('mmu/watch', {
      type: 'watch',
      id: 'w',
      query: { kind: 'walk', vcpu: 0, space: 'gva', address: '0x400000', access: 'write' },
    });
    assert.equal(reply.answer.outcome.status, 'violation');
    assert.equal(
      reply.answer.sentence,
      'vCPU 0 wrote gpa 0x200000: EPT level-1 entry 0 is not present'.replace(
        'level-1 entry 0',
        reply.answer.outcome.reason.slice(4, 19),
      ),
    );
    const changed = client.event(
      'mmu/changed',
      (event) => event.body.type === 'changed' && event.body.answers.length > 0,
    );
    await client.move('stepOut');
    const { answers } = (await changed).body;
    assert.deepEqual(
      answers.map((entry: { id: string }) => entry.id),
      ['w'],
    );
    assert.equal(answers[0].answer.outcome.status, 'done');
    for (const [bad, message] of [
      [null, /must be an object, not null/],
      [
        { type: 'watch', id: 'x', query: { kind: 'walk', vcpu: 0, space: 'gva', address: 'zz' } },
        /query\.address must be a 64-bit 0x… number, not "zz"/,
      ],
      [
        {
          type: 'watch',
          id: 'x',
          query: { kind: 'table', space: 'second', vcpu: 0, table: '0x0', level: 9, base: '0x0' },
        },
        /query\.level must be a whole number from 1 to 5, not 9/,
      ],
      [{ type: 'burn', id: 'x' }, /type must be one of watch, unwatch, seek, not "burn"/],
      [
        { type: 'watch', id: 'x', query: { kind: 'walk', vcpu: 0, space: 'gva', address: '0x0', private: 'yes' } },
        /query\.private must be true or false, not "yes"/,
      ],
      [{ type: 'watch', id: 'x'.repeat(1000), query: { kind: 'roots' } }, /id is longer than 200 characters/],
    ] as const) {
      const response = await client.raw('mmu/watch', bad);
      assert.equal(response.success, false);
      assert.match(errorText(response), message);
    }
    const gone = await client.request('mmu/watch', {
      type: 'watch',
      id: 'x',
      query: { kind: 'table', space: 'second', vcpu: 0, table: '0xdead000', level: 1, base: '0x0' },
    });
    assert.deepEqual(gone.answer, { kind: 'error', message: 'KVM has no table at hpa 0xdead000 (any more)' });
  }));

test('the mark of a fault moves to the table it ends in, although nobody wrote to that table', () =>
  withClient(async (client) => {
    const program = scenario(
      'mark.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  read 0x400000\n  read 0x401000\n  read 0x402000\n}\n`,
    );
    await client.start(program, {
      filters: [],
      filterOptions: [{ filterId: 'second-stage', condition: '!table && gpa == 0x201000' }],
    });
    const { answer } = await client.request('mmu/watch', {
      type: 'watch',
      id: 't',
      query: { kind: 'walk', vcpu: 0, space: 'gpa', address: '0x201000' },
    });
    const { table } = answer.references.at(-1);
    const query = { kind: 'table', space: 'second', vcpu: 0, table, level: 1, base: '0x200000' };
    const marks = (reply: { runs: { index: number; faulting: boolean }[] }) =>
      reply.runs.filter((run) => run.faulting).map((run) => run.index);
    assert.deepEqual(marks((await client.request('mmu/watch', { type: 'watch', id: 'table', query })).answer), [1]);
    await client.request('setExceptionBreakpoints', {
      filters: [],
      filterOptions: [{ filterId: 'second-stage', condition: '!table' }],
    });
    const changed = client.event(
      'mmu/changed',
      (event) =>
        event.body.type === 'changed' && event.body.answers.some((entry: { id: string }) => entry.id === 'table'),
    );
    await client.move('continue');
    const { answers } = (await changed).body;
    assert.deepEqual(marks(answers.find((entry: { id: string }) => entry.id === 'table').answer), [2]);
  }));

test('launch attributes of the wrong type, missing files and bad scenarios are named', () =>
  withClient(async (client) => {
    await client.request('initialize', { adapterID: 'kvm-mmu', pathFormat: 'path' });
    const bad = scenario('bad.mmu', 'machine x86-64 {\n  memory 0x123 +64M\n}\n');
    for (const [args, message] of [
      [{}, '"program" must be the path of a .mmu file, not undefined'],
      [{ program: 7 }, '"program" must be the path of a .mmu file, not 7'],
      [{ program: 'x.mmu', target: 'xen' }, '"target" must be "emulator" or "kvm", not "xen"'],
      [{ program: 'x.mmu', stopOnEntry: 'yes' }, '"stopOnEntry" must be true or false, not "yes"'],
      [
        { program: 'x.mmu', history: 3 },
        '"history" must be a whole number of log entries from 65536 to 67108864, not 3',
      ],
      [
        { program: 'x.mmu', stopAtEntry: true },
        'unknown launch attribute "stopAtEntry"; there are "program", "target", "stopOnEntry", "stopAtEnd", "history", "policies", "schedule", "image", "map", "registers", "paging", "el2", "trace", "machine", "guest", "memory", "slots", "vcpus", "dirtyRing", "helper", "lab", "kvmTables", "record", "connect", "pageFaultHandler"',
      ],
      [
        { program: 'x.mmu', policies: [] },
        '"policies" must be an object of names and values, such as {"page-split": "lazy"}, not []',
      ],
      [{ program: '/nowhere/x.mmu' }, 'cannot read "program" /nowhere/x.mmu: there is no such file'],
    ] as const) {
      assert.equal(errorText(await client.raw('launch', { type: 'kvm-mmu', request: 'launch', ...args })), message);
    }
    assert.match(errorText(await client.raw('launch', { program: bad })), /bad\.mmu:2: .*0x123/);
    const fine = scenario('fine.mmu', 'vcpu 0 {\n  read 0x1000\n}\n');
    assert.equal(
      errorText(await client.raw('launch', { program: fine, policies: { 'page-split': 'never' } })),
      'policy page-split cannot be never; it is eager, lazy or all',
    );
    for (const command of ['threads', 'continue', 'stackTrace', 'evaluate', 'mmu/hover']) {
      const response = await client.raw(command, { threadId: 1, expression: '1' });
      assert.equal(response.success, false, command);
      assert.match(errorText(response), /no machine is running|launch a scenario first/);
    }
  }));

test('requests out of order or out of range are answered, and nothing ends twice', () =>
  withClient(async (client) => {
    await client.request('initialize', { adapterID: 'kvm-mmu', pathFormat: 'path' });
    assert.match(errorText(await client.raw('restart')), /launch a scenario first/);
    const program = scenario('order.mmu', `${MACHINE}vcpu 0 in kernel {\n  loop { read 0x400000 }\n}\n`);
    const initialized = client.event('initialized');
    await client.request('launch', { type: 'kvm-mmu', request: 'launch', program, stopOnEntry: true });
    await initialized;
    assert.match(errorText(await client.raw('setBreakpoints', { breakpoints: null })), /needs a source/);
    const entry = client.stop();
    await client.request('configurationDone');
    await entry;
    assert.match(
      errorText(await client.raw('readMemory', { memoryReference: 'gpa:0x0', count: -1 })),
      /count must be a whole number from 0, not -1/,
    );
    assert.equal(
      (await client.request('readMemory', { memoryReference: 'gpa:0x0', count: 1e9 })).unreadableBytes,
      1e9 - 2 ** 20,
    );
    assert.match(
      errorText(await client.raw('evaluate', { expression: 'nonsense', context: 'watch' })),
      /unknown name nonsense; there are registers/,
    );
    assert.match(
      errorText(await client.raw('evaluate', { expression: 'u64(0xffffffff000)', context: 'watch' })),
      /no memory slot holds this gpa/,
    );
    await client.request('continue', { threadId: 1 });
    const refused = await client.raw('continue', { threadId: 1 });
    assert.match(errorText(refused), /the machine is running: pause it first/);
    await client.request('terminate');
    await client.request('terminate');
    assert.equal(client.events.filter((event) => event.event === 'terminated').length, 1);
    assert.deepEqual(
      client.events.filter((event) => event.event === 'output').map((event) => event.body.output),
      [],
    );
  }));

test('restart begins anew with the same breakpoints; a failed expectation ends with exit code 1', () =>
  withClient(async (client) => {
    const program = scenario(
      'restart.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  write 0x400000\n}\nexpect faults.second == 0\n`,
    );
    const first = await client.start(program);
    const stop = client.stop();
    await client.request('restart');
    assert.equal((await stop).body.text, first.body.text);
    await client.request('setExceptionBreakpoints', { filters: [] });
    const exited = client.event('exited');
    await client.request('continue', { threadId: 1 });
    assert.equal((await exited).body.exitCode, 1);
    const said = client.events.filter((event) => event.event === 'output').map((event) => event.body.output);
    assert.ok(
      said.some((line) => line.includes('line 11: expect faults.second == 0: left is 4, right is 0')),
      said.join(''),
    );
  }));

test('a task that waits for a lock names the owner, and the owner can be let run', () =>
  withClient(async (client) => {
    const program = scenario(
      'locks.mmu',
      `${MACHINE}vcpu 0 in kernel {\n  write 0x400000\n  write 0x401000\n}\nhost mover {\n  wait until faults.fixed >= 4\n  zap 0x200000 +2M\n}\n`,
    );
    await client.start(program, { launch: { stopOnEntry: true }, filters: [] });
    await client.request('setBreakpoints', {
      source: { path: 'kvm_tdp_mmu_map.kvmfn' },
      breakpoints: [{ line: await stepLine(client, 'kvm_tdp_mmu_map', 'level'), condition: 'faults.fixed == 4' }],
    });
    const stop = await client.move('continue');
    assert.match(stop.body.text, /Breakpoint: vCPU 0 wrote gpa 0x201000.*kvm_tdp_mmu_map/);
    const blocked = client.event('mmu/blocked');
    let text = '';
    for (let i = 0; i < 6 && !text.includes('waits for mmu_lock'); i++)
      text = (await client.move('stepIn', 2)).body.text;
    assert.equal(text, 'mover waits for mmu_lock, held by vCPU 0: let the owner run, or continue.');
    assert.deepEqual((await blocked).body, { task: 1, name: 'mover', lock: 'mmu_lock', owners: ['vCPU 0'] });
    const { threads } = await client.request('threads');
    assert.deepEqual(
      threads.map((thread: { name: string }) => thread.name),
      ['vCPU 0 [mmu_lock]', 'mover (waits for mmu_lock)'],
    );
    const released = client.stop();
    await client.request('mmu/letOwnerRun', { task: 1 });
    assert.match((await released).body.text, /kvm_tdp_mmu_page_fault|handle_ept_violation|kvm_mmu_page_fault/);
    assert.match((await client.move('stepIn', 2)).body.text, /mover, next in kvm_zap_gfn_range, begin/);
  }));

test('a nested guest: a fault that L1’s tables make, hovers through them, and back to L1', () =>
  withClient(async (client) => {
    const program = scenario(
      'nested.mmu',
      `machine x86-64 {
  memory 0 +32M
}
nested stage {
  tables at 0x800000
  map 0 -> 0x1000000 +128K r-x
  map 0x200000 -> 0x1200000 2M
}
guest outer {
  map 0x400000 -> 0x200000 +64K
}
guest inner in stage {
  tables at 0x280000
  map 0x800000 -> 0x10000 +64K
}
vcpu 0 in outer {
  enter inner {
    write 0x800000
  }
  write 0x400000 = 7
}
`,
    );
    const text = await stopText(client, await client.start(program, { filters: ['nested'] }));
    assert.match(
      text,
      /vCPU 0 in inner wrote gpa 0x10000: EPT PTE 16 does not allow writing in L1’s tables, so that L1 gets the EPT violation/,
    );
    const say = async (expression: string, context = 'hover'): Promise<string> =>
      (await client.request('evaluate', { expression, context })).result as string;
    const [title, ...lines] = (await say('gva:0x800000')).split('\n');
    assert.match(title!, /^gva 0x80_0000 \(vCPU 0\) → gpa 0x1_0000 of inner → L1’s gpa 0x101_0000/);
    assert.ok(
      lines.some((line) => /^EPT PTE 16 = 0x101_0035 r-x/.test(line)),
      lines.join('\n'),
    );
    assert.ok(lines.some((line) => line.startsWith('slot 0:')));
    // What is read at a virtual address is what L2 has there.
    const { data } = await client.request('readMemory', { memoryReference: '0x800000', count: 8 });
    assert.equal(Buffer.from(data as string, 'base64').length, 8);
    assert.equal(await say('nested.entries', 'watch'), '1');
    // Out of the VM exit L1 runs; a step back from there is L2's again.
    await client.move('stepOut');
    assert.equal(await say('vcpu[0].cr3', 'watch'), await say('outer', 'watch'));
    await client.move('stepBack');
    assert.notEqual(await say('vcpu[0].cr3', 'watch'), await say('outer', 'watch'));
  }));
