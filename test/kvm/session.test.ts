import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after } from 'node:test';
import type { DebugProtocol } from '@vscode/debugprotocol';
import { RspClient } from '../../adapter/rsp/client.ts';
import { connectSocket } from '../../adapter/rsp/node-stream.ts';
import { Client, errorText, spawnAdapter } from '../adapter/client.ts';
import { guest, helperOf, kvmTest, native } from './kvm.ts';

// Sessions on guests under KVM, through the adapter's process.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const FAULTS = { target: 'kvm', guest: resolve(guest('faults.elf')), memory: '16M', slots: ['1:0xf0000000:4K:ro'] };
const USER = { target: 'kvm', guest: resolve(guest('user.elf')), memory: '16M' };

type Options = NonNullable<Parameters<Client['start']>[1]>;

async function withSession(
  launch: object,
  options: Options,
  work: (client: Client, first: DebugProtocol.Event) => Promise<void>,
): Promise<void> {
  const client = new Client(spawnAdapter());
  try {
    await work(client, await client.start(undefined, { ...options, launch: { ...launch, ...options.launch } }));
  } finally {
    await client.close();
  }
}

const text = (event: DebugProtocol.Event): string => event.body?.text ?? event.event;

async function frames(client: Client): Promise<string[]> {
  const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
  return stackFrames.map(
    (frame: DebugProtocol.StackFrame) => `${frame.name} ${frame.source?.name ?? ''}:${frame.line}`,
  );
}

async function evaluate(client: Client, expression: string, context = 'repl'): Promise<string> {
  const response = await client.raw('evaluate', { expression, context });
  return response.success ? response.body.result : errorText(response);
}

/** Also where a process is dead and nobody has asked how it died, it does not run. */
const runs = (pid: number): boolean => existsSync(`/proc/${pid}/fd/3`);

async function until(what: string, test: () => boolean): Promise<void> {
  for (let waits = 0; waits < 200; waits++) {
    if (test()) return;
    await new Promise((done) => setTimeout(done, 25));
  }
  assert.fail(what);
}

kvmTest('every page fault of a guest stops before its handler, and the tables explain the error code', () =>
  withSession(FAULTS, { filters: ['guest', 'mmio'] }, async (client, first) => {
    const sentences = [text(first)];
    assert.deepEqual(
      (await frames(client)).slice(0, 4).map((frame) => frame.replace(/\+0x\w+/, '').replace(/\d+$/, '')),
      ['page_fault start.S:', 'access faults.c:', 'lesson faults.c:', 'kernel_main faults.c:'],
    );
    for (let event = await client.move('continue'); event.event === 'stopped'; event = await client.move('continue'))
      sentences.push(text(event));
    assert.equal(sentences.length, 20);
    // Where KVM and the engine disagreed the sentence would say so.
    assert.deepEqual(
      sentences.filter((sentence) => sentence.includes('while the tables')),
      [],
    );
    for (const words of [
      'vCPU 0 read gva 0x10000000000: PTE 0 is not present; the guest gets #PF with error code 0x0, its handler is next.',
      'vCPU 0 wrote gva 0x10000000000 at CPL 3: PTE 0 is read-only (W=0); the guest gets #PF with error code 0x7 P|W|U, its handler is next.',
      'vCPU 0 read 1 byte of gpa 0xe0000000: no memslot holds it. The instruction has not run yet.',
      'vCPU 0 wrote 1 byte of gpa 0xf0000000 (0xc3): its memslot is read-only. The instruction has completed.',
    ])
      assert.ok(sentences.includes(words), words);
  }),
);

kvmTest('conditions choose among faults, and hits count', () =>
  withSession(
    FAULTS,
    { filters: [], filterOptions: [{ filterId: 'guest', condition: 'write && user && error_code & 1 && hits >= 2' }] },
    async (client, first) => {
      assert.match(text(first), /wrote gva 0x10000000000 at CPL 3: PTE 0 is for the supervisor/);
      assert.match(text(await client.move('continue')), /wrote .* malformed/);
      assert.equal((await client.move('continue')).event, 'terminated');
    },
  ),
);

