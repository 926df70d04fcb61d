import assert from 'node:assert/strict';
import test from 'node:test';
import { type HelperPlace, thisMachine } from '../../adapter/kvm/place.ts';
import { openRecording } from '../../adapter/trace/open.ts';
import { project } from '../../engine/history/project.ts';
import type { Recording } from '../../engine/history/recording.ts';
import type { Machine } from '../../engine/machine.ts';
import { answer } from '../../engine/queries/answer.ts';
import { withoutKvm } from '../kvm/kvm.ts';
import { byPage, compareEvents } from './events.ts';
import { withoutShadow } from './here.ts';
import { KERNELS, labTest, sharedLab } from './lab.ts';
import { FIRST_GVA, PAGES, type ProgramShape, randomProgram } from './programs.ts';
import {
  builtLeaves,
  builtTables,
  emulate,
  emulatedLeaves,
  type Leaf,
  leafDifferences,
  leafWords,
  onKvm,
  STUBS,
} from './run-both.ts';

// The engine's MMU beside upstream KVM's, by programs that a seed determines.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
/** Programs of each comparison. */
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 3);

const SHAPES: readonly (readonly [string, ProgramShape])[] = [
  ['accesses', { statements: 30, host: false, guest: false }],
  ['edits of the guest’s tables and registers', { statements: 40, host: false, guest: true }],
  ['slots, dirty logging and notifiers besides', { statements: 40, host: true, guest: true }],
];

for (const kernel of KERNELS)
  labTest(`${kernel}, NPT: the engine’s leaf entries are KVM’s, after random programs`, async () => {
    const lab = await sharedLab(kernel, { npt: '1' });
    let leaves = 0;
    for (let seed = FIRST; seed < FIRST + PROGRAMS / SHAPES.length; seed++) {
      for (const [name, shape] of SHAPES) {
        const text = randomProgram(seed, { ...shape, second: 'tdp npt 5-level' });
        const machine = emulate(text);
        const kvm = await onKvm(text, lab, async (opened) => ({
          leaves: builtLeaves(await builtTables(opened)),
          failures: opened.run.machine.small.failures,
        }));
        const engine = emulatedLeaves(machine);
        leaves += engine.size;
        const lines = (failures: readonly { line: number }[]) => failures.map(({ line }) => line);
        assert.deepEqual(
          lines(kvm.failures),
          lines(machine.small.failures),
          `seed ${seed}, ${name}: who fails\n${text}`,
        );
        assert.deepEqual(leafDifferences(engine, kvm.leaves), [], `seed ${seed}, ${name}\n${text}`);
      }
    }
    assert.ok(leaves > 5 * PROGRAMS, `only ${leaves} leaf entries were compared`);
  });

/** Programs whose every statement touches memory on KVM too: what makes registers change there runs code of its own. */
const TOLD: readonly (readonly [string, ProgramShape])[] = [
  ['accesses', { statements: 30, host: false, guest: false }],
  ['slots, dirty logging and notifiers besides', { statements: 40, host: true, guest: false }],
];

/** The engine's log as a recording: its text goes the way that tracefs's goes. */
function projected(machine: Machine): Recording {
  const lines = [...project(machine)].map(
    ({ step, task, event, text }) =>
      `  task-${machine.tasks.findIndex(({ name }) => name === task) + 1}  [000] ..... ${(step / 1e6).toFixed(6)}: ${event}: ${text}\n`,
  );
  return openRecording(new TextEncoder().encode(`# tracer: nop\n#\n${lines.join('')}`));
}

for (const kernel of KERNELS)
  labTest(`${kernel}, NPT: error codes and all events of the engine are those that KVM records`, async () => {
    const lab = await sharedLab(kernel, { npt: '1' });
    const rows = new Set<string>();
    let same = 0;
    const isOurs = (gfn: number): boolean => gfn < STUBS.first || gfn >= STUBS.end;
    for (let seed = FIRST; seed < FIRST + PROGRAMS / TOLD.length; seed++) {
      for (const [name, shape] of TOLD) {
        const text = randomProgram(seed, { ...shape, second: 'tdp npt 5-level' });
        const engine = byPage(projected(emulate(text)), isOurs);
        const kvm = await onKvm(
          text,
          lab,
          async ({ built }) => {
            await built.pull();
            assert.deepEqual(built.events!.recording.losses, []);
            return byPage(built.events!.recording, isOurs);
          },
          'events',
        );
        const compared = compareEvents(engine, kvm, lab.release);
        assert.deepEqual(compared.wrong, [], `seed ${seed}, ${name}\n${text}`);
        for (const row of compared.rows) rows.add(row);
        same += compared.same;
      }
    }
    assert.ok(same > 50 * PROGRAMS, `only ${same} events were compared`);
    console.log(`${same} events alike; differences allowed: ${[...rows].join(', ') || 'none was needed'}`);
  });

