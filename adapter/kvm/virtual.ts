import type { Machine } from '../../engine/machine.ts';
import { toHost } from '../addresses.ts';

/** Bytes at a virtual address; as many as are mapped. */
export function readVirtual(machine: Machine, vcpu: number, address: bigint, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const host = toHost(machine, { space: 'gva', vcpu, address: BigInt.asUintN(64, address + BigInt(done)) });
    if (!host) break;
    const size = Math.min(length - done, 4096 - host.offset);
    bytes.set(machine.pageBytes(host.pfn).subarray(host.offset, host.offset + size), done);
    done += size;
  }
  return bytes.subarray(0, done);
}

/** Eight bytes, or as many as are given, as a number; undefined where they are not mapped. */
export function readWord(machine: Machine, vcpu: number, address: bigint, size = 8): bigint | undefined {
  const bytes = readVirtual(machine, vcpu, address, size);
  return bytes.length < size ? undefined : bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
}
