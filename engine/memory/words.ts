// 64-bit values as two unsigned 32-bit words, and frame numbers as plain numbers.
//
// JavaScript's bit operators truncate to 32 bits, and a number is exact only to 2⁵³. An address of a 5-level guest does
// not fit, its frame number does: so hot code carries frames, entries are `lo`/`hi` words, and `bigint` is for people.

type Kind<K extends string> = number & { readonly kind?: K };

/** Guest-virtual frame: gva >> 12, the sign extension included (0 … 2⁵²−1). */
export type Vfn = Kind<'vfn'>;
/** Guest-physical frame: gpa >> 12 (0 … 2⁴⁰−1). */
export type Gfn = Kind<'gfn'>;
/** Host-physical frame: hpa >> 12 (0 … 2⁴⁰−1). */
export type Pfn = Kind<'pfn'>;

export const PAGE_SIZE = 4096;

const TWO_20 = 2 ** 20;

/** The frame in bits 51:12 of an entry. */
export function frameOf(lo: number, hi: number): number {
  return (lo >>> 12) + (hi & 0xfffff) * TWO_20;
}

/** Bits 31:0 of a frame's address. */
export function frameLo(frame: number): number {
  return (frame % TWO_20) * PAGE_SIZE;
}

/** Bits 63:32 of a frame's address. */
export function frameHi(frame: number): number {
  return Math.floor(frame / TWO_20);
}

export function toBigint(lo: number, hi: number): bigint {
  return (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
}

export function lowWord(value: bigint): number {
  return Number(value & 0xffffffffn);
}

export function highWord(value: bigint): number {
  return Number((value >> 32n) & 0xffffffffn);
}

export function frameToAddress(frame: number, offset = 0): bigint {
  return BigInt(frame) * 4096n + BigInt(offset);
}

export function addressToFrame(address: bigint): number {
  return Number(BigInt.asUintN(64, address) >> 12n);
}

export function pageOffset(address: bigint): number {
  return Number(address & 0xfffn);
}

/** `0x…`, without padding: how a 64-bit value travels in JSON and is shown. */
export function hex(value: bigint | number): string {
  return `0x${value.toString(16)}`;
}

export function hexWords(lo: number, hi: number): string {
  return hex(toBigint(lo, hi));
}

/** `4K`, `2M`, `1G`, `512G`: a count of bytes as people write it. */
export function formatSize(bytes: number): string {
  const units = ['', 'K', 'M', 'G', 'T', 'P'];
  let unit = 0;
  while (bytes >= 1024 && bytes % 1024 === 0 && unit < units.length - 1) {
    bytes /= 1024;
    unit++;
  }
  return `${bytes}${units[unit]}`;
}
