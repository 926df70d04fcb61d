import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Random } from '../../adapter/conform/random.ts';
import { encodePacket, fromLatin1, latin1, PacketReader } from '../../adapter/rsp/packet.ts';
import { drawPacket, ENDINGS } from './fuzz-packets.ts';
import { native, withoutKvm, withoutSanitizers } from './kvm.ts';

/**
 * KVM_MMU_FUZZ_SECONDS fuzzes for longer, each time from another seed; KVM_MMU_FUZZ_SEED repeats one, KVM_MMU_FUZZ_MACHINE
 * begins with a machine that a report names.
 */
const wantedSeconds = process.env.KVM_MMU_FUZZ_SECONDS;
const seconds = Number(wantedSeconds ?? 15);
const seed = Number(process.env.KVM_MMU_FUZZ_SEED ?? (wantedSeconds === undefined ? 1 : Date.now() % 2 ** 32));

const skip = withoutSanitizers();

test('packet.c takes damaged streams, and frames give back their content', { skip: skip ?? false }, () => {
  const iterations = Math.ceil(1200 * seconds);
  const { status, stdout, stderr } = spawnSync(native('packet-fuzz'), [`${seed}`, `${iterations}`], {
    encoding: 'utf8',
  });
  assert.equal(status, 0, `packet-fuzz ${seed} ${iterations}: ${stdout}${stderr}`);
  assert.match(stdout, new RegExp(`^${iterations} iterations: .* [1-9]\\d* were whole, [1-9]\\d* refused`));
});

// ---- the whole helper

/** The helper's errors are words; a sanitizer's report is not among them. */
const REPORT = /runtime error:|ERROR: \w+Sanitizer|WARNING: \w+Sanitizer/;
/** One vCPU that single-steps towards an IDT may take its time, the more on a machine that does other things. */
const PATIENCE_MS = 20_000;

/**
 * Leaks are not looked for: that stops all threads at the end, and one that KVM holds at a page armed for userfaultfd stops
 * for nothing but its death.
 */
const SANITIZERS = { ASAN_OPTIONS: 'detect_leaks=0:allocator_may_return_null=0', UBSAN_OPTIONS: 'print_stacktrace=1' };

/** A helper under test, by pipes or at a socket. */
class Fuzzed {
  readonly #child: ChildProcess;
  readonly #socket: string | undefined;
  readonly ended: Promise<string>;
  stderr = '';
  #peer: { write(bytes: Uint8Array): unknown } | undefined;
  #connection: Socket | undefined;
  #reader = new PacketReader();
  #onPacket: (text: string) => void = () => {};
  #said = '';

