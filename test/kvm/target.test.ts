import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { Breakpoints, Condition } from '../../adapter/breakpoints.ts';
import type { ElfProgram } from '../../adapter/elf/program.ts';
import { disassemble, memoryOperands } from '../../adapter/kvm/disassembly.ts';
import { KvmBuilt } from '../../adapter/kvm/kvm-built.ts';
import { LocalRam } from '../../adapter/kvm/local-ram.ts';
import { openKvm } from '../../adapter/kvm/open.ts';
import { thisMachine } from '../../adapter/kvm/place.ts';
import { RspClient } from '../../adapter/rsp/client.ts';
import type { KvmInfo } from '../../adapter/rsp/info.ts';
import { spawnHelper } from '../../adapter/rsp/node-stream.ts';
import { LostError } from '../../adapter/rsp/packet.ts';
import { KvmTarget } from '../../adapter/targets/kvm.ts';
import type { Halt, Motion, Watcher } from '../../adapter/targets/target.ts';
import { kvmTest, native, SILENT } from './kvm.ts';

// What a session drives, without the session: moments that a client cannot hit on purpose, and guests of a few instructions.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const START = 0x100000n;

function image(name: string, ...code: number[]): string {
  const path = join(folder, `${name}.bin`);
  writeFileSync(path, Uint8Array.from(code));
  return path;
}

const NOP = 0x90;
/** Eight times nothing; then at +8 inc r14, at +0xb a jump back to it. */
const LOOP = image('loop', ...Array<number>(8).fill(NOP), 0x49, 0xff, 0xc6, 0xeb, 0xfb);
/** mov $0x10000000, %rsi; at +7 mov %eax, (%rsi); at +9 mov (%rsi), %eax; at +0xb nop, and a jump to itself. */
const MMIO = image('mmio', 0x48, 0xc7, 0xc6, 0, 0, 0, 0x10, 0x89, 0x06, 0x8b, 0x06, NOP, 0xeb, 0xfe);
/** dec %r14; jnz +0; at +5 nop and a jump to itself. The loop is one line. */
const COUNT = image('count', 0x49, 0xff, 0xce, 0x75, 0xfb, NOP, 0xeb, 0xfe);
const COUNT_LINES: How['program'] = {
  lineAt(address) {
    const [from, to, line] = address < START + 5n ? [START, START + 5n, 1] : [START + 5n, START + 8n, 2];
    return { from, to, line, file: 'count.c', isStatement: true };
  },
  symbolAt: () => undefined,
  nameOf: () => undefined,
  address: () => undefined,
};
/** A call of +0xa; at +5 nop and a jump to itself; at +0xa push %rbp; mov %rsp, %rbp; nop (+0xe); pop %rbp; ret. */
const CALL = image('call', 0xe8, 5, 0, 0, 0, NOP, 0xeb, 0xfe, NOP, NOP, 0x55, 0x48, 0x89, 0xe5, NOP, 0x5d, 0xc3);
/** mov $0x7000000000, %rsi; at +0xa a read of what nothing maps, without an IDT. */
const SHUTDOWN = image('shutdown', 0x48, 0xbe, 0, 0, 0, 0, 0x70, 0, 0, 0, 0x8a, 0x06, 0xeb, 0xfe);

const watcher = (over: Partial<Watcher> = {}): Watcher => ({
  begin() {},
  check: () => undefined,
  wants: () => false,
  range: () => undefined,
  admits: () => false,
  hit: () => [],
  ...over,
});

const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));
interface Opened {
  readonly target: KvmTarget;
  readonly client: RspClient;
  readonly info: KvmInfo;
}

interface How {
  readonly args?: readonly string[];
  /** Memory comes in packets, as from another machine. */
  readonly far?: boolean;
  readonly program?: Pick<ElfProgram, 'lineAt' | 'symbolAt' | 'nameOf' | 'address'>;
}

