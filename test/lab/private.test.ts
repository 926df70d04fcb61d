import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Random } from '../../adapter/conform/random.ts';
import type { HelperPlace } from '../../adapter/kvm/place.ts';
import { labArchitecture } from '../../adapter/lab/arch.ts';
import { Lab } from '../../adapter/lab/boot.ts';
import { findKernel } from '../../adapter/lab/kernel.ts';
import type { Machine } from '../../engine/machine.ts';
import { SILENT } from '../kvm/kvm.ts';
import { byPage, compareEvents } from './events.ts';
import { withoutLab } from './lab.ts';
import { builtLeaves, builtTables, emulate, emulatedLeaves, leafDifferences, onKvm, STUBS } from './run-both.ts';
import { projected } from './shadow-events.ts';

// Software-protected VMs beside upstream KVM's: what a guest finds in memory that is converted, and what KVM maps.

const KERNEL = 'linux-image-6.12-amd64';
const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 6);

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

function privateTest(name: string, body: (lab: Lab) => Promise<void>): void {
  const timeout = process.env.KVM_MMU_AGREEMENT ? 1_800_000 : 180_000;
  test(`${KERNEL}, software-protected VM: ${name}`, { skip: built.missing ?? false, timeout }, async () => {
    const lab = await Lab.boot({ kernel: KERNEL, modules: built.modules!, params: { npt: '1' } }, SILENT);
    try {
      await body(lab);
    } finally {
      lab.close();
    }
  });
}

/** What no read finds. */
const UNKNOWN = '0xffff_ffff_ffff';

/** A program of accesses, conversions and holes, which asks what every read has found. */
function randomProgram(seed: number, huge: boolean): string {
  const random = new Random(seed, 0);
  const hex = (value: number): string => `0x${value.toString(16)}`;
  const page = (): string => hex(random.below(8) * 4096);
  const access = (): string => {
    const gva = `0x400000 + ${page()} + ${8 * random.below(2)}`;
    if (random.below(2) === 0) return `write ${gva} = ${1 + random.below(1000)}`;
    return `read ${gva}\n  expect loaded == ${UNKNOWN}`;
  };
  const range = (): string => `${hex(0x200000 + random.below(8) * 4096)} +${4 * (1 + random.below(4))}K`;
  const host = (): string => {
    switch (random.below(huge ? 7 : 6)) {
      case 0:
        return `punch ${range()}`;
      case 1:
        // A host that unmaps a part of a large page tells of the whole (__split_huge_pmd).
        return `unmap ${huge ? '0x200000 +2M' : range()}`;
      case 6:
        return `convert 0x200000 +2M ${random.pick(['private', 'shared'])}`;
      default:
        return `convert ${range()} ${random.pick(['private', 'shared'])}`;
    }
  };
  const lines = (count: number, make: () => string): string[] => Array.from({ length: count }, () => `  ${make()}`);
  return [
    'machine x86-64 {',
    `  memory 0 +16M${huge ? ' huge 2M' : ''} guest-memfd`,
    '  memory 0x2000000 +32K slot 3',
    '  second-stage tdp npt 5-level',
    '  vm software-protected',
    ...(random.below(2) === 0 ? [`  private ${range()}`] : []),
    '}',
    'guest g { map 0x400000 -> 0x200000 +80K rwx }',
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

privateTest(
  'an example ends as in the emulator, and an access to private memory that a slot lacks is told',
  async (lab) => {
    const text = readFileSync('examples/private-memory.mmu', 'utf8');
    const found = await onKvm(text, lab, async ({ run }) => {
      await run.finish();
      const { machine } = run;
      return { failures: machine.small.failures, passed: machine.counter('expects.passed'), left: run.stuck };
    });
    assert.deepEqual(found, { failures: [], passed: 7, left: undefined });
    const lacking = `machine x86-64 {
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
    const words = [
      'KVM_EXIT_MEMORY_FAULT: gpa 0x2000000 was accessed as private memory, and its slot has no guest_memfd',
    ];
    const told = ({ small }: Machine): string[] => small.failures.map(({ text: failed }) => failed);
    assert.deepEqual(told(emulate(lacking)), words);
    assert.deepEqual(await onKvm(lacking, lab, async ({ run }) => told(run.machine)), words);
  },
);

for (const huge of [false, true])
  privateTest(
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
