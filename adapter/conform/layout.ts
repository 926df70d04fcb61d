/**
 * The map of the guest's memory and the records that host and guest share: what native/guests/conform.S has as `#define`s.
 *
 * | guest-physical | what                                                                         |
 * | -------------- | ---------------------------------------------------------------------------- |
 * | 0x100000       | the guest program; its CPL0 snippets from 0x100600                            |
 * | 0x200000       | root of every case (PML4); entry 0 is the program's own                       |
 * | 0x203000       | the cases' PDPT, then page directory and page table, a frame each             |
 * | 0x400000       | a 2M page of the user's: CPL3 snippets, where they end, a stack               |
 * | 0x600000       | u64: number of cases                                                          |
 * | 0x800000       | cases, 128 bytes each                                                         |
 * | 0xa00000       | results, 64 bytes each                                                        |
 * | 0x2000000      | 4M that cases map: `ret` (0xc3) everywhere, but a frame's last 8 bytes have its number |
 */
export const MEMORY_SIZE = 64 << 20;
export const PROGRAM = 0x100000n;
export const COUNT = 0x600000n;
export const CASES = 0x800000n;
export const RESULTS = 0xa00000n;
/** Frames of the tables that a case's entries lie in, by level. */
export const TABLE_FRAMES: Readonly<Record<number, number>> = { 4: 0x200, 3: 0x203, 2: 0x204, 1: 0x205 };
/** Data: two 2M pages. */
export const DATA_FRAME = 0x2000;
export const DATA_FRAMES = 0x400;
/** What every byte of the data is but for the tags: `ret`, so that a fetch comes back, and a store changes nothing. */
export const DATA_BYTE = 0xc3;
/** Where in each data frame its number stands, 8 bytes. */
export const TAG_OFFSET = 0xff8;

/** A case: nine u64 of registers and access, then the places of four entries from the root down, and their values. */
export const CASE_BYTES = 128;
export const CASE_FIELDS = {
  cr0: 0,
  cr4: 8,
  efer: 16,
  rflags: 24,
  gva: 32,
  /** Address of the snippet that makes the access. */
  action: 40,
  /** 1: at CPL3. */
  user: 48,
  slots: 56,
  entries: 88,
} as const;

/** A result: two u32, then u64. */
export const RESULT_BYTES = 64;
export const RESULT_FIELDS = {
  /** u32: 256 when the access was made at CPL0 and nothing came of it. */
  vector: 0,
  /** u32: 0 where the exception has no error code. */
  error: 4,
  cr2: 8,
  rip: 16,
  /** RAX after the access, 0 before. */
  value: 24,
  entries: 32,
} as const;

export const NO_EXCEPTION = 256;
/** CPL3 snippets end with an undefined instruction here. */
export const USER_DONE = 0x400100n;
const KERNEL_SNIPPETS = 0x100600n;
const USER_SNIPPETS = 0x400000n;
const SNIPPET_BYTES = 16n;

/** Cases of a batch at most: as many as there is room for. */
export const MOST_CASES = Number((RESULTS - CASES) / BigInt(CASE_BYTES));

/** Where the snippet stands that makes an access: reads of 1, 2, 4 and 8 bytes, writes of them, a fetch. */
export function snippet(kind: 'read' | 'write' | 'fetch', size: number, user: boolean): bigint {
  const number = kind === 'fetch' ? 8 : (kind === 'write' ? 4 : 0) + Math.log2(size);
  return (user ? USER_SNIPPETS : KERNEL_SNIPPETS) + SNIPPET_BYTES * BigInt(number);
}

/** The bytes of the data frames. */
export function dataBytes(): Uint8Array {
  const bytes = new Uint8Array(DATA_FRAMES * 4096).fill(DATA_BYTE);
  const view = new DataView(bytes.buffer);
  for (let n = 0; n < DATA_FRAMES; n++) view.setBigUint64(n * 4096 + TAG_OFFSET, BigInt(DATA_FRAME + n), true);
  return bytes;
}

/** What a read of the data finds, as `dataBytes` has put it there. */
export function dataAt(frame: number, offset: number, size: number): bigint {
  let value = 0n;
  for (let at = size - 1; at >= 0; at--) {
    const tag = offset + at - TAG_OFFSET;
    const byte = tag < 0 ? BigInt(DATA_BYTE) : (BigInt(frame) >> BigInt(8 * tag)) & 0xffn;
    value = (value << 8n) | byte;
  }
  return value;
}
