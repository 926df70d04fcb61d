import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { rmpEntry } from './rmp.ts';
import { isModules } from './tdx.ts';

/** Whether a frame holds what only its guest's key makes readable: of SNP what is assigned, of TDX what the module has taken. */
function isEncrypted(machine: Machine, pfn: Pfn): boolean {
  return machine.vm === 'snp' ? rmpEntry(machine, pfn) !== undefined : isModules(machine, pfn);
}

const MIX = 0x9e37_79b9_7f4a_7c15n;

/**
 * What a read without the guest's key finds in a frame: of an encrypted one, bytes that tell nothing of what is there. The same place
 * with the same contents has the same ciphertext, as hardware has it.
 */
export function readWithoutKey(machine: Machine, pfn: Pfn, offset: number, size: number): bigint {
  const value = machine.readBytes(pfn, offset, size);
  if (!isEncrypted(machine, pfn)) return value;
  let mixed = (value + BigInt(pfn) * 4096n + BigInt(offset) + 1n) * MIX;
  mixed ^= BigInt.asUintN(64, mixed) >> 29n;
  return BigInt.asUintN(8 * size, (mixed * MIX) >> 16n);
}
