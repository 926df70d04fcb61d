// npm run mutate [-- FILE …]: mutation testing by hand. Changes one token at a time in the files that decide translations,
// and runs the tests that must notice. Prints every mutant that survives; exits 1 when one does that is not excused.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

/** Files, and the tests that must notice a change in them, the quickest first. */
const GROUPS = [
  {
    files: [
      'engine/formats/compile.ts',
      'engine/formats/x86-64.ts',
      'engine/formats/ept.ts',
      'engine/formats/npt.ts',
      'engine/guest/permission.ts',
      'engine/guest/walk.ts',
      'engine/tdp/explain-fault.ts',
    ],
    tests: [
      'engine/formats/formats.test.ts',
      'engine/guest/registers.test.ts',
      'engine/guest/permission.test.ts',
      'engine/guest/walk.test.ts',
      'engine/pgtable/operations.test.ts',
      'engine/run.test.ts',
      'test/engine/faults.test.ts',
      'test/engine/behaviour.test.ts',
      'test/oracle/translate.test.ts',
      'test/oracle/x86-modes.test.ts',
    ],
  },
  {
    files: [
      'engine/pgtable/descend.ts',
      'engine/guest/two-stage.ts',
      'engine/guest/arm64.ts',
      'engine/guest/riscv.ts',
      'engine/formats/arm64.ts',
      'engine/formats/riscv.ts',
    ],
    tests: [
      'engine/formats/formats.test.ts',
      'engine/guest/arm64.test.ts',
      'engine/guest/riscv.test.ts',
      'test/oracle/riscv.test.ts',
      'test/oracle/arm64.test.ts',
    ],
  },
];
const FILES = GROUPS.flatMap(({ files }) => files);
const testsOf = (file) => (GROUPS.find(({ files }) => files.includes(file)) ?? GROUPS[0]).tests;

/** What is replaced by what; each occurrence is a mutant of its own. */
const MUTATORS = [
  [/===/g, '!=='],
  [/!==/g, '==='],
  [/ < /g, ' <= '],
  [/ > /g, ' >= '],
  [/ >= /g, ' > '],
  [/ <= /g, ' < '],
  [/ && /g, ' || '],
  [/ \|\| /g, ' && '],
  [/ \+ /g, ' - '],
  [/ - /g, ' + '],
  [/ & /g, ' | '],
  [/ \| /g, ' & '],
  [/>>>/g, '<<'],
  [/ \|= /g, ' &= '],
  [/ &= /g, ' |= '],
  [/bits: \[(\d+), (\d+)\]/g, (_, high, low) => `bits: [${high}, ${Number(low) + (high === low ? 0 : 1)}]`],
  [/levels: \[(\d)/g, (_, level) => `levels: [${(Number(level) % 4) + 1}`],
  [/, ignored: true/g, ''],
];

/** Lines whose mutants change words or speed only, or nothing that can be observed; each with its reason. */
const EXCUSED = [
  [/meaning:|source:|title:|table: '/, 'words for people'],
  [/throw new RangeError|message/, 'words for people'],
  [/^\s*(\*|\/\/)/, 'comment'],
  [/^import |^export \{/, 'import'],
  [/index < 16; index|access < 8; access|bits < 4096/, 'one round more writes or asks for nothing that exists'],
  [/\| undefined|Omit<|'violation' \||^\s*readonly |^\s*\| |^export (type|interface)/, 'types, which are erased'],
  [/[sS]econdUnset|walk\.unset/, 'only spares a look at bits that need no store'],
  [/^\s*leafLevel:/, 'any level above the largest page does'],
  [/references\+\+|trace\?\./, 'counts and traces, checked by goldens of sessions'],
];

const wanted = process.argv.slice(2);
const folder = mkdtempSync(join(process.cwd(), 'dist', 'mutants-'));
let survivors = 0;
let killed = 0;

async function survives(file, text, verbose = false) {
  const path = resolve(file);
  try {
    await build({
      entryPoints: testsOf(file),
      outdir: folder,
      outbase: '.',
      bundle: true,
      splitting: true,
      format: 'esm',
      platform: 'node',
      target: 'node20',
      packages: 'external',
      logLevel: 'silent',
      plugins: [
        {
          name: 'mutant',
          setup: (setup) =>
            setup.onLoad({ filter: /\.ts$/ }, (args) =>
              args.path === path ? { contents: text, loader: 'ts' } : undefined,
            ),
        },
      ],
    });
  } catch (error) {
    if (verbose) console.error(error.message);
    return false;
  }
  for (const test of testsOf(file)) {
    // In one process, without --test: a mutant that never ends must die with the time limit, not leave a child behind.
    const { status, stdout } = spawnSync(process.execPath, [join(folder, test.replace(/\.ts$/, '.js'))], {
      env: { ...process.env, FUZZ_RUNS: test.includes('oracle') ? '1500' : '800' },
      timeout: 60_000,
      encoding: 'utf8',
    });
    if (status !== 0) {
      if (verbose) console.error(`${test}\n${stdout}`);
      return false;
    }
  }
  return true;
}

try {
  for (const { files } of GROUPS.filter(
    (group) => wanted.length === 0 || group.files.some((file) => wanted.includes(file)),
  )) {
    if (await survives(files[0], readFileSync(files[0], 'utf8'), true)) continue;
    throw new Error('the tests fail without any change: nothing can be learned from mutants');
  }
  for (const file of wanted.length > 0 ? wanted : FILES) {
    const source = readFileSync(file, 'utf8');
    const lines = source.split('\n');
    const starts = [0];
    for (const line of lines) starts.push(starts.at(-1) + line.length + 1);
    for (const [pattern, replacement] of MUTATORS) {
      for (const match of source.matchAll(pattern)) {
        const number = starts.findLastIndex((start) => start <= match.index);
        if (EXCUSED.some(([excuse]) => excuse.test(lines[number]))) continue;
        const changed = typeof replacement === 'string' ? replacement : replacement(...match);
        if (changed === match[0]) continue;
        const text = source.slice(0, match.index) + changed + source.slice(match.index + match[0].length);
        if (await survives(file, text)) {
          survivors++;
          console.log(
            `survived  ${file}:${number + 1}: ${match[0].trim()} → ${changed.trim() || 'nothing'}   ${lines[number].trim().slice(0, 110)}`,
          );
        } else killed++;
      }
    }
    console.log(`${file}: ${killed} killed, ${survivors} survived so far`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(survivors > 0 ? 1 : 0);
