import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import test, { after } from 'node:test';
import { Client, errorText, spawnAdapter } from '../adapter/client.ts';
import { helperOf, kvmTest, native, withoutKvm } from './kvm.ts';

// The same scenarios on the emulator and on real KVM.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

function run(path: string, ...options: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['dist/cli.cjs', 'run', path, ...options], {
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

function scenario(name: string, text: string): string {
  const path = join(folder, `${name}.mmu`);
  writeFileSync(path, text);
  return path;
}

/** Examples that KVM cannot be told, and why. */
const UNFIT: Readonly<Record<string, RegExp>> = {
  'conversion.mmu': /vm snp: the code that makes the accesses on KVM has no encrypted guests/,
  'conversion-race.mmu': /vm snp: the code that makes the accesses on KVM has no encrypted guests/,
  'stale-translation.mmu': /vm snp: the code that makes the accesses on KVM has no encrypted guests/,
  'legacy-guest.mmu':
    /guest old has 32-bit paging: the code that makes the accesses on KVM nests guests of 4-level paging alone/,
  'huge-pages.mmu': /vcpu 0 runs without paging/,
  'mode-switch.mmu': /cr0\.pg: the code that makes the accesses on KVM stays with 32-bit paging/,
  'populate.mmu': /vcpu 0 runs without paging/,
  'paging-modes.mmu': /guest wide has 5-level paging/,
  'protections.mmu': /an implicit access cannot be made on KVM/,
  'races.mmu': /KVM zaps a range only for itself/,
  'nested.mmu': /nested ept12: the code that makes the accesses on KVM runs its guests by SVM’s VMRUN/,
};

/** Examples that need what not every KVM has: what is said where it is not, or what becomes of them where it is. */
const LACKING: Readonly<Record<string, readonly [status: number, words: RegExp][]>> = {
  // The mistake that it shows is not in a real KVM, which reads the right pointer.
  'quadrant.mmu': [
    [3, /the stubs do not run on this KVM/],
    [1, /quadrant\.mmu:37: expect loaded == 0xff9fa818: left is 0xc28f2000/],
  ],
  'private-memory.mmu': [
    [3, /KVM makes no software-protected VM: this kernel .*CONFIG_KVM_SW_PROTECTED_VM/],
    [0, /^$/],
  ],
};

for (const name of readdirSync('examples').filter((each) => each.endsWith('.mmu')))
  kvmTest(`${name} on KVM: what it expects holds, or it is said why it cannot run`, async () => {
    const { status, stdout, stderr } = run(join('examples', name), '--target', 'kvm');
    const why = UNFIT[name];
    if (why) {
      assert.equal(status, 2, stderr);
      assert.match(stderr, why);
      return;
    }
    const possible = LACKING[name]?.find(([each]) => each === status);
    if (possible) {
      assert.match(stderr, possible[1]);
      return;
    }
    assert.equal(status, 0, stderr);
    assert.match(stdout, /\nok\n$/);
  });

/** Numbers from a seed (mulberry32). */
function* random(seed: number): Generator<number> {
  for (let state = seed; ; ) {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    yield (mixed ^ (mixed >>> 14)) >>> 0;
  }
}

type Paging = '4-level' | 'pae' | '32-bit';

/** A scenario of random edits, registers and accesses; its end asks for every entry and every cell that it could touch. */
function randomScenario(seed: number, paging: Paging): { text: string; cells: string[] } {
  const numbers = random(seed);
  const below = (limit: number): number => numbers.next().value! % limit;
  const pick = <T>(among: readonly T[]): T => among[below(among.length)]!;
  const gva = (): string => `0x${(0x400000 + below(8) * 4096).toString(16)}`;
  const gpa = (): string => `0x${(0x200000 + below(16) * 4096).toString(16)}`;
  const rights = (): string => pick(['r--', 'rw-', 'r-x', 'rwx', 'rwx user', 'rw- user', 'r-- user']);
  const access = (): string => {
    const kind = pick(['read', 'write', 'write', 'fetch']);
    return `${pick(['', 'user '])}${kind} ${gva()}${pick(['', ' + 8'])}${kind === 'write' ? ` = ${below(1000)}` : ''}`;
  };
  const statement = (): string => {
    switch (below(12)) {
      case 0:
        return `map ${gva()} -> ${gpa()} +4K ${rights()}`;
      case 1:
        return `protect ${gva()} +4K ${rights()}`;
      case 2:
        return `unmap ${gva()} +4K`;
      case 3:
        return `cr0.wp = ${below(2)}`;
      case 4:
        return `cr4.${pick(['smep', 'smap'])} = ${below(2)}`;
      case 5:
        return `rflags.ac = ${below(2)}`;
      default:
        return access();
    }
  };
  // The guest flushes what it has changed: what a stale translation does is a matter of the processor's.
  const body = Array.from({ length: 60 }, () => {
    const words = statement();
    const [kind, at] = words.split(' ');
    return ['map', 'protect', 'unmap'].includes(kind!) ? `${words}\n  invlpg ${at}` : words;
  });
  const text = [
    'machine x86-64 { memory 0 +16M }',
    `guest g ${paging} {`,
    '  map 0x400000 -> 0x200000 +16K rw-',
    '  map 0x404000 -> 0x204000 +16K rwx user',
    '}',
    'vcpu 0 in g {',
    ...body.map((each) => `  ${each}`),
    '}',
  ].join('\n');
  // Entries of 32 bits cannot withhold execution.
  const legal = paging === '32-bit' ? text.replaceAll('rw-', 'rwx').replaceAll('r--', 'r-x') : text;
  const pages = Array.from({ length: 8 }, (_, page) => `pte(0x${(0x400000 + page * 4096).toString(16)})`);
  const words = Array.from({ length: 16 }, (_, page) => `u64(0x${(0x200000 + page * 4096).toString(16)})`);
  return { text: legal, cells: [...pages, ...words, 'faults.guest', 'accesses'] };
}

/** The values of expressions when a scenario has ended. */
async function finalValues(path: string, target: string, expressions: readonly string[]): Promise<string[]> {
  const client = new Client(spawnAdapter());
  try {
    await client.start(path, { launch: { target, stopAtEnd: true }, filters: [] });
    const values: string[] = [];
    for (const expression of expressions) {
      const response = await client.raw('evaluate', { expression, context: 'watch' });
      values.push(`${expression} = ${response.success ? response.body.result : errorText(response)}`);
    }
    return values;
  } finally {
    await client.close();
  }
}

/** Why this machine's KVM does not run guests of a paging mode. */
function withoutPaging(paging: Paging): string | undefined {
  const text = `machine x86-64 { memory 0 +8M }\nguest g ${paging} { map 0x400000 -> 0x200000 }\nvcpu 0 in g { read 0x400000 }\n`;
  const { status, stderr } = run(scenario(`probe-${paging}`, text), '--target', 'kvm');
  return status === 0 ? undefined : stderr.trim();
}

const ROUNDS = Number(process.env.KVM_MMU_SCENARIOS ?? 25);
for (const paging of ['4-level', 'pae', '32-bit'] as const)
  test(`random programs of edits, registers and accesses end alike on the emulator and on KVM, with ${paging} paging`, {
    skip: withoutKvm() ?? false,
    timeout: Math.max(120_000, 5000 * ROUNDS),
  }, async (context) => {
    // A KVM that is a guest itself may have long mode alone.
    const missing = withoutPaging(paging);
    if (missing !== undefined && paging !== '4-level') return context.skip(missing);
    for (let seed = 1; seed <= ROUNDS; seed++) {
      const { text, cells } = randomScenario(seed, paging);
      const path = scenario(`random-${paging}-${seed}`, text);
      const [emulated, real] = await Promise.all([
        finalValues(path, 'emulator', cells),
        finalValues(path, 'kvm', cells),
      ]);
      assert.deepEqual(real, emulated, `seed ${seed}:\n${text}`);
    }
  });

kvmTest('an expectation that does not hold fails on KVM too', async () => {
  const failing = run(
    scenario(
      'failing',
      'machine x86-64 { memory 0 +8M }\nguest g { map 0x400000 -> 0x200000 +4K r-- }\nvcpu 0 in g {\n  write 0x400000\n  expect faults.guest == 0\n}\n',
    ),
    '--target',
    'kvm',
  );
  assert.equal(failing.status, 1);
  assert.match(failing.stderr, /failing\.mmu:5: expect faults\.guest == 0: left is 1, right is 0/);
});

kvmTest('a register value that selects another paging mode ends the task, with the reason', async () => {
  const path = scenario(
    'unpaged',
    'machine x86-64 { memory 0 +8M }\nguest g { map 0x400000 -> 0x200000 }\nvcpu 0 in g {\n  cr0 = 0x33\n}\n',
  );
  const { status, stderr } = run(path, '--target', 'kvm');
  assert.equal(status, 1);
  assert.match(
    stderr,
    /unpaged\.mmu:4: cr0 0x33 is for a processor without paging: the code that makes the accesses on KVM stays with 4-level paging/,
  );
});

kvmTest(
  'a session stops at lines, at #PF, at MMIO and at failed expectations, and steps statement by statement',
  async () => {
    const client = new Client(spawnAdapter());
    const text = (event: { event: string; body?: { text?: string } }): string => event.body?.text ?? event.event;
    try {
      const path = join(process.cwd(), 'examples/on-kvm.mmu');
      const first = await client.start(path, {
        launch: { target: 'kvm' },
        filters: ['guest', 'mmio', 'expect'],
        lines: [24],
      });
      assert.match(text(first), /^Breakpoint: vCPU 0: line 24 is next\.$/);
      assert.match(text(await client.move('next')), /^vCPU 0: line 25 is next\.$/);
      assert.match(
        text(await client.move('continue')),
        /^vCPU 0 wrote gva 0x400000 at CPL 3: PTE 0 is for the supervisor .* error code 0x7 P\|W\|U; line 26 goes on\.$/,
      );
      const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
      assert.deepEqual([stackFrames[0].source.name, stackFrames[0].line], ['on-kvm.mmu', 26]);
      const { scopes } = await client.request('scopes', { frameId: stackFrames[0].id });
      assert.deepEqual(
        scopes.map((scope: { name: string }) => scope.name),
        ['Registers', 'Memslots', 'Costs'],
      );
      const { threads } = await client.request('threads');
      assert.deepEqual(
        threads.map((thread: { name: string }) => thread.name),
        ['vCPU 0', 'vCPU 1 (waits)', 'mover (waits)'],
      );
      const untold = await client.raw('evaluate', { expression: 'faults.second', context: 'watch' });
      assert.match(errorText(untold), /this machine does not tell faults\.second/);
      const walk = await client.request('mmu/watch', {
        type: 'watch',
        id: 'w',
        query: { kind: 'walk', vcpu: 0, space: 'gva', address: '0x400000' },
      });
      assert.equal(walk.answer.outcome.gpa, '0x200000');
      let mmio = '';
      for (
        let event = await client.move('continue');
        event.event === 'stopped';
        event = await client.move('continue')
      ) {
        if (text(event).includes('memslot')) mmio = text(event);
      }
      assert.match(mmio, /^vCPU 0 wrote gpa 0x20000000: its memslot is read-only/);
    } finally {
      await client.close();
    }
  },
);

/** A scenario that would take minutes. */
const LONG = `machine x86-64 {
  memory 0 +32M
}
guest kernel {
  map 0x400000 -> 0x200000 +4K rwx
}
vcpu 0 in kernel {
  repeat 1000000 {
    write 0x400000 = 1
  }
}
vcpu 1 in kernel {
  write 0x400000 = 2
}
`;

kvmTest('a helper that dies is a lost machine, not a scenario that has failed', async () => {
  const helper = join(folder, 'mortal');
  const start = `${resolve(native('kvm-mmu-helper'))} "$@" <&3 & sleep 1; kill -9 $!; wait`;
  writeFileSync(helper, `#!/bin/sh\nexec 3<&0\n${start}\n`, { mode: 0o755 });
  const { status, stdout, stderr } = run(scenario('long', LONG), '--target', 'kvm', '--helper', helper);
  assert.match(stderr, /long\.mmu: the machine is lost: .*mortal has ended/);
  assert.equal(status, 3, stdout);
});

kvmTest('a session on a scenario whose helper dies ends with words', async () => {
  const transport = spawnAdapter();
  const client = new Client(transport);
  try {
    await client.start(scenario('long', LONG), { launch: { target: 'kvm', stopOnEntry: true }, filters: [] });
    const ended = client.stop();
    await client.request('continue', { threadId: 1 });
    process.kill(helperOf(transport.process.pid!), 'SIGKILL');
    assert.equal((await ended).event, 'terminated');
    const said = client.events.filter(({ event }) => event === 'output').map(({ body }) => body.output);
    assert.match(said.join(''), /^the machine is lost: .*signal SIGKILL$/m);
  } finally {
    await client.close();
  }
});
