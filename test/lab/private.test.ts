import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Random } from '../../adapter/conform/random.ts';
import type { HelperPlace } from '../../adapter/kvm/place.ts';
import { labArchitecture } from '../../adapter/lab/arch.ts';
import type { Lab } from '../../adapter/lab/boot.ts';
import { findKernel } from '../../adapter/lab/kernel.ts';
import type { Machine } from '../../engine/machine.ts';
import { Client, spawnAdapter } from '../adapter/client.ts';
import { byPage, compareEvents } from './events.ts';
import { sharedLab, withoutLab } from './lab.ts';
import { builtLeaves, builtTables, emulate, emulatedLeaves, leafDifferences, onKvm, STUBS } from './run-both.ts';
import { projected } from './shadow-events.ts';

// Software-protected VMs beside upstream KVM's: what a guest finds in memory that is converted, and what KVM maps.

const KERNEL = 'linux-image-6.12-amd64';
const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 3);

/** KVM of that kernel with software-protected VMs, or why there is none. */
function modules(): { readonly modules?: readonly string[]; readonly missing?: string } {
  const missing = withoutLab([KERNEL]);
  if (missing !== undefined) return { missing };
  const { release } = findKernel({ kernel: KERNEL, modules: [], params: {} }, labArchitecture());
  // Where scripts/private-kvm.mjs puts them.
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'kvm-mmu', 'private-kvm', release);
  const modules = ['kvm.ko', 'kvm-amd.ko'].map((name) => join(folder, name));
  if (modules.every((path) => existsSync(path))) return { modules };
  return { missing: `there is no KVM of ${release} with CONFIG_KVM_SW_PROTECTED_VM: npm run private-kvm builds one` };
}

const built = modules();

function privateTest(name: string, body: () => Promise<void>): void {
  const timeout = process.env.KVM_MMU_AGREEMENT ? 1_800_000 : 180_000;
  test(`${KERNEL}, software-protected VM: ${name}`, { skip: built.missing ?? false, timeout }, body);
}

function inLab(name: string, body: (lab: Lab) => Promise<void>): void {
  privateTest(name, async () => body(await sharedLab(KERNEL, { npt: '1' }, built.modules!)));
}

/** A vCPU asks for private memory that a slot lacks. */
const LACKING = `machine x86-64 {
  memory 0 +16M guest-memfd
  memory 0x2000000 +32K slot 3
  second-stage tdp npt 5-level
  vm software-protected
}
guest g { map 0x400000 -> 0x2000000 +32K rwx }
vcpu 0 in g {
  write 0x400000 = 7
  wait until conversions == 1
  read 0x400000
}
host h {
  wait until accesses >= 1
  convert 0x2000000 +4K private
}`;

/** What no read finds. */
const UNKNOWN = '0xffff_ffff_ffff';

/** A program of accesses, conversions and holes, which asks what every read has found. */
function randomProgram(seed: number, huge: boolean): string {
  const random = new Random(seed, 0);
  const hex = (value: number): string => `0x${value.toString(16)}`;
  const page = (): string => hex(random.below(12) * 4096);
  const range = (): string => `${hex(0x200000 + random.below(4) * 4096)} +${4 * (1 + random.below(4))}K`;
  // Of slot 3 nothing is private: a private access to a slot that is gone ends the vCPU.
  const convert = (): string => `convert ${range()} ${random.pick(['private', 'shared'])}`;
  const access = (): string => {
    const gva = `0x400000 + ${page()} + ${8 * random.below(2)}`;
    if (random.below(9) === 0) return convert();
    if (random.below(2) === 0) return `write ${gva} = ${1 + random.below(1000)}`;
    return `read ${gva}\n  expect loaded == ${UNKNOWN}`;
  };
  let there = true;
  const host = (): string => {
    switch (random.below(huge ? 8 : 7)) {
      case 0:
        return `punch ${range()}`;
      case 1:
        // A host that unmaps a part of a large page tells of the whole (__split_huge_pmd).
        return `unmap ${huge ? '0x200000 +2M' : range()}`;
      case 2:
        there = !there;
        return there ? 'add slot 3 at 0x2000000 +32K guest-memfd' : 'delete slot 3';
      case 7:
        return `convert 0x200000 +2M ${random.pick(['private', 'shared'])}`;
      default:
        return convert();
    }
  };
  const lines = (count: number, make: () => string): string[] => Array.from({ length: count }, () => `  ${make()}`);
  return [
    'machine x86-64 {',
    `  memory 0 +16M${huge ? ' huge 2M' : ''} guest-memfd`,
    '  memory 0x2000000 +32K slot 3 guest-memfd',
    '  second-stage tdp npt 5-level',
    '  vm software-protected',
    ...(random.below(2) === 0 ? [`  private ${range()}`] : []),
    '}',
    'guest g { map 0x400000 -> 0x200000 +32K rwx map 0x408000 -> 0x2000000 +32K rwx }',
    'vcpu 0 in g {',
    ...lines(40, access),
    '}',
    'host h {',
    '  wait until accesses >= 2',
    ...lines(12, host),
    '}',
  ].join('\n');
}

