#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Format } from '../engine/formats/compile.ts';
import { type DecodedEntry, decodeEntry } from '../engine/formats/decode.ts';
import { EPT } from '../engine/formats/ept.ts';
import type { FormatSpec } from '../engine/formats/format.ts';
import { NPT } from '../engine/formats/npt.ts';
import { X86_64 } from '../engine/formats/x86-64.ts';
import { project } from '../engine/history/project.ts';
import { formatSize, hex, highWord, lowWord } from '../engine/memory/words.ts';
import { hashTables } from '../engine/pgtable/hash.ts';
import { Run } from '../engine/run.ts';
import { spteFormat, spteNote } from '../engine/tdp/spte.ts';
import { parseScenario } from '../scenario/index.ts';

const USAGE = `usage:
  kvm-mmu run FILE [--json] [--trace] [--max-steps N]
      runs a scenario in the emulator; exits 1 when an expectation fails;
      --trace prints what KVM’s tracepoints would have recorded
  kvm-mmu decode 0x… [--format x86-64|ept|npt] [--level 1…4] [--maxphyaddr 32…52] [--json]
      says what a table entry means; without --level at every level`;

/** The command was given something it cannot use: exit status 2. */
class UsageError extends Error {}

const FORMATS: Readonly<Record<string, FormatSpec>> = { 'x86-64': X86_64, ept: EPT, npt: NPT };

function main(argv: string[]): number {
  const [command, ...rest] = argv;
  switch (command) {
    case 'run':
      return run(rest);
    case 'decode':
      return decode(rest);
    case undefined:
    case 'help':
    case '--help':
    case '-h':
      console.log(USAGE);
      return command === undefined ? 2 : 0;
    default:
      throw new UsageError(`unknown command ${command}\n${USAGE}`);
  }
}

function readOptions<T extends NonNullable<Parameters<typeof parseArgs>[0]>>(config: T) {
  try {
    return parseArgs(config);
  } catch (error) {
    throw new UsageError(`${(error as Error).message}\n${USAGE}`);
  }
}

function run(args: string[]): number {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: { json: { type: 'boolean' }, trace: { type: 'boolean' }, 'max-steps': { type: 'string' } },
  });
  const [path] = positionals;
  if (path === undefined || positionals.length > 1) throw new UsageError(`run takes one file\n${USAGE}`);
  const limit = values['max-steps'] === undefined ? 100_000_000 : Number(values['max-steps']);
  if (!Number.isInteger(limit) || limit < 1)
    throw new UsageError(`--max-steps must be a whole number above 0, not ${values['max-steps']}`);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw new UsageError(`cannot read ${path}: ${(error as Error).message}`);
  }
  const { program, diagnostics } = parseScenario(text);
  for (const { severity, message, span } of diagnostics)
    console.error(`${path}:${span.line}:${span.column}: ${severity}: ${message}`);
  if (!program) return 2;
  const session = new Run(program);
  if (!session.runToEnd(limit)) {
    console.error(`${path}: still running after ${limit} steps: give --max-steps, or end its loops`);
    return 3;
  }
  const { machine } = session;
  const stuck = session.stuck();
  const { failures } = machine.small;
  if (values.trace) {
    for (const { step, task, event, text: words } of project(machine))
      console.log(`${task.replace(' ', '-').padStart(16)} [000] ${String(step).padStart(8)}: ${event}: ${words}`);
  }
  const tables = machine.roots().map((root) => ({
    root: hex(BigInt(root.pfn) << 12n),
    hash: hashTables(machine.memory, { format: machine.secondFormat, root: root.pfn }),
  }));
  const ok = failures.length === 0 && stuck === undefined;
  if (values.json) {
    console.log(
      JSON.stringify({
        ok,
        steps: machine.steps,
        counters: session.counters(),
        failures,
        warnings: machine.small.warnings,
        ...(stuck === undefined ? {} : { stuck }),
        tables,
      }),
    );
  } else {
    for (const { line, task, step, text: words } of machine.small.warnings)
      console.error(`${path}:${line === undefined ? '' : `${line}:`} warning: ${task} at step ${step}: ${words}`);
    for (const failure of failures) console.error(`${path}:${failure.line}: ${failure.text}: ${failure.actual}`);
    if (stuck !== undefined) console.error(`${path}: nothing can run: ${stuck}`);
    console.log(`${machine.steps} steps`);
    for (const [name, value] of machine.counterList()) if (value > 0) console.log(`${name.padEnd(20)} ${value}`);
    for (const { root, hash } of tables) console.log(`${'tables'.padEnd(20)} ${hash} (root ${root})`);
    const what =
      failures.length === 1
        ? 'one thing that the scenario asks for'
        : `${failures.length} things that the scenario asks for`;
    console.log(ok ? 'ok' : stuck === undefined ? `failed: ${what}` : 'failed: nothing can run');
  }
  return ok ? 0 : 1;
}

