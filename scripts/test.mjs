// Bundles test files and runs them with Node's own test runner.
// node scripts/test.mjs [DIR|FILE …]: every *.test.ts below these; by default below the source folders.
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { generateParser } from './build.mjs';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

const unitFolders = ['engine', 'scenario', 'adapter', 'extension', 'webview'];
const wanted = process.argv.slice(2).filter((argument) => !argument.startsWith('--'));
const options = process.argv.slice(2).filter((argument) => argument.startsWith('--'));

function testFiles(path) {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path, { withFileTypes: true }).flatMap((entry) => {
    if (entry.name === 'node_modules') return [];
    const child = join(path, entry.name);
    return entry.isDirectory() ? testFiles(child) : entry.name.endsWith('.test.ts') ? [child] : [];
  });
}

const files = (wanted.length > 0 ? wanted : unitFolders).flatMap(testFiles);
if (files.length === 0) {
  console.error(`no *.test.ts below ${wanted.join(', ')}`);
  process.exit(2);
}

generateParser();
const outdir = `dist/test-${process.pid}`;
await build({
  entryPoints: files,
  outdir,
  outbase: '.',
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  packages: 'external',
  sourcemap: 'linked',
  logLevel: 'warning',
});
const outputs = files.map((file) => join(outdir, file.replace(/\.ts$/, '.js')));
const { status } = spawnSync(
  process.execPath,
  ['--enable-source-maps', '--test', '--test-reporter=spec', ...options, ...outputs],
  {
    stdio: 'inherit',
  },
);
rmSync(outdir, { recursive: true, force: true });
process.exit(status ?? 1);
