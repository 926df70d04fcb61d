// VS Code's server and web workbench, from code-server's package, without code-server's own front end.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createCleanup } from './cleanup.mjs';
import { serverFolder } from './install.mjs';

/** Settings under which nothing pops up over the workbench and nothing leaves the machine. */
export const quietSettings = {
  'workbench.startupEditor': 'none',
  'git.enabled': false,
  'breadcrumbs.enabled': false,
  'security.workspace.trust.enabled': false,
  'telemetry.telemetryLevel': 'off',
  'extensions.autoUpdate': false,
  'extensions.ignoreRecommendations': true,
  'window.restoreWindows': 'none',
};

/** Writes a profile's settings unless it has some: a profile that lasts keeps what its user chose. */
export function writeSettings(userDataDir, settings) {
  const path = join(userDataDir, 'User', 'settings.json');
  if (existsSync(path)) return;
  mkdirSync(join(userDataDir, 'User'), { recursive: true });
  writeFileSync(path, `${JSON.stringify(settings, null, 2)}\n`);
}

/**
 * Starts the server on a free port of 127.0.0.1.
 *
 * `userDataDir` and `extensionsDir` default to fresh temporary folders; `settings` are added to `quietSettings`;
 * `env` is added to the environment, which the extension host inherits; `log` receives the server's output.
 * Resolves once the server listens; rejects with its output when it ends or stays silent for `timeout` ms.
 */
export async function startServer({
  settings,
  userDataDir,
  extensionsDir,
  env,
  log = () => {},
  timeout = 30_000,
} = {}) {
  const cleanup = createCleanup();
  const userData = userDataDir ?? cleanup.folder('user-data');
  writeSettings(userData, { ...quietSettings, ...settings });
  const flags = {
    host: '127.0.0.1',
    port: '0',
    'user-data-dir': userData,
    'extensions-dir': extensionsDir ?? cleanup.folder('extensions'),
    'telemetry-level': 'off',
  };
  const server = spawn(
    process.execPath,
    [
      join(serverFolder, 'out', 'server-main.js'),
      ...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value]),
      '--without-connection-token',
      '--accept-server-license-terms',
      '--enable-smoke-test-driver',
    ],
    {
      detached: true, // a group of its own, so that the extension hosts can be ended with it
      stdio: ['ignore', 'pipe', 'pipe'],
      // It leaves its sockets in the temporary folder.
      env: { ...process.env, EXTENSIONS_GALLERY: '{}', TMPDIR: cleanup.folder('server'), ...env },
    },
  );
  if (server.pid !== undefined) cleanup.group(server.pid);

  let output = '';
  let listening = false;
  const port = await new Promise((resolve, reject) => {
    const fail = (why) => reject(new Error(`VS Code's server ${why}\n${output}`));
    const timer = setTimeout(() => fail(`said no address within ${timeout} ms`), timeout);
    server.once('error', (error) => fail(`did not start: ${error.message}`));
    server.once('exit', (code, signal) => fail(`ended with ${signal ?? code}`));
    for (const stream of [server.stdout, server.stderr]) {
      stream.setEncoding('utf8').on('data', (chunk) => {
        log(chunk);
        if (listening) return;
        output += chunk;
        const found = /Web UI available at \S+?:(\d+)/.exec(output);
        if (!found) return;
        listening = true;
        clearTimeout(timer);
        resolve(Number(found[1]));
      });
    }
  }).catch(async (error) => {
    await cleanup.run();
    throw error;
  });

  const authority = `127.0.0.1:${port}`;
  return {
    port,
    /**
     * The workbench's address. `payload` maps what VS Code understands (`extensionDevelopmentPath`,
     * `extensionTestsPath`, `openFile`) to absolute paths.
     */
    url(folder, payload = {}) {
      const remote = Object.entries(payload).map(([key, path]) => [
        key,
        `vscode-remote://${authority}${encodeURI(path)}`,
      ]);
      const query = new URLSearchParams({ folder });
      if (remote.length > 0) query.set('payload', JSON.stringify(remote));
      return `http://${authority}/?${query}`;
    },
    /** Resolves with the server's exit, whoever ended it. */
    ended: new Promise((resolve) => server.once('exit', (code, signal) => resolve(signal ?? code))),
    /** Ends the server and its extension hosts and removes the temporary folders; resolves when that is done. */
    stop: () => cleanup.run(),
  };
}
