import assert from 'node:assert/strict';
import test from 'node:test';
import { thisMachine } from '../../adapter/kvm/place.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { emulatorBuilt } from '../../engine/queries/emulator-built.ts';
import { withoutKvm } from '../kvm/kvm.ts';
import { withoutShadow } from './here.ts';
import { labTest, NEWER_KERNELS, sharedLab, skipsOlder } from './lab.ts';
import { type ProgramShape, randomProgram } from './programs.ts';
import { builtTables, emulate, onKvm } from './run-both.ts';
import {
  allowed,
  type Compared,
  comparedOf,
  isStub,
  projected,
  roles,
  roots,
  sequence,
  stubsOf,
} from './shadow-events.ts';

// The engine's shadow paging beside upstream KVM's: every event, in its order.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 5);

const SHAPES: readonly (readonly [string, ProgramShape])[] = [
  ['accesses', { statements: 30, host: false, guest: false, ownCode: true }],
  ['edits of the guest’s tables and registers', { statements: 40, host: false, guest: true, ownCode: true }],
  ['slots, dirty logging and notifiers', { statements: 40, host: true, guest: false, ownCode: true }],
  ['tables of upper levels', { statements: 60, host: false, guest: true, ownCode: true, far: true }],
  ['five address spaces', { statements: 60, host: false, guest: true, ownCode: true, spaces: 5 }],
];

/** The stubs of long mode have large pages too, which cannot be told from the scenario's. */
const LARGE_SHAPE: readonly [string, ProgramShape] = [
  'large pages',
  { statements: 60, host: false, guest: true, ownCode: true, large: true },
];

/** For guests of 32 bits: unless the run is a long one, only where their tables differ from those of long mode. */
const NARROW_SHAPES = [...(process.env.KVM_MMU_AGREEMENT ? SHAPES : SHAPES.slice(-2)), LARGE_SHAPE];

for (const kernel of NEWER_KERNELS)
  for (const paging of ['4-level', 'pae', '32-bit'] as const)
    labTest(
      `${kernel}, shadow paging of ${paging} guests: every event of the engine’s is one that KVM records, in its order, and so are the roots that are kept, and the roles`,
      async (context) => {
        const lab = await sharedLab(kernel, { npt: '0' });
        const release = lab.release.split('.').map(Number);
        if (skipsOlder(context, lab, 'FNAME(invlpg) zaps entries and prefetches')) return;
        let same = 0;
        let kept = 0;
        const shapes = paging === '4-level' ? SHAPES : NARROW_SHAPES;
        for (let seed = FIRST; seed < FIRST + PROGRAMS / shapes.length; seed++) {
          for (const [name, shape] of shapes) {
            const text = randomProgram(seed, { ...shape, second: 'shadow', paging });
            const compared = comparedOf(stubsOf(text));
            const machine = emulate(text);
            const engine = {
              events: sequence(projected(machine), compared),
              roots: roots(emulatorBuilt(machine), isStub),
              roles: roles(emulatorBuilt(machine)),
            };
            const kvm = await onKvm(
              text,
              lab,
              async (opened) => {
                const { built } = opened;
                await built.pull();
                assert.deepEqual(built.events!.recording.losses, []);
                const tables = await builtTables(opened);
                return {
                  events: allowed(engine.events, sequence(built.events!.recording, compared), release),
                  roots: roots(tables, isStub),
                  roles: roles(tables),
                };
              },
              'events',
            );
            assert.deepEqual(engine, kvm, `seed ${seed}, ${name}\n${text}`);
            same += kvm.events.length;
            kept += kvm.roots.length;
          }
        }
        assert.ok(same > 20 * PROGRAMS, `only ${same} events were compared`);
        console.log(`${same} events alike, in one order; ${kept} roots at the ends, current and previous`);
      },
      kernel,
    );

for (const kernel of NEWER_KERNELS)
  labTest(
    `${kernel}, NPT: a vCPU's root has the role and the references that the engine gives it`,
    async () => {
      const lab = await sharedLab(kernel, { npt: '1' });
      for (let seed = FIRST; seed < FIRST + PROGRAMS / 4; seed++) {
        const shape = { statements: 40, host: false, guest: true, spaces: 5 };
        const text = randomProgram(seed, { ...shape, second: 'tdp npt 5-level' });
        const kvm = await onKvm(text, lab, builtTables);
        const engine = emulatorBuilt(emulate(text));
        assert.deepEqual(roots(engine, isStub), roots(kvm, isStub), `seed ${seed}\n${text}`);
        assert.deepEqual(roles(engine), roles(kvm), `seed ${seed}\n${text}`);
      }
    },
    kernel,
  );

/**
 * On a KVM that is a guest itself (PVM) the supervisor's accesses are emulated, whatever the tables say, and its stores to tables with
 * them; nor does that kernel tell of page faults. What is left to compare are the user's accesses: the pages, entries and
 * injected faults that they lead to. A fetch would need code that is written from outside.
 */
test('this machine’s KVM, shadow paging: the user’s accesses lead to the engine’s events', {
  skip: withoutKvm() ?? false,
  timeout: process.env.KVM_MMU_AGREEMENT ? 600_000 : 60_000,
}, async (t) => {
  const missing = await withoutShadow();
  if (missing !== undefined) return t.skip(missing);
  const withoutFaults = (recording: Recording, compared: Compared, own?: ReadonlySet<number>): string[] =>
    sequence(recording, compared, own).filter((each) => !each.startsWith('#PF'));
  let same = 0;
  for (let seed = FIRST; seed < FIRST + PROGRAMS; seed++) {
    const text = randomProgram(seed, { statements: 40, host: false, guest: false, second: 'shadow' })
      .replace(/^ {2}(read|write)/gm, '  user $1')
      .replace(/^ {2}(user )?fetch.*\n/gm, '');
    const compared = comparedOf(stubsOf(text));
    const kvm = await onKvm(
      text,
      thisMachine(),
      async ({ built, info }) => {
        await built.pull();
        return withoutFaults(built.events!.recording, compared, new Set([info.pid, ...(info.threads ?? [])]));
      },
      'events',
    );
    assert.deepEqual(withoutFaults(projected(emulate(text)), compared), kvm, `seed ${seed}\n${text}`);
    same += kvm.length;
  }
  console.log(`${same} events alike, in one order`);
});
