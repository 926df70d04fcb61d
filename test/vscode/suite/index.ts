// The suite's entry inside the extension host: runs every bundled *.test.js beside it with Mocha.
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { format } from 'node:util';
import { originalLines } from './original-lines.ts';

// The extension host's console is all that leaves it; the mark tells this suite's lines from VS Code's own.
const mark = process.env.KVM_MMU_TEST_MARK ?? '';
const print = (...args: unknown[]) => {
  for (const line of originalLines(format(...args)).split('\n')) console.log(mark + line);
};

/** What the extension host calls. Rejects when a test failed, which makes VS Code exit with a code other than 0. */
export async function run(): Promise<void> {
  const failed = await runMocha().catch((error) => {
    print(error instanceof Error && error.stack ? error.stack : error);
    throw error;
  });
  if (failed > 0) throw new Error(`${failed} failed`);
}

/** Returns how many tests failed. */
async function runMocha(): Promise<number> {
  const { default: Mocha } = await import('mocha');
  Mocha.reporters.Base.consoleLog = print;
  const grep = process.env.MOCHA_GREP;
  const mocha = new Mocha({ ui: 'bdd', color: false, timeout: 60_000, ...(grep ? { grep } : {}) });
  const files = readdirSync(__dirname).filter((file) => file.endsWith('.test.js'));
  // VS Code shows its own debug view at the first session alone, which these tests look at.
  const first = 'debug.test.js';
  for (const file of files.sort((a, b) => Number(b === first) - Number(a === first) || (a < b ? -1 : 1)))
    mocha.addFile(join(__dirname, file));
  const results = { passed: 0, failed: 0, skipped: 0 };
  await new Promise<void>((resolve) => {
    mocha
      .run(() => resolve())
      .on('pass', () => results.passed++)
      .on('fail', () => results.failed++)
      .on('pending', () => results.skipped++);
  });
  const path = process.env.KVM_MMU_TEST_RESULTS;
  if (path) writeFileSync(path, JSON.stringify(results));
  return results.failed;
}
