// npm run bench: the engine beside C, measured in one run; and the time from launch to the first stop.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-bench-'));
try {
  const bundle = (entry, name) =>
    build({
      entryPoints: [entry],
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: 'node20',
      outfile: join(folder, name),
      logLevel: 'error',
    });
  await bundle('bench/engine.ts', 'engine.mjs');
  await bundle('bench/first-stop.ts', 'first-stop.mjs');
  const compiled = spawnSync('cc', ['-O2', '-o', join(folder, 'reference'), 'bench/reference.c'], { stdio: 'inherit' });
  if (compiled.status !== 0) console.log('no C compiler: the reference is missing, and with it the ratios');

  const measure = (command, args) => Number(execFileSync(command, args, { encoding: 'utf8' }).trim().split(' ')[1]);
  const sizes = (process.env.BENCH_SIZES ?? '10000,100000,1000000,10000000').split(',').map(Number);
  console.log('work                             entries      engine            C       ratio');
  for (const [work, words, extra] of [
    ['walk', 'ns per leaf', []],
    ['translate', 'ns per 2-D translation', ['300000']],
    ['populate', 'ns per second-stage fault', []],
  ]) {
    for (const size of sizes) {
      const args = [work, String(size), ...extra];
      const engine = measure(process.execPath, ['--max-old-space-size=12000', join(folder, 'engine.mjs'), ...args]);
      const reference = compiled.status === 0 ? measure(join(folder, 'reference'), args) : Number.NaN;
      console.log(
        `${`${work}, ${words}`.padEnd(34)} ${String(size).padStart(8)} ${engine.toFixed(2).padStart(11)} ${reference.toFixed(2).padStart(12)} ${(reference / engine).toPrecision(2).padStart(11)}`,
      );
    }
  }
  // As `dump` visits them: every level's rights are kept. 4G of pages are all that 32-bit formats have.
  for (const format of [
    'x86-32',
    'pae',
    'x86-64',
    'x86-64-5',
    'ept',
    'arm64-s1-4k',
    'arm64-s2-16k',
    'arm64-s1-64k',
    'sv48',
  ]) {
    for (const size of sizes.filter((each) => each <= (['x86-32', 'pae'].includes(format) ? 1e6 : 1e7))) {
      const args = [format, String(size)];
      const engine = measure(process.execPath, ['--max-old-space-size=12000', join(folder, 'engine.mjs'), ...args]);
      const reference = compiled.status === 0 ? measure(join(folder, 'reference'), args) : Number.NaN;
      console.log(
        `${`${format}, ns per leaf`.padEnd(34)} ${String(size).padStart(8)} ${engine.toFixed(2).padStart(11)} ${reference.toFixed(2).padStart(12)} ${(reference / engine).toPrecision(2).padStart(11)}`,
      );
    }
  }
  console.log(execFileSync(process.execPath, [join(folder, 'first-stop.mjs')], { encoding: 'utf8' }).trim());
} finally {
  rmSync(folder, { recursive: true, force: true });
}