async function withTarget(path: string, work: (opened: Opened) => Promise<void>, how: How = {}): Promise<void> {
  const args = ['--memory', '16M', '--image', path, ...(how.args ?? [])];
  const client = new RspClient(spawnHelper(native('kvm-mmu-helper'), args));
  const first = await client.handshake();
  const info = await client.info();
  const target = await KvmTarget.open({
    client,
    info,
    first,
    program: how.program as ElfProgram | undefined,
    local: how.far ? undefined : LocalRam.open(info),
    disassemble,
    memoryOperands,
    owned: true,
    built: await KvmBuilt.open(client, info, () => {}, { tables: 'none' }),
    place: thisMachine(),
    ...SILENT,
  });
  try {
    await work({ target, client, info });
  } finally {
    await target.dispose();
  }
}

/** A helper that listens. */
async function withListener(
  path: string,
  work: (socket: string, helper: ChildProcess) => Promise<void>,
): Promise<void> {
  const socket = join(folder, 'socket');
  rmSync(socket, { force: true });
  const args = ['--memory', '16M', '--image', path, '--listen', socket];
  const helper = spawn(native('kvm-mmu-helper'), args, { stdio: 'ignore' });
  try {
    for (let waits = 0; !existsSync(socket); waits++) {
      assert.ok(waits < 200, 'the helper does not listen');
      await sleep(25);
    }
    await work(socket, helper);
  } finally {
    helper.kill('SIGKILL');
  }
}

function register(target: KvmTarget, name: string): bigint {
  const value = target.guest.scope(0).name([name]);
  assert.equal(typeof value, 'bigint', name);
  return value as bigint;
}
const offset = (target: KvmTarget): number => Number(register(target, 'rip') - START);

/** Where a motion leads; it must come to an end by itself. */
async function moved(target: KvmTarget, motion: Motion, over: Partial<Watcher> = {}): Promise<Halt> {
  const halt = target.move(motion, watcher(over));
  const early = await Promise.race([halt, sleep(20_000)]);
  if (early) return early;
  target.pause();
  await halt;
  return assert.fail(`${motion.kind} ran away`);
}

const step = (kind: 'step-in' | 'step-over' | 'step-out' = 'step-in'): Motion => ({
  kind,
  task: 0,
  byInstruction: true,
});
const at = (...offsets: number[]) =>
  offsets.map((each) => ({ instructionReference: `0x${(START + BigInt(each)).toString(16)}` }));

kvmTest('breakpoints change while one that nobody wants is hit all the time', () =>
  withTarget(LOOP, async ({ target }) => {
    await target.guest.setInstructions(at(8));
    let ended: unknown;
    const halt = target.move({ kind: 'continue' }, watcher()).then(
      (value) => {
        ended = value;
      },
      (error: Error) => {
        ended = error;
      },
    );
    for (let round = 0; round < 60; round++) {
      await sleep(Math.random() * 6);
      await target.guest.setInstructions(round % 2 ? at(8) : at(8, 0xb));
      assert.equal(ended, undefined);
    }
    const before = register(target, 'r14');
    await sleep(100);
    await target.guest.setInstructions([]);
    assert.ok(register(target, 'r14') > before, 'it runs on');
    target.pause();
    await halt;
    assert.deepEqual(ended, { kind: 'pause' });
  }),
);

kvmTest('breakpoints that are set while the only vCPU is judged are there when it goes on', () =>
  withTarget(LOOP, async ({ target }) => {
    await target.guest.setInstructions(at(8));
    let setting: Promise<unknown> | undefined;
    const halt = moved(
      target,
      { kind: 'continue' },
      {
        hit(points) {
          setting ??= target.guest.setInstructions(at(0xb));
          return points.map(({ id }) => id).filter(() => offset(target) === 0xb);
        },
      },
    );
    assert.equal((await halt).kind, 'matched');
    await setting;
    assert.equal(offset(target), 0xb);
  }),
);

