import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

// What `dump` says of real Linux guests, against lists that nobody here wrote: QEMU's `info tlb` for x86, and for arm64 a
// lister written from the Arm manual alone. No row may differ.

const OUT = 'test/guests/out';

interface Saved {
  readonly registers: Readonly<Record<string, string>>;
  readonly memory: string;
  readonly core: string;
  readonly folder: string;
}

/** The guest's memory, saved before or booted now; a string says why it is not to be had. */
function saved(name: string): Saved | string {
  const folder = join(OUT, name);
  if (!existsSync(join(folder, 'registers.json'))) {
    const boot = spawnSync(process.execPath, ['test/guests/boot.mjs', name], { encoding: 'utf8', timeout: 300_000 });
    if (boot.status !== 0) return `${name} cannot be booted here: ${boot.stderr.trim().split('\n').at(-1)}`;
  }
  const { registers } = JSON.parse(readFileSync(join(folder, 'registers.json'), 'utf8')) as {
    registers: Record<string, string>;
  };
  return { registers, memory: join(folder, 'memory.raw'), core: join(folder, 'core.elf'), folder };
}

function dump(...args: string[]): string[] {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['dist/cli.cjs', 'dump', ...args], {
    encoding: 'utf8',
    maxBuffer: 1 << 30,
  });
  assert.equal(status, 0, stderr);
  return stdout.trimEnd().split('\n');
}

/** Fails at the first row that differs, with its neighbours, rather than with a diff of thousands. */
function same(rows: readonly string[], expected: readonly string[]): void {
  const at = expected.findIndex((row, index) => rows[index] !== row);
  if (at >= 0) assert.fail(`row ${at + 1} is\n  ${rows[at]}\nand should be\n  ${expected[at]}`);
  assert.equal(rows.length, expected.length, `rows beyond the last expected one: ${rows[expected.length]}`);
}

for (const [name, paging] of [
  ['x86-4level', '4-level'],
  ['x86-5level', '5-level'],
  ['x86-pae', 'pae'],
  ['x86-32bit', '32-bit'],
] as const) {
  test(`${name}: every row of QEMU’s info tlb, from a raw image and from an ELF core`, (t) => {
    const guest = saved(name);
    if (typeof guest === 'string') return t.skip(guest);
    const expected = readFileSync(join(guest.folder, 'info-tlb.txt'), 'utf8').trimEnd().split('\n');
    assert.ok(expected.length > 1000, `${expected.length} rows are too few for a kernel`);
    same(
      dump('--memory', guest.memory, '--cr3', guest.registers.cr3!, '--paging', paging, '--format', 'qemu'),
      expected,
    );
    same(dump('--memory', guest.core, '--format', 'qemu'), expected);
  });
}

interface JsonRow {
  readonly input: string;
  readonly output: string;
  readonly size: number;
  readonly level: number;
  readonly supervisor: string;
  readonly user: string;
  readonly entry: string;
}

/** A row as the independent lister writes it. */
function armRow(line: string, kind: 'el1' | 'el2' | 's2'): string {
  const { input, output, size, level, supervisor, user, entry } = JSON.parse(line) as JsonRow;
  const bits = (high: number, low: number) =>
    Number((BigInt(entry) >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n));
  const place = `${input.slice(2).padStart(16, '0')} ${output.slice(2).padStart(12, '0')} ${size} ${level}`;
  if (kind === 's2') {
    const s2 = `${bits(6, 6) ? 'r' : '-'}${bits(7, 7) ? 'w' : '-'}`;
    return `${place} s2=${s2} xn=${bits(54, 53)} af=${bits(10, 10)} attr=${bits(5, 2)}`;
  }
  const rights = kind === 'el1' ? `el1=${supervisor} el0=${user}` : `el2=${supervisor}`;
  return `${place} ${rights} af=${bits(10, 10)} attr=${bits(4, 2)}`;
}

const python = spawnSync('python3', ['--version']).status === 0;

/** Compares one regime of an arm64 guest: options of `dump` by options of the lister. */
function armCompare(
  guest: Saved,
  kind: 'el1' | 'el2' | 's2',
  options: Readonly<Record<string, string>>,
  el2: boolean,
): void {
  const given = Object.entries(options).flatMap(([option, register]) => [`--${option}`, guest.registers[register]!]);
  const mode = kind === 's2' ? ['--stage2'] : kind === 'el2' ? ['--el2'] : [];
  const lister = spawnSync(
    'python3',
    ['test/guests/arm64_tables.py', guest.memory, '--base', '0x40000000', ...mode, ...given],
    { encoding: 'utf8', maxBuffer: 1 << 30 },
  );
  assert.equal(lister.status, 0, lister.stderr);
  const expected = lister.stdout.trimEnd().split('\n');
  assert.ok(expected.length > 10, 'rows');
  const rows = dump('--memory', guest.memory, '--map', '0x40000000@0', '--json', ...(el2 ? ['--el2'] : []), ...given);
  same(
    rows.map((row) => armRow(row, kind)),
    expected,
  );
}

for (const [name, title, kind, options, el2] of [
  ['arm64', 'the kernel’s stage 1', 'el1', { ttbr0: 'ttbr0_el1', ttbr1: 'ttbr1_el1', tcr: 'tcr_el1' }, false],
  [
    'arm64-kvm',
    'stage 2 of a KVM guest, with concatenated tables',
    's2',
    { vttbr: 'vttbr_el2', vtcr: 'vtcr_el2' },
    false,
  ],
  ['arm64-kvm', 'the VHE host', 'el1', { ttbr0: 'ttbr0_el2', ttbr1: 'ttbr1_el2', tcr: 'tcr_el2' }, true],
  ['arm64-kvm-nvhe', 'stage 2 under nVHE', 's2', { vttbr: 'vttbr_el2', vtcr: 'vtcr_el2' }, false],
  ['arm64-kvm-nvhe', 'the hypervisor’s own stage 1 at EL2', 'el2', { ttbr0: 'ttbr0_el2', tcr: 'tcr_el2' }, true],
] as const) {
  test(`${name}: ${title}, row by row as an independent lister has it`, (t) => {
    if (!python) return t.skip('python3 is missing: the independent lister needs it');
    const guest = saved(name);
    if (typeof guest === 'string') return t.skip(guest);
    armCompare(guest, kind, options, el2);
  });
}
