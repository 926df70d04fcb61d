import { hex } from '../../engine/memory/words.ts';
import { ImageError } from './errors.ts';
import type { BlockFile } from './file.ts';

export interface LoadSegment {
  readonly paddr: bigint;
  readonly offset: number;
  readonly fileSize: bigint;
  readonly memSize: bigint;
}

interface Note {
  readonly name: string;
  readonly type: number;
  readonly data: DataView;
}

export interface Elf {
  readonly machine: number;
  readonly wide: boolean;
  readonly segments: readonly LoadSegment[];
  readonly notes: readonly Note[];
}

/** What a core says of the machine: its architecture, and registers or symbols from which tables can be found. */
export interface CoreFacts {
  readonly arch?: 'x86' | 'arm64' | 'riscv';
  /** Of each CPU, from QEMU's notes. */
  readonly cpus?: readonly {
    readonly cr0: bigint;
    readonly cr3: bigint;
    readonly cr4: bigint;
    readonly long: boolean;
  }[];
  /** Lines of the kernel's VMCOREINFO. */
  readonly vmcoreinfo?: ReadonlyMap<string, string>;
}

const ET_CORE = 4;
const PT_LOAD = 1;
const PT_NOTE = 4;
const MACHINES: Readonly<Record<number, CoreFacts['arch']>> = { 3: 'x86', 62: 'x86', 183: 'arm64', 243: 'riscv' };
/** No core has more, and a hostile header can claim 2³². */
const MOST_SEGMENTS = 1 << 20;
const MOST_NOTE_BYTES = 64 << 20;

