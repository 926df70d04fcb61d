import { type Format, LEAF } from '../formats/compile.ts';
import { hex } from '../memory/words.ts';
import type { DescentStep } from '../pgtable/descend.ts';
import type { Tables, Tree } from '../pgtable/tables.ts';

/** Frames of a 64-bit address space. */
const ALL_FRAMES = 2 ** 52;

/** Tables that translate a range of input addresses, as a register says. */
export interface Stage {
  /** `CR3`, `TTBR1_EL1`, `EPTP`. */
  readonly register: string;
  readonly value: bigint;
  readonly tree: Tree;
  /** First input frame of the 64-bit space: not 0 for the upper range of arm64. */
  readonly base: number;
}

/** A page frame's place in the 64-bit space: that of the upper half of a canonical space is sign-extended. */
export function inputFrame(stage: Stage, frame: number): number {
  const { format } = stage.tree;
  if (format.spec.canonical && frame >= format.inputFrames / 2) return frame + ALL_FRAMES - format.inputFrames;
  return stage.base + frame;
}

/** The frame by which a stage's tables know an input frame of the 64-bit space; undefined where they translate none. */
export function tableFrame(stage: Stage, frame: number): number | undefined {
  const { inputFrames, spec } = stage.tree.format;
  if (spec.canonical) {
    if (frame < inputFrames / 2) return frame;
    const low = frame - (ALL_FRAMES - inputFrames);
    return low >= inputFrames / 2 && low < inputFrames ? low : undefined;
  }
  const low = frame - stage.base;
  return low >= 0 && low < inputFrames ? low : undefined;
}

/** The base of a range at the top of the 64-bit space. */
export function topBase(format: Format): number {
  return ALL_FRAMES - format.inputFrames;
}

export interface RegimeAccess {
  readonly kind: 'read' | 'write' | 'fetch';
  /** At CPL 3, EL0, in U-mode. */
  readonly user: boolean;
  /** Nobody accesses, someone looks: what keeps the kernel from user pages (SMAP, PAN, SUM) does not count. */
  readonly look?: boolean;
}

/** An entry that a walk read. */
export interface RegimeReference extends DescentStep {
  readonly stage: 'guest' | 'second';
  readonly format: Format;
  /** Level of the guest's table that a second-stage reference locates; 0: the page itself. */
  readonly forLevel: number;
}

export interface RegimeWalk {
  readonly references: readonly RegimeReference[];
  readonly end: 'done' | 'guest-fault' | 'second-fault' | 'untranslatable';
  /** Where the guest's tables lead, and where memory has it: equal without a second stage. */
  readonly gpa?: bigint;
  readonly hpa?: bigint;
  /** Rights (SUPER_*, USER_*) of the guest's entries together. */
  readonly rights?: number;
  /** Bytes of the guest's page, and of the second stage's. */
  readonly guestSize?: number;
  readonly secondSize?: number;
  /** Error code, fault status or cause, in the architecture's own words: `error code 0x5 P|U`. */
  readonly code?: string;
  readonly reason: string;
}

/** What a processor's registers make of tables in memory. */
export interface Regime {
  readonly arch: 'x86' | 'arm64' | 'riscv';
  /** The guest's tables; none while paging is off, or where only second-stage tables are known. */
  readonly stages: readonly Stage[];
  readonly second: Stage | undefined;
  /** Registers that count, in the architecture's order. */
  readonly registers: readonly { readonly name: string; readonly value: bigint }[];
  /** Translates an address in `memory`, which is the host's where there is a second stage. */
  walk(memory: Tables, address: bigint, access: RegimeAccess): RegimeWalk;
  /** Translates a guest-physical address, as a read. Only where there is a second stage. */
  walkSecond(memory: Tables, gpa: bigint): RegimeWalk;
}

/** Registers that make no sense, with their names. */
export class RegimeError extends Error {}

/** `PDE 3`, `L2 descriptor 5`. */
export function entryName(format: Format, level: number, index: number): string {
  return `${format.level(level).entry} ${index}`;
}

/** Bytes of the leaf at the end of a walk. */
export function leafSize(reference: RegimeReference | undefined): number | undefined {
  if (!reference) return undefined;
  const { format, level, lo } = reference;
  return format.classify(level, lo) === LEAF ? format.span[level]! * 4096 : undefined;
}

/** Where a table lies that memory does not have, in words. */
export function outsideWords(format: Format, level: number, table: number): string {
  return `the ${format.level(level).table} lies at ${hex(BigInt(table) * 4096n)}, where there is no memory`;
}