kvmTest('second-stage faults stop where a condition says, at the first touch and at the first write', () =>
  withSession(
    USER,
    { filters: [], filterOptions: [{ filterId: 'second-stage', condition: 'gpa in 0x10c000..0x112000' }] },
    async (client, first) => {
      const seen = [text(first)];
      for (let event = await client.move('continue'); event.event === 'stopped'; event = await client.move('continue'))
        seen.push(text(event));
      assert.ok(seen.length >= 4, seen.join('\n'));
      for (const sentence of seen)
        assert.match(
          sentence,
          /^vCPU 0 (read|wrote) gpa 0x1(0[cdef]|1[01])\w{3}( \(gva 0x\w+\))?( at CPL 3)?: the host /,
        );
      // Where the instruction has not run, the address that it accesses is worked out.
      assert.ok(
        seen.some((each) =>
          /\(gva 0x80000000\w\w\) at CPL 3: .* The instruction at 0x80000000\w\w has not run yet\.$/.test(each),
        ),
        seen.join('\n'),
      );
    },
  ),
);

kvmTest('breakpoints on lines, functions and instructions, with conditions and log messages', () =>
  withSession(USER, { filters: [], launch: { stopOnEntry: true } }, async (client, first) => {
    assert.match(text(first), /^vCPU 0 has not begun: _start \(0x100000\) is next\.$/);
    const path = resolve('examples/guests/program.c');
    const line = execFileSync('grep', ['-n', 'HEAP\\[page \\* PAGE_WORDS\\] = 1', path], { encoding: 'utf8' }).split(
      ':',
    )[0];
    const { breakpoints } = await client.request('setBreakpoints', {
      source: { path },
      breakpoints: [{ line: Number(line) }, { line: 9999 }, { line: 3, condition: 'nonsense(' }],
    });
    assert.deepEqual(
      breakpoints.map((point: DebugProtocol.Breakpoint) => [point.verified, point.line ?? point.message]),
      [
        [true, Number(line)],
        [false, 'no code stands here or below'],
        [false, breakpoints[2].message],
      ],
    );
    const set = await client.request('setFunctionBreakpoints', {
      breakpoints: [{ name: 'unmap' }, { name: 'nowhere' }, { name: 'protect', condition: 'rsi == 1' }],
    });
    assert.equal(set.breakpoints[1].message, 'the guest has no symbol nowhere');
    for (let hit = 0; hit < 4; hit++) {
      const event = await client.move('continue');
      assert.equal(event.body.reason, 'breakpoint');
      assert.deepEqual(event.body.hitBreakpointIds, [breakpoints[0].id]);
      assert.equal((await frames(client))[0]!.replace(/^\S+/, ''), ` program.c:${line}`);
    }
    assert.match(text(await client.move('continue')), /breakpoint at protect/);
    assert.equal(await evaluate(client, 'rsi'), '1');
    assert.match(text(await client.move('continue')), /breakpoint at unmap/);
    assert.equal((await client.move('continue')).event, 'terminated');
    const said = client.events
      .filter(({ event }) => event === 'output')
      .map(({ body }) => body.output)
      .join('');
    assert.match(said, /page 0 was taken away: it reads 0 again\nthe program has ended\n/);
  }),
);

kvmTest('steps: into a function, over a call, out of it, by lines and by instructions', () =>
  withSession(USER, { filters: [], launch: { stopOnEntry: true } }, async (client) => {
    await client.request('setFunctionBreakpoints', { breakpoints: [{ name: 'kernel_main' }] });
    await client.move('continue');
    const where = async (): Promise<string> => (await frames(client))[0]!.replace(/\+0x\w+/, '');
    // From the function's first line to the one that has the call, over it, then into the next.
    await client.move('next');
    const before = await where();
    assert.match(before, /^kernel_main user\.c:/);
    await client.move('next');
    assert.match(await where(), /^kernel_main user\.c:/);
    assert.notEqual(await where(), before);
    await client.move('stepIn');
    assert.match(await where(), /^new_page kernel\.c:/);
    await client.move('stepOut');
    assert.match(await where(), /^kernel_main user\.c:/);
    const rip = BigInt((await evaluate(client, 'rip')).split(' ')[0]!);
    const stop = client.stop();
    await client.request('next', { threadId: 1, granularity: 'instruction' });
    await stop;
    const next = BigInt((await evaluate(client, 'rip')).split(' ')[0]!);
    assert.ok(next > rip && next - rip <= 15n, 'one instruction');
  }),
);

