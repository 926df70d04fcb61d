import assert from 'node:assert/strict';
import test from 'node:test';
import { thisMachine } from '../../adapter/kvm/place.ts';
import { RspClient } from '../../adapter/rsp/client.ts';
import { planStubs } from '../../adapter/scenario-kvm/stubs.ts';
import { emulatorBuilt } from '../../engine/queries/emulator-built.ts';
import { parseScenario } from '../../scenario/index.ts';
import { type NestedShape, randomNestedProgram } from '../engine/nested-programs.ts';
import { withoutKvm } from '../kvm/kvm.ts';
import { labTest, NEWER_KERNELS, sharedLab } from './lab.ts';
import { builtTables, emulate, onKvm, withEnd } from './run-both.ts';
import { allowed, type Compared, projected, roles, roots, sequence } from './shadow-events.ts';

// The engine's nested guests beside upstream KVM's: L1 runs its guest by VMRUN, on nested tables that KVM shadows.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 3);

/** L1's memory from here on; below are its guest's addresses. */
const L1 = 0x100_0000n;
/** From here on L1 keeps tables, which the code on KVM stores to. */
const L1_TABLES = 0x180_0000n;
/** L2’s own root tables, with a second stage of L1’s and without: who reads one first differs, by another entry. */
const L2_ROOTS = [0x280n, 0x1600n];
const DIRECT = 0x80n;
const LEVEL = 0xfn;
const ROOT_LEVEL = 5n;

/** Where the code on KVM begins in memory, L1's and its guest's. */
function stubsAt(text: string): bigint {
  const [stubs] = planStubs(parseScenario(text).program!, 1).values();
  return stubs!.gpa;
}

/** Of L1's own accesses its data's faults, of its guest's everything. */
function comparedOf(stubs: bigint): Compared {
  let isNested = false;
  const direct = new Set<string>();
  return {
    fault(address) {
      isNested = address < L1 || address >= stubs;
      if (address >= L1_TABLES) return undefined;
      return L2_ROOTS.includes(address >> 12n) ? address & ~0xfffn : address;
    },
    // In the kernel's words pages of the TDP MMU differ from direct ones of the shadow MMU by nothing: they are told apart by whose fault they are
    // made for, and go as what they were made as. At the level of a root there are no direct shadow pages, and roots are compared at the end.
    isPage(gfn, role, isZap) {
      if (gfn >= stubs >> 12n) return false;
      if ((role & DIRECT) === 0n) return true;
      const page = `${gfn} ${role & LEVEL}`;
      if (isZap) return direct.delete(page);
      const isShadow = isNested && (role & LEVEL) !== ROOT_LEVEL;
      if (isShadow) direct.add(page);
      return isShadow;
    },
    isEntry: (gfn) => isNested && gfn < stubs >> 12n,
    roleKnown: 0x0001_1fff,
  };
}

/** Words that the program could have written. */
const CELLS = [
  ...[0x1000000, 0x1400000].flatMap((from) =>
    Array.from({ length: 18 }, (_, page) => `u64(0x${(from + page * 4096).toString(16)})`),
  ),
  'u64(0x1200000)',
  'u64(0x1201000)',
  'nested.entries',
  'nested.exits',
  'faults.guest',
];

const BASE = { second: 'tdp npt 5-level', stage: '4-level', ownCode: true };
const SHAPES: readonly (readonly [string, NestedShape])[] = [
  ['edits of L1’s tables', { ...BASE, statements: 30, host: false }],
  // Of some thirty such programs one ended otherwise, once, and not again with the same seed: long runs alone are to look for it.
  ...(process.env.KVM_MMU_AGREEMENT
    ? [['slots, dirty logging and notifiers', { ...BASE, statements: 30, host: true }] as const]
    : []),
  ['tables of upper levels', { ...BASE, statements: 60, host: false, far: true }],
  ['a guest without a second stage of L1’s', { second: BASE.second, ownCode: true, statements: 30, host: true }],
];

for (const kernel of NEWER_KERNELS)
  labTest(
    `${kernel}, NPT: nested guests: every event of the shadow MMU's is the engine's, in its order, and so are the roots and what is written`,
    async () => {
      const lab = await sharedLab(kernel, { npt: '1' });
      const release = lab.release.split('.').map(Number);
      let same = 0;
      let kept = 0;
      for (let seed = FIRST; seed < FIRST + PROGRAMS / SHAPES.length; seed++)
        for (const [name, shape] of SHAPES) {
          const program = randomNestedProgram(seed, shape)
            .replace(' huge 2M', '')
            // KVM cannot be asked to.
            .replace(/^ {2}zap 0x.*\n/gm, '');
          const text = withEnd(program, CELLS);
          const stubs = stubsAt(text);
          const machine = emulate(text);
          const isStub = (gfn: bigint): boolean => gfn >= stubs >> 12n;
          const engine = {
            events: sequence(projected(machine), comparedOf(stubs)),
            roots: roots(emulatorBuilt(machine), isStub),
            roles: roles(emulatorBuilt(machine), ['root', 'guest', 'nested']),
            failures: [],
          };
          const kvm = await onKvm(
            text,
            lab,
            async (opened) => {
              const { built, run } = opened;
              await built.pull();
              assert.deepEqual(built.events!.recording.losses, []);
              await run.finish();
              const tables = await builtTables(opened);
              return {
                events: allowed(engine.events, sequence(built.events!.recording, comparedOf(stubs)), release),
                roots: roots(tables, isStub),
                roles: roles(tables, ['root', 'guest', 'nested']),
                failures: run.machine.small.failures,
              };
            },
            'events',
          );
          assert.deepEqual(engine, kvm, `seed ${seed}, ${name}\n${text}`);
          same += kvm.events.length;
          kept += kvm.roots.length;
        }
      assert.ok(same > 20 * PROGRAMS, `only ${same} events were compared`);
      console.log(`${same} events alike, in one order; ${kept} roots at the ends, current and previous`);
    },
    kernel,
  );

test('a KVM without SVM for its guests refuses nested guests by name, at the start', {
  skip: withoutKvm() ?? false,
}, async (t) => {
  const client = new RspClient(await thisMachine().start(['--memory', '16M']));
  try {
    await client.handshake();
    if ((await client.info()).has.svm === '') return t.skip('this KVM has SVM for its guests');
  } finally {
    client.kill();
  }
  const text = randomNestedProgram(1, { ...BASE, statements: 30, host: false });
  await onKvm(randomNestedProgram(1, { ...BASE, statements: 0, host: false }), thisMachine(), async ({ run }) =>
    assert.ok(run.ended, 'what no statement enters needs no SVM'),
  );
  await assert.rejects(
    onKvm(text, thisMachine(), async () => {}),
    /this scenario has nested guests: this KVM offers its guests no SVM with nested paging/,
  );
});
