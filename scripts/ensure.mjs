// Installs the dependencies of a fresh clone. Imports nothing but Node, because nothing else is there yet.
import { spawn } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

/**
 * Runs npm in a folder with the npm that started this process, or else the one on the PATH.
 * Throws with npm's own account when it fails; the error's `code` is npm's, such as EUSAGE.
 */
export async function npm(cwd, ...args) {
  const cli = process.env.npm_execpath;
  const quiet = [...args, '--no-audit', '--no-fund', '--loglevel=error'];
  const options = { cwd, stdio: ['ignore', 'pipe', 'pipe'] };
  const child = cli?.endsWith('npm-cli.js')
    ? spawn(process.execPath, [cli, ...quiet], options)
    : spawn('npm', quiet, { ...options, shell: process.platform === 'win32' });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
  const outcome = await new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code) => resolve(code));
  });
  if (outcome === 0) return;
  // What went wrong comes first; npm's own stack or a page of usage may follow.
  const lines = output.split('\n').map((line) => line.replace(/^npm error ?/, ''));
  const end = lines.findIndex((line) => /^\s+at |^Clean install|^Usage:/.test(line));
  const account = lines.slice(0, end < 0 ? undefined : end).filter((line) => line.trim() !== '');
  const error = new Error(`npm ${args.join(' ')} failed (${outcome}) in ${cwd}\n${account.slice(0, 10).join('\n')}`);
  error.code = /^npm error code (\w+)/m.exec(output)?.[1];
  throw error;
}

/** Runs `npm ci` when node_modules is missing, incomplete, or older than package-lock.json. */
export async function ensureInstalled() {
  const lock = join(root, 'package-lock.json');
  // npm writes this file last, so an interrupted install lacks it.
  const installed = join(root, 'node_modules', '.package-lock.json');
  if (existsSync(installed) && statSync(installed).mtimeMs >= statSync(lock).mtimeMs) return;
  console.log('installing dependencies (npm ci) …');
  try {
    await npm(root, 'ci');
  } catch (error) {
    // The lock file may lack other systems' binaries, when the registry that wrote it does.
    if (error.code !== 'EUSAGE') throw error;
    console.log('package-lock.json is incomplete; installing with npm install …');
    await npm(root, 'install', '--no-save');
  }
}