/** The program with what its reads find in the emulator. */
function withFound(text: string): string {
  const found = emulate(text).small.failures.map(({ actual }) => /^left is (\w+)/.exec(actual)![1]!);
  return text.replaceAll(UNKNOWN, () => found.shift() ?? assert.fail('a read told nothing'));
}

inLab('an example ends as in the emulator, and an access to private memory that a slot lacks is told', async (lab) => {
  const text = readFileSync('examples/private-memory.mmu', 'utf8');
  const found = await onKvm(text, lab, async ({ run }) => {
    await run.finish();
    const { machine } = run;
    return { failures: machine.small.failures, passed: machine.counter('expects.passed'), left: run.stuck };
  });
  assert.deepEqual(found, { failures: [], passed: 7, left: undefined });
  const words = [
    'KVM_EXIT_MEMORY_FAULT: gpa 0x2000000 was accessed as private memory, and its slot has no guest_memfd',
  ];
  const told = ({ small }: Machine): string[] => small.failures.map(({ text: failed }) => failed);
  assert.deepEqual(told(emulate(LACKING)), words);
  assert.deepEqual(await onKvm(LACKING, lab, async ({ run }) => told(run.machine)), words);
  const gone = LACKING.replace('slot 3', 'slot 3 guest-memfd')
    .replace('conversions == 1', 'conversions == 2')
    .replace('+4K private', '+4K private\n  delete slot 3\n  convert 0 +4K shared');
  const nowhere = ['KVM_EXIT_MEMORY_FAULT: gpa 0x2000000 was accessed as private memory, and no memslot holds it'];
  assert.deepEqual(told(emulate(gone)), nowhere);
  assert.deepEqual(await onKvm(gone, lab, async ({ run }) => told(run.machine)), nowhere);
});

for (const huge of [false, true])
  inLab(
    `leaf entries, events and all that reads find are the engine’s${huge ? ', with large pages behind shared memory' : ''}`,
    async (lab) => {
      const place: HelperPlace = huge
        ? { start: (args, image) => lab.start(['--page-size', '2M', ...args], image), close() {} }
        : lab;
      let [leaves, same] = [0, 0];
      for (let seed = FIRST; seed < FIRST + PROGRAMS; seed++) {
        const text = withFound(randomProgram(seed, huge));
        const machine = emulate(text);
        assert.deepEqual(machine.small.failures, [], `seed ${seed}: the emulator does not find it again`);
        const engine = emulatedLeaves(machine);
        const isOurs = (gfn: number): boolean => gfn < STUBS.first || gfn >= STUBS.end;
        const kvm = await onKvm(text, place, async (opened) => ({
          leaves: builtLeaves(await builtTables(opened)),
          failures: opened.run.machine.small.failures,
        }));
        assert.deepEqual(kvm.failures, [], `seed ${seed}: what reads find\n${text}`);
        assert.deepEqual(leafDifferences(engine, kvm.leaves), [], `seed ${seed}\n${text}`);
        leaves += engine.size;
        const events = await onKvm(
          text,
          place,
          async ({ built }) => {
            await built.pull();
            return byPage(built.events!.recording, isOurs);
          },
          'events',
        );
        const compared = compareEvents(byPage(projected(machine), isOurs), events, lab.release);
        assert.deepEqual(compared.wrong, [], `seed ${seed}\n${text}`);
        same += compared.same;
      }
      assert.ok(leaves > 5 * PROGRAMS && same > 50 * PROGRAMS, `only ${leaves} leaves and ${same} events`);
      console.log(`${leaves} leaf entries and ${same} events alike`);
    },
  );

