import assert from 'node:assert/strict';
import { Lab } from '../../adapter/lab/boot.ts';
import { evaluateInteger } from '../../engine/expression.ts';
import { programScope } from '../../engine/queries/scope.ts';
import { parseExpression } from '../../scenario/index.ts';
import { SILENT } from '../kvm/kvm.ts';
import { KERNELS, labTest } from './lab.ts';
import { FIRST_GPA, FIRST_GVA, PAGES, type ProgramShape, randomProgram } from './programs.ts';
import { emulate, onKvm } from './run-both.ts';

// Scenarios of protected mode, which KVMs that are guests themselves do not run: they end as in the emulator.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 8);

const SHAPES: readonly ProgramShape[] = [
  { statements: 60, host: false, guest: true },
  { statements: 60, host: true, guest: true, far: true },
];

/** Every entry and every word that a program could touch. */
const CELLS = [
  ...Array.from({ length: PAGES }, (_, page) => `pte(0x${(FIRST_GVA + page * 4096).toString(16)})`),
  ...Array.from({ length: 16 }, (_, page) => `u64(0x${(FIRST_GPA + page * 4096).toString(16)})`),
  'faults.guest',
  'accesses',
];

/** The program with what it comes to in the emulator, as expectations. */
function withEnd(text: string): string {
  const machine = emulate(text);
  const scope = programScope(machine, machine.tasks[0]!);
  const lines = CELLS.map((cell) => {
    const { expression } = parseExpression(cell);
    return `expect ${cell} == ${evaluateInteger(expression!, scope, cell)}`;
  });
  return `${text}\n${lines.join('\n')}\n`;
}

for (const kernel of KERNELS)
  for (const npt of ['0', '1'])
    labTest(`${kernel}, npt=${npt}: programs of 32-bit and PAE guests end as in the emulator`, async () => {
      const lab = await Lab.boot({ kernel, modules: [], params: { npt } }, SILENT);
      try {
        for (let seed = FIRST; seed < FIRST + PROGRAMS / SHAPES.length / 2; seed++)
          for (const paging of ['32-bit', 'pae'] as const)
            for (const shape of SHAPES) {
              const second = npt === '1' ? 'tdp npt 5-level' : 'shadow';
              // Under NPT QEMU's processor sets A in the PDPTEs, where it is reserved: a write to CR4.SMEP, which loads them, would
              // fail (load_pdptrs).
              const program = randomProgram(seed, { ...shape, second, paging });
              const text = withEnd(
                npt === '1' && paging === 'pae' ? program.replaceAll('cr4.smep', 'cr4.smap') : program,
              );
              const failures = await onKvm(text, lab, async ({ run }) => {
                await run.finish();
                return run.machine.small.failures;
              });
              assert.deepEqual(failures, emulate(text).small.failures, `seed ${seed}, ${paging}\n${text}`);
            }
      } finally {
        lab.close();
      }
    });
