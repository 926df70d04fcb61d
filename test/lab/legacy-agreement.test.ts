import assert from 'node:assert/strict';
import type { HelperPlace } from '../../adapter/kvm/place.ts';
import type { Lab } from '../../adapter/lab/boot.ts';
import type { KvmTables } from '../../engine/kernel/tables.ts';
import { emulatorBuilt } from '../../engine/queries/emulator-built.ts';
import { labTest, NEWER_KERNELS, sharedLab } from './lab.ts';
import { type ProgramShape, randomProgram } from './programs.ts';
import { builtLeaves, builtTables, emulate, leafWords, onKvm } from './run-both.ts';
import { allowed, type Compared, isStub, projected, roots, sequence } from './shadow-events.ts';

// The engine's direct shadow pages beside upstream KVM's (kvm.tdp_mmu=N): every event, in its order.

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
 * that code stores to them first (`far`, `large`), so that they are left out.
 */
const comparedOf = ({ far, large }: ProgramShape): Compared => {
  const isLeftOut = (gfn: bigint): boolean => isStub(gfn) || ((far || large) === true && isTable(gfn));
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
const populated = (lab: Lab, ...args: string[]): HelperPlace => ({
  start: (more, image) => lab.start(['--populate', 'yes', ...args, ...more], image),
  close() {},
});

/** What the engine makes of a program, and KVM there. @returns how many events and leaf entries there were, and events of large pages */
async function agree(lab: Lab, place: HelperPlace, seed: number, shape: ProgramShape, name: string) {
  const text = randomProgram(seed, { ...shape, second: 'tdp npt 5-level' }).replace(
    'second-stage',
    'policy tdp-mmu = off\n  second-stage',
  );
  const compared = comparedOf(shape);
  const words = (tables: KvmTables): string[] =>
    [...builtLeaves(tables)]
      .filter(([gfn]) => compared.isEntry(BigInt(gfn)))
      .map(([gfn, leaf]) => `gfn 0x${gfn.toString(16)}: ${leafWords(leaf)}`)
      .sort();
  const machine = emulate(text);
  const built = emulatorBuilt(machine);
  const engine = {
    events: sequence(projected(machine), compared),
    roots: roots(built, isStub),
    leaves: words(built),
  };
  const release = lab.release.split('.').map(Number);
  const kvm = await onKvm(
    text,
    place,
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
  return {
    events: kvm.events.length,
    leaves: kvm.leaves.length,
    large: kvm.events.filter((each) => /^set_spte .* level 2/.test(each)).length,
  };
}

for (const kernel of NEWER_KERNELS) {
  labTest(
    `${kernel}, NPT without the TDP MMU: every event of the engine's is one that KVM records, in its order, and so are leaf entries and roots`,
    async () => {
      const lab = await sharedLab(kernel, { npt: '1', 'kvm.tdp_mmu': 'N' });
      let [events, leaves] = [0, 0];
      for (let seed = FIRST; seed < FIRST + PROGRAMS / SHAPES.length; seed++)
        for (const [name, shape] of SHAPES) {
          const same = await agree(lab, populated(lab), seed, shape, name);
          events += same.events;
          leaves += same.leaves;
        }
      assert.ok(events > 20 * PROGRAMS, `only ${events} events were compared`);
      console.log(`${events} events alike, in one order; ${leaves} leaf entries at the ends`);
    },
    kernel,
  );

  labTest(
    `${kernel}, NPT without the TDP MMU, with NX huge pages: the same of large pages and of what is executed in them`,
    async () => {
      const params = { npt: '1', 'kvm.tdp_mmu': 'N', 'kvm.nx_huge_pages': 'force' };
      const lab = await sharedLab(kernel, params);
      const shape = { statements: 40, host: false, guest: true, ownCode: true, large: true, nx: true };
      let [events, large] = [0, 0];
      for (let seed = FIRST; seed < FIRST + PROGRAMS / 2; seed++) {
        const same = await agree(lab, populated(lab, '--page-size', '2M'), seed, shape, 'large pages');
        events += same.events;
        large += same.large;
      }
      assert.ok(events > 5 * PROGRAMS && large > 0, `only ${events} events were compared, ${large} of large pages`);
      console.log(`${events} events alike, in one order, ${large} of large pages`);
    },
    kernel,
  );
}
