import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { ElfProgram } from '../../adapter/elf/program.ts';
import { ElfError } from '../../adapter/elf/reader.ts';

// Symbols and source lines of the example guests, against binutils; and what hostile files do.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const USER = 'examples/guests/build/user.elf';
const without = (...programs: string[]): string | false => {
  const missing = programs.filter((program) => spawnSync(program, ['--version']).error);
  return missing.length > 0
    ? `there is no ${missing.join(', no ')}`
    : existsSync(USER)
      ? false
      : 'the guests are not built';
};

/** Rows of `objdump --dwarf=decodedline`: address → the file and line that the last row at it says. */
function decodedLines(path: string): Map<bigint, string> {
  const { stdout } = spawnSync('objdump', ['--dwarf=decodedline', path], { encoding: 'utf8' });
  const rows = new Map<bigint, string>();
  for (const line of stdout.split('\n')) {
    const [, file, number, address] = /^(\S+)\s+(\d+|-)\s+(0x[0-9a-f]+|0)\b/.exec(line) ?? [];
    if (file === undefined) continue;
    // The end of a sequence is no line.
    if (number === '-') rows.delete(BigInt(address!));
    else rows.set(BigInt(address!), `${file}:${number}`);
  }
  return rows;
}

/** A program compiled as some version of DWARF. */
function compiled(version: number): string {
  const source = join(folder, 'lines.c');
  const path = join(folder, `lines-${version}`);
  writeFileSync(
    source,
    [
      'static int twice(int n)',
      '{',
      '\treturn 2 * n;',
      '}',
      'int sum(int n)',
      '{',
      '\tint all = 0;',
      '\tfor (int i = 0; i < n; i++)',
      '\t\tall += twice(i);',
      '\treturn all;',
      '}',
      'int main(void)',
      '{',
      '\treturn sum(3);',
      '}',
    ].join('\n'),
  );
  const { status, stderr } = spawnSync('gcc', ['-O2', `-gdwarf-${version}`, '-no-pie', '-o', path, source], {
    encoding: 'utf8',
  });
  assert.equal(status, 0, stderr);
  return path;
}

for (const [name, make] of [
  ['the example with a user program', () => USER],
  ...[2, 3, 4, 5].map((version): [string, () => string] => [`DWARF ${version}`, () => compiled(version)]),
] as const)
  test(`every line that objdump finds is found: ${name}`, { skip: without('objdump', 'gcc') }, () => {
    const path = make();
    const program = new ElfProgram(readFileSync(path));
    assert.equal(program.problem, undefined);
    const expected = decodedLines(path);
    assert.ok(expected.size > 5, `${expected.size} rows`);
    for (const [address, place] of expected) {
      const row = program.lineAt(address);
      assert.equal(row && `${row.file.replace(/^.*\//, '')}:${row.line}`, place, `0x${address.toString(16)}`);
    }
  });

test('every symbol of nm is found by name and by address', { skip: without('nm') }, () => {
  const program = new ElfProgram(readFileSync(USER));
  const { stdout } = spawnSync('nm', [USER], { encoding: 'utf8' });
  const symbols = stdout.split('\n').flatMap((line) => {
    const [, address, type, name] = /^([0-9a-f]+) (\w) (\S+)$/.exec(line) ?? [];
    return address === undefined ? [] : [{ address: BigInt(`0x${address}`), type: type!, name: name! }];
  });
  assert.ok(symbols.length > 20);
  for (const { address, name } of symbols) assert.equal(program.address(name), address, name);
  for (const { address, name } of symbols.filter(({ type, name: each }) => type === 'T' && !each.endsWith('_end'))) {
    const alike = symbols.filter((other) => other.address === address).map((other) => other.name);
    assert.ok(alike.includes(program.nameOf(address)!), name);
  }
  assert.equal(program.nameOf(0x7fff_ffff_f000n), undefined, 'nothing is there');
});

test('damaged files give an ElfError, or less, and never take long', { skip: without() }, () => {
  const good = readFileSync(USER);
  const damage = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 40 });
  fc.assert(
    fc.property(damage, fc.nat(good.length), (bytes, length) => {
      const bad = new Uint8Array(good.subarray(0, length % 3 === 0 ? length : good.length));
      for (const [at, value] of bytes) if (at < bad.length) bad[at] = value;
      const begin = performance.now();
      try {
        const program = new ElfProgram(bad);
        program.nameOf(0x100000n);
        program.lineAt(0x100000n);
      } catch (error) {
        if (!(error instanceof ElfError)) throw error;
      }
      assert.ok(performance.now() - begin < 2000);
    }),
    { numRuns: 400 },
  );
});
