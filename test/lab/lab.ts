import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import test, { after, type TestContext } from 'node:test';
import { labArchitecture } from '../../adapter/lab/arch.ts';
import { Lab } from '../../adapter/lab/boot.ts';
import { findKernel } from '../../adapter/lab/kernel.ts';
import type { LabLaunch } from '../../adapter/lab/launch.ts';
import { native, SILENT } from '../kvm/kvm.ts';

/** The kernels that tests run, by their Debian packages: the oldest and the newest that are easily had. */
export const KERNELS = (process.env.KVM_MMU_LAB_KERNELS ?? 'linux-image-amd64').split(',');

/** Those with which shadow paging is compared: today's functions are in kernels from 6.4 on. */
export const NEWER_KERNELS = (process.env.KVM_MMU_LAB_KERNELS ?? 'linux-image-6.12-amd64').split(',');

const booted = new Map<string, Promise<Lab>>();
after(async () => {
  for (const lab of await Promise.allSettled(booted.values())) if (lab.status === 'fulfilled') lab.value.close();
});

/** A lab for all tests of a file that ask for the same: booted for the first of them, closed behind the last. */
export function sharedLab(kernel: string, params: LabLaunch['params'], modules: readonly string[] = []): Promise<Lab> {
  const key = JSON.stringify([kernel, params, modules]);
  const lab = booted.get(key) ?? Lab.boot({ kernel, modules, params }, SILENT);
  booted.set(key, lab);
  return lab;
}

/** Skips a test on a kernel before 6.4. @param why what that kernel does otherwise: the engine is today's */
export function skipsOlder(context: TestContext, lab: Lab, why: string): boolean {
  const [major = 0, minor = 0] = lab.release.split('.').map(Number);
  if (major > 6 || (major === 6 && minor >= 4)) return false;
  context.skip(`Linux ${lab.release}: ${why}; the engine is today’s`);
  return true;
}

/** Why no lab can be had here; undefined when one can. Downloads the kernels. */
export function withoutLab(kernels: readonly string[] = KERNELS): string | undefined {
  if (!existsSync(native('lab-init'))) return 'the helper is not built: no C compiler';
  const { qemu, qemuPackage } = labArchitecture();
  if (spawnSync(qemu, ['--version']).error) return `there is no ${qemu} (${qemuPackage})`;
  try {
    for (const kernel of kernels) findKernel({ kernel, modules: [], params: {} }, labArchitecture());
  } catch (error) {
    return (error as Error).message;
  }
  return undefined;
}

const why = withoutLab();

/** A test that runs where a lab can be had, and else is skipped by name. */
export function labTest(name: string, body: (context: TestContext) => Promise<void>, kernel?: string): void {
  const missing = kernel === undefined ? why : withoutLab([kernel]);
  test(name, { skip: missing ?? false, timeout: process.env.KVM_MMU_AGREEMENT ? 1_800_000 : 180_000 }, body);
}

/** One of several of a kind, each with a boot of its own, of which another runs always. */
export const longLabTest: typeof labTest = (name, body, kernel) => {
  if (process.env.KVM_MMU_AGREEMENT) labTest(name, body, kernel);
  else test(name, { skip: 'npm run test:long runs it' }, body);
};