kvmTest('registers and memory are read and written, and code is disassembled', () =>
  withSession(FAULTS, { filters: ['guest'] }, async (client) => {
    const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
    const { scopes } = await client.request('scopes', { frameId: stackFrames[0].id });
    const registers = scopes.find((scope: DebugProtocol.Scope) => scope.name === 'Registers');
    await client.request('setVariable', {
      variablesReference: registers.variablesReference,
      name: 'r15',
      value: '0x1234',
    });
    assert.equal(await evaluate(client, 'r15'), '0x1234 (4660)');
    const refused = await client.raw('setVariable', {
      variablesReference: registers.variablesReference,
      name: 'cr4',
      value: '0xffffffffffffffff',
    });
    assert.match(errorText(refused), /P\w+=.*refuse|registers/i);
    await client.request('writeMemory', {
      memoryReference: 'gpa:0x400000',
      data: Buffer.from('hello').toString('base64'),
    });
    const read = await client.request('readMemory', { memoryReference: '0x400000', count: 5 });
    assert.equal(Buffer.from(read.data, 'base64').toString(), 'hello');
    const { instructions } = await client.request('disassemble', {
      memoryReference: stackFrames[0].instructionPointerReference,
      instructionOffset: 0,
      instructionCount: 2,
    });
    assert.deepEqual(
      instructions.map((each: DebugProtocol.DisassembledInstruction) => [each.symbol, each.instruction, each.line]),
      [
        ['page_fault', 'push $0xe', 36],
        [undefined, instructions[1].instruction, 37],
      ],
    );
    assert.match(instructions[1].instruction, /^jmp 0x100/);
    // What is not mapped is said so.
    const none = await client.request('disassemble', { memoryReference: '0x7000000000', instructionCount: 2 });
    assert.equal(none.instructions[1].instruction, '(not mapped)');
    const back = await client.raw('stepBack', { threadId: 1 });
    assert.match(errorText(back), /does not run backwards/);
  }),
);

kvmTest('the views get the guest’s tables and walks, and new answers at every stop', () =>
  withSession(FAULTS, { filters: ['guest'] }, async (client) => {
    const query = { kind: 'walk', vcpu: 0, space: 'gva', address: '0x10000000000' };
    const watched = await client.request('mmu/watch', { type: 'watch', id: 'w', query });
    assert.equal(watched.answer.outcome.status, 'guest-fault');
    assert.deepEqual(
      watched.answer.references.map(
        (each: { entry: { name: string; state: string } }) => `${each.entry.name} ${each.entry.state}`,
      ),
      ['PML4E table', 'PDPTE table', 'PDE table', 'PTE absent'],
    );
    // The handler mends the entry, and a later stop finds it there.
    const answers: string[] = [];
    for (let stops = 0; stops < 8; stops++) {
      await client.move('continue');
      await until('the views hear of the stop', () => client.events.at(-1)?.body?.type === 'changed');
      for (const { id, answer } of client.events.at(-1)!.body.answers)
        if (id === 'w') answers.push(answer.outcome.status);
    }
    assert.ok(answers.includes('done'), answers.join(', '));
  }),
);

kvmTest('a running machine is paused, and breakpoints reach it while it runs', () =>
  withSession(USER, { filters: [], launch: { stopOnEntry: true, vcpus: 2 } }, async (client) => {
    // jmp to itself, for both.
    await client.request('writeMemory', {
      memoryReference: 'gpa:0x400000',
      data: Buffer.from([0xeb, 0xfe]).toString('base64'),
    });
    for (const threadId of [1, 2]) {
      const { stackFrames } = await client.request('stackTrace', { threadId });
      const { scopes } = await client.request('scopes', { frameId: stackFrames[0].id });
      const registers = scopes.find((scope: DebugProtocol.Scope) => scope.name === 'Registers');
      await client.request('setVariable', {
        variablesReference: registers.variablesReference,
        name: 'rip',
        value: '0x400000',
      });
    }
    let stop = client.stop();
    await client.request('continue', { threadId: 1 });
    await new Promise((done) => setTimeout(done, 100));
    assert.match(errorText(await client.raw('stackTrace', { threadId: 1 })), /running/);
    await client.request('pause', { threadId: 1 });
    assert.match(text(await stop), /^vCPU \d is paused at 0x400000\.$/);
    stop = client.stop();
    await client.request('continue', { threadId: 1 });
    await client.request('setInstructionBreakpoints', { breakpoints: [{ instructionReference: '0x400000' }] });
    assert.match(text(await stop), /breakpoint at 0x400000/);
    const { threads } = await client.request('threads');
    assert.deepEqual(
      threads.map(({ name }: DebugProtocol.Thread) => name),
      ['vCPU 0', 'vCPU 1'],
    );
  }),
);

