// Builds the KVM helper and the guests that run on it (native/build/, examples/guests/build/), where this machine can.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const folders = ['native', 'examples/guests'].map((name) => fileURLToPath(new URL(`../${name}`, import.meta.url)));

/** Why the helper cannot be built here; undefined when it can. */
export function withoutCompiler() {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    return `it is for Linux on x86-64, this is ${process.platform} on ${process.arch}`;
  const missing = ['cc', 'make'].filter((program) => spawnSync(program, ['--version']).error);
  return missing.length > 0 ? `there is no ${missing.join(' and no ')}` : undefined;
}

/**
 * Runs `make` in both; where that is not possible, says why in a line.
 * Throws with the compiler's own words when it fails.
 */
export function buildNative() {
  const why = withoutCompiler();
  if (why !== undefined) {
    console.log(`the KVM helper is not built: ${why}`);
    return;
  }
  for (const folder of folders) {
    const { status, signal, stdout, stderr } = spawnSync('make', ['-C', folder], { encoding: 'utf8' });
    if (status !== 0) throw new Error(`make -C ${folder} failed (${signal ?? status})\n${stdout}${stderr}`.trimEnd());
  }
}
