// npm run check: types, lint, doors and unit tests, in under a minute. Runs on a fresh clone too.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { ensureInstalled } from './ensure.mjs';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

/** Runs a command to its end; its output is shown when it fails, or always with `loud`: as it comes, or `at-end` where something else runs beside it. */
export function run(name, command, args, { loud = false, env = {} } = {}) {
  const begin = performance.now();
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      stdio: loud === true ? ['ignore', 'inherit', 'inherit'] : ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (chunk) => (output += chunk));
    child.on('error', (error) => {
      console.error(`${name}: ${error.message}`);
      resolve(false);
    });
    child.on('close', (code) => {
      const seconds = ((performance.now() - begin) / 1000).toFixed(1);
      if (loud === 'at-end') console.log(output);
      else if (code !== 0 && !loud) console.error(output);
      console.log(`${code === 0 ? 'ok  ' : 'FAIL'} ${name} (${seconds} s)`);
      resolve(code === 0);
    });
  });
}

export async function check() {
  await ensureInstalled();
  const { generateParser } = await import('./build.mjs');
  generateParser();
  const node = process.execPath;
  const results = await Promise.all([
    run('types', node, ['node_modules/typescript/bin/tsc']),
    run('lint', node, ['node_modules/@biomejs/biome/bin/biome', 'check', '--error-on-warnings', '.']),
    run('doors', node, ['scripts/doors.mjs']),
  ]);
  return (await run('unit tests', node, ['scripts/test.mjs'], { loud: true })) && results.every(Boolean);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exit((await check()) ? 0 : 1);
