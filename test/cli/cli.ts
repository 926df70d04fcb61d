import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';

/** A folder for the files of a test run. */
export const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

/** Runs `kvm-mmu`, as it was built. */
export function cli(...args: string[]): { status: number | null; out: string; err: string } {
  return cliWithin(60_000, ...args);
}

/** The same for what takes longer, in milliseconds. */
export function cliWithin(timeout: number, ...args: string[]): ReturnType<typeof cli> {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['dist/cli.cjs', ...args], {
    encoding: 'utf8',
    timeout,
  });
  return { status, out: stdout, err: stderr };
}

/** A file in the folder. */
export function file(name: string, content: Buffer | string): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}