  constructor(args: readonly string[], socket?: string) {
    this.#socket = socket;
    this.#child = spawn(
      native('kvm-mmu-helper-asan'),
      [...args, ...(socket === undefined ? [] : ['--listen', socket])],
      {
        stdio: ['pipe', 'pipe', 'pipe'],
        env: { ...process.env, ...SANITIZERS },
      },
    );
    this.#child.stderr!.on('data', (chunk: Buffer) => {
      this.stderr += chunk.toString('latin1');
    });
    this.#child.stdin!.on('error', () => {});
    this.#child.stdout!.on('data', (chunk: Buffer) => this.#take(chunk));
    if (socket === undefined) this.#peer = this.#child.stdin!;
    this.ended = new Promise((resolve) => {
      this.#child.on('close', (code, signal) => resolve(signal === null ? `exit status ${code}` : `signal ${signal}`));
    });
  }

  #take(chunk: Buffer): void {
    for (const event of this.#reader.feed(chunk)) {
      if (event.kind === 'packet') this.#onPacket(fromLatin1(event.content));
      else if (event.kind === 'damaged') this.#said = event.error.message;
    }
  }

  /** At a socket: a new connection. */
  async connect(): Promise<void> {
    if (this.#socket === undefined) return;
    const connection = await connected(this.#socket);
    connection.on('error', () => {});
    this.#reader = new PacketReader();
    connection.on('data', (chunk) => this.#take(chunk));
    this.#connection = connection;
    this.#peer = connection;
  }

  /** At a socket: the connection ends, in the middle of whatever it is. */
  disconnect(): void {
    this.#connection?.destroy();
  }

  send(raw: Uint8Array): void {
    this.#peer!.write(raw);
  }

  /** Ends what was begun, and asks something whose answer no other packet has; then `qSupported`. */
  async stillAnswers(token: string): Promise<void> {
    let isNext = false;
    const answer = await this.ask(`#zz${frames('QKvm.Events:1', `vKvm.Slot:${token}`, 'qSupported')}`, (text) => {
      const was = isNext;
      isNext = text.includes(token);
      return was;
    });
    if (!answer.startsWith('PacketSize=')) throw new Error(`qSupported is answered with ${answer}`);
    assert.equal(this.#said, '', 'the helper sent a damaged frame');
  }

  /** Sends bytes and waits for a packet, by itself any; what came instead. */
  async ask(raw: string, isAnswer: (text: string) => boolean = () => true): Promise<string> {
    const answered = new Promise<string>((resolve) => {
      this.#onPacket = (text) => {
        if (isAnswer(text)) resolve(text);
      };
    });
    this.send(latin1(raw));
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<string>((resolve) => {
      timer = setTimeout(() => resolve('nothing'), PATIENCE_MS);
    });
    const answer = await Promise.race([answered, this.ended, late]);
    clearTimeout(timer);
    if (answer === 'nothing') this.stderr += this.#threads();
    return answer;
  }

  /** Where its threads wait. */
  #threads(): string {
    const folder = `/proc/${this.#child.pid}/task`;
    return readdirSync(folder)
      .map(
        (thread) =>
          `thread ${thread}: ${['wchan', 'syscall'].map((name) => told(join(folder, thread, name))).join(', ')}\n`,
      )
      .join('');
  }

  /** Waits for its end; how it ended. */
  async end(): Promise<string> {
    const timer = setTimeout(() => {
      this.stderr += this.#threads();
      this.kill();
    }, PATIENCE_MS);
    const how = await this.ended;
    clearTimeout(timer);
    return how;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}

/** A connection to a socket that someone is about to listen at. */
async function connected(path: string): Promise<Socket> {
  for (let tries = 0; ; tries++) {
    const connection = createConnection(path);
    const error = await new Promise((resolve) => connection.once('connect', resolve).once('error', resolve));
    if (error === undefined) return connection;
    if (tries === 500) throw error;
    await pause(10);
  }
}

function told(path: string): string {
  try {
    return readFileSync(path, 'latin1').trim();
  } catch (error) {
    return (error as Error).message;
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const frames = (...packets: string[]): string => packets.map((each) => fromLatin1(encodePacket(latin1(each)))).join('');

/** A batch as bytes: packets, some of their frames damaged, between them interrupts, acknowledgements and noise. */
function drawBatch(random: Random): string {
  let raw = '';
  for (let left = 1 + random.below(40); left > 0; left--) {
    let frame = frames(drawPacket(random));
    if (random.once(12)) {
      const at = random.below(frame.length);
      frame = frame.slice(0, at) + random.pick(['', '$', '#', '}', '\x03', 'x']) + frame.slice(at + 1);
    }
    raw += frame;
    if (random.once(8)) raw += '\x03';
    if (random.once(15)) raw += random.pick(['+', '-', '$', '%', '\0', frames('vCont;c'), frames('vCont;t')]);
  }
  return raw;
}

/** A batch so that it can be read, for a report. */
const shown = (raw: string): string =>
  raw
    .split(/(?=\$)/)
    .map((packet) => JSON.stringify(packet.replace(/([\s\S]{1,2})\1{15,}/g, (all, part) => `${part}…(${all.length})`)))
    .map((text) => (text.length > 200 ? `${text.slice(0, 200)}…` : text))
    .join('\n');

const BASE = ['--memory', '16M', '--vcpus', '2'];
const CONFIGURATIONS: readonly { args: readonly string[]; listens?: boolean }[] = [
  { args: [...BASE, '--image', `${native('conform.bin')}@0x100000`] },
  { args: BASE },
  { args: [...BASE, '--image', `${native('conform.bin')}@0x100000`], listens: true },
  { args: [...BASE, '--dirty-ring', '1024', '--image', `${native('conform.bin')}@0x100000`] },
  { args: ['--slot', '0:0:16M', '--slot', '6:0x50000000:1M:ro', '--image', `${native('conform.bin')}@0x100000`] },
];
/** Batches of a machine: then another one starts, for what was done to one may leave little to do to it. */
const BATCHES = 25;

test('the helper outlives whatever packets it is sent', {
  skip: skip ?? withoutKvm() ?? false,
  timeout: (seconds + 60) * 1000,
}, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-fuzz-'));
  const end = performance.now() + seconds * 1000;
  let batches = 0;
  let packets = 0;
  try {
    for (let machine = Number(process.env.KVM_MMU_FUZZ_MACHINE ?? 0); performance.now() < end; machine++) {
      const random = new Random(seed, machine);
      const { args, listens } = CONFIGURATIONS[machine % CONFIGURATIONS.length]!;
      const helper = new Fuzzed(args, listens ? join(folder, `${machine}`) : undefined);
      const sent: string[] = [];
      const fail = (what: string): never => {
        throw new Error(
          `${what}; KVM_MMU_FUZZ_SEED=${seed}, machine ${machine} (${args.join(' ')}), batch ${sent.length}\n` +
            `${helper.stderr}\nthe last batches:\n${sent.slice(-2).map(shown).join('\n\n')}`,
        );
      };
      try {
        await helper.connect();
        for (let batch = 0; batch < BATCHES && performance.now() < end; batch++) {
          const raw = drawBatch(random);
          sent.push(raw);
          batches++;
          packets += raw.split('$').length - 1;
          helper.send(latin1(raw));
          if (listens && random.once(3)) {
            helper.disconnect();
            await helper.connect();
          }
          await helper.stillAnswers(`token-${machine}-${batch}`).catch((error: Error) => fail(error.message));
          if (REPORT.test(helper.stderr)) fail('a sanitizer has reported something');
        }
        // The end is fuzzed too: in the middle of all this the machine is taken down.
        helper.send(latin1(frames('vCont;c', random.pick(ENDINGS))));
        if (listens) {
          await pause(20);
          helper.disconnect();
          helper.kill();
        }
        const how = await helper.end();
        if (REPORT.test(helper.stderr)) fail('a sanitizer has reported something');
        if (!listens && how !== 'exit status 0') fail(`the helper ended with ${how}`);
      } finally {
        helper.kill();
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  t.diagnostic(`seed ${seed}: ${packets} packets in ${batches} batches`);
  assert.ok(packets > 20 * seconds, `only ${packets} packets in ${seconds} s`);
});

test('no packet waits for a vCPU that runs and never exits', { skip: skip ?? withoutKvm() ?? false }, async () => {
  const helper = new Fuzzed([...BASE, '--image', `${native('conform.bin')}@0x100000`]);
  try {
    // nop; jmp to itself
    const code = 'X100000,3:\x90\xeb\xfe';
    assert.equal(await helper.ask(frames('QStartNoAckMode')), 'OK');
    assert.equal(await helper.ask(frames('QKvm.Events:1')), 'OK');
    assert.equal(await helper.ask(frames(code)), 'OK');
    assert.equal(await helper.ask(frames('Z0,100001,1')), 'OK');
    assert.match(await helper.ask(frames('vCont;c:1')), /^T05thread:1;swbreak:;kvm:reason=breakpoint,rip=100001,/);
    assert.equal(await helper.ask(frames('z0,100001,1')), 'OK');
    helper.send(latin1(frames('vCont;c:1')));
    await helper.stillAnswers('runs');
    // Statistics are at hand, and whoever asks why the machine has stopped stops it.
    assert.match(await helper.ask(frames('qKvm.Stats')), /^\{"vm":\{".*"vcpus":\[\{"/);
    assert.match(await helper.ask(frames('?')), /^T02thread:1;kvm:reason=pause,/);
  } finally {
    helper.kill();
  }
});
