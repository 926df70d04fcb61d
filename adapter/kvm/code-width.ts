import type { Machine } from '../../engine/machine.ts';
import type { RegisterValues } from './registers.ts';
import { readVirtual } from './virtual.ts';

/** Of instructions: addresses and operands have as many bits unless a prefix says otherwise. */
export type CodeWidth = 16 | 32 | 64;

const PE = 1n;
const LMA = 1n << 10n;
/** Of a code segment's descriptor (SDM vol. 3, 5.2.1). */
const L = 1n << 53n;
const D = 1n << 54n;

/** Whether exceptions push 8 bytes a word; else 4. */
export function isLongMode(registers: RegisterValues): boolean {
  return ((registers.get('efer') ?? 0n) & LMA) !== 0n;
}

/** How code runs, by what its segment's descriptor says in memory; where that cannot be read, as wide as the mode goes. */
export function codeWidth(
  machine: Machine,
  vcpu: number,
  registers: RegisterValues,
  selector: bigint = registers.get('cs') ?? 0n,
): CodeWidth {
  if (((registers.get('cr0') ?? 0n) & PE) === 0n) return 16;
  const widest = isLongMode(registers) ? 64 : 32;
  const offset = selector & 0xfff8n;
  if (offset === 0n || offset + 7n > (registers.get('gdt_limit') ?? 0n)) return widest;
  const bytes = readVirtual(machine, vcpu, (registers.get('gdt_base') ?? 0n) + offset, 8);
  if (bytes.length < 8) return widest;
  const descriptor = new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true);
  if (widest === 64 && (descriptor & L) !== 0n) return 64;
  return (descriptor & D) !== 0n ? 32 : 16;
}