/** Reads the headers of an ELF core. @throws ImageError naming the header that is wrong. */
export function parseElf(file: BlockFile): Elf {
  const fail = (words: string): never => {
    throw new ImageError(`${file.path} is not a usable ELF core: ${words}`);
  };
  const head = view(file.bytes(0, 64));
  if (file.size < 52) fail(`it has ${file.size} bytes, less than an ELF header`);
  const wide = head.getUint8(4) === 2;
  if (!wide && head.getUint8(4) !== 1) fail(`EI_CLASS is ${head.getUint8(4)}, not 1 (32-bit) or 2 (64-bit)`);
  if (head.getUint8(5) !== 1) fail('it is big-endian');
  const type = head.getUint16(16, true);
  if (type !== ET_CORE) fail(`its type is ${type}, not ${ET_CORE} (core); an executable holds no machine's memory`);
  const machine = head.getUint16(18, true);
  if (MACHINES[machine] === undefined) fail(`its machine ${machine} is not x86, arm64 or RISC-V`);
  const table = wide ? Number(head.getBigUint64(32, true)) : head.getUint32(28, true);
  const entrySize = head.getUint16(wide ? 54 : 42, true);
  let count = head.getUint16(wide ? 56 : 44, true);
  if (count === 0xffff) {
    // More segments than the field can count: the first section header has the number.
    const sections = wide ? Number(head.getBigUint64(40, true)) : head.getUint32(32, true);
    count = view(file.bytes(sections, 64)).getUint32(wide ? 44 : 28, true);
  }
  const least = wide ? 56 : 32;
  if (entrySize < least) fail(`its program headers have ${entrySize} bytes, not ${least}`);
  if (count === 0) fail('it has no program headers');
  if (count > MOST_SEGMENTS) fail(`it claims ${count} program headers`);
  if (table + count * entrySize > file.size)
    fail(
      `${count} program headers at offset ${hex(table)} go beyond the end of the file, which has ${file.size} bytes`,
    );
  const headers = view(file.bytes(table, count * entrySize));
  const segments: LoadSegment[] = [];
  const notes: Note[] = [];
  for (let index = 0; index < count; index++) {
    const at = index * entrySize;
    const word = (narrowAt: number, wideAt: number): bigint =>
      wide ? headers.getBigUint64(at + wideAt, true) : BigInt(headers.getUint32(at + narrowAt, true));
    const kind = headers.getUint32(at, true);
    const offset = word(4, 8);
    const paddr = word(12, 24);
    const fileSize = word(16, 32);
    const memSize = word(20, 40);
    if (kind !== PT_LOAD && kind !== PT_NOTE) continue;
    const what = `segment ${index} (${hex(fileSize)} bytes at offset ${hex(offset)})`;
    if (offset + fileSize > BigInt(file.size))
      fail(`${what} goes beyond the end of the file, which has ${file.size} bytes: it is truncated`);
    if (kind === PT_NOTE) notes.push(...parseNotes(file, Number(offset), Number(fileSize), fail));
    // Some kernels mark what has no physical address with −1.
    else if (memSize > 0n && paddr !== 2n ** 64n - 1n) {
      if (paddr % 4096n !== 0n) fail(`${what} is at physical address ${hex(paddr)}, which is not a multiple of 4K`);
      if (paddr + memSize > 1n << 56n) fail(`${what} goes up to physical address ${hex(paddr + memSize)}`);
      if (fileSize > memSize) fail(`${what} has only ${hex(memSize)} bytes of memory`);
      segments.push({ paddr, offset: Number(offset), fileSize, memSize: ((memSize + 4095n) / 4096n) * 4096n });
    }
  }
  if (segments.length === 0) fail('it has no PT_LOAD segment, so no memory');
  if (segments.length > 1 && segments.every(({ paddr }) => paddr === 0n))
    fail('all its segments are at physical address 0: it is the core of a process, not of a machine');
  return { machine, wide, segments, notes };
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function parseNotes(file: BlockFile, offset: number, size: number, fail: (words: string) => never): Note[] {
  if (size > MOST_NOTE_BYTES) fail(`it has ${size} bytes of notes`);
  const data = view(file.bytes(offset, size));
  const notes: Note[] = [];
  for (let at = 0; at + 12 <= size; ) {
    const nameSize = data.getUint32(at, true);
    const dataSize = data.getUint32(at + 4, true);
    const nameAt = at + 12;
    const dataAt = nameAt + 4 * Math.ceil(nameSize / 4);
    if (dataAt + dataSize > size) fail(`the note at offset ${hex(offset + at)} goes beyond its segment`);
    const name = Array.from({ length: Math.max(0, nameSize - 1) }, (_, i) =>
      String.fromCharCode(data.getUint8(nameAt + i)),
    ).join('');
    notes.push({
      name,
      type: data.getUint32(at + 8, true),
      data: new DataView(data.buffer, data.byteOffset + dataAt, dataSize),
    });
    at = dataAt + 4 * Math.ceil(dataSize / 4);
  }
  return notes;
}

/** Where QEMU's CPU state keeps CR0; CR2, CR3 and CR4 follow at steps of 8, with CR1 between. */
const QEMU_CR0 = 392;

export function coreFacts({ machine, notes }: Elf): CoreFacts {
  const cpus = notes
    .filter(({ name, data }) => name === 'QEMU' && data.byteLength >= QEMU_CR0 + 40)
    .map(({ data }) => ({
      cr0: data.getBigUint64(QEMU_CR0, true),
      cr3: data.getBigUint64(QEMU_CR0 + 24, true),
      cr4: data.getBigUint64(QEMU_CR0 + 32, true),
      // QEMU writes a 64-bit x86 core when the CPU is in long mode.
      long: machine === 62,
    }));
  const info = notes.find(({ name }) => name === 'VMCOREINFO');
  const arch = MACHINES[machine];
  return {
    ...(arch ? { arch } : {}),
    ...(cpus.length > 0 ? { cpus } : {}),
    ...(info ? { vmcoreinfo: parseVmcoreinfo(info.data) } : {}),
  };
}

function parseVmcoreinfo(data: DataView): Map<string, string> {
  const text = new TextDecoder('latin1').decode(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return new Map(
    text.split('\n').flatMap((line): [string, string][] => {
      const equals = line.indexOf('=');
      return equals > 0 ? [[line.slice(0, equals), line.slice(equals + 1)]] : [];
    }),
  );
}
