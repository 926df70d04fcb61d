import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { readLines } from '../../adapter/elf/lines.ts';
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

/** An ELF file of these sections: name, type, bytes; `link`s of symbol tables lead to the section before them. */
function elfOf(sections: readonly (readonly [name: string, type: number, bytes: Uint8Array])[]): Uint8Array {
  const names = Buffer.from(`\0${sections.map(([name]) => `${name}\0`).join('')}.shstrtab\0`);
  const all = [['', 0, new Uint8Array()], ...sections, ['.shstrtab', 3, names]] as const;
  const header = Buffer.alloc(64);
  header.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  header.writeBigUInt64LE(64n, 40);
  header.writeUInt16LE(64, 58);
  header.writeUInt16LE(all.length, 60);
  header.writeUInt16LE(all.length - 1, 62);
  let offset = 64 + 64 * all.length;
  const headers = all.map(([name, type, bytes], index) => {
    const each = Buffer.alloc(64);
    each.writeUInt32LE(name === '' ? 0 : names.indexOf(`\0${name}\0`) + 1, 0);
    each.writeUInt32LE(type, 4);
    each.writeBigUInt64LE(BigInt(offset), 24);
    each.writeBigUInt64LE(BigInt(bytes.length), 32);
    each.writeUInt32LE(type === 2 ? index - 1 : 0, 40);
    offset += bytes.length;
    return each;
  });
  return Buffer.concat([header, ...headers, ...all.map(([, , bytes]) => bytes)]);
}

/** Functions that all have the same name of so many letters. */
function namesakes(letters: number, count: number): Uint8Array {
  const strings = Buffer.alloc(letters + 2, 'a');
  strings[0] = 0;
  strings[letters + 1] = 0;
  const symbols = Buffer.alloc(24 * (count + 1));
  for (let index = 1; index <= count; index++) {
    symbols.writeUInt32LE(1, 24 * index);
    symbols[24 * index + 4] = 2;
    symbols.writeUInt16LE(1, 24 * index + 6);
  }
  return elfOf([
    ['.strtab', 3, strings],
    ['.symtab', 2, symbols],
  ]);
}

test('names that many symbols share are bounded: each is cut, and all together refused', () => {
  const { symbols } = new ElfProgram(namesakes(100_000, 800));
  assert.equal(symbols.length, 800);
  assert.equal(symbols[0]!.name.length, 4096);
  assert.throws(() => new ElfProgram(namesakes(5000, 20_000)), /its names have more than \d+ letters/);
});

const uleb = (value: number): number[] =>
  value < 128 ? [value] : [(value % 128) + 128, ...uleb(Math.floor(value / 128))];
const u32 = (value: number): number[] => [value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24];
const sections = (line: Uint8Array, lineStrings = new Uint8Array()) => ({
  line,
  lineStrings,
  strings: new Uint8Array(),
});

/** A line table of DWARF 5 without directories, whose files are described and counted so. */
function unitOf5(formats: readonly number[], files: readonly number[]): number[] {
  const header = [1, 1, 1, 0, 1, 1, 0, 0, formats.length / 2, ...formats, ...files];
  const body = [5, 0, 8, 0, ...u32(header.length), ...header];
  return [...u32(body.length), ...body];
}

test('a line table cannot claim more files than its bytes can hold', () => {
  // Nothing is said of each: they would take no bytes at all.
  const units = Array.from({ length: 3000 }, (_, unit) => unitOf5([], uleb(15 * unit + 15)));
  const begin = performance.now();
  assert.throws(() => readLines(sections(Uint8Array.from(units.flat()))), /claims 15 files in 0 bytes/);
  assert.throws(() => readLines(sections(Uint8Array.from(unitOf5([1, 0x1f], uleb(50))))), /claims 50 files in 0 bytes/);
  // A path of many letters, by four bytes each.
  const path = Buffer.alloc(4001, 'a');
  path[4000] = 0;
  const many = Uint8Array.from(unitOf5([1, 0x1f], [...uleb(20_000), ...Array<number>(80_000).fill(0)]));
  assert.throws(() => readLines(sections(many, path)), /its names have more than/);
  const long = Buffer.alloc(5001, 'a');
  long[5000] = 0;
  const one = Uint8Array.from(unitOf5([1, 0x1f], [1, 0, 0, 0, 0]));
  assert.throws(() => readLines(sections(one, long)), /a name of more than 4096 letters/);
  assert.ok(performance.now() - begin < 2000);
});

test('where a line of many stretches begins is found at once', () => {
  const rows = 40_000;
  // Lines 1 and 2 by turns, a byte of code each.
  const program = [0, 9, 2, 0, 0, 0x10, 0, 0, 0, 0, 0];
  for (let row = 0; row < rows; row++) program.push(1, 3, row % 2 ? 0x7f : 1, 2, 1);
  program.push(0, 1, 1);
  const tables = [0, ...Buffer.from('a.c\0'), 0, 0, 0, 0];
  const header = [1, 1, 1, 0, 1, 10, 0, 1, 1, 1, 1, 0, 0, 0, 1, ...tables];
  const body = [4, 0, ...u32(header.length), ...header, ...program];
  const elf = new ElfProgram(elfOf([['.debug_line', 1, Uint8Array.from([...u32(body.length), ...body])]]));
  assert.equal(elf.problem, undefined);
  const begin = performance.now();
  const found = elf.addressesOf('a.c', 1);
  assert.equal(found.length, rows / 2);
  assert.equal(found[1], 0x100002n);
  assert.deepEqual(elf.breakableLines('a.c'), [1, 2]);
  assert.ok(performance.now() - begin < 500, `${performance.now() - begin} ms`);
});
