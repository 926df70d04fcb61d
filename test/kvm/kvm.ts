import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';

/** What `make -C native` builds. Tests run from the project's root. */
export const native = (name: string): string => join('native', 'build', name);

/** Why tests that need KVM cannot run here; undefined when they can. */
export function withoutKvm(): string | undefined {
  if (!existsSync('/dev/kvm')) return 'there is no /dev/kvm';
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return 'no permission for /dev/kvm';
  }
  if (!existsSync(native('kvm-mmu-helper'))) return 'the helper is not built: no C compiler';
  return undefined;
}

export const TRACEFS = '/sys/kernel/tracing';

/** Why tests that record KVM's events cannot run here; undefined when they can. */
export function withoutRecording(): string | undefined {
  const lacks = withoutKvm();
  if (lacks !== undefined) return lacks;
  if (process.getuid?.() !== 0) return 'tracing needs root';
  if (!existsSync(join(TRACEFS, 'events/kvmmmu/kvm_mmu_get_page')))
    return `${TRACEFS} is not mounted, or has no tracepoints of KVM’s MMU`;
  return undefined;
}

/** Why nothing can be built with sanitizers here; undefined when it is built. A failing compile throws. */
export function withoutSanitizers(): string | undefined {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'the helper is for Linux on x86-64';
  if (spawnSync('make', ['--version']).error) return 'there is no make';
  const args = ['-fsanitize=address,undefined', '-x', 'c', '-', '-o', '/dev/null'];
  const tried = spawnSync('cc', args, { input: 'int main(void) { return 0; }\n', encoding: 'utf8' });
  if (tried.error) return 'there is no C compiler';
  if (tried.status !== 0) return 'the C compiler has no AddressSanitizer';
  const { status, stdout, stderr } = spawnSync('make', ['-C', 'native', 'asan'], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`make -C native asan failed (${status})\n${stdout}${stderr}`);
  return undefined;
}

/** A test that runs where KVM and the helper are, and else is skipped by name. */
export function kvmTest(name: string, body: () => Promise<void>): void {
  test(name, { skip: withoutKvm() ?? false, timeout: process.env.KVM_MMU_CONFORM_CASES ? 600_000 : 120_000 }, body);
}

/** A guest of the examples. */
export const guest = (name: string): string => join('examples', 'guests', 'build', name);

/** The helper that an adapter has started. */
export function helperOf(adapter: number): number {
  const { stdout } = spawnSync('ps', ['-o', 'pid=', '--ppid', `${adapter}`], { encoding: 'utf8' });
  const pid = Number(stdout.trim().split('\n')[0]);
  assert.ok(pid > 0, 'the adapter has no helper');
  return pid;
}

/** Hears what a machine says, and passes nothing on. */
export const SILENT = { print() {}, console() {}, progress() {}, problem() {}, labConsole() {} };
