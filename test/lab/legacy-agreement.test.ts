import assert from 'node:assert/strict';
import type { HelperPlace } from '../../adapter/kvm/place.ts';
import { Lab } from '../../adapter/lab/boot.ts';
import type { KvmTables } from '../../engine/kernel/tables.ts';
import { emulatorBuilt } from '../../engine/queries/emulator-built.ts';
import { SILENT } from '../kvm/kvm.ts';
import { labTest, NEWER_KERNELS } from './lab.ts';
import { type ProgramShape, randomProgram } from './programs.ts';
import { builtLeaves, builtTables, emulate, leafWords, onKvm } from './run-both.ts';
import { allowed, type Compared, isStub, projected, roots, sequence } from './shadow-events.ts';

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 4);

const SHAPES: readonly (readonly [string, ProgramShape])[] = [
  ['accesses', { statements: 30, host: false, guest: false, ownCode: true }],
  ['edits of the guest’s tables and registers', { statements: 40, host: false, guest: true, ownCode: true }],
  ['slots, dirty logging and notifiers', { statements: 40, host: true, guest: false, ownCode: true }],
  ['tables of upper levels', { statements: 60, host: false, guest: true, ownCode: true, far: true }],
];

/** Where guests have their tables, at the end of the first slot. */
const isTable = (gfn: bigint): boolean => gfn >= 0xf00n && gfn < 0x1000n;

/**
 * Of a fault on a table which entry was wanted differs: the code that makes the accesses has entries of its own. Where tables come and go
 * that code stores to them first (`far`), so that they are left out.
 */
const comparedOf = ({ far }: ProgramShape): Compared => {
  const isLeftOut = (gfn: bigint): boolean => isStub(gfn) || (far === true && isTable(gfn));
  return {
    fault(address) {
      const gfn = address >> 12n;
      return isLeftOut(gfn) ? undefined : isTable(gfn) ? address & ~0xfffn : address;
    },
    isPage: (gfn) => !isStub(gfn),
    isEntry: (gfn) => !isLeftOut(gfn),
    roleKnown: 0x0001_1fff,
  };
};

/** The host's own page tables say what KVM maps ahead of an access (gfn_to_page_many_atomic): in the engine it has all memory at hand. */
const populated = (lab: Lab): HelperPlace => ({
  start: (args, image) => lab.start(['--populate', 'yes', ...args], image),
  close() {},
});

for (const kernel of NEWER_KERNELS)
  labTest(
    `${kernel}, NPT without the TDP MMU: every event of the engine's is one that KVM records, in its order`,
    async () => {
      const lab = await Lab.boot({ kernel, modules: [], params: { npt: '1', 'kvm.tdp_mmu': 'N' } }, SILENT);
      const release = lab.release.split('.').map(Number);
      let [same, leaves] = [0, 0];
      try {
        for (let seed = FIRST; seed < FIRST + PROGRAMS / SHAPES.length; seed++)
          for (const [name, shape] of SHAPES) {
            const text = randomProgram(seed, { ...shape, second: 'tdp npt 5-level' }).replace(
              'second-stage',
              'policy tdp-mmu = off\n  second-stage',
            );
            const machine = emulate(text);
            const compared = comparedOf(shape);
            const words = (tables: KvmTables): string[] =>
              [...builtLeaves(tables)]
                .filter(([gfn]) => compared.isEntry(BigInt(gfn)))
                .map(([gfn, leaf]) => `gfn 0x${gfn.toString(16)}: ${leafWords(leaf)}`)
                .sort();
            const built = emulatorBuilt(machine);
            const engine = {
              events: sequence(projected(machine), compared),
              roots: roots(built, isStub),
              leaves: words(built),
            };
            const kvm = await onKvm(
              text,
              populated(lab),
              async (opened) => {
                await opened.built.pull();
                assert.deepEqual(opened.built.events!.recording.losses, []);
                const tables = await builtTables(opened);
                return {
                  events: allowed(engine.events, sequence(opened.built.events!.recording, compared), release),
                  roots: roots(tables, isStub),
                  leaves: words(tables),
                };
              },
              'events',
            );
            assert.deepEqual(engine, kvm, `seed ${seed}, ${name}\n${text}`);
            same += kvm.events.length;
            leaves += kvm.leaves.length;
          }
      } finally {
        lab.close();
      }
      assert.ok(same > 20 * PROGRAMS, `only ${same} events were compared`);
      console.log(`${same} events alike, in one order; ${leaves} leaf entries at the ends`);
    },
    kernel,
  );