function decode(args: string[]): number {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: {
      format: { type: 'string', default: 'x86-64' },
      level: { type: 'string' },
      maxphyaddr: { type: 'string', default: '52' },
      json: { type: 'boolean' },
    },
  });
  const [written] = positionals;
  if (written === undefined || positionals.length > 1 || !/^(0x[0-9a-f_]+|\d[\d_]*)$/i.test(written))
    throw new UsageError(
      `decode takes one number, such as 0x8000000000200163${written === undefined ? '' : `, not ${positionals.join(' ')}`}`,
    );
  const value = BigInt(written.replaceAll('_', ''));
  if (value >= 1n << 64n) throw new UsageError(`${written} has more than 64 bits`);
  const spec = FORMATS[values.format];
  if (!spec) throw new UsageError(`unknown format ${values.format}; there are ${Object.keys(FORMATS).join(', ')}`);
  const width = Number(values.maxphyaddr);
  if (!Number.isInteger(width) || width < 32 || width > 52)
    throw new UsageError(`--maxphyaddr must be a whole number from 32 to 52, not ${values.maxphyaddr}`);
  const format = new Format(spec, { maxPhyAddr: width, features: new Set(['nx', '1g-pages', 'execute-only']) });
  const known = spec.levels.map((level) => level.level);
  const levels = values.level === undefined ? [...known].sort((a, b) => a - b) : [Number(values.level)];
  for (const level of levels)
    if (!known.includes(level)) throw new UsageError(`--level must be one of ${known.join(', ')}, not ${values.level}`);
  for (const level of levels) {
    const entry = decodeEntry(format, level, lowWord(value), highWord(value));
    const note = spec === X86_64 ? undefined : spteNote(spteFormat(format), lowWord(value), highWord(value));
    if (values.json) console.log(JSON.stringify({ ...entry, ...(note === undefined ? {} : { note }) }));
    else console.log(`${entryText(entry, note)}\n`);
  }
  return 0;
}

function entryText(entry: DecodedEntry, note: string | undefined): string {
  const where =
    entry.address === undefined
      ? ''
      : ` ${entry.state === 'table' ? 'table at' : 'page at'} ${entry.address}${entry.size ? ` (${formatSize(entry.size)})` : ''}`;
  const lines = [
    `${entry.name} (level ${entry.level}) ${entry.value}: ${entry.state} ${entry.state === 'absent' ? '' : entry.rights}${where}`.trimEnd(),
  ];
  if (note !== undefined) lines.push(`  ${note}`);
  for (const problem of entry.problems) lines.push(`  refused: ${problem}`);
  for (const field of entry.fields) {
    const [high, low] = field.bits;
    lines.push(
      `  ${(high === low ? `${high}` : `${high}:${low}`).padEnd(6)} ${field.name.padEnd(14)} ${field.words.padEnd(14)} ${field.meaning}`,
    );
  }
  return lines.join('\n');
}

try {
  process.exitCode = main(process.argv.slice(2));
} catch (error) {
  console.error(error instanceof UsageError ? `kvm-mmu: ${error.message}` : error);
  process.exitCode = error instanceof UsageError ? 2 : 70;
}
