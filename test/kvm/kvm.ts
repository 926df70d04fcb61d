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

/** A test that runs where KVM and the helper are, and else is skipped by name. */
export function kvmTest(name: string, body: () => Promise<void>): void {
  test(name, { skip: withoutKvm() ?? false, timeout: 600_000 }, body);
}

/** A guest of the examples. */
export const guest = (name: string): string => join('examples', 'guests', 'build', name);
