// Installs what the tests inside VS Code need into this folder.
// node install.mjs [--no-server]: without the server, only what a desktop VS Code needs.
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { npm } from '../../scripts/ensure.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const modules = join(here, 'node_modules');
const stamp = join(modules, '.installed.json');

/** The folder of code-server that holds VS Code's own server. */
export const serverFolder = join(modules, 'code-server', 'lib', 'vscode');

/** Installs unless done already; throws an error that names what could not be installed. */
export async function installTestTools({ server = true } = {}) {
  const manifest = JSON.parse(readFileSync(join(here, 'package.json'), 'utf8'));
  const versions = { ...manifest.devDependencies, ...manifest.optionalDependencies };
  const done = existsSync(stamp) ? JSON.parse(readFileSync(stamp, 'utf8')) : undefined;
  const current = done !== undefined && JSON.stringify(done.versions) === JSON.stringify(versions);
  if (current && (done.server || !server)) return;

  const names = [...Object.keys(manifest.devDependencies), ...(server ? ['code-server'] : [])];
  console.log(`installing ${names.join(', ')} into test/vscode …`);
  // Install scripts compile native modules that nothing here uses, and they fail without a compiler.
  await step(names.join(', '), () => npm(here, 'ci', '--ignore-scripts', ...(server ? [] : ['--omit=optional'])));
  if (server) await installServer();
  writeFileSync(stamp, JSON.stringify({ versions, server }));
}

async function installServer() {
  // npm skips an optional package that fails, without an error.
  if (!existsSync(serverFolder)) throw new Error('could not install code-server: npm left it out');
  // `npm ci` fails here: the lock file does not match the manifest.
  await step("the dependencies of code-server's VS Code", () =>
    npm(serverFolder, 'install', '--ignore-scripts', '--omit=dev'),
  );
  // VS Code's postinstall would download ripgrep; without it workspace.findFiles rejects.
  const platform = `${process.platform}-${process.arch}`;
  const ripgrep = join(modules, '@vscode', `ripgrep-${platform}`, 'bin', 'rg');
  if (!existsSync(ripgrep)) throw new Error(`could not install ripgrep: there is no @vscode/ripgrep-${platform}`);
  const wanted = join(serverFolder, 'node_modules', '@vscode', 'ripgrep', 'bin', 'rg');
  mkdirSync(dirname(wanted), { recursive: true });
  copyFileSync(ripgrep, wanted);
}

async function step(what, install) {
  try {
    await install();
  } catch (error) {
    throw Object.assign(new Error(`could not install ${what}: ${error.message}`), { code: error.code });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await installTestTools({ server: !process.argv.includes('--no-server') });
}
