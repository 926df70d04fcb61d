import assert from 'node:assert/strict';
import { after } from 'node:test';
import { Lab } from '../../adapter/lab/boot.ts';
import type { LabLaunch } from '../../adapter/lab/launch.ts';
import { SILENT } from '../kvm/kvm.ts';
import { KERNELS, labTest } from './lab.ts';
import { type ProgramShape, randomProgram } from './programs.ts';
import { builtLeaves, builtTables, emulate, emulatedLeaves, type Leaf, onKvm, STUBS } from './run-both.ts';

// The engine's MMU beside upstream KVM's, by programs that a seed determines.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const ROUNDS = Number(process.env.KVM_MMU_AGREEMENT ?? 12);

const labs: Lab[] = [];
after(() => {
  for (const lab of labs) lab.close();
});

async function boot(kernel: string, params: LabLaunch['params']): Promise<Lab> {
  const lab = await Lab.boot({ kernel, modules: [], params }, SILENT);
  labs.push(lab);
  return lab;
}

const words = ({ level, flags }: Leaf): string => `level ${level}, 0x${flags.toString(16)}`;

/** In what two sets of leaf entries differ, an entry a line. Which frame the host gives does not count, but that it is one. */
function differences(engine: Map<number, Leaf>, kvm: Map<number, Leaf>): string[] {
  const lines: string[] = [];
  const frames = new Map<number, number>();
  for (const [gfn, leaf] of engine) {
    const real = kvm.get(gfn);
    const name = `gfn 0x${gfn.toString(16)}`;
    if (!real) lines.push(`${name}: the engine has ${words(leaf)}, KVM nothing`);
    else if (words(real) !== words(leaf)) lines.push(`${name}: the engine has ${words(leaf)}, KVM ${words(real)}`);
    if (real) {
      const other = frames.get(real.pfn);
      if (other !== undefined) lines.push(`${name}: KVM maps it to the frame of gfn 0x${other.toString(16)}`);
      frames.set(real.pfn, gfn);
    }
  }
  // What makes the accesses on KVM has pages of its own.
  for (const [gfn, leaf] of kvm)
    if (!engine.has(gfn) && (gfn < STUBS.first || gfn >= STUBS.end))
      lines.push(`gfn 0x${gfn.toString(16)}: KVM has ${words(leaf)}, the engine nothing`);
  return lines;
}

const SHAPES: readonly (readonly [string, ProgramShape])[] = [
  ['accesses', { statements: 30, host: false, guest: false }],
  ['edits of the guest’s tables and registers', { statements: 40, host: false, guest: true }],
  ['slots, dirty logging and notifiers besides', { statements: 40, host: true, guest: true }],
];

for (const kernel of KERNELS)
  labTest(`${kernel}, NPT: the engine’s leaf entries are KVM’s, after random programs`, async () => {
    const lab = await boot(kernel, { npt: '1' });
    let leaves = 0;
    for (let seed = FIRST; seed < FIRST + ROUNDS; seed++) {
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
        assert.deepEqual(differences(engine, kvm.leaves), [], `seed ${seed}, ${name}\n${text}`);
      }
    }
    assert.ok(leaves > 10 * ROUNDS, `only ${leaves} leaf entries were compared`);
  });
