import {
  DESCRIPTORS,
  EXCEPTIONS,
  gateBytes,
  IDT,
  isNarrow,
  KERNEL_CODE,
  KERNEL_DATA,
  LARGE,
  type Layout,
  PAGE,
  PS,
  SUPERVISOR,
  TABLES,
  tssSelector,
  USER_CODE,
  USER_STACK,
  USERS,
  vcpuPage,
  vcpuStack,
} from './layout.ts';
import type { Stubs } from './stubs.ts';

/** The bytes of stubs by their offset, but for the code. @param chunkEntries entries that lead to the tables of guest memory */
export function stubPages(
  { paging, gpa, size, base, chunks, nested }: Omit<Stubs, 'pages' | 'end'>,
  { between, entryBytes, chunk, page: leaf, bits }: Layout,
  vcpus: number,
  chunkEntries: readonly bigint[],
): Map<bigint, Uint8Array> {
  const pages = new Map<bigint, Uint8Array>();
  const view = (offset: bigint): DataView => {
    const page = offset & ~(PAGE - 1n);
    const bytes = pages.get(page) ?? new Uint8Array(Number(PAGE));
    pages.set(page, bytes);
    return new DataView(bytes.buffer, Number(offset - page));
  };
  const put = (offset: bigint, value: bigint): void => view(offset).setBigUint64(0, BigInt.asUintN(64, value), true);
  put(USER_STACK + PAGE - 8n, base + USER_CODE);
  // Null, code and data of the supervisor, a hole, code and data of the user at 0x28 and 0x30.
  const [code, usersCode] = isNarrow(paging)
    ? [0x00cf9b000000ffffn, 0x00cffb000000ffffn]
    : [0x00af9b000000ffffn, 0x00affb000000ffffn];
  [0n, code, 0x00cf93000000ffffn, 0n, 0n, usersCode, 0x00cff3000000ffffn].forEach((descriptor, number) => {
    put(DESCRIPTORS + 8n * BigInt(number), descriptor);
  });
  for (let vector = 0n; vector < 32n; vector++) {
    const entry = base + EXCEPTIONS + 16n * vector;
    const at = DESCRIPTORS + IDT + gateBytes(paging) * vector;
    put(at, gate(entry));
    if (!isNarrow(paging)) put(at + 8n, entry >> 32n);
  }
  for (let vcpu = 0; vcpu < vcpus; vcpu++) {
    // RSP0, at byte 4 of the TSS; or ESP0, and SS0 behind it.
    const top = vcpuStack({ base }, vcpu);
    put(vcpuPage(vcpu), top << 32n);
    put(vcpuPage(vcpu) + 8n, isNarrow(paging) ? KERNEL_DATA : top >> 32n);
    if (isNarrow(paging)) put(DESCRIPTORS + tssSelector(vcpu), tssDescriptor(base + vcpuPage(vcpu)));
  }
  const table = (number: number): bigint => TABLES + PAGE * BigInt(number);
  const putEntry = (number: number, index: number, value: bigint): void => {
    const place = view(table(number) + BigInt(index * entryBytes));
    if (entryBytes === 8) place.setBigUint64(0, value, true);
    else place.setUint32(0, Number(value), true);
  };
  for (let level = 0; level < between; level++) putEntry(level, 0, (gpa + table(level + 1)) | USERS);
  if (between > 0) for (const [number, entry] of chunkEntries.entries()) putEntry(0, 1 + number, entry);
  for (let page = 0n; page < TABLES / PAGE; page++) {
    const isUsers = page * PAGE === USER_CODE || page * PAGE === USER_STACK;
    putEntry(between, Number(page), (gpa + page * PAGE) | (isUsers ? USERS : SUPERVISOR));
  }
  chunks.forEach((start, number) => {
    for (let entry = 0n; entry < chunk / leaf; entry++)
      putEntry(between + 1 + number, Number(entry), (start * chunk + entry * leaf) | bits);
  });
  if (nested) {
    // Nested tables are the user's to the processor, whoever runs.
    put(nested.tables, (gpa + nested.tables + PAGE) | USERS);
    for (let at = 0n; at < size; at += LARGE) put(nested.tables + PAGE + (at / LARGE) * 8n, (gpa + at) | USERS | PS);
  }
  return pages;
}

/** An interrupt gate of the supervisor's: its low half. */
function gate(entry: bigint): bigint {
  return (entry & 0xffffn) | (KERNEL_CODE << 16n) | (0x8e00n << 32n) | (((entry >> 16n) & 0xffffn) << 48n);
}

/** A 32-bit TSS that no processor has loaded yet. */
function tssDescriptor(base: bigint): bigint {
  return 0x67n | ((base & 0xff_ffffn) << 16n) | (0x89n << 40n) | ((base >> 24n) << 56n);
}
