import { readFileSync } from 'node:fs';
import type { Program } from '../../engine/program.ts';
import { parseScenario } from '../../scenario/index.ts';
import { UsageError } from './usage.ts';

/** A scenario from its file, with what is wrong with it told on standard error. @throws UsageError when it cannot be read */
export function readScenario(path: string): Program | undefined {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw new UsageError(`cannot read ${path}: ${(error as Error).message}`);
  }
  const { program, diagnostics } = parseScenario(text);
  for (const { severity, message, span } of diagnostics)
    console.error(`${path}:${span.line}:${span.column}: ${severity}: ${message}`);
  return program;
}

/** `--max-steps`. @param most where it is not given @throws UsageError */
export function stepLimit(written: string | undefined, most = 100_000_000): number {
  const limit = written === undefined ? most : Number(written);
  if (!Number.isInteger(limit) || limit < 1)
    throw new UsageError(`--max-steps must be a whole number above 0, not ${written}`);
  return limit;
}
