import assert from 'node:assert/strict';
import { test } from 'node:test';
import { disassemble, memoryOperands } from './disassembly.ts';

const registers: Readonly<Record<string, bigint>> = {
  rax: 0x1111n,
  rbx: 0x2000n,
  rcx: 0x10n,
  rsp: 0x9000n,
  rsi: 0x5000n,
  rdi: 0xffff_ffff_0000_6000n,
  gs_base: 0x70_0000n,
};
const register = (name: string): bigint => registers[name] ?? 0n;

for (const [text, bytes, expected] of [
  ['mov (%rbx),%al', [0x8a, 0x03], [0x2000n]],
  ['mov 0x10(%rip),%rax', [0x48, 0x8b, 0x05, 0x10, 0, 0, 0], [0x1017n]],
  ['mov 8(%rbx,%rcx,4),%eax', [0x8b, 0x44, 0x8b, 0x08], [0x2048n]],
  ['mov (%edi),%al: 32 bits of address', [0x67, 0x8a, 0x07], [0x6000n]],
  ['mov %gs:0x28,%rax', [0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], [0x70_0028n]],
  ['push %rax: below the stack', [0x50], [0x8ff8n]],
  ['pop %rax', [0x58], [0x9000n]],
  ['movsb: from and to', [0xa4], [0xffff_ffff_0000_6000n, 0x5000n]],
  ['a jump accesses nothing', [0xeb, 0xfe], []],
  ['nothing that is an instruction', [0x06], []],
] as const)
  test(`memory that an instruction accesses: ${text}`, () => {
    assert.deepEqual(memoryOperands(Uint8Array.from(bytes), 0x1000n, register, 64), expected);
  });

test('code is decoded as far as it goes, and what is no instruction is one byte', () => {
  const found = disassemble(Uint8Array.of(0x90, 0x06, 0xe8, 0x10, 0, 0, 0, 0x48), 0x4000n, 10, 64);
  assert.deepEqual(
    found.map(({ address, text, isCall }) => [address, text, isCall]),
    [
      [0x4000n, 'nop', false],
      [0x4001n, '(bad)', false],
      [0x4002n, 'call 0x4017', true],
    ],
  );
});

test('the same bytes are other instructions in narrower code', () => {
  // 64 bits: a REX prefix; 32 bits: dec; 16 bits: the same, and words are shorter.
  const code = Uint8Array.of(0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8);
  const first = (width: 16 | 32 | 64): string[] => disassemble(code, 0n, 2, width).map(({ text }) => text);
  assert.deepEqual(first(64), ['movabs $0x807060504030201,%rax']);
  assert.deepEqual(first(32), ['dec %eax', 'mov $0x4030201,%eax']);
  assert.deepEqual(first(16), ['dec %ax', 'mov $0x201,%ax']);
});

for (const [text, bytes, width, expected] of [
  ['32 bits wide wraps', [0x8b, 0x43, 0x10], 32, [0x0n]],
  ['by a displacement alone, which in 64-bit code is relative', [0x8b, 0x05, 0, 0x20, 0x40, 0], 32, [0x402000n]],
  ['by 16-bit registers', [0x8b, 0x40, 0x04], 16, [0x9004n]],
] as const)
  test(`memory that narrower code accesses: ${text}`, () => {
    const values: Record<string, bigint> = { rbx: 0xffff_ffff_ffff_fff0n, rsi: 0x1000n, rdi: 0n };
    const named = (name: string): bigint => (name === 'rbx' && width === 16 ? 0x18000n : (values[name] ?? 0n));
    assert.deepEqual(memoryOperands(Uint8Array.from(bytes), 0x1000n, named, width), expected);
  });
