import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { resolve } from 'node:path';
import type { DebugProtocol } from '@vscode/debugprotocol';
import { Lab } from '../../adapter/lab/boot.ts';
import { RspClient } from '../../adapter/rsp/client.ts';
import type { KvmStop, StopEvent } from '../../adapter/rsp/stop.ts';
import { Client, spawnAdapter } from '../adapter/client.ts';
import { guest, SILENT } from '../kvm/kvm.ts';
import { KERNELS, labTest, longLabTest } from './lab.ts';

// Stops in a lab, whose processor honours neither debug registers nor int3 of the kernel's: what stops there are bytes in memory.

/** A helper's machine in a lab: its stops are waited for in their order. */
class LabMachine {
  readonly client: RspClient;
  readonly #events: StopEvent[] = [];
  readonly #waiting: ((event: StopEvent) => void)[] = [];
  #failed: ((error: Error) => void) | undefined;
  console = '';

  private constructor(client: RspClient) {
    this.client = client;
    client.onStop((event) => {
      const next = this.#waiting.shift();
      if (next) next(event);
      else this.#events.push(event);
    });
    client.onConsole((bytes) => {
      this.console += new TextDecoder().decode(bytes);
    });
    client.onLost((error) => this.#failed?.(error));
  }

  static async start(lab: Lab, elf: string, args: readonly string[] = []): Promise<LabMachine> {
    const machine = new LabMachine(new RspClient(await lab.start(['--memory', '16M', ...args], { path: guest(elf) })));
    await machine.client.handshake();
    return machine;
  }

  next(): Promise<StopEvent> {
    const event = this.#events.shift();
    if (event) return Promise.resolve(event);
    return new Promise((resolve, reject) => {
      this.#failed = reject;
      this.#waiting.push(resolve);
    });
  }

  /** Lets vCPU 0 go on; its stop, or undefined when the machine has ended. */
  async go(how: Parameters<RspClient['resume']>[1] = 'continue'): Promise<KvmStop | undefined> {
    await this.client.resume('1', how);
    const event = await this.next();
    return event.kind === 'stopped' ? event.kvm : undefined;
  }

  async rip(): Promise<bigint> {
    return (await this.client.readRegisters('1')).get('rip')!;
  }

  byte(address: bigint): Promise<number> {
    return this.client.readVirtual('1', address, 1).then(([byte]) => byte!);
  }

  end(): void {
    this.client.kill();
  }
}

function symbol(elf: string, name: string): bigint {
  const lines = execFileSync('nm', [guest(elf)], { encoding: 'utf8' }).split('\n');
  const line = lines.find((each) => each.endsWith(` ${name}`));
  assert.ok(line, `${elf} has no ${name}`);
  return BigInt(`0x${line.split(' ')[0]}`);
}

const FAULTS = ['--slot', '1:0xf0000000:0x1000:ro'];
/** Memory of the kernel's that nothing uses, mapped to itself. */
const FREE = 0x40_0000n;
/** `mov ecx, N; 1: dec ecx; jnz 1b`: longer than the helper needs to look at what the guest has changed. */
const SPIN = [0xb9, 0, 0, 0x80, 0, 0xff, 0xc9, 0x75, 0xfc];

/** Runs until the guest has loaded its tables of descriptors and exceptions, and no user runs yet. */
async function begin(machine: LabMachine): Promise<void> {
  const enter = symbol('user.elf', 'enter_user');
  await machine.client.insertBreakpoint('hardware', enter);
  assert.equal((await machine.go())?.reason, 'breakpoint');
  await machine.client.removeBreakpoint('hardware', enter);
}

type Work = (machine: LabMachine) => Promise<void>;

/** What a guest prints when nobody debugs it. */
async function alone(lab: Lab, elf: string, args: readonly string[]): Promise<string> {
  let text = '';
  await onMachine(lab, elf, args, async (machine) => {
    assert.equal(await machine.go(), undefined);
    text = machine.console;
  });
  return text;
}

async function onMachine(lab: Lab, elf: string, args: readonly string[], work: Work): Promise<void> {
  const machine = await LabMachine.start(lab, elf, args);
  try {
    await work(machine);
  } finally {
    machine.end();
  }
}

/** Each part of what stops, with a guest and a machine of its own. */
const PARTS: readonly (readonly [
  name: string,
  elf: string,
  args: readonly string[],
  work: (machine: LabMachine, printed: string) => Promise<void>,
])[] = [
  [
    'a page fault stops before the handler’s first instruction, at both privilege levels',
    'faults.elf',
    FAULTS,
    async (machine, printed) => {
      await machine.client.vendor('QKvm.Stop:guest-pf');
      const handler = symbol('faults.elf', 'page_fault');
      const first = await machine.byte(handler);
      const told: string[] = [];
      const levels = new Set<number>();
      for (let stop = await machine.go(); stop; stop = await machine.go()) {
        assert.equal(stop.reason, 'guest-pf');
        const registers = await machine.client.readRegisters('1');
        assert.equal(registers.get('rip'), handler, 'the handler has not begun');
        assert.equal(registers.get('cr2'), stop.gva);
        assert.equal(await machine.byte(handler), first, 'memory is the guest’s own');
        told.push(`    #PF, error code 0x${stop.error!.toString(16)}, cr2 0x${stop.gva!.toString(16)}`);
        levels.add(stop.cpl!);
      }
      const said = machine.console.split('\n').filter((line) => line.startsWith('    #PF'));
      assert.equal(said.length, 17);
      assert.deepEqual(told, said);
      assert.deepEqual([...levels].sort(), [0, 3]);
      assert.equal(machine.console, printed);
    },
  ],
  [
    'software and hardware breakpoints stop before the instruction, at both levels, as often as it runs',
    'user.elf',
    [],
    async (machine, printed) => {
      const { client } = machine;
      const [say, entryOf] = [symbol('user.elf', 'say'), symbol('user.elf', 'entry_of')];
      const [sayFirst, entryFirst] = [await machine.byte(say), await machine.byte(entryOf)];
      await client.insertBreakpoint('software', say);
      await client.insertBreakpoint('hardware', entryOf);
      const hits = new Map<string, number>();
      for (let stop = await machine.go(); stop; stop = await machine.go()) {
        assert.equal(stop.reason, 'breakpoint');
        const registers = await client.readRegisters('1');
        const key = `${registers.get('rip') === say ? 'say' : registers.get('rip') === entryOf ? 'entry_of' : 'nowhere'} ${registers.get('cs')! & 3n}`;
        hits.set(key, (hits.get(key) ?? 0) + 1);
        assert.equal(registers.get('eflags')! & 0x10100n, 0n, 'neither TF nor RF is left');
        assert.equal(await machine.byte(say), sayFirst);
        assert.equal(await machine.byte(entryOf), entryFirst);
      }
      assert.deepEqual(Object.fromEntries(hits), { 'say 3': 8, 'entry_of 0': 1 + 14 + 3 });
      assert.equal(machine.console, printed);
    },
  ],
  [
    'steps are instructions, over breakpoints too, and end at the #PF handler',
    'faults.elf',
    FAULTS,
    async (machine, printed) => {
      const { client } = machine;
      const lesson = symbol('faults.elf', 'lesson');
      await client.insertBreakpoint('software', lesson);
      await client.insertBreakpoint('hardware', lesson);
      assert.equal((await machine.go())?.reason, 'breakpoint');
      assert.equal(await machine.rip(), lesson);
      let ends = 0;
      await client.insertBreakpoint('software', symbol('faults.elf', 'access'));
      assert.equal((await machine.go())?.reason, 'breakpoint');
      for (let step = 0; step < 40; step++) {
        const stop = await machine.go('step');
        const registers = await client.readRegisters('1');
        if (registers.get('rip') === symbol('faults.elf', 'page_fault')) ends++;
        assert.equal(stop?.reason, 'step');
      }
      assert.ok(ends > 0, 'no step has come to the handler');
      for (const kind of ['software', 'hardware'] as const) await client.removeBreakpoint(kind, lesson);
      await client.removeBreakpoint('software', symbol('faults.elf', 'access'));
      assert.equal(await machine.go(), undefined);
      assert.equal(machine.console, printed);
    },
  ],
  [
    'a hlt of the guest’s is a halt, under a breakpoint too',
    'user.elf',
    [],
    async (machine) => {
      const { client } = machine;
      await begin(machine);
      await client.writePhysical(FREE, Uint8Array.of(0x90, 0xf4, 0x90, 0xf4));
      await client.writeRegisters('1', { rip: FREE });
      for (const kind of ['software', 'hardware'] as const) {
        await client.writeRegisters('1', { rip: FREE });
        await client.insertBreakpoint(kind, FREE + 1n);
        assert.equal((await machine.go())?.reason, 'breakpoint');
        assert.equal(await machine.rip(), FREE + 1n);
        assert.equal((await machine.go())?.reason, 'halt');
        assert.equal(await machine.rip(), FREE + 2n);
        await client.removeBreakpoint(kind, FREE + 1n);
        assert.equal((await machine.go())?.reason, 'halt');
        assert.equal(await machine.rip(), FREE + 4n);
      }
    },
  ],
  [
    'a breakpoint stays where the guest writes over it, and shows what the guest has written',
    'user.elf',
    [],
    async (machine) => {
      const { client } = machine;
      await begin(machine);
      const target = FREE + 0x800n;
      // movb $0x91, (rdi); spin; jmp rdi. There: nop (then xchg ecx, eax); mov [rsi], al; hlt.
      await client.writePhysical(FREE, Uint8Array.of(0xc6, 0x07, 0x91, ...SPIN, 0xff, 0xe7));
      await client.writePhysical(target, Uint8Array.of(0x90, 0x88, 0x06, 0xf4));
      await client.writeRegisters('1', { rip: FREE, rdi: target, rsi: FREE + 0x900n, rax: 0x55n });
      await client.insertBreakpoint('software', target);
      assert.equal((await machine.go())?.reason, 'breakpoint');
      assert.equal(await machine.rip(), target);
      assert.equal(await machine.byte(target), 0x91);
      // A client's own write, too.
      await client.writePhysical(target, Uint8Array.of(0x90));
      assert.equal((await machine.go())?.reason, 'halt');
      assert.equal(await machine.byte(FREE + 0x900n), 0x55, 'what runs is what was written last');
      assert.equal(await machine.byte(target), 0x90);
    },
  ],
  [
    'the handler is watched where the guest’s new IDT says',
    'user.elf',
    [],
    async (machine) => {
      const { client } = machine;
      await begin(machine);
      const [idt, handlers] = [FREE + 0x2000n, FREE + 0x1000n];
      const gate = (address: bigint): bigint[] => [
        (address & 0xffffn) | (0x08n << 16n) | (0x8e00n << 32n) | ((address >> 16n) << 48n),
        0n,
      ];
      // Two IDTs, whose handlers are nops apart; of each #PF alone, and #GP.
      for (const table of [0n, 1n])
        for (const vector of [13n, 14n])
          await client.writePhysical(
            idt + table * 0x1000n + vector * 16n,
            new Uint8Array(BigUint64Array.from(gate(handlers + table * 0x100n)).buffer),
          );
      await client.writePhysical(handlers, new Uint8Array(0x200).fill(0x90));
      const pointer = Uint8Array.of(
        0xff,
        0x0f,
        ...[0, 8, 16, 24, 32, 40, 48, 56].map((shift) => Number(((idt + 0x1000n) >> BigInt(shift)) & 255n)),
      );
      await client.writePhysical(FREE + 0x900n, pointer);
      // lidt (rsi); spin; mov al, (rdi)
      await client.writePhysical(FREE, Uint8Array.of(0x0f, 0x01, 0x1e, ...SPIN, 0x8a, 0x07));
      await client.writeRegisters('1', { idt_base: idt, idt_limit: 0xfffn } as Record<string, bigint>);
      await client.writeRegisters('1', { rip: FREE, rsi: FREE + 0x900n, rdi: 0x70_0000_0000n, rsp: FREE + 0x8000n });
      await client.vendor('QKvm.Stop:guest-pf');
      const stop = await machine.go();
      assert.equal(stop?.reason, 'guest-pf');
      assert.equal(stop.gva, 0x70_0000_0000n);
      assert.equal(await machine.rip(), handlers + 0x100n);
      // Nor is anything left where it looked: mov al, (rbx); mov cl, (rdx); hlt
      await client.vendor('QKvm.Stop:');
      await client.writePhysical(FREE, Uint8Array.of(0x8a, 0x03, 0x8a, 0x0a, 0xf4));
      await client.writeRegisters('1', { rip: FREE, rbx: handlers, rdx: handlers + 0x100n, rax: 0n, rcx: 0n });
      assert.equal((await machine.go())?.reason, 'halt');
      const registers = await client.readRegisters('1');
      assert.deepEqual([registers.get('rax'), registers.get('rcx')], [0x90n, 0x90n]);
    },
  ],
  [
    'a hardware breakpoint is that of an address, whatever memory the guest’s new tables have there',
    'user.elf',
    [],
    async (machine) => {
      const { client } = machine;
      await begin(machine);
      const tables = 0x60_0000n;
      const [code, target, other] = [0x20_0000n, FREE, 0x80_0000n];
      const write = (gpa: bigint, ...values: readonly bigint[]): Promise<void> =>
        client.writePhysical(gpa, new Uint8Array(BigUint64Array.from(values).buffer));
      await write(tables, tables + 0x1003n);
      await write(tables + 0x1000n, tables + 0x2003n);
      const frames = Array.from({ length: 8 }, (_, index) => BigInt(index) * 0x20_0000n);
      frames[2] = other;
      await write(tables + 0x2000n, ...frames.map((frame) => frame + 0x83n));
      // mov cr3, rax; spin; jmp rdi
      await client.writePhysical(code, Uint8Array.of(0x0f, 0x22, 0xd8, ...SPIN, 0xff, 0xe7));
      await client.writePhysical(target, Uint8Array.of(0x90, 0xf4));
      await client.writePhysical(other, Uint8Array.of(0x90, 0x90, 0xf4));
      await client.insertBreakpoint('hardware', target);
      await client.writeRegisters('1', { rip: code, rax: tables, rdi: target });
      assert.equal((await machine.go())?.reason, 'breakpoint');
      assert.equal(await machine.rip(), target);
      assert.equal((await machine.go())?.reason, 'halt');
      assert.equal(await machine.rip(), target + 3n);
    },
  ],
  [
    'a #GP of the guest’s own comes to its handler, under breakpoints too',
    'user.elf',
    [],
    async (machine) => {
      const { client } = machine;
      await client.insertBreakpoint('software', symbol('user.elf', 'program'));
      const stop = await machine.go();
      assert.equal(stop?.reason, 'breakpoint');
      await client.insertBreakpoint('hardware', symbol('user.elf', 'leave'));
      // hlt, at CPL3.
      await client.writeVirtual('1', await machine.rip(), Uint8Array.of(0xf4));
      assert.equal((await machine.go())?.reason, 'breakpoint');
      assert.match(machine.console, /the program may not do this at/);
    },
  ],
  [
    'two vCPUs that run the same code stop at its breakpoint, each for itself',
    'user.elf',
    ['--vcpus', '2'],
    async (machine) => {
      const { client } = machine;
      // 1: lock; incq (rdi); jmp 1b
      await client.writePhysical(FREE, Uint8Array.of(0xf0, 0x48, 0xff, 0x07, 0xeb, 0xfa));
      for (const [index, thread] of ['1', '2'].entries())
        await client.writeRegisters(thread, { rip: FREE, rdi: FREE + 0x1000n + 8n * BigInt(index) });
      await client.insertBreakpoint('software', FREE + 4n);
      for (let round = 1; round <= 5; round++) {
        await client.resume('all');
        for (let each = 0; each < 2; each++) {
          const event = await machine.next();
          assert.equal(event.kind === 'stopped' && event.kvm?.reason, 'breakpoint');
        }
        const view = new DataView((await client.readPhysical(FREE + 0x1000n, 16)).buffer);
        assert.deepEqual([view.getBigUint64(0, true), view.getBigUint64(8, true)], [BigInt(round), BigInt(round)]);
      }
    },
  ],
];

for (const [npt, testWhen] of [
  ['0', labTest],
  ['1', longLabTest],
] as const)
  testWhen(`stops in a lab with npt=${npt}`, async (context) => {
    const lab = await Lab.boot({ kernel: KERNELS[0]!, modules: [], params: { npt } }, SILENT);
    try {
      const printed = new Map<string, string>();
      for (const [name, elf, args, work] of PARTS)
        await context.test(name, async () => {
          if (!printed.has(elf)) printed.set(elf, await alone(lab, elf, elf === 'faults.elf' ? FAULTS : []));
          await onMachine(lab, elf, args, (machine) => work(machine, printed.get(elf)!));
        });
    } finally {
      lab.close();
    }
  });

// ---- sessions

async function withSession(
  npt: string,
  stopOnEntry: boolean,
  filters: readonly string[],
  work: (client: Client, first: DebugProtocol.Event) => Promise<void>,
  options: object = {},
): Promise<void> {
  const client = new Client(spawnAdapter());
  const lab = { kernel: KERNELS[0], params: { npt } };
  const launch = { target: 'kvm', guest: resolve(guest('user.elf')), memory: '16M', stopOnEntry, lab };
  try {
    await work(client, await client.start(undefined, { launch, filters: [...filters], patience: 90, ...options }));
  } finally {
    await client.close();
  }
}

const text = (event: DebugProtocol.Event): string => event.body?.text ?? event.event;

async function where(client: Client): Promise<string> {
  const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
  const [{ name, source, line }] = stackFrames;
  return `${name.replace(/\+0x\w+/, '')} ${source?.name ?? ''}:${line}`;
}

for (const [npt, testWhen] of [
  ['0', longLabTest],
  ['1', labTest],
] as const) {
  testWhen(
    `a session in a lab with npt=${npt}: lines, functions, conditions, and steps over, into and out of calls`,
    () =>
      withSession(npt, true, [], async (client) => {
        const path = resolve('examples/guests/program.c');
        const [line] = execFileSync('grep', ['-n', 'HEAP\\[page \\* PAGE_WORDS\\] = 1', path], {
          encoding: 'utf8',
        }).split(':');
        const { breakpoints } = await client.request('setBreakpoints', {
          source: { path },
          breakpoints: [{ line: Number(line) }],
        });
        assert.equal(breakpoints[0].verified, true);
        const named = (...list: object[]): Promise<unknown> =>
          client.request('setFunctionBreakpoints', { breakpoints: list });
        await named({ name: 'kernel_main' });
        await client.move('continue');
        assert.match(await where(client), /^kernel_main user\.c:/);
        await client.move('next');
        const before = await where(client);
        await client.move('next');
        assert.match(await where(client), /^kernel_main user\.c:/);
        assert.notEqual(await where(client), before);
        await client.move('stepIn');
        assert.match(await where(client), /^new_page kernel\.c:/);
        await client.move('stepOut');
        assert.match(await where(client), /^kernel_main user\.c:/);
        await named({ name: 'unmap' }, { name: 'protect', condition: 'rsi == 1' });
        for (let hit = 0; hit < 4; hit++) {
          assert.deepEqual((await client.move('continue')).body.hitBreakpointIds, [breakpoints[0].id]);
          assert.equal((await where(client)).replace(/^\S+/, ''), ` program.c:${line}`);
        }
        assert.match(text(await client.move('continue')), /breakpoint at protect/);
        assert.match((await client.request('evaluate', { expression: 'rsi', context: 'repl' })).result, /^1\b/);
        assert.match(text(await client.move('continue')), /breakpoint at unmap/);
        assert.equal((await client.move('continue')).event, 'terminated');
        const said = client.events.filter(({ event }) => event === 'output').map(({ body }) => body.output);
        assert.match(said.join(''), /page 0 was taken away: it reads 0 again\nthe program has ended\n/);
      }),
  );
}