/**
 * What a shadow leaf must be, by the guest's own entries.
 * @param emulated whether KVM emulates the supervisor (PVM): what its x86_emulate_instruction writes sets D by a walk of its own, and the leaf
 * that a read had made before stays without W
 */
function shadowProblems(machine: Machine, leaves: Map<number, Leaf>, wp: boolean, emulated: boolean): string[] {
  const problems: string[] = [];
  for (let page = FIRST_GVA / 4096; page < FIRST_GVA / 4096 + PAGES; page++) {
    const leaf = leaves.get(page);
    if (!leaf) continue;
    const query = { kind: 'walk', vcpu: 0, space: 'gva', address: `0x${(page * 4096).toString(16)}` } as const;
    const { answer: walk } = answer(machine, query, { since: 0, fault: undefined });
    const name = `gva 0x${(page * 4096).toString(16)}: KVM has ${leafWords(leaf)}`;
    const entry =
      walk.kind === 'walk' ? walk.references.filter(({ stage }) => stage === 'guest').at(-1)?.entry : undefined;
    if (walk.kind !== 'walk' || entry?.state !== 'leaf') {
      problems.push(`${name}, and the guest maps nothing`);
      continue;
    }
    const rights = walk.outcome.rights ?? '';
    const dirty = (BigInt(entry.value) & 0x40n) !== 0n;
    const has = { w: (leaf.flags & 2n) !== 0n, u: (leaf.flags & 4n) !== 0n, x: leaf.flags >> 63n === 0n };
    const may = { w: rights.includes('w') && dirty, u: rights.includes('u'), x: rights.includes('x') };
    // Without WP the kernel's write to a read-only page makes its leaf writable, and the supervisor's alone (the page fault handler
    // of paging_tmpl.h).
    const lifted = !wp && has.w && !has.u && !rights.includes('w');
    if (lifted) continue;
    if (emulated && may.w && !has.w && has.u === may.u && has.x === may.x) continue;
    if (has.w !== may.w || has.u !== may.u || has.x !== may.x)
      problems.push(`${name}; the guest grants ${rights}${dirty ? ', dirty' : ''}`);
  }
  return problems;
}

/** Runs programs there, and compares what the leaf entries grant. @returns how many leaf entries there were */
async function shadowAgreement(place: HelperPlace, emulated: boolean): Promise<number> {
  let compared = 0;
  for (let seed = FIRST; seed < FIRST + PROGRAMS; seed++) {
    const text = randomProgram(seed, { statements: 40, host: false, guest: true });
    const machine = emulate(text);
    const leaves = await onKvm(text, place, async (opened) => builtLeaves(await builtTables(opened)));
    const { wp } = machine.vcpu(0).mode;
    assert.deepEqual(shadowProblems(machine, leaves, wp, emulated), [], `seed ${seed}\n${text}`);
    for (let page = 0; page < PAGES; page++) if (leaves.has(FIRST_GVA / 4096 + page)) compared++;
  }
  assert.ok(compared > PROGRAMS, `only ${compared} leaf entries were compared`);
  return compared;
}

for (const kernel of KERNELS)
  labTest(
    `${kernel}, shadow paging: what KVM's leaf entries grant is what the engine's guest walk grants`,
    async () => {
      const compared = await shadowAgreement(await sharedLab(kernel, { npt: '0' }), false);
      console.log(`${compared} shadow leaf entries grant what the guest's entries do`);
    },
  );

const timeout = process.env.KVM_MMU_AGREEMENT ? 600_000 : 60_000;
test(`this machine's KVM, shadow paging: leaf entries as in labs`, {
  skip: withoutKvm() ?? false,
  timeout,
}, async (t) => {
  const why = await withoutShadow();
  if (why !== undefined) return t.skip(why);
  console.log(`${await shadowAgreement(thisMachine(), true)} shadow leaf entries grant what the guest's entries do`);
});
