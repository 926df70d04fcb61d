import assert from 'node:assert/strict';
import { test } from 'node:test';
import { highWord, lowWord } from '../memory/words.ts';
import { Format } from './compile.ts';
import { decodeEntry } from './decode.ts';
import { encodeLeaf, encodeTable, withFields } from './encode.ts';
import { EPT } from './ept.ts';
import type { Feature, FormatSpec } from './format.ts';
import { NPT } from './npt.ts';
import { X86_64 } from './x86-64.ts';

const compile = (spec: FormatSpec, maxPhyAddr = 52, ...features: Feature[]): Format =>
  new Format(spec, { maxPhyAddr, features: new Set(features) });
/** Bits high … low, inclusive. */
const bits = (high: number, low: number): bigint => ((1n << BigInt(high - low + 1)) - 1n) << BigInt(low);

// The tables below are the manuals' own (SDM vol. 3, tables 4-15 to 4-20 and 29-1 to 29-7), written out by hand: they must not be
// derived from the field lists that they check.

test('x86-64: reserved bits at every level, for any MAXPHYADDR', () => {
  for (const width of [32, 36, 46, 51, 52]) {
    const beyond = width === 52 ? 0n : bits(51, width);
    const format = compile(X86_64, width, 'nx', '1g-pages');
    assert.equal(format.reservedMask(4, 'table'), beyond | bits(7, 7));
    assert.equal(format.reservedMask(3, 'table'), beyond);
    assert.equal(format.reservedMask(3, 'leaf'), beyond | bits(29, 13));
    assert.equal(format.reservedMask(2, 'table'), beyond);
    assert.equal(format.reservedMask(2, 'leaf'), beyond | bits(20, 13));
    assert.equal(format.reservedMask(1, 'leaf'), beyond);
  }
});

test('x86-64: what NXE, 1G pages and AMD change', () => {
  for (const [level, kind] of [
    [4, 'table'],
    [3, 'leaf'],
    [2, 'leaf'],
    [1, 'leaf'],
  ] as const) {
    const without = compile(X86_64, 52, '1g-pages').reservedMask(level, kind);
    assert.equal(without & bits(63, 63), bits(63, 63), `level ${level}`);
    assert.equal(compile(X86_64, 52, '1g-pages', 'nx').reservedMask(level, kind) & bits(63, 63), 0n);
  }
  assert.equal(compile(X86_64, 52, 'nx').reservedMask(3, 'table'), bits(7, 7));
  assert.equal(compile(X86_64, 52, 'nx').isLargeLevel(3), false);
  assert.equal(compile(X86_64, 52, 'nx', '1g-pages').isLargeLevel(3), true);
  assert.equal(compile(X86_64, 52, 'nx', 'amd').reservedMask(4, 'table'), bits(8, 7));
  assert.equal(compile(X86_64, 52, 'nx', 'amd').reservedMask(3, 'table') & bits(8, 8), 0n);
});

test('EPT: reserved bits at every level', () => {
  const format = compile(EPT, 46, '1g-pages', 'nx');
  const beyond = bits(51, 46);
  assert.equal(format.reservedMask(4, 'table'), beyond | bits(7, 3));
  assert.equal(format.reservedMask(3, 'table'), beyond | bits(6, 3));
  assert.equal(format.reservedMask(2, 'table'), beyond | bits(6, 3));
  assert.equal(format.reservedMask(3, 'leaf'), beyond | bits(29, 12));
  assert.equal(format.reservedMask(2, 'leaf'), beyond | bits(20, 12));
  assert.equal(format.reservedMask(1, 'leaf'), beyond);
  assert.equal(compile(EPT, 46).reservedMask(3, 'table'), beyond | bits(7, 3));
});

test('EPT: combinations of rights and memory types that are misconfigurations', () => {
  const malformed = (format: Format, level: number, value: bigint): boolean =>
    format.isMalformed(level, lowWord(value), highWord(value));
  const plain = compile(EPT, 46, '1g-pages');
  const executeOnly = compile(EPT, 46, '1g-pages', 'execute-only');
  for (let rights = 1; rights < 8; rights++) {
    const entry = BigInt(rights) | 0x30n;
    const illegal = (rights & 3) === 2;
    assert.equal(malformed(executeOnly, 1, entry), illegal, `rights ${rights}`);
    assert.equal(malformed(plain, 1, entry), illegal || rights === 4, `rights ${rights} without execute-only`);
  }
  for (let type = 0; type < 8; type++)
    assert.equal(malformed(plain, 1, 7n | (BigInt(type) << 3n)), [2, 3, 7].includes(type), `memory type ${type}`);
  for (let type = 0; type < 8; type++)
    assert.equal(malformed(plain, 2, 0x87n | (BigInt(type) << 3n)), [2, 3, 7].includes(type), `2M memory type ${type}`);
  // Bit 7 of a PTE is ignored; an absent entry is never malformed.
  assert.equal(malformed(plain, 1, 0xb7n), false);
  assert.equal(malformed(plain, 1, 0xfffffff8n), false);
});

test('NPT has the reserved bits of an AMD processor, and room for KVM’s own', () => {
  const format = compile(NPT, 46, 'nx', '1g-pages', 'amd');
  const beyond = bits(51, 46);
  assert.equal(format.reservedMask(4, 'table'), beyond | bits(8, 7));
  assert.equal(format.reservedMask(2, 'leaf'), beyond | bits(20, 13));
  assert.equal(format.reservedMask(1, 'leaf'), beyond);
});

