// Small images of physical memory, made for tests: the tables are few enough to be counted by hand.

/** A builder of raw memory: frames of 4K from 0. */
export class ImageMaker {
  readonly bytes: Buffer;

  constructor(frames: number) {
    this.bytes = Buffer.alloc(frames * 4096);
  }

  /** Puts a 64-bit entry. */
  entry(frame: number, index: number, value: bigint): this {
    this.bytes.writeBigUInt64LE(BigInt.asUintN(64, value), frame * 4096 + index * 8);
    return this;
  }

  /** Puts a 32-bit entry. */
  entry32(frame: number, index: number, value: number): this {
    this.bytes.writeUInt32LE(value >>> 0, frame * 4096 + index * 4);
    return this;
  }
}

/**
 * x86-64 tables with CR3 0x1000 in 16 frames: 0x400000 … 0x402fff to frames 8, 9 and 11 (the user’s, the last not executable),
 * 0x600000 as a 2M page at 0, and the kernel’s 0xffffffff80000000 to frame 10.
 */
export function x86Image(): Buffer {
  return new ImageMaker(16)
    .entry(1, 0, 0x2067n)
    .entry(1, 511, 0x5063n)
    .entry(2, 0, 0x3067n)
    .entry(3, 2, 0x4067n)
    .entry(3, 3, 0xe3n)
    .entry(4, 0, 0x8065n)
    .entry(4, 1, 0x9065n)
    .entry(4, 2, (1n << 63n) | 0xb067n)
    .entry(5, 510, 0x6063n)
    .entry(6, 0, 0x7063n)
    .entry(7, 0, 0xa163n).bytes;
}

interface Segment {
  readonly paddr: number;
  readonly data: Buffer;
  /** Bytes of memory, if they are more than the data. */
  readonly memSize?: number;
}

function note(name: string, type: number, data: Buffer): Buffer {
  const pad = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
  const head = Buffer.alloc(12);
  head.writeUInt32LE(name.length + 1, 0);
  head.writeUInt32LE(data.length, 4);
  head.writeUInt32LE(type, 8);
  return Buffer.concat([head, pad(Buffer.from(`${name}\0`)), pad(data)]);
}

/** QEMU’s note on a CPU: of 440 bytes only the control registers matter here. */
export function qemuNote(cr0: bigint, cr3: bigint, cr4: bigint): Buffer {
  const state = Buffer.alloc(440);
  state.writeUInt32LE(1, 0);
  state.writeUInt32LE(440, 4);
  state.writeBigUInt64LE(cr0, 392);
  state.writeBigUInt64LE(cr3, 416);
  state.writeBigUInt64LE(cr4, 424);
  return note('QEMU', 0, state);
}

export function vmcoreinfo(text: string): Buffer {
  return note('VMCOREINFO', 0, Buffer.from(text));
}

/** A 64-bit ELF core. */
export function elfCore(segments: readonly Segment[], notes: Buffer, machine = 62): Buffer {
  const head = Buffer.alloc(64);
  head.write('\x7fELF', 0, 'latin1');
  head[4] = 2;
  head[5] = 1;
  head[6] = 1;
  head.writeUInt16LE(4, 16);
  head.writeUInt16LE(machine, 18);
  head.writeUInt32LE(1, 20);
  head.writeBigUInt64LE(64n, 32);
  head.writeUInt16LE(64, 52);
  head.writeUInt16LE(56, 54);
  head.writeUInt16LE(segments.length + 1, 56);
  let offset = 64 + 56 * (segments.length + 1);
  const headers: Buffer[] = [];
  const add = (type: number, paddr: number, data: Buffer, memSize: number): void => {
    const header = Buffer.alloc(56);
    header.writeUInt32LE(type, 0);
    header.writeBigUInt64LE(BigInt(offset), 8);
    header.writeBigUInt64LE(BigInt(paddr), 24);
    header.writeBigUInt64LE(BigInt(data.length), 32);
    header.writeBigUInt64LE(BigInt(memSize), 40);
    headers.push(header);
    offset += data.length;
  };
  add(4, 0, notes, notes.length);
  for (const { paddr, data, memSize = data.length } of segments) add(1, paddr, data, memSize);
  return Buffer.concat([head, ...headers, notes, ...segments.map(({ data }) => data)]);
}
