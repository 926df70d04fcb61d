// npm start: builds the extension and opens VS Code on the examples, with the extension in development mode.
// In order of preference: an installed VS Code, a downloaded one, code-server's in a browser.
import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ensureInstalled } from './ensure.mjs';
import { buildNative } from './native.mjs';
import { downloadVSCode, findVSCode, hasDisplay } from './vscode.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const examples = join(root, 'examples');
// Apart from the user's own profile: this one may be deleted at any time.
const profile = join(root, '.vscode-test');

/** A desktop VS Code's executable, or undefined. */
async function desktop() {
  // $VSCODE_EXECUTABLE may well open its window somewhere else.
  if (!hasDisplay() && !process.env.VSCODE_EXECUTABLE) return undefined;
  const installed = findVSCode();
  if (installed) return installed;
  try {
    return await downloadVSCode();
  } catch (error) {
    console.log(error.message);
    return undefined;
  }
}

/** Opens a window; resolves once VS Code has taken over. */
async function openDesktop(executable) {
  const flags = ['--new-window', `--extensionDevelopmentPath=${root}`, examples];
  // VS Code refuses to run as root without these.
  if (process.getuid?.() === 0) flags.push('--no-sandbox', `--user-data-dir=${join(profile, 'root-user-data')}`);
  const env = { ...process.env };
  delete env.ELECTRON_RUN_AS_NODE; // set in terminals of some Electron programs; VS Code would start as plain Node
  const child = spawn(executable, flags, { env, stdio: 'inherit' });
  console.log(`opening ${executable}`);
  await new Promise((resolve, reject) => {
    child.once('error', (error) => reject(new Error(`could not start ${executable}: ${error.message}`)));
    child.once('exit', (code, signal) =>
      code === 0
        ? resolve()
        : reject(new Error(`${executable} ended with ${signal ?? code}; set VSCODE_EXECUTABLE to another VS Code`)),
    );
  });
}

/** Serves the workbench until it is told to end. */
async function serve() {
  if (process.platform === 'win32') {
    throw new Error(
      "found no VS Code, and code-server's does not run on Windows; install VS Code or set VSCODE_EXECUTABLE",
    );
  }
  const { installTestTools } = await import('../test/vscode/install.mjs');
  await installTestTools();
  const { toldToEnd } = await import('../test/vscode/cleanup.mjs');
  const { startServer } = await import('../test/vscode/server.mjs');
  const userDataDir = join(profile, 'user-data');
  const extensionsDir = join(profile, 'extensions');
  for (const folder of [userDataDir, extensionsDir, examples]) mkdirSync(folder, { recursive: true });
  const told = toldToEnd().then(() => undefined);
  const server = await startServer({ userDataDir, extensionsDir });
  const url = server.url(examples, { extensionDevelopmentPath: root });
  console.log(`Open ${url}`);
  console.log('Ctrl-C ends it.');
  if (hasDisplay()) openInBrowser(url);
  const crashed = await Promise.race([told, server.ended]);
  await server.stop();
  if (crashed !== undefined) throw new Error(`VS Code's server ended with ${crashed}`);
}

function openInBrowser(url) {
  const opener = spawn(process.platform === 'darwin' ? 'open' : 'xdg-open', [url], { stdio: 'ignore', detached: true });
  opener.on('error', () => {}); // the address is on the screen
  opener.unref();
}

try {
  await ensureInstalled();
  const { buildAll } = await import('./build.mjs');
  await buildAll();
  buildNative();
  const executable = await desktop();
  await (executable ? openDesktop(executable) : serve());
} catch (error) {
  console.error(`npm start: ${error.message}`);
  process.exitCode = 1;
}
