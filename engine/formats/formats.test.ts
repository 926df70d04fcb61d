import assert from 'node:assert/strict';
import { test } from 'node:test';
import { highWord, lowWord } from '../memory/words.ts';
import { FORMATS } from './all.ts';
import { arm64Levels, arm64Stage1, arm64Stage2 } from './arm64.ts';
import { Format } from './compile.ts';
import { decodeEntry } from './decode.ts';
import { encodeLeaf, encodeTable, withFields } from './encode.ts';
import { EPT } from './ept.ts';
import type { Feature, FormatSpec } from './format.ts';
import { NPT } from './npt.ts';
import { PAE } from './pae.ts';
import { SV39, SV39X4, SV48 } from './riscv.ts';
import { X86_32 } from './x86-32.ts';
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
  for (const spec of FORMATS.values()) {
    const format = compile(spec, 52, 'nx', '1g-pages', 'amd', 'execute-only', 'pse', 'svpbmt');
    const all = bits(8 * format.entryBytes - 1, 0);
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
        // What arm64 does not use it ignores.
        if (spec.unused !== 'ignored') assert.equal(seen | format.reservedMask(level, kind), all);
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

test('32-bit paging: bits of a 4M page are reserved, nothing else, and only with CR4.PSE', () => {
  const format = compile(X86_32, 36, 'pse');
  assert.equal(format.reservedMask(2, 'table'), 0n);
  assert.equal(format.reservedMask(2, 'leaf'), bits(21, 17));
  assert.equal(format.reservedMask(1, 'leaf'), 0n);
  // A processor with 34 bits leaves two more of PSE-36 reserved.
  assert.equal(compile(X86_32, 34, 'pse').reservedMask(2, 'leaf'), bits(21, 15));
  const without = compile(X86_32, 36);
  assert.equal(decodeEntry(without, 2, 0x0040_00e7, 0).state, 'table');
  const page = decodeEntry(format, 2, 0x0041_e0e7, 0);
  assert.deepEqual([page.state, page.address, page.size], ['leaf', '0xf00400000', 4 << 20]);
});

test('PAE: reserved bits at every level, and PDPTEs that take no rights away', () => {
  for (const width of [36, 40, 52]) {
    const beyond = bits(62, width);
    const format = compile(PAE, width, 'nx');
    assert.equal(format.reservedMask(3, 'table'), beyond | bits(63, 63) | bits(8, 5) | bits(2, 1));
    assert.equal(format.reservedMask(2, 'table'), beyond);
    assert.equal(format.reservedMask(2, 'leaf'), beyond | bits(20, 13));
    assert.equal(format.reservedMask(1, 'leaf'), beyond);
    assert.equal(compile(PAE, width).reservedMask(1, 'leaf'), beyond | bits(63, 63));
  }
  assert.equal(compile(PAE, 36, 'nx').access(3, 0x1001, 0), 7);
  assert.equal(compile(PAE, 36, 'nx').entries[3], 4);
  const loaded = decodeEntry(compile(PAE, 36, 'nx'), 3, 0x1021, 0);
  assert.deepEqual(
    [loaded.state, loaded.problems],
    ['table', ['reserved bit 5 set, which only a load of CR3 refuses']],
  );
});

test('5-level tables: PML5Es are like PML4Es', () => {
  for (const [name, features] of [
    ['x86-64-5', ['nx', '1g-pages']],
    ['ept-5', ['1g-pages']],
    ['npt-5', ['nx', '1g-pages', 'amd']],
  ] as const) {
    const format = compile(FORMATS.get(name)!, 52, ...features);
    assert.equal(format.reservedMask(5, 'table'), format.reservedMask(4, 'table'), name);
    assert.equal(format.isLargeLevel(4), false);
    assert.equal(format.inputFrames, 2 ** 45);
  }
});

test('RISC-V: what is reserved, what is a page, what is refused', () => {
  const format = compile(SV39, 56);
  assert.equal(format.reservedMask(1, 'leaf'), bits(63, 54));
  assert.equal(format.reservedMask(2, 'leaf'), bits(63, 54) | bits(18, 10));
  assert.equal(format.reservedMask(3, 'leaf'), bits(63, 54) | bits(27, 10));
  assert.equal(compile(SV39, 56, 'svpbmt').reservedMask(1, 'leaf'), bits(63, 63) | bits(60, 54));
  // In a pointer A, D and U must be clear as well; R, W and X are, or it would be none.
  assert.equal(format.reservedMask(2, 'table'), bits(63, 54) | bits(7, 6) | bits(4, 1));
  const state = (level: number, value: number) => decodeEntry(format, level, value, 0).state;
  assert.equal(state(1, 0), 'absent');
  assert.equal(state(2, 0x401), 'table');
  assert.equal(state(1, 0x401), 'malformed');
  assert.equal(state(1, 0x405), 'malformed');
  assert.equal(state(1, 0x403), 'leaf');
  assert.equal(state(1, 0x409), 'leaf');
  assert.equal(decodeEntry(format, 1, 0x403 | 0x10, 0).rights, 'r--u');
  assert.equal(decodeEntry(format, 1, 0x40f | 0x10, 0).rights, 'rw-u, user rwx');
  // PPN 0x3fffffffffff is the last frame of 56 address bits.
  assert.equal(format.frame(1, 0xfffffc0f, 0x003fffff), 2 ** 44 - 1);
  assert.equal(format.frameHi(2 ** 44 - 1), 0x003fffff);
  assert.deepEqual([compile(SV39X4, 56).entries[3], compile(SV39X4, 56).tableFrames[3]], [2048, 4]);
  assert.deepEqual([format.number(3), format.number(1), compile(SV48, 56).rootLevel], [2, 0, 4]);
});

test('arm64: levels, blocks, where addresses stand', () => {
  // Levels for an input address, by granule (Arm ARM, table D8-11 and its neighbours).
  for (const [granule, inputBits, levels] of [
    [12, 48, 4],
    [12, 39, 3],
    [12, 52, 5],
    [14, 48, 4],
    [14, 47, 3],
    [14, 36, 2],
    [16, 48, 3],
    [16, 42, 2],
    [16, 52, 3],
  ] as const)
    assert.equal(arm64Levels(granule, inputBits), levels, `${granule} ${inputBits}`);
  const shape = (granule: 12 | 14 | 16, wide: boolean) => {
    const inputBits = wide ? 52 : 48;
    return { granule, inputBits, levels: arm64Levels(granule, inputBits), wide };
  };
  const blocks = (granule: 12 | 14 | 16, wide: boolean) => {
    const format = compile(arm64Stage1(shape(granule, wide), 2), wide ? 52 : 48);
    return format.spec.levels
      .filter(({ level }) => level > 1 && format.isLargeLevel(level))
      .map(({ number }) => number);
  };
  assert.deepEqual(blocks(12, false), [1, 2]);
  assert.deepEqual(blocks(12, true), [0, 1, 2]);
  assert.deepEqual(blocks(14, false), [2]);
  assert.deepEqual(blocks(14, true), [1, 2]);
  assert.deepEqual(blocks(16, false), [2]);
  assert.deepEqual(blocks(16, true), [1, 2]);

  const sixtyFour = compile(arm64Stage1(shape(16, true), 2), 52);
  // 64K: bits 15:12 are bits 51:48 of the address.
  assert.equal(sixtyFour.frame(1, 0x1234_f003, 0xabcd), 0xf_abcd_1234_0000 / 4096);
  const wide = compile(arm64Stage1(shape(12, true), 2), 52);
  // LPA2: bits 9:8 are bits 51:50, and bits 49:48 stand where they belong.
  assert.equal(wide.frame(1, 0x1234_5303, 0x3_abcd), 0xf_abcd_1234_5000 / 4096);
  const plain = compile(arm64Stage1(shape(12, false), 2), 48);
  assert.equal(plain.frame(1, 0x1234_5303, 0x3_abcd), 0xabcd_1234_5000 / 4096);
  for (const format of [sixtyFour, wide, plain]) {
    const frame = format.lastFrame[1]! - format.span[1]! + 1;
    assert.equal(format.frame(1, format.frameLo(frame) | 3, format.frameHi(frame)), frame);
  }
});

test('arm64: a block where none may be, and a reserved descriptor of a page, are nothing', () => {
  const shape = { granule: 12, inputBits: 48, levels: 4, wide: false } as const;
  const format = compile(arm64Stage1(shape, 2), 48);
  const state = (level: number, lo: number) => decodeEntry(format, level, lo, 0).state;
  assert.equal(state(4, 0x4000_0001), 'absent');
  assert.equal(state(3, 0x4000_0001), 'leaf');
  assert.equal(state(2, 0x4000_0003), 'table');
  assert.equal(state(1, 0x4000_0001), 'absent');
  assert.equal(state(1, 0x4000_0003), 'leaf');
  assert.equal(state(1, 0x4000_0002), 'absent');
});

test('arm64: rights by AP, PXN and UXN, by APTable above them, by S2AP and XN', () => {
  const shape = { granule: 12, inputBits: 48, levels: 4, wide: false } as const;
  const stage1 = compile(arm64Stage1(shape, 2), 48);
  const page = (ap: number, pxn: number, uxn: number) =>
    decodeEntry(stage1, 1, (3 | (ap << 6)) >>> 0, ((pxn << 21) | (uxn << 22)) >>> 0).rights;
  assert.equal(page(0, 0, 1), 'rwxs');
  assert.equal(page(0, 0, 0), 'rwxu, user --x');
  assert.equal(page(1, 0, 0), 'rw-u, user rwx');
  assert.equal(page(1, 1, 1), 'rw-u');
  assert.equal(page(2, 1, 1), 'r--s');
  assert.equal(page(3, 0, 0), 'r-xu');
  const table = (apTable: number, uxn: number, pxn: number) =>
    stage1.rights(2, 3, ((apTable << 29) | (uxn << 28) | (pxn << 27)) >>> 0);
  // EL1 r, w, x are 1, 2, 4; EL0's 8, 16, 32.
  assert.equal(table(0, 0, 0), 63);
  assert.equal(table(1, 0, 0), 63 & ~24);
  assert.equal(table(2, 0, 0), 63 & ~18);
  assert.equal(table(3, 1, 1), 1);
  const stage2 = compile(arm64Stage2(shape), 48);
  const second = (s2ap: number, xn: number) => stage2.rights(1, 3 | (s2ap << 6), (xn << 21) >>> 0);
  assert.equal(second(3, 0), 63);
  assert.equal(second(1, 2), 9);
  assert.equal(second(2, 2), 18);
  assert.equal(second(3, 1), 63 & ~4);
  assert.equal(second(3, 3), 63 & ~32);
});

test('arm64: addresses beyond the output size are refused, unused bits are not', () => {
  const shape = { granule: 12, inputBits: 48, levels: 4, wide: false } as const;
  const format = compile(arm64Stage1(shape, 2), 40);
  assert.equal(format.isMalformed(1, 3, 0xff), false);
  assert.equal(format.isMalformed(1, 3, 0x100), true);
  assert.deepEqual(decodeEntry(format, 1, 3, 0x100).problems, [
    'address bit 40 beyond the 40 bits of an output address',
  ]);
  assert.equal(format.isMalformed(2, 3, 0x07ff_0000), false);
});
