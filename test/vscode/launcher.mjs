#!/usr/bin/env node
// Takes the place of a desktop VS Code's executable when tests run: same arguments, same exit code, but the workbench
// is code-server's, in a headless Chromium. The suite finds that browser's debugging endpoint in $KVM_MMU_TEST_CDP.
import { createWriteStream, mkdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { format, parseArgs } from 'node:util';
import { chromium } from 'playwright-core';
import { chromiumFlags, findChromium } from './chromium.mjs';
import { createCleanup, toldToEnd } from './cleanup.mjs';
import { startServer } from './server.mjs';

const timeLimit = Number(process.env.KVM_MMU_TEST_LIMIT ?? 900) * 1000;
const mark = 'suite| ';
const out = fileURLToPath(new URL('out/', import.meta.url));

const text = { type: 'string' };
const { values, positionals } = parseArgs({
  options: { extensionDevelopmentPath: text, extensionTestsPath: text, 'user-data-dir': text, 'extensions-dir': text },
  allowPositionals: true,
  strict: false, // a desktop VS Code knows many more, such as --disable-updates
});

/** Rejects when the run cannot go on: too long, told to end, or abandoned by whoever started it. */
async function interruption() {
  const late = sleep(timeLimit, `the tests took longer than ${timeLimit / 1000} s (KVM_MMU_TEST_LIMIT)`);
  throw new Error(await Promise.race([late, toldToEnd().then((why) => `ended by ${why}`)]));
}

async function openBrowser(cleanup) {
  const executablePath = findChromium();
  if (!executablePath) throw new Error('found no Chromium: install one or set CHROMIUM to its path');
  const profile = cleanup.folder('chromium');
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    args: [...chromiumFlags, '--remote-debugging-port=0'],
    viewport: { width: 1400, height: 900 },
    deviceScaleFactor: 1,
  });
  // Playwright does not tell the process, which leads a group of its own; this link's target is HOST-PID.
  const pid = readlinkSync(join(profile, 'SingletonLock')).split('-').at(-1);
  cleanup.group(Number(pid));
  // Chromium writes the port that it chose, and a path on the next line.
  const [port] = readFileSync(join(profile, 'DevToolsActivePort'), 'utf8').split('\n');
  return { context, endpoint: `http://127.0.0.1:${port}` };
}

/** Runs the suite and resolves with its exit code. */
async function runSuite(context, server) {
  mkdirSync(out, { recursive: true });
  const consoleLog = createWriteStream(join(out, 'console.log'));
  const page = context.pages()[0] ?? (await context.newPage());
  return new Promise((resolve, reject) => {
    page.on('console', (message) => consoleLog.write(`${message.type()}: ${message.text()}\n`));
    page.on('pageerror', (error) => consoleLog.write(`uncaught: ${error.stack}\n`));
    page.on('crash', () => reject(new Error('the workbench page crashed')));
    page.on('close', () => reject(new Error('the workbench page was closed')));
    server.ended.then((code) => reject(new Error(`VS Code's server ended with ${code}`)));
    // Everything that VS Code logs arrives here, so the suite marks its own lines.
    const report = (_type, args) => {
      const line = format(...args);
      if (line.startsWith(mark)) console.log(line.slice(mark.length));
    };
    Promise.all([page.exposeFunction('codeAutomationLog', report), page.exposeFunction('codeAutomationExit', resolve)])
      .then(() =>
        page.goto(
          server.url(resolvePath(positionals[0]), {
            extensionDevelopmentPath: resolvePath(values.extensionDevelopmentPath),
            extensionTestsPath: resolvePath(values.extensionTestsPath),
          }),
        ),
      )
      .catch(reject);
  });
}

function resolvePath(path) {
  if (typeof path !== 'string') {
    throw new Error('usage: launcher.mjs FOLDER --extensionDevelopmentPath=DIR --extensionTestsPath=FILE');
  }
  return resolve(path);
}

let exitCode = 1;
const cleanup = createCleanup();
process.env.TMPDIR = cleanup.folder('launcher'); // the browser and Playwright leave files there when they are killed
let context;
let server;
try {
  const stopped = interruption();
  exitCode = await Promise.race([
    stopped,
    (async () => {
      const browser = await openBrowser(cleanup);
      context = browser.context;
      mkdirSync(out, { recursive: true });
      const serverLog = createWriteStream(join(out, 'server.log'));
      server = await startServer({
        userDataDir: values['user-data-dir'],
        extensionsDir: values['extensions-dir'],
        env: { KVM_MMU_TEST_CDP: browser.endpoint, KVM_MMU_TEST_MARK: mark },
        log: (chunk) => serverLog.write(chunk),
      });
      return runSuite(context, server);
    })(),
  ]);
} catch (error) {
  console.error(`VS Code tests: ${error.message}`);
} finally {
  await Promise.race([Promise.allSettled([context?.close(), server?.stop()]), sleep(5000)]);
  await cleanup.run();
}
process.exit(exitCode);
