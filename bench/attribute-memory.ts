import type { Program } from '../engine/program.ts';
import { parseScenario } from '../scenario/index.ts';

/** Guest frames of 1T. */
const FRAMES = 2 ** 28;

/** So many different guest frames in 1T, in no order. */
export function scattered(count: number, seed: number): number[] {
  let state = seed;
  const found = new Set<number>();
  while (found.size < count) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const high = state >>> 4;
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    found.add((high ^ (state >>> 12)) % FRAMES);
  }
  return [...found];
}

/** A machine with 1T of memory that can be private. */
export function programOfTerabyte(): Program {
  const { program, diagnostics } = parseScenario(
    'machine {\n  vm snp\n  memory 0 +1024G guest-memfd\n  second-stage tdp npt 4-level\n}\nvcpu 0 {\n  shared read 0\n}',
  );
  if (!program) throw new Error(diagnostics.map(({ message }) => message).join('\n'));
  return program;
}