type Answer = { readonly [name: string]: never };

async function inSession(
  path: string,
  options: { readonly filters: readonly string[]; readonly lines?: readonly number[] },
  work: (first: string, ask: (query: object) => Promise<Answer>, client: Client) => Promise<void>,
): Promise<void> {
  const client = new Client(spawnAdapter());
  try {
    const lab = { kernel: KERNEL, modules: built.modules, params: { npt: 1 } };
    const stop = await client.start(path, { launch: { target: 'kvm', lab }, patience: 90, ...options });
    const ask = async (query: object): Promise<Answer> =>
      (await client.request('mmu/watch', { type: 'watch', id: JSON.stringify(query), query })).answer;
    await work(stop.body?.text ?? stop.event, ask, client);
  } finally {
    await client.close();
  }
}

privateTest('a session stops at KVM_EXIT_MEMORY_FAULT', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
  const path = join(folder, 'lacking.mmu');
  writeFileSync(path, LACKING);
  try {
    await inSession(path, { filters: ['memory-fault'] }, async (first, _ask, client) => {
      assert.match(
        first,
        /^vCPU 0 read gpa 0x2000000.*: the access was private, the page is not; KVM_EXIT_MEMORY_FAULT; line 11 goes on\.$/,
      );
      assert.equal((await client.move('continue')).event, 'terminated');
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

privateTest(
  'the map of memory has what the session has converted and what KVM maps, and says what KVM does not tell',
  () =>
    inSession('examples/private-memory.mmu', { filters: [], lines: [39] }, async (first, ask) => {
      assert.match(first, /line 39 is next/);
      const map = await ask({ kind: 'attribute-map' });
      assert.deepEqual([map.vm, map.frames, map.rmp, map.stages], ['software-protected', false, false, ['NPT']]);
      const { facts, runs, certainty } = (await ask({
        kind: 'attributes',
        ...{ start: '0x1ff000', end: '0x301000', cells: 512 },
      })) as unknown as {
        facts: { private: string; stages: ({ frames: string } | null)[] }[];
        runs: number[];
        certainty: string;
      };
      assert.equal(certainty, 'exact');
      const cell = (number: number) => {
        let at = 0;
        for (; number >= runs[at]!; at += 2) number -= runs[at]!;
        return facts[runs[at + 1]!]!;
      };
      assert.deepEqual([cell(0).private, cell(1).private, cell(2).private], ['none', 'none', 'all']);
      assert.equal(cell(0x101).private, 'all');
      assert.deepEqual(cell(0x101).stages[0], {
        mapped: 'all',
        levels: [1],
        frames: 'untold',
        stale: 'none',
        dirty: 'all',
      });
      const page = (await ask({ kind: 'page', gpa: '0x300000' })) as unknown as {
        sentence: string;
        rows: { name: string; words: string; certainty: string; value?: string }[];
      };
      assert.equal(page.sentence, 'A private page of slot 0');
      const row = (name: string) => page.rows.find((each) => each.name === name);
      assert.match(row('NPT')!.words, /^PTE 256 \(level 1, 4K\) maps the frame, rwx, dirty$/);
      assert.equal(row('frames')!.certainty, 'unknown');
    }),
);
