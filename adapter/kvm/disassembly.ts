import { Decoder, DecoderOptions, FlowControl, Formatter, FormatterSyntax, type Instruction } from 'iced-x86';

export interface DisassembledInstruction {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  readonly text: string;
  readonly isCall: boolean;
}

/** The longest instruction that x86 has, in bytes. */
const LONGEST = 15;

export type Disassemble = typeof disassemble;

/** Decodes x86-64 code, at most `count` instructions; fewer when the bytes end. What is none is one byte, `(bad)`. */
export function disassemble(bytes: Uint8Array, address: bigint, count: number): DisassembledInstruction[] {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  const formatter = new Formatter(FormatterSyntax.Gas);
  formatter.uppercaseHex = false;
  formatter.branchLeadingZeros = false;
  formatter.spaceAfterOperandSeparator = true;
  decoder.ip = address;
  const found: DisassembledInstruction[] = [];
  try {
    while (found.length < count && decoder.canDecode) {
      const at = decoder.position;
      const instruction: Instruction = decoder.decode();
      try {
        const size = Math.max(1, instruction.length);
        // The last instruction may go on behind the bytes that are there.
        if (instruction.isInvalid && at + LONGEST > bytes.length && found.length > 0) break;
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