test('every bit of every kind of entry belongs to exactly one field or is reserved', () => {
  for (const spec of [X86_64, EPT, NPT]) {
    const format = compile(spec, 52, 'nx', '1g-pages', 'amd', 'execute-only');
    for (const { level } of spec.levels) {
      for (const kind of ['table', 'leaf'] as const) {
        if (kind === 'leaf' && !format.isLargeLevel(level)) continue;
        if (kind === 'table' && level === 1) continue;
        let seen = 0n;
        for (const field of format.fields(level, kind)) {
          const mask = bits(field.bits[0], field.bits[1]);
          assert.equal(seen & mask, 0n, `${spec.name} level ${level} ${kind}: ${field.name} overlaps another field`);
          seen |= mask;
        }
        assert.equal(seen | format.reservedMask(level, kind), bits(63, 0));
      }
    }
  }
});

test('what is encoded is decoded: rights, address, size and named fields', () => {
  for (const spec of [X86_64, EPT, NPT]) {
    const format = compile(spec, 46, 'nx', '1g-pages', 'amd');
    for (const level of [1, 2, 3]) {
      for (let rights = 0; rights < 8; rights++) {
        const frame = 3 * 512 * 512;
        const given = { write: (rights & 1) !== 0, execute: (rights & 2) !== 0, user: (rights & 4) !== 0 };
        const { lo, hi } = encodeLeaf(format, level, frame, given, { [spec.roles.accessed!]: 1 });
        const entry = decodeEntry(format, level, lo, hi);
        assert.equal(entry.state, 'leaf');
        assert.deepEqual(entry.problems, []);
        assert.equal(entry.address, `0x${(BigInt(frame) << 12n).toString(16)}`);
        assert.equal(entry.size, 4096 * 512 ** (level - 1));
        const user = spec === EPT ? '' : given.user ? 'u' : 's';
        assert.equal(entry.rights, `r${given.write ? 'w' : '-'}${given.execute ? 'x' : '-'}${user}`);
        assert.equal(entry.fields.find((field) => field.name === 'A')?.words, '1');
        assert.equal(format.frame(level, lo, hi), frame);
      }
    }
    const table = encodeTable(format, 2, 0x12345);
    assert.equal(decodeEntry(format, 2, table.lo, table.hi).state, 'table');
    assert.equal(format.frame(2, table.lo, table.hi), 0x12345);
  }
});

test('what cannot be encoded is refused by name', () => {
  const format = compile(X86_64, 46, 'nx');
  const rights = { write: true, execute: true, user: true };
  assert.throws(() => encodeLeaf(format, 3, 0, rights), { message: 'PDPTE cannot map a page' });
  assert.throws(() => encodeLeaf(format, 2, 1, rights), { message: 'frame 0x1 is not aligned to level 2' });
  assert.throws(() => encodeLeaf(format, 1, 0, rights, { PK: 16 }), { message: '16 does not fit PK (bits 62:59)' });
  assert.throws(() => withFields(format, 4, 'table', 0n, { G: 1 }), { message: /^PML4E has no field G; it has NX, / });
  assert.throws(() => compile(X86_64, 46.5), { message: 'MAXPHYADDR 46.5 is out of range: 32 … 52' });
  assert.throws(() => compile(X86_64, 31), { message: 'MAXPHYADDR 31 is out of range: 32 … 52' });
  assert.throws(() => compile(X86_64, 53), { message: 'MAXPHYADDR 53 is out of range: 32 … 52' });
});

test('a malformed entry says which bits are at fault', () => {
  const format = compile(X86_64, 46, 'nx', '1g-pages');
  const problems = (level: number, value: bigint) =>
    decodeEntry(format, level, lowWord(value), highWord(value)).problems;
  assert.deepEqual(problems(4, 0x81n), ['reserved bit 7 set']);
  assert.deepEqual(problems(2, 0x6081n), ['reserved bits 14:13 set']);
  assert.deepEqual(problems(1, (1n << 50n) | (1n << 47n) | 1n), ['address bits 50, 47 beyond MAXPHYADDR 46']);
  assert.deepEqual(problems(1, 0xfffffffffffffffen), []);
});

test('the PAT bit of a large page is no part of its address', () => {
  const format = compile(X86_64, 52, 'nx', '1g-pages');
  const { lo, hi } = encodeLeaf(format, 2, 512, { write: true, execute: true, user: true }, { PAT: 1 });
  assert.equal(lo & 0x1000, 0x1000);
  assert.equal(format.frame(2, lo, hi), 512);
});

test('an undefined memory type is named, on leaves only', () => {
  const format = compile(EPT, 46, '1g-pages');
  assert.deepEqual(decodeEntry(format, 1, 0x17, 0).problems, ['memory type 2 is not defined']);
  assert.deepEqual(decodeEntry(format, 2, 0x17, 0).problems, ['reserved bit 4 set']);
});

test('PK, G and the leaf bit are where the format says', () => {
  const format = compile(X86_64, 52, 'nx', '1g-pages');
  const { hi } = encodeLeaf(format, 1, 0, { write: false, execute: true, user: true }, { PK: 11 });
  assert.equal(format.keyOf(hi), 11);
  assert.equal(format.globalLo, 0x100);
  assert.equal(format.classify(2, 0x80 | 1), 2);
  assert.equal(format.classify(2, 1), 1);
  assert.equal(format.classify(2, 0x80), 0);
  assert.equal(format.classify(1, 1), 2);
});
