import {
  Decoder,
  DecoderError,
  DecoderOptions,
  FlowControl,
  Formatter,
  FormatterSyntax,
  type Instruction,
  InstructionInfoFactory,
  Register,
} from 'iced-x86';
import type { CodeWidth } from './code-width.ts';

export interface DisassembledInstruction {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  readonly text: string;
  readonly isCall: boolean;
}

export type Disassemble = typeof disassemble;
export type MemoryOperands = typeof memoryOperands;

/** Decodes x86 code of a width, at most `count` instructions; fewer when the bytes end. What is none is one byte, `(bad)`. */
export function disassemble(
  bytes: Uint8Array,
  address: bigint,
  count: number,
  width: CodeWidth,
): DisassembledInstruction[] {
  const decoder = new Decoder(width, bytes, DecoderOptions.None);
  const formatter = new Formatter(FormatterSyntax.Gas);
  formatter.uppercaseHex = false;
  formatter.branchLeadingZeros = false;
  decoder.ip = address;
  const found: DisassembledInstruction[] = [];
  try {
    while (found.length < count && decoder.canDecode) {
      const at = decoder.position;
      const instruction: Instruction = decoder.decode();
      try {
        const size = instruction.isInvalid ? 1 : instruction.length;
        // It goes on behind the bytes that are there.
        if (decoder.lastError === DecoderError.NoMoreBytes) break;
        if (instruction.isInvalid) {
          decoder.position = at + 1;
          decoder.ip = address + BigInt(at + 1);
        }
        found.push({
          address: BigInt.asUintN(64, address + BigInt(at)),
          bytes: bytes.slice(at, at + size),
          text: instruction.isInvalid ? '(bad)' : formatter.format(instruction),
          isCall: [FlowControl.Call, FlowControl.IndirectCall].includes(instruction.flowControl),
        });
      } finally {
        instruction.free();
      }
    }
  } finally {
    decoder.free();
    formatter.free();
  }
  return found;
}

/** In the order of the decoder's numbers, which the narrower ones have too. */
const GENERAL = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
];

/**
 * Virtual addresses that the instruction at the beginning of `bytes` will access, its stack among them, by the registers
 * that it finds. Vector registers as indices are not known; what they lead to is left out.
 */
export function memoryOperands(
  bytes: Uint8Array,
  rip: bigint,
  register: (name: string) => bigint,
  width: CodeWidth,
): bigint[] {
  const decoder = new Decoder(width, bytes, DecoderOptions.None);
  decoder.ip = rip;
  const instruction = decoder.decode();
  const factory = new InstructionInfoFactory();
  const info = factory.info(instruction);
  const value = (number: Register): bigint | undefined => {
    if (number === Register.None) return 0n;
    if (number >= Register.RAX && number <= Register.R15) return register(GENERAL[number - Register.RAX]!);
    if (number >= Register.AX && number <= Register.DI)
      return BigInt.asUintN(16, register(GENERAL[number - Register.AX]!));
    if (number >= Register.EAX && number <= Register.R15D)
      return BigInt.asUintN(32, register(GENERAL[number - Register.EAX]!));
    return undefined;
  };
  try {
    if (instruction.isInvalid) return [];
    return info.usedMemory().flatMap((used) => {
      const [base, index] = [value(used.base), value(used.index)];
      const segment = used.segment === Register.FS ? 'fs_base' : used.segment === Register.GS ? 'gs_base' : undefined;
      const start = segment === undefined ? 0n : register(segment);
      const { displacement, scale } = used;
      used.free();
      if (base === undefined || index === undefined) return [];
      return [BigInt.asUintN(width === 64 ? 64 : 32, start + base + index * BigInt(scale) + displacement)];
    });
  } finally {
    for (const each of [info, factory, instruction, decoder]) each.free();
  }
}
