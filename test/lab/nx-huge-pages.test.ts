import assert from 'node:assert/strict';
import type { HelperPlace } from '../../adapter/kvm/place.ts';
import type { Lab } from '../../adapter/lab/boot.ts';
import { emulatorBuilt } from '../../engine/queries/emulator-built.ts';
import { bothWays } from './both-ways.ts';
import { byPage, compareEvents } from './events.ts';
import { labTest, longLabTest, NEWER_KERNELS, sharedLab, skipsOlder } from './lab.ts';
import { type ProgramShape, randomProgram } from './programs.ts';
import { builtLeaves, builtTables, emulate, emulatedLeaves, onKvm, STUBS } from './run-both.ts';
import { allowed, comparedOf, isStub, projected, roots, sequence, stubsOf } from './shadow-events.ts';

// NX huge pages beside upstream KVM's: guest memory has large pages behind it, and programs execute in it.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 2);
/** In 7, and in 11, a fault finds the table of a fetch where it would map a large page (disallowed_hugepage_adjust), which is rare. */
const SHADOW_SEEDS = Array.from({ length: PROGRAMS }, (_, index) => FIRST + index);

const forced = (npt: string) => ({ npt, 'kvm.nx_huge_pages': 'force' });

const D = 0x40n;
const CHANGED = /^kvm_tdp_mmu_spte_changed (0x\w+) level 1$/;
const isRepeat = (says: string): boolean => /^(\w+) → \1$/.test(says);

/**
 * Pages of 4K whose entry KVM makes once more, as it was but for A and D. The engine, as today's kernel, takes a fault for spurious whose
 * access a piece of a split page allows; Linux 6.12 does not look (tdp_mmu_map_handle_target_level), and leaves D to the processor.
 */
function remade(events: ReadonlyMap<string, readonly string[]>): ReadonlySet<number> {
  return new Set(
    [...events].flatMap(([about, says]) =>
      CHANGED.test(about) && says.some(isRepeat) ? [Number(CHANGED.exec(about)![1])] : [],
    ),
  );
}

/** Events without those of that. */
function withoutRepeats(events: ReadonlyMap<string, readonly string[]>): Map<string, readonly string[]> {
  const found = new Map(events);
  for (const gfn of remade(events)) {
    const [changed, set] = [
      `kvm_tdp_mmu_spte_changed 0x${gfn.toString(16)} level 1`,
      `kvm_mmu_set_spte 0x${gfn.toString(16)}`,
    ];
    const says = found.get(changed)!;
    found.set(
      changed,
      says.filter((each) => !isRepeat(each)),
    );
    const left = [...(found.get(set) ?? [])];
    for (const each of says.filter(isRepeat)) left.splice(left.lastIndexOf(`level 1 ${each.split(' ')[0]}`), 1);
    found.set(set, left);
  }
  return found;
}

/** A lab whose guests' memory is backed by large pages. */
const hugeMemory = (lab: Lab): HelperPlace => ({
  start: (args, image) => lab.start(['--page-size', '2M', ...args], image),
  close() {},
});

const SHAPES: readonly ProgramShape[] = [
  { statements: 30, host: false, guest: false, nx: true },
  { statements: 40, host: false, guest: true, nx: true, far: true },
];

