import { addressToFrame } from '../../engine/memory/words.ts';
import { MissingFrames } from '../../engine/mirror.ts';
import type { KvmInfo } from '../rsp/info.ts';

const ZERO = new Uint32Array(1024);
/** Frames kept between two stops: 256M of them. */
const MOST_FRAMES = 1 << 16;

/** Where a guest's memory is read: in the helper's memfd, or through packets. */
export interface Ram {
  /** Bytes at an offset of the memfd; undefined where that cannot be had at once. */
  readNow(offset: bigint, length: number): Uint8Array | undefined;
  /** Bytes at a guest-physical address. */
  fetch(gpa: bigint, length: number): Promise<Uint8Array>;
}

interface Range {
  readonly first: number;
  readonly end: number;
  readonly offset: bigint;
}

/** What of a slot is not private: the host has no mapping of the rest. */
function sharedParts(
  { gpa: base, size }: { gpa: bigint; size: bigint },
  hidden: KvmInfo['memory']['private'],
): { gpa: bigint; end: bigint }[] {
  const parts: { gpa: bigint; end: bigint }[] = [];
  let gpa = base;
  for (const { gpa: from, size: length } of hidden) {
    if (from >= base + size) break;
    if (from > gpa) parts.push({ gpa, end: from });
    if (from + length > gpa) gpa = from + length;
  }
  if (gpa < base + size) parts.push({ gpa, end: base + size });
  return parts;
}

/** The memory of a guest as of its last stop, by frames. */
export class GuestMemory {
  readonly #ram: Ram;
  #ranges: readonly Range[] = [];
  #frames = new Map<number, Uint32Array>();
  /** What stands in memory in place of the guest's own bytes, by address. */
  #patches: ReadonlyMap<bigint, number> = new Map();

  constructor(ram: Ram) {
    this.#ram = ram;
  }

  /** Forgets what was read: the machine has run, or was written to. */
  renew(memory: Pick<KvmInfo['memory'], 'slots' | 'private'>, patches: ReadonlyMap<bigint, number>): void {
    this.#ranges = memory.slots.flatMap((slot) => {
      const hidden = slot.flags.includes('private') ? memory.private : [];
      return sharedParts(slot, hidden).map(({ gpa, end }) => ({
        first: addressToFrame(gpa),
        end: addressToFrame(end),
        offset: slot.offset + (gpa - slot.gpa),
      }));
    });
    this.#patches = patches;
    this.#frames.clear();
  }

  #range(frame: number): Range | undefined {
    return this.#ranges.find(({ first, end }) => frame >= first && frame < end);
  }

  has(frame: number): boolean {
    return this.#range(frame) !== undefined;
  }

  /** The words of a frame; zeroes where no slot is. @throws MissingFrames when it must be fetched first */
  page(frame: number): Uint32Array {
    const known = this.#frames.get(frame);
    if (known) return known;
    const range = this.#range(frame);
    if (!range) return ZERO;
    const bytes = this.#ram.readNow(range.offset + BigInt(frame - range.first) * 4096n, 4096);
    if (!bytes) throw new MissingFrames([frame]);
    return this.#keep(frame, bytes);
  }

  /** Brings frames here, so that `page` has them. */
  async fetch(frames: readonly number[]): Promise<void> {
    for (const frame of frames) {
      const bytes = new Uint8Array(4096);
      bytes.set(await this.#ram.fetch(BigInt(frame) * 4096n, 4096));
      this.#keep(frame, bytes);
    }
  }

  #keep(frame: number, bytes: Uint8Array): Uint32Array {
    const start = BigInt(frame) * 4096n;
    for (const [gpa, original] of this.#patches) {
      if (gpa >= start && gpa < start + 4096n) bytes[Number(gpa - start)] = original;
    }
    if (this.#frames.size >= MOST_FRAMES) this.#frames.clear();
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, 1024);
    this.#frames.set(frame, words);
    return words;
  }
}