kvmTest('a pause is heeded whatever it meets: the start, breakpoints that are being set', () =>
  withTarget(LOOP, async ({ target }) => {
    let lost = 0;
    for (let round = 0; round < 24; round++) {
      let halt: Halt | undefined;
      const moving = target.move({ kind: 'continue' }, watcher()).then((value) => {
        halt = value;
      });
      await sleep(10);
      const setting = target.guest.setInstructions(round % 2 ? at(0) : []);
      for (let turn = 0; turn < round; turn++) await Promise.resolve();
      if (round >= 10) await sleep((round - 10) * 0.2);
      target.pause();
      await setting;
      for (let waits = 0; waits < 20 && !halt; waits++) await sleep(10);
      if (!halt) {
        lost++;
        target.pause();
      }
      await moving;
      assert.deepEqual(halt, { kind: 'pause' });
    }
    assert.equal(lost, 0);
  }),
);

kvmTest('a step ends at the next instruction, though a breakpoint there is not wanted', () =>
  withTarget(LOOP, async ({ target }) => {
    await target.guest.setInstructions(at(2, 3));
    for (const next of [1, 2, 3, 4]) {
      assert.deepEqual(await moved(target, step()), { kind: 'step', task: 0 });
      assert.equal(offset(target), next);
    }
  }),
);

kvmTest('a step of an access that nobody wants to hear of ends behind it', () =>
  withTarget(MMIO, async ({ target }) => {
    const over = { wants: (filter: string) => filter === 'mmio' };
    for (const next of [7, 9, 0xb, 0xc]) {
      assert.deepEqual(await moved(target, step(), over), { kind: 'step', task: 0 });
      assert.equal(offset(target), next);
    }
  }),
);

kvmTest('a step over a line stays one while breakpoints change', () =>
  withTarget(
    COUNT,
    async ({ target }) => {
      await target.guest.setRegister(0, 'r14', 20_000n);
      const halt = moved(target, { kind: 'step-in', task: 0 });
      for (let round = 0; round < 10; round++) {
        await sleep(5);
        await target.guest.setInstructions(at(6 + (round % 2)));
      }
      assert.deepEqual(await halt, { kind: 'step', task: 0 });
      assert.equal(offset(target), 5);
      assert.equal(register(target, 'r14'), 0n);
    },
    { program: COUNT_LINES },
  ),
);

kvmTest('two vCPUs that hit what nobody wants run on through changes of breakpoints', () =>
  withTarget(
    LOOP,
    async ({ target, client }) => {
      await target.guest.setInstructions(at(8));
      let ended: unknown;
      const halt = target.move({ kind: 'continue' }, watcher()).then(
        (value) => {
          ended = value;
        },
        (error: Error) => {
          ended = error;
        },
      );
      for (let round = 0; round < 60; round++) {
        await sleep(Math.random() * 6);
        await target.guest.setInstructions(round % 2 ? at(8) : at(8, 0xb));
        assert.equal(ended, undefined);
      }
      target.pause();
      await halt;
      assert.deepEqual(ended, { kind: 'pause' });
      for (const thread of ['1', '2'])
        assert.ok((await client.readRegisters(thread)).get('r14')! > 0n, `thread ${thread} ran`);
    },
    { args: ['--vcpus', '2'] },
  ),
);

kvmTest('memory that is far away does not end a step over a call, or out of a function', () =>
  withTarget(
    CALL,
    async ({ target }) => {
      assert.deepEqual(await moved(target, step('step-over')), { kind: 'step', task: 0 });
      assert.equal(offset(target), 5);
      await target.guest.setRegister(0, 'rip', START);
      for (let steps = 0; steps < 3; steps++) await moved(target, step());
      assert.equal(offset(target), 0xe);
      assert.deepEqual(await moved(target, step('step-out')), { kind: 'step', task: 0 });
      assert.equal(offset(target), 5);
    },
    { far: true },
  ),
);

