import type { DebugProtocol } from '@vscode/debugprotocol';
import type { Machine } from '../../engine/machine.ts';
import { hex } from '../../engine/memory/words.ts';
import type { ElfProgram } from '../elf/program.ts';
import type { CodeWidth } from './code-width.ts';
import type { Disassemble, DisassembledInstruction } from './disassembly.ts';
import { readVirtual } from './virtual.ts';

/** The longest instruction that x86 has, in bytes. */
const LONGEST = 15;
/** Instructions that one request may ask for. */
const MOST = 4096;

/** Instructions from a virtual address on, as far as memory is mapped. */
export function instructionsAt(
  disassemble: Disassemble,
  machine: Machine,
  vcpu: number,
  address: bigint,
  count: number,
  width: CodeWidth,
): DisassembledInstruction[] {
  return disassemble(readVirtual(machine, vcpu, address, count * LONGEST), address, count, width);
}

/** At most `count` instructions that end where `address` begins. */
function instructionsBefore(
  disassemble: Disassemble,
  machine: Machine,
  vcpu: number,
  program: ElfProgram | undefined,
  address: bigint,
  count: number,
  width: CodeWidth,
): DisassembledInstruction[] {
  // From the beginning of a function instructions are what they are; else some starts lead to the address, and one is taken.
  const symbol = program?.symbolAt(address - 1n)?.address;
  const far = address - BigInt(count * 4 + LONGEST);
  const starts = [
    ...(symbol !== undefined && address - symbol < 65536n ? [symbol] : []),
    ...Array.from({ length: LONGEST }, (_, offset) => far + BigInt(offset)),
  ];
  for (const start of starts) {
    if (start < 0n) continue;
    const bytes = readVirtual(machine, vcpu, start, Number(address - start));
    if (start + BigInt(bytes.length) !== address) continue;
    const found = disassemble(bytes, start, bytes.length, width);
    const last = found.at(-1);
    if (last && last.address + BigInt(last.bytes.length) === address) return found.slice(-count);
  }
  return [];
}

const bytesText = (bytes: Uint8Array): string => [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');

/** Answers a disassemble request: as many lines as were asked for, those that cannot be had marked as such. */
export function disassembleRequest(
  disassemble: Disassemble,
  machine: Machine,
  vcpu: number,
  program: ElfProgram | undefined,
  args: DebugProtocol.DisassembleArguments,
  width: CodeWidth,
): DebugProtocol.DisassembledInstruction[] {
  const reference = /^(?:gva:(?:\d+:)?)?(0x[0-9a-f]+)$/i.exec(args.memoryReference);
  if (!reference) throw new Error(`${args.memoryReference} is no address of code`);
  const count = Math.min(Math.max(0, args.instructionCount), MOST);
  const address = BigInt.asUintN(64, BigInt(reference[1]!) + BigInt(args.offset ?? 0));
  const skip = args.instructionOffset ?? 0;
  const before =
    skip < 0 ? instructionsBefore(disassemble, machine, vcpu, program, address, Math.min(-skip, MOST), width) : [];
  const missing = skip < 0 ? Math.min(-skip, MOST) - before.length : 0;
  const after = instructionsAt(disassemble, machine, vcpu, address, Math.max(0, skip) + count, width).slice(
    Math.max(0, skip),
  );
  const known = [...before, ...after].map((instruction): DebugProtocol.DisassembledInstruction => {
    const line = program?.lineAt(instruction.address);
    const symbol = program?.symbolAt(instruction.address);
    return {
      address: hex(instruction.address),
      instructionBytes: bytesText(instruction.bytes),
      instruction: instruction.text,
      ...(symbol?.address === instruction.address ? { symbol: symbol.name } : {}),
      ...(line ? { location: { name: line.file.replace(/^.*\//, ''), path: line.file }, line: line.line } : {}),
    };
  });
  const first = before[0]?.address ?? address;
  const unknown = (at: bigint): DebugProtocol.DisassembledInstruction => ({
    address: hex(BigInt.asUintN(64, at)),
    instruction: '(not mapped)',
    presentationHint: 'invalid',
  });
  const head = Array.from({ length: missing }, (_, index) => unknown(first - BigInt(missing - index)));
  const all = [...head, ...known].slice(0, count);
  const last = after.at(-1);
  const end = last ? last.address + BigInt(last.bytes.length) : address;
  const tail = Array.from({ length: count - all.length }, (_, index) => unknown(end + BigInt(index)));
  return [...all, ...tail];
}
