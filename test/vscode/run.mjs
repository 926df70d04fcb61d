// npm run test:vscode: runs the suite in a real VS Code. A desktop one is used when $VSCODE_EXECUTABLE names it or,
// where a window can be opened, when one can be downloaded; otherwise code-server's, in a headless Chromium.
// $MOCHA_GREP selects tests.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ensureInstalled } from '../../scripts/ensure.mjs';
import { downloadVSCode, findVSCode, hasDisplay } from '../../scripts/vscode.mjs';
import { findChromium } from './chromium.mjs';
import { createCleanup, toldToEnd } from './cleanup.mjs';
import { installTestTools } from './install.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const root = fileURLToPath(new URL('../..', import.meta.url));
const out = join(here, 'out');

class Skipped extends Error {}

/** The desktop VS Code to use, or undefined with a reason. */
async function desktop() {
  if (process.env.VSCODE_EXECUTABLE) return { executable: findVSCode() };
  if (!hasDisplay()) return { why: 'there is no display for a desktop VS Code' };
  try {
    return { executable: await downloadVSCode({ limit: 120_000 }) };
  } catch (error) {
    return { why: error.message };
  }
}

/** The executable to run the suite with. */
async function choose() {
  const { executable, why } = await desktop();
  const missing = [];
  if (!executable) {
    if (process.platform === 'win32')
      missing.push("another system than Windows, where code-server's VS Code cannot run");
    if (!findChromium()) missing.push('Chromium (install it, or set CHROMIUM to its path)');
  }
  if (missing.length === 0) {
    try {
      await installTestTools({ server: !executable });
      return executable ?? join(here, 'launcher.mjs');
    } catch (error) {
      if (error.code === 'EUSAGE') throw error; // the fault of package-lock.json, not of the machine
      missing.push(`packages (${error.message.replaceAll('\n', '; ')})`);
    }
  }
  throw new Skipped(`VS Code tests need ${missing.join(' and ')}${why ? `, because ${why}` : ''}`);
}

async function bundleSuite() {
  const { build } = await import('esbuild');
  const suite = join(here, 'suite');
  // The bundle of a test that was deleted would still run. The rest stays, as another run may be using it.
  const bundles = existsSync(out) ? readdirSync(out).filter((file) => file.endsWith('.test.js')) : [];
  for (const file of bundles) {
    if (!existsSync(join(suite, file.replace(/js$/, 'ts')))) rmSync(join(out, file));
  }
  await build({
    entryPoints: readdirSync(suite)
      .filter((file) => file === 'index.ts' || file.endsWith('.test.ts'))
      .map((file) => join(suite, file)),
    outdir: out,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    external: ['vscode', 'mocha', 'playwright-core'],
    sourcemap: 'linked',
    logLevel: 'warning',
  });
}

async function runSuite(executable, cleanup) {
  const workspace = join(cleanup.folder('workspace'), 'examples');
  const userData = cleanup.folder('user-data');
  const extensions = cleanup.folder('extensions');
  mkdirSync(workspace);
  const examples = join(root, 'examples');
  if (existsSync(examples)) cpSync(examples, workspace, { recursive: true });
  const { quietSettings, writeSettings } = await import('./server.mjs');
  writeSettings(userData, { ...quietSettings, 'workbench.colorTheme': 'Default Dark Modern' });

  const { runTests } = await import('@vscode/test-electron');
  const resultsPath = join(cleanup.folder('results'), 'results.json');
  const failure = await runTests({
    vscodeExecutablePath: executable,
    extensionDevelopmentPath: root,
    extensionTestsPath: join(out, 'index.js'),
    extensionTestsEnv: { KVM_MMU_TEST_RESULTS: resultsPath },
    launchArgs: [workspace, `--user-data-dir=${userData}`, `--extensions-dir=${extensions}`],
  }).then(
    () => undefined,
    (error) => error,
  );
  if (!existsSync(resultsPath)) {
    throw new Error(`the suite did not finish (${failure?.message ?? 'no results'}); see test/vscode/out/*.log`);
  }
  const { passed, failed, skipped } = JSON.parse(readFileSync(resultsPath, 'utf8'));
  if (skipped > 0) console.log(`${skipped} skipped`);
  console.log(`${passed} passed, ${failed} failed`);
  // A grep that matches nothing must not look like success, nor an exit code that the results do not explain.
  return failed === 0 && passed > 0 && failure === undefined;
}

const cleanup = createCleanup();
toldToEnd().then((why) => {
  console.error(`VS Code tests: ended by ${why}`);
  process.exit(1); // the launcher and the cleanup notice
});
try {
  await ensureInstalled();
  const { buildAll } = await import('../../scripts/build.mjs');
  await buildAll();
  const executable = await choose();
  execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', here], { stdio: 'inherit' });
  await bundleSuite();
  if (!(await runSuite(executable, cleanup))) process.exitCode = 1;
} catch (error) {
  if (error instanceof Skipped) console.log(`skipped: ${error.message}`);
  else {
    console.error(`VS Code tests: ${error.message}`);
    console.log('0 passed, 1 failed');
    process.exitCode = 1;
  }
} finally {
  await cleanup.run();
}
