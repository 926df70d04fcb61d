import { addressToFrame, formatSize, hex } from '../../engine/memory/words.ts';
import { type CoreFacts, coreFacts, type LoadSegment, parseElf } from './elf.ts';
import { ImageError } from './errors.ts';
import { BlockFile } from './file.ts';

/** A run of guest-physical memory and where its bytes lie in the file. */
export interface ImageRange {
  readonly gpa: bigint;
  readonly size: bigint;
  /** Bytes that are in the file; the rest reads as zero. */
  readonly fileSize: bigint;
  readonly offset: number;
}

interface FrameRange {
  readonly first: number;
  readonly end: number;
  /** Frame from which on the file has nothing. */
  readonly fileEnd: number;
  readonly offset: number;
}

const ZERO = new Uint32Array(1024);

/** The physical memory of a machine, in a file. */
export class MemoryImage {
  readonly path: string;
  readonly kind: 'raw' | 'elf';
  readonly ranges: readonly ImageRange[];
  /** What an ELF core says of the machine besides its memory. */
  readonly facts: CoreFacts;
  readonly #file: BlockFile;
  readonly #frames: readonly FrameRange[];
  #lastRange: FrameRange | undefined;

  constructor(file: BlockFile, kind: 'raw' | 'elf', ranges: readonly ImageRange[], facts: CoreFacts) {
    this.#file = file;
    this.path = file.path;
    this.kind = kind;
    this.facts = facts;
    this.ranges = withoutOverlaps(ranges);
    this.#frames = this.ranges.map(({ gpa, size, fileSize, offset }) => ({
      first: addressToFrame(gpa),
      end: addressToFrame(gpa + size),
      fileEnd: addressToFrame(gpa + fileSize + 4095n),
      offset,
    }));
  }

  #range(pfn: number): FrameRange | undefined {
    const last = this.#lastRange;
    if (last && pfn >= last.first && pfn < last.end) return last;
    let low = 0;
    let high = this.#frames.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (pfn >= this.#frames[middle]!.end) low = middle + 1;
      else high = middle;
    }
    const found = this.#frames[low];
    if (!found || pfn < found.first) return undefined;
    this.#lastRange = found;
    return found;
  }

  has(pfn: number): boolean {
    return this.#range(pfn) !== undefined;
  }

  /** The words of a frame; zeroes where the image has none. Not to be written, nor kept for long. */
  page(pfn: number): Uint32Array {
    const range = this.#range(pfn);
    if (!range || pfn >= range.fileEnd) return ZERO;
    return this.#file.page(range.offset + (pfn - range.first) * 4096);
  }

  /** Frames of memory that the image holds. */
  get size(): bigint {
    return this.ranges.reduce((sum, { size }) => sum + size, 0n);
  }

  close(): void {
    this.#file.close();
  }
}

/** Ranges by address. Of memory that is there twice, as the kernel's text in kdump's cores, the first counts. */
function withoutOverlaps(ranges: readonly ImageRange[]): ImageRange[] {
  const sorted: ImageRange[] = [];
  let end = 0n;
  for (const range of [...ranges].sort((a, b) => (a.gpa < b.gpa ? -1 : a.gpa > b.gpa ? 1 : 0))) {
    const cut = end > range.gpa ? end - range.gpa : 0n;
    if (cut >= range.size) continue;
    end = range.gpa + range.size;
    const fileSize = range.fileSize > cut ? range.fileSize - cut : 0n;
    sorted.push({ gpa: range.gpa + cut, size: range.size - cut, fileSize, offset: range.offset + Number(cut) });
  }
  return sorted;
}

/** A raw image's hole: bytes [offset, offset + size) of the file are memory from `gpa`. */
export interface RawMapping {
  readonly gpa: bigint;
  readonly size: bigint | undefined;
  readonly offset: number;
}

const REFUSED: readonly [magic: string, words: string][] = [
  ['KDUMP   ', 'is a compressed kdump file; `makedumpfile -d 0 --elf` or `-E` writes one that can be read'],
  ['DISKDUMP', 'is a diskdump file; `makedumpfile -E` writes an ELF core that can be read'],
  ['makedumpfile', 'is a flattened makedumpfile; `makedumpfile -R` restores it'],
  ['EMiL', 'is a LiME image; its padded format (`format=padded`) can be read as a raw one'],
  ['PAGEDU', 'is a Windows crash dump, which is not supported'],
  ['Qcow', 'is a QEMU snapshot or disk'],
  ['QFI\xfb', 'is a qcow2 disk, and no memory'],
  ['QEVM', 'is a QEMU migration stream; `dump-guest-memory` or `pmemsave` of the monitor write memory'],
];

/**
 * Opens an image of physical memory: an ELF core by its magic number, all else as raw bytes.
 * @throws ImageError naming the file and what is wrong with it
 */
export function openImage(path: string, mappings: readonly RawMapping[] = []): MemoryImage {
  const file = new BlockFile(path);
  try {
    if (file.size === 0) throw new ImageError(`${path} is empty`);
    const head = file.bytes(0, 64);
    const text = String.fromCharCode(...head.subarray(0, 16));
    for (const [magic, words] of REFUSED) if (text.startsWith(magic)) throw new ImageError(`${path} ${words}`);
    if (text.startsWith('\x7fELF')) {
      if (mappings.length > 0) throw new ImageError(`${path} is an ELF core, which says itself where its memory lies`);
      const elf = parseElf(file);
      return new MemoryImage(file, 'elf', elf.segments.map(rangeOfSegment), coreFacts(elf));
    }
    if (mappings.length === 0) {
      if (file.size < 4096)
        throw new ImageError(`${path} has ${file.size} bytes: less than a page, and no ELF core either`);
      const size = BigInt(file.size);
      return new MemoryImage(file, 'raw', [rangeOf(path, { gpa: 0n, size, offset: 0 }, file.size)], {});
    }
    return new MemoryImage(
      file,
      'raw',
      mappings.map((mapping) => rangeOf(path, mapping, file.size)),
      {},
    );
  } catch (error) {
    file.close();
    throw error;
  }
}

function rangeOfSegment({ paddr, offset, fileSize, memSize }: LoadSegment): ImageRange {
  return { gpa: paddr, size: memSize, fileSize, offset };
}

function rangeOf(path: string, { gpa, size, offset }: RawMapping, fileSize: number): ImageRange {
  const left = BigInt(fileSize - offset);
  const words = `${hex(gpa)}${size === undefined ? '' : `+${formatSize(Number(size))}`}@${hex(offset)}`;
  if (gpa % 4096n !== 0n) throw new ImageError(`${path}: ${words}: ${hex(gpa)} is not a multiple of 4K`);
  if (left <= 0n)
    throw new ImageError(`${path}: ${words} begins behind the end of the file, which has ${fileSize} bytes`);
  if (size !== undefined && size > left)
    throw new ImageError(`${path}: ${words} goes beyond the end of the file, which has ${fileSize} bytes`);
  const taken = size ?? left;
  // A last page that is not whole is filled with zeroes.
  return { gpa, size: ((taken + 4095n) / 4096n) * 4096n, fileSize: taken, offset };
}
