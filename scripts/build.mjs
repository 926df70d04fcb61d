// Bundles every entry point with esbuild; generates the scenario parser first when its grammar changed.
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));
process.chdir(root);

export function generateParser() {
  const grammar = 'scenario/mmu.langium';
  const output = 'scenario/generated/grammar.ts';
  if (!existsSync(grammar)) return;
  if (existsSync(output) && statSync(output).mtimeMs > statSync(grammar).mtimeMs) return;
  const generator = ['--import', './scripts/group-by.mjs', 'node_modules/langium-cli/bin/langium.js', 'generate'];
  execFileSync(process.execPath, generator, { stdio: 'inherit' });
}

const present = (entries) => Object.fromEntries(Object.entries(entries).filter(([, path]) => existsSync(path)));
const common = { bundle: true, sourcemap: 'linked', logLevel: 'warning', target: 'es2022', outdir: 'dist' };

/**
 * `kvm-mmu run` brings the scenario language along, `kvm-mmu conform` what talks to KVM, and a guest under KVM a
 * disassembler: whoever does not need them starts without reading them.
 */
const readLater = {
  name: 'read-later',
  setup(build) {
    build.onResolve({ filter: /^\.\/commands\/(run|compare|explore|conform|lab|record)\.ts$/ }, ({ path }) => ({
      path: `./cli-${path.slice('./commands/'.length, -'.ts'.length)}.cjs`,
      external: true,
    }));
    build.onResolve({ filter: /^\.\/disassembly\.ts$/ }, ({ kind }) =>
      kind === 'dynamic-import' ? { path: './disassembly.cjs', external: true } : undefined,
    );
  },
};

export async function buildAll() {
  generateParser();
  await Promise.all([
    build({
      ...common,
      entryPoints: present({
        extension: 'extension/extension.ts',
        server: 'extension/server.ts',
        adapter: 'adapter/main.ts',
        cli: 'adapter/cli.ts',
        'cli-run': 'adapter/commands/run.ts',
        'cli-compare': 'adapter/commands/compare.ts',
        'cli-explore': 'adapter/commands/explore.ts',
        'cli-conform': 'adapter/commands/conform.ts',
        'cli-lab': 'adapter/commands/lab.ts',
        'cli-record': 'adapter/commands/record.ts',
        disassembly: 'adapter/kvm/disassembly.ts',
      }),
      platform: 'node',
      format: 'cjs',
      outExtension: { '.js': '.cjs' },
      external: ['vscode'],
      mainFields: ['module', 'main'],
      plugins: [readLater],
    }),
    build({
      ...common,
      entryPoints: present({ worker: 'adapter/worker.ts' }),
      platform: 'browser',
      format: 'iife',
      alias: { url: './adapter/worker-shims/url.ts' },
    }),
    build({
      ...common,
      entryPoints: present({
        'webview/page-tables': 'webview/page-tables/main.ts',
        'webview/walk': 'webview/walk/main.ts',
        'webview/recording': 'webview/recording/main.ts',
        'webview/root-cache': 'webview/root-cache/main.ts',
        'webview/attributes': 'webview/attributes/main.ts',
        'webview/comparison': 'webview/comparison/main.ts',
      }),
      platform: 'browser',
      format: 'iife',
      minify: true,
      loader: { '.css': 'css' },
    }),
  ]);
  // The disassembler looks for it beside itself.
  copyFileSync('node_modules/iced-x86/iced_x86_bg.wasm', 'dist/iced_x86_bg.wasm');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await buildAll();