kvmTest('conditions and log messages that need memory from far away count and speak once a hit', () =>
  withTarget(
    LOOP,
    async ({ target }) => {
      const lines: string[] = [];
      const breakpoints = new Breakpoints((text) => void lines.push(text));
      const hit: Watcher['hit'] = (points, scope) => breakpoints.hit(points, scope);
      await target.guest.setInstructions([
        { ...at(8)[0]!, condition: 'hits >= 3' },
        { ...at(8)[0]!, condition: 'u64(0x300000) == 0 && hits >= 2 + u8(0x500000)' },
      ]);
      const first = await moved(target, { kind: 'continue' }, { hit });
      assert.equal(first.kind === 'matched' && first.match.ids.length, 1);
      assert.equal(register(target, 'r14'), 1n, 'the second hit');
      const second = await moved(target, { kind: 'continue' }, { hit });
      assert.equal(second.kind === 'matched' && second.match.ids.length, 2);
      const log = { id: 7, condition: new Condition('hits > 0'), logMessage: 'there is {u8(0x600000)}' };
      const stop = { id: 8, condition: new Condition('pte(0x601000) != 0'), logMessage: undefined };
      const third = await moved(
        target,
        { kind: 'continue' },
        {
          hit: (_, scope) => breakpoints.hit([log, stop], scope),
        },
      );
      assert.equal(third.kind, 'matched');
      assert.deepEqual(lines, ['there is 0x0\n']);
    },
    { far: true },
  ),
);

kvmTest('a packet that is refused ends the motion with words, not the machine', () =>
  withTarget(
    CALL,
    async ({ target }) => {
      // Nothing is there: both take a debug register, and more there are not.
      const far = [{ instructionReference: '0x7000000000' }, { instructionReference: '0x7000001000' }];
      await target.guest.setInstructions(far);
      // A call at the very end of a slot: where it returns to there is no memory either.
      const place = { space: 'gpa', vcpu: 0, address: 0x20000ffbn } as const;
      await target.guest.write(place, Uint8Array.of(0xe8, 0xfb, 0xff, 0xff, 0xff));
      await target.guest.setRegister(0, 'rip', place.address);
      const halt = await moved(target, step('step-over'));
      assert.equal(halt.kind, 'stuck');
      assert.match(
        target.guest.describe(halt, 0).stop.sentence,
        /^vCPU 0 stands at 0x20000ffb: .*Z1,20001000.*hardware breakpoints/,
      );
      await target.guest.setInstructions([]);
      await target.guest.setRegister(0, 'rip', START);
      assert.deepEqual(await moved(target, step('step-over')), { kind: 'step', task: 0 });
      assert.equal(offset(target), 5);
    },
    { args: ['--slot', '1:0x20000000:4K'] },
  ),
);

kvmTest('a trap that is refused is tried again, and the machine stays', () =>
  withTarget(
    LOOP,
    async ({ target, client }) => {
      // Behind the target's back.
      await client.vendor('vKvm.Slot:delete,1');
      const over = { wants: (filter: string) => filter === 'second-stage', admits: () => true };
      for (let tries = 0; tries < 2; tries++) {
        const refused = await moved(target, { kind: 'continue' }, over);
        assert.equal(refused.kind, 'stuck');
        assert.match(target.guest.describe(refused, 0).stop.sentence, /^vCPU 0 stands at 0x100000: .*vKvm\.Trap/);
      }
      assert.deepEqual(await moved(target, step()), { kind: 'step', task: 0 });
    },
    { args: ['--slot', '1:0x20000000:4K'] },
  ),
);

kvmTest('a helper that dies is a lost connection', () =>
  withTarget(LOOP, async ({ target, info }) => {
    const halt = target.move({ kind: 'continue' }, watcher());
    await sleep(20);
    process.kill(info.pid, 'SIGKILL');
    await assert.rejects(halt, (error) => error instanceof LostError && /signal SIGKILL/.test(error.message));
  }),
);