kvmTest('a helper that listens is attached to, left, and attached to again, by a command too', async () => {
  const socket = join(folder, 'helper.sock');
  const helper = spawn(
    native('kvm-mmu-helper'),
    ['--memory', '16M', '--image', guest('faults.elf'), '--listen', socket],
    {
      stdio: 'ignore',
    },
  );
  try {
    await until('the helper listens', () => existsSync(socket));
    assert.equal(statSync(socket).mode & 0o777, 0o600);
    // A command carries the bytes as ssh would.
    const pipe = "const s=require('net').connect(process.argv[1]);process.stdin.pipe(s);s.pipe(process.stdout)";
    const attach = async (connect: string | string[]): Promise<Client> => {
      const client = new Client(spawnAdapter());
      await client.initialize();
      const initialized = client.event('initialized');
      await client.request('attach', { type: 'kvm-mmu', request: 'attach', name: 'a', connect, guest: FAULTS.guest });
      await initialized;
      await client.request('setExceptionBreakpoints', { filters: ['guest'] });
      const stop = client.stop();
      await client.request('configurationDone');
      await stop;
      return client;
    };
    const first = await attach(socket);
    assert.match(text(await first.move('continue')), /the guest gets #PF/);
    // When nobody looks any more it will run, and not come to its end.
    const { stackFrames } = await first.request('stackTrace', { threadId: 1 });
    const { scopes } = await first.request('scopes', { frameId: stackFrames[0].id });
    const jump = Buffer.from([0xeb, 0xfe]).toString('base64');
    await first.request('writeMemory', { memoryReference: 'gpa:0x400000', data: jump });
    await first.request('setVariable', {
      variablesReference: scopes[1].variablesReference,
      name: 'rip',
      value: '0x400000',
    });
    await first.close();
    const second = await attach([process.execPath, '-e', pipe, socket]);
    assert.equal(await evaluate(second, 'rip'), '0x400000 (4194304)');
    const stop = second.stop();
    await second.request('continue', { threadId: 1 });
    await second.request('pause', { threadId: 1 });
    assert.match(text(await stop), /is paused at 0x400000/);
    await second.close();
    assert.equal(helper.exitCode, null, 'the helper lives on');
  } finally {
    helper.kill();
  }
});

kvmTest(
  'a machine that is attached to is left before the session attaches anew, and before the adapter ends',
  async () => {
    const socket = join(folder, 'again.sock');
    const args = ['--memory', '16M', '--image', guest('user.elf'), '--listen', socket];
    const helper = spawn(native('kvm-mmu-helper'), args, { stdio: 'ignore' });
    const client = new Client(spawnAdapter());
    try {
      await until('the helper listens', () => existsSync(socket));
      await client.initialize();
      // Slow, as a network is: what is on its way when the adapter ends is lost.
      const slow =
        "const s=require('net').connect(process.argv[1]);process.stdin.on('data',(d)=>setTimeout(()=>s.write(d),150));s.pipe(process.stdout);setInterval(()=>{},1e3)";
      const connect = [process.execPath, '-e', slow, socket];
      await client.request('attach', { type: 'kvm-mmu', request: 'attach', name: 'a', connect, guest: USER.guest });
      let stop = client.stop();
      await client.request('configurationDone');
      await stop;
      // jmp to itself, so that it runs when nobody looks.
      const data = Buffer.from([0xeb, 0xfe]).toString('base64');
      await client.request('writeMemory', { memoryReference: '0x100000', data });
      stop = client.stop();
      await client.request('restart');
      assert.match(text(await stop), /^vCPU 0 is paused at _start \(0x100000\)\.$/);
      await client.close();
      const next = new RspClient(connectSocket(socket));
      assert.deepEqual(await next.handshake(), [], 'it runs');
      await next.detach();
    } finally {
      helper.kill('SIGKILL');
    }
  },
);

for (const [name, launch, words] of [
  [
    'no such guest',
    { ...USER, guest: '/nowhere/guest.elf' },
    /cannot read "guest" \/nowhere\/guest\.elf: there is no such file/,
  ],
  ['no helper', { ...USER, helper: '/nowhere/helper' }, /there is no helper at \/nowhere\/helper/],
  ['too little memory', { ...USER, memory: '4K' }, /room for/],
  ['a bad size', { ...USER, memory: 'lots' }, /"memory" must be a size such as "64M", not "lots"/],
  ['a bad slot', { ...USER, slots: ['x'] }, /"slots" must be a list such as/],
  ['slots that overlap', { ...USER, slots: ['1:0x1000:4K'] }, /overlaps slot 0/],
  ['too many vCPUs', { ...USER, vcpus: 99 }, /"vcpus" must be a whole number from 1 to 16, not 99/],
  ['a handler that is not there', { ...USER, pageFaultHandler: 'nobody' }, /the guest has no symbol nobody/],
  ['nobody at the socket', { connect: '/nowhere/socket' }, /\/nowhere\/socket has ended: connect ENOENT/],
  ['a command that is no helper', { connect: ['echo', 'hello'] }, /echo/],
] as const)
  kvmTest(`a launch that cannot be says why: ${name}`, async () => {
    const client = new Client(spawnAdapter());
    try {
      await client.initialize();
      const response = await client.raw('launch', { type: 'kvm-mmu', request: 'launch', name: 'x', ...launch });
      assert.equal(response.success, false);
      assert.match(errorText(response), words);
    } finally {
      await client.close();
    }
  });

for (const [name, bytes, words] of [
  ['an empty file', Buffer.alloc(0), /is empty/],
  ['a cut ELF file', Buffer.from('\x7fELF\x02\x01\x01'.padEnd(40, '\0'), 'latin1'), /is cut off/],
  ['a 32-bit ELF file', Buffer.concat([Buffer.from('\x7fELF\x01\x01\x01', 'latin1'), Buffer.alloc(80)]), /32-bit/],
] as const)
  kvmTest(`an image that is none is refused: ${name}`, async () => {
    const path = join(folder, 'image');
    writeFileSync(path, bytes);
    const client = new Client(spawnAdapter());
    try {
      await client.initialize();
      const response = await client.raw('launch', { type: 'kvm-mmu', request: 'launch', ...USER, guest: path });
      assert.equal(response.success, false);
      assert.match(errorText(response), words);
    } finally {
      await client.close();
    }
  });

kvmTest('a triple fault, a halt and an instruction that nobody knows are stops, and the session goes on', () =>
  withSession(USER, { filters: [], launch: { stopOnEntry: true } }, async (client) => {
    const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
    const { scopes } = await client.request('scopes', { frameId: stackFrames[0].id });
    assert.equal(scopes[1].name, 'Registers');
    const runFrom = async (...code: number[]): Promise<string> => {
      await client.request('writeMemory', {
        memoryReference: '0x400000',
        data: Buffer.from(code).toString('base64'),
      });
      const top = (await client.request('stackTrace', { threadId: 1 })).stackFrames[0];
      const registers = (await client.request('scopes', { frameId: top.id })).scopes[1];
      await client.request('setVariable', {
        variablesReference: registers.variablesReference,
        name: 'rip',
        value: '0x400000',
      });
      return text(await client.move('continue'));
    };
    // A read of what nothing maps, with no IDT.
    const shutdown = await runFrom(0x48, 0xb8, 0, 0, 0, 0, 0, 0x70, 0, 0, 0x8a, 0x00);
    assert.equal(shutdown, 'vCPU 0 has shut down at 0x40000a: a triple fault; CR2 is 0x700000000000.');
    assert.match(await runFrom(0xf4), /^vCPU 0 has halted at 0x40000[01]: no interrupt will come\.$/);
  }),
);

kvmTest('a helper that is killed ends the session with words', async () => {
  const transport = spawnAdapter();
  const client = new Client(transport);
  try {
    await client.start(undefined, { launch: { ...USER, stopOnEntry: true }, filters: [] });
    process.kill(helperOf(transport.process.pid!), 'SIGKILL');
    const ended = client.stop();
    await client.raw('continue', { threadId: 1 });
    assert.equal((await ended).event, 'terminated');
    const said = client.events
      .filter(({ event }) => event === 'output')
      .map(({ body }) => body.output)
      .join('');
    assert.match(said, /the machine is lost: .*signal SIGKILL/);
  } finally {
    await client.close();
  }
});

for (const [signal, moment] of [
  ['SIGTERM', 'stopped'],
  ['SIGKILL', 'stopped'],
  ['SIGKILL', 'running'],
  // A client that is killed closes the pipe.
  ['end of input', 'stopped'],
  ['end of input', 'running'],
] as const)
  kvmTest(`an adapter that ends by ${signal} while its machine is ${moment} leaves no helper`, async () => {
    const { process: adapter, ...transport } = spawnAdapter();
    try {
      const client = new Client(transport);
      await client.start(undefined, { launch: { ...USER, stopOnEntry: true }, filters: [] });
      const helper = helperOf(adapter.pid!);
      if (moment === 'running') {
        // jmp to itself.
        const data = Buffer.from([0xeb, 0xfe]).toString('base64');
        await client.request('writeMemory', { memoryReference: '0x100000', data });
        await client.request('continue', { threadId: 1 });
      }
      assert.ok(runs(helper));
      if (signal === 'end of input') adapter.stdin!.end();
      else adapter.kill(signal);
      await until(`no helper is left after ${signal}`, () => !runs(helper));
    } finally {
      adapter.kill('SIGKILL');
    }
  });