for (const kernel of NEWER_KERNELS)
  labTest(
    `${kernel}, NPT with NX huge pages: leaf entries and events are the engine's, and events tell of the tables that the kernel has`,
    async (context) => {
      const lab = await sharedLab(kernel, forced('1'));
      if (
        skipsOlder(
          context,
          lab,
          'kvm_tdp_mmu_map zaps a large page where a smaller one is needed, and does not split it',
        )
      )
        return;
      const isOurs = (gfn: number): boolean => gfn < STUBS.first || gfn >= STUBS.end;
      let [large, split, told] = [0, 0, 0];
      for (let seed = FIRST; seed < FIRST + PROGRAMS / SHAPES.length; seed++)
        for (const shape of SHAPES) {
          const text = randomProgram(seed, { ...shape, second: 'tdp npt 5-level' });
          const machine = emulate(text);
          const words = (leaves: ReturnType<typeof builtLeaves>, events: Parameters<typeof remade>[0]): string[] =>
            [...leaves]
              .filter(([gfn]) => isOurs(gfn))
              .map(([gfn, { level, flags }]) => {
                const compared = remade(events).has(gfn) ? flags & ~D : flags;
                return `gfn 0x${gfn.toString(16)}: level ${level}, 0x${compared.toString(16)}`;
              })
              .sort();
          const kvm = await onKvm(
            text,
            hugeMemory(lab),
            async (opened) => {
              const { built } = opened;
              await built.pull();
              assert.deepEqual(built.events!.recording.losses, []);
              const tables = await builtTables(opened);
              const events = byPage(built.events!.recording, isOurs);
              return {
                leaves: words(builtLeaves(tables), events),
                disallowed: [...tables.tables.values()].flatMap(({ gfn, counts }) =>
                  counts!.nxDisallowed && isOurs(gfn) ? [gfn] : [],
                ),
                events,
              };
            },
            'events',
          );
          const name = `seed ${seed}\n${text}`;
          assert.deepEqual(words(emulatedLeaves(machine), kvm.events), kvm.leaves, name);
          const disallowed = [...machine.pages.values()].flatMap(({ gfn, nxHugePageDisallowed }) =>
            nxHugePageDisallowed ? [gfn] : [],
          );
          assert.deepEqual(disallowed.sort(), kvm.disallowed.sort(), name);
          if (!shape.guest) {
            const compared = compareEvents(byPage(projected(machine), isOurs), withoutRepeats(kvm.events), lab.release);
            assert.deepEqual(compared.wrong, [], name);
            told += compared.same;
          }
          large += kvm.leaves.filter((each) => each.includes('level 2')).length;
          split += machine.counter('nx_lpage_splits');
          const found = await bothWays(text, hugeMemory(lab));
          assert.deepEqual(found.wrong, [], name);
        }
      assert.ok(large > 0 && split > 0 && told > 0, `${large} large pages, ${split} tables, ${told} events`);
      console.log(`${large} large pages, ${split} tables that a fetch made, ${told} events alike`);
    },
    kernel,
  );

for (const kernel of NEWER_KERNELS)
  longLabTest(
    `${kernel}, shadow paging of PAE guests with NX huge pages: every event of the engine's is one that KVM records, in its order`,
    async (context) => {
      const lab = await sharedLab(kernel, forced('0'));
      if (skipsOlder(context, lab, 'FNAME(invlpg) zaps entries and prefetches')) return;
      const release = lab.release.split('.').map(Number);
      let [same, large] = [0, 0];
      for (const seed of SHADOW_SEEDS) {
        const shape = { statements: 60, host: false, guest: true, ownCode: true, large: true, nx: true } as const;
        const text = randomProgram(seed, { ...shape, second: 'shadow', paging: 'pae' });
        const compared = comparedOf(stubsOf(text));
        const machine = emulate(text);
        const engine = {
          events: sequence(projected(machine), compared),
          roots: roots(emulatorBuilt(machine), isStub),
        };
        const kvm = await onKvm(
          text,
          hugeMemory(lab),
          async (opened) => {
            await opened.built.pull();
            assert.deepEqual(opened.built.events!.recording.losses, []);
            return {
              events: allowed(engine.events, sequence(opened.built.events!.recording, compared), release),
              roots: roots(await builtTables(opened), isStub),
            };
          },
          'events',
        );
        assert.deepEqual(engine, kvm, `seed ${seed}\n${text}`);
        same += kvm.events.length;
        large += kvm.events.filter((each) => /set_spte .* level 2/.test(each)).length;
      }
      assert.ok(same > 0 && large > 0, `${same} events, ${large} of large pages`);
      console.log(`${same} events alike, in one order; ${large} large pages were mapped`);
    },
    kernel,
  );