kvmTest('beside a breakpoint that is removed the bytes of another are the guest’s own', () =>
  withTarget(LOOP, async ({ target }) => {
    const hit: Watcher['hit'] = (points) => points.map(({ id }) => id);
    const code = (): string[] =>
      target.guest
        .disassemble(0, { memoryReference: at(6)[0]!.instructionReference, instructionCount: 3 })
        .map(({ instruction }) => instruction);
    await target.guest.setInstructions(at(1, 6, 7));
    await moved(target, { kind: 'continue' }, { hit });
    await target.guest.setInstructions(at(6, 7));
    await moved(target, { kind: 'continue' }, { hit });
    assert.deepEqual(code(), ['nop', 'nop', 'inc %r14']);
    // What is written over one is the guest's own from then on.
    await target.guest.write({ space: 'gva', vcpu: 0, address: START + 7n }, Uint8Array.of(0xf8));
    assert.deepEqual(code(), ['nop', 'clc', 'inc %r14']);
  }),
);

kvmTest('a machine is left as it was when it cannot be taken over', () =>
  withListener(LOOP, async (socket, helper) => {
    const open = (more: object = {}): Promise<KvmTarget> => openKvm({ connect: socket, args: [], ...more }, SILENT);
    await assert.rejects(open({ pageFaultHandler: 'nobody' }), /no symbol nobody/);
    const target = await open();
    assert.equal(offset(target), 0, 'it has not begun');
    assert.match(
      target.guest.describe({ kind: 'entry' }, 0).stop.sentence,
      /^vCPU 0 has not begun: 0x100000 is next\.$/,
    );
    await target.dispose();
    // Now it runs, and goes on running.
    await assert.rejects(open({ pageFaultHandler: 'nobody' }), /no symbol nobody/);
    await sleep(50);
    const again = await open();
    assert.match(again.guest.describe({ kind: 'entry' }, 0).stop.sentence, /^vCPU 0 is paused at 0x10000[8b]\.$/);
    await again.dispose();
    assert.equal(helper.exitCode, null);
    assert.equal(helper.signalCode, null);
  }),
);

kvmTest('what a vCPU stands at is said when it is attached to', () =>
  withListener(SHUTDOWN, async (socket) => {
    const first = await openKvm({ connect: socket, args: [] }, SILENT);
    await first.dispose();
    await sleep(200);
    const target = await openKvm({ connect: socket, args: [] }, SILENT);
    assert.match(
      target.guest.describe({ kind: 'entry' }, 0).stop.sentence,
      /^vCPU 0 has shut down at 0x10000a: a triple fault; CR2 is 0x7000000000\.$/,
    );
    await target.dispose();
  }),
);

kvmTest('nobody answers where another client is connected already', () =>
  withListener(LOOP, async (socket) => {
    const target = await openKvm({ connect: socket, args: [] }, SILENT);
    await assert.rejects(
      openKvm({ connect: socket, args: [] }, SILENT),
      /nobody answers at .*socket: another client may be connected/,
    );
    await target.dispose();
  }),
);

kvmTest('a stub that is no helper is left alone', async () => {
  const heard: string[] = [];
  const path = join(folder, 'stub');
  const frame = (text: string): string =>
    `$${text}#${([...text].reduce((sum, char) => sum + char.charCodeAt(0), 0) % 256).toString(16).padStart(2, '0')}`;
  const server = createServer((socket) => {
    socket.on('data', (chunk) => {
      for (const [, packet] of chunk.toString('latin1').matchAll(/\$([^#]*)#../g)) {
        heard.push(packet!);
        socket.write(`+${frame(packet!.startsWith('qSupported') ? 'PacketSize=1000' : packet === '?' ? 'S05' : '')}`);
      }
    });
  }).listen(path);
  try {
    await assert.rejects(openKvm({ connect: path, args: [] }, SILENT), /the stub that answers is not kvm-mmu-helper/);
    await sleep(50);
    assert.deepEqual(
      heard.map((packet) => packet.slice(0, 10)),
      ['qSupported', '?'],
    );
  } finally {
    server.close();
  }
});

kvmTest('a trap says when nothing will stop at it', () =>
  withTarget(LOOP, async ({ target }) => {
    const trap = 'trap 0x200000 4K';
    assert.match(
      (await target.guest.command(trap, watcher()))!,
      /^done; nothing stops there until the filter “First touch/,
    );
    assert.equal(await target.guest.command(trap, watcher({ wants: (filter) => filter === 'second-stage' })), 'done');
  }),
);
