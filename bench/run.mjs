// npm run bench: the engine beside C, the way to KVM beside bare KVM, recordings beside trace-cmd, measured in one run; and
// the time from launch to the first stop.
import { execFileSync, spawnSync } from 'node:child_process';
import { accessSync, closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { buildAll } from '../scripts/build.mjs';
import { buildNative, withoutCompiler } from '../scripts/native.mjs';
import { chromiumFlags, findChromium } from '../test/vscode/chromium.mjs';
import { installTestTools } from '../test/vscode/install.mjs';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

function row(words, amount, ours, reference) {
  const numbers = [ours.toFixed(2).padStart(11), reference.toFixed(2).padStart(12)];
  console.log(
    `${words.padEnd(34)} ${String(amount).padStart(8)} ${numbers.join(' ')} ${(reference / ours).toPrecision(2).padStart(11)}`,
  );
}

/** Why nothing can be measured on KVM here; undefined when it can. */
function withoutKvm() {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch (error) {
    return `/dev/kvm cannot be used (${error.code})`;
  }
  const why = withoutCompiler();
  if (why === undefined) buildNative();
  return why;
}

/** As the debug adapter does it, and as directly as C can. */
async function measureKvm(bundle, measure) {
  await bundle('bench/kvm.ts', 'kvm.mjs');
  const c = join(folder, 'kvm-reference');
  execFileSync('cc', ['-std=gnu11', '-O2', '-o', c, 'bench/kvm-reference.c', 'native/setup.c'], { stdio: 'inherit' });
  // out %al, $0x4b; jmp back to it
  const loop = join(folder, 'loop.bin');
  writeFileSync(loop, Uint8Array.of(0xe6, 0x4b, 0xeb, 0xfc));
  const exit = ['exits', '20000', loop];
  const size = String(64 << 20);
  console.log('on KVM                             amount      client            C       ratio');
  for (const [work, words, amount, reference, perUnit] of [
    ['stops', 'us per resume and stop', '5000', exit, 1e3],
    ['conform', 'us per case, an exit', '16384', exit, 1e3],
    ['read', 'ms for 64M, by /proc', size, ['read', size], 1e6],
    ['packets', 'ms for 64M', size, ['read', size], 1e6],
  ]) {
    const args = [join(folder, 'kvm.mjs'), work, amount, ...(work === 'conform' ? [] : [loop])];
    row(`${work}, ${words}`, amount, measure(process.execPath, args) / perUnit, measure(c, reference) / perUnit);
  }
}

/** Recordings as the debugger reads them, beside trace-cmd, which prints them; the text is what it prints. */
async function measureTraces(bundle) {
  const version = spawnSync('trace-cmd', ['--version'], { encoding: 'utf8' });
  if (version.error) {
    console.log('recordings: skipped, trace-cmd is not installed (Debian: trace-cmd)');
    return;
  }
  await bundle('bench/trace.ts', 'trace.mjs');
  const script = join(folder, 'trace.mjs');
  const events = 1_000_000;
  const dat = join(folder, 'trace.dat');
  const text = join(folder, 'trace.txt');
  execFileSync(process.execPath, [script, 'make', String(events), dat], { stdio: 'inherit' });
  const report = (to) => {
    const out = openSync(to, 'w');
    const begin = performance.now();
    const { status } = spawnSync('trace-cmd', ['report', dat], { stdio: ['ignore', out, 'ignore'] });
    closeSync(out);
    if (status !== 0) throw new Error(`trace-cmd report ended with ${status}`);
    return ((performance.now() - begin) * 1e6) / events;
  };
  report(text);
  const reference = Math.min(report('/dev/null'), report('/dev/null'), report('/dev/null'));
  console.log('recordings                         events     ns each  trace-cmd ns       ratio');
  for (const [words, file] of [
    ['trace.dat', dat],
    ['text of trace-cmd report', text],
  ]) {
    const [count, nanoseconds, bytes] = execFileSync(process.execPath, [script, 'read', file], { encoding: 'utf8' })
      .split(' ')
      .map(Number);
    row(words, count, nanoseconds, reference);
    console.log(`  ${((bytes * 1e6) / 2 ** 20).toFixed(1)} MiB of memory per million events`);
  }
}

/** The map of memory in a browser, beside a plain SVG of the same ranges. */
async function measureFrames() {
  const executablePath = findChromium();
  if (!executablePath) {
    console.log('frames of the map: skipped, there is no Chromium (install it, or set CHROMIUM to its path)');
    return;
  }
  await installTestTools({ server: false });
  await buildAll();
  const { chromium } = createRequire(new URL('../test/vscode/package.json', import.meta.url))('playwright-core');
  const outfile = join(folder, 'attribute-frames.js');
  await build({
    entryPoints: ['bench/attribute-frames.ts'],
    bundle: true,
    platform: 'browser',
    format: 'iife',
    target: 'es2022',
    alias: { url: './adapter/worker-shims/url.ts' },
    minify: true,
    outfile,
    logLevel: 'error',
  });
  const ranges = Number(process.env.BENCH_RANGES ?? 1e6);
  const browser = await chromium.launch({ executablePath, args: chromiumFlags });
  try {
    const page = await browser.newPage({ viewport: { width: 1000, height: 400 } });
    await page.addStyleTag({ path: 'dist/webview/attributes.css' });
    await page.addScriptTag({ path: outfile });
    const { canvas, svg, built } = await page.evaluate((count) => globalThis.attributeFrames(count, 200, 5), ranges);
    const middle = (times) => [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
    const most = (times) => Math.max(...times);
    console.log(`frames of the map, ${ranges} ranges         median ms   worst ms       ratio of medians`);
    console.log(
      `canvas, ${canvas.length} frames of pan and zoom`.padEnd(44),
      middle(canvas).toFixed(2).padStart(8),
      most(canvas).toFixed(2).padStart(10),
    );
    console.log(
      `plain SVG, ${svg.length} frames (built in ${built.toFixed(0)} ms)`.padEnd(44),
      middle(svg).toFixed(2).padStart(8),
      most(svg).toFixed(2).padStart(10),
      (middle(svg) / middle(canvas)).toPrecision(3).padStart(12),
    );
  } finally {
    await browser.close();
  }
}

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
      row(`${work}, ${words}`, size, engine, reference);
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
      row(`${format}, ns per leaf`, size, engine, reference);
    }
  }
  await bundle('bench/shadow.ts', 'shadow.mjs');
  console.log(
    execFileSync(process.execPath, ['--max-old-space-size=12000', join(folder, 'shadow.mjs')], {
      encoding: 'utf8',
    }).trim(),
  );
  await bundle('bench/explore.ts', 'explore.mjs');
  console.log(execFileSync(process.execPath, [join(folder, 'explore.mjs')], { encoding: 'utf8' }).trim());
  await bundle('bench/attributes.ts', 'attributes.mjs');
  console.log(
    execFileSync(process.execPath, ['--max-old-space-size=12000', join(folder, 'attributes.mjs')], {
      encoding: 'utf8',
    }).trim(),
  );
  await measureFrames();
  const why = withoutKvm();
  if (why !== undefined) console.log(`on KVM: skipped, ${why}`);
  else await measureKvm(bundle, measure);
  await measureTraces(bundle);
  console.log(execFileSync(process.execPath, [join(folder, 'first-stop.mjs')], { encoding: 'utf8' }).trim());
} finally {
  rmSync(folder, { recursive: true, force: true });
}
