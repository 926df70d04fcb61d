/**
 * What a table entry means, as data. A format lists its levels and its bit-fields once; masks, decoding, encoding,
 * reserved bits and the words shown to people all derive from that list (`compile.ts`, `decode.ts`).
 */

export type EntryKind = 'leaf' | 'table';

/** Rights: what the supervisor (EL1, S-mode, CPL 0 … 2) may do, and what user code may do. */
export const SUPER_READ = 1;
export const SUPER_WRITE = 2;
export const SUPER_EXEC = 4;
export const USER_READ = 8;
export const USER_WRITE = 16;
export const USER_EXEC = 32;
/** The same right of both. */
export const READ = SUPER_READ | USER_READ;
export const WRITE = SUPER_WRITE | USER_WRITE;
export const EXEC = SUPER_EXEC | USER_EXEC;
export const USER = USER_READ | USER_WRITE | USER_EXEC;
export const ALL_RIGHTS = 63;

/** Something a machine has or lacks that changes which bits are legal. */
export type Feature =
  | 'nx' // EFER.NXE (for host tables: always on under KVM)
  | '1g-pages' // CPUID.80000001H:EDX[26], or EPT's 1G capability
  | 'execute-only' // IA32_VMX_EPT_VPID_CAP[0]
  | 'l1tf' // X86_BUG_L1TF, a bug: absent entries may lead to the L1 cache, so that KVM hides addresses in its MMIO markers
  | 'c-bit' // SEV: bit 51 of a guest's entry makes memory private
  | 'shared-47' // TDX: bit 47, or bit 51, of a guest's address makes memory shared
  | 'shared-51'
  | 'amd' // AMD's reserved bits where they differ from Intel's
  | 'pse' // CR4.PSE, in 32-bit paging
  | 'svpbmt'; // RISC-V page-based memory types

export interface Field {
  readonly name: string;
  /** Highest and lowest bit, inclusive. */
  readonly bits: readonly [high: number, low: number];
  /** One sentence in the manual's sense, shown in hovers. */
  readonly meaning: string;
  /** Who changes the bit: the walk itself, or software. */
  readonly setBy: 'software' | 'hardware' | 'kvm';
  /** Levels at which the field exists; all when absent. */
  readonly levels?: readonly number[];
  /** Entries in which the field exists; both when absent. */
  readonly kind?: EntryKind;
  /** The bits are reserved unless the machine has this. */
  readonly requires?: Feature;
  /** The bits are reserved if the machine has this. */
  readonly unless?: Feature;
  /** Words for values. With `legal`, a value that is not listed there is an illegal combination. */
  readonly values?: Readonly<Record<number, string>>;
  readonly legal?: readonly number[];
  /** Rights that a value of the field takes from the entry and all below it. */
  readonly withholds?: Readonly<Record<number, number>>;
  /** The walk ignores these bits. */
  readonly ignored?: true;
}

/** A combination of bits that the walk refuses although each bit alone is legal. */
export interface IllegalCombination {
  readonly mask: number;
  readonly value: number;
  readonly words: string;
  readonly unless?: Feature;
}

export interface Level {
  /** Counted from the last level, 1, upwards, in every format. */
  readonly level: number;
  /** What the manual calls the level, where it counts otherwise: arm64 from the top, −1 … 3; RISC-V from 0. */
  readonly number?: number;
  /** Bits of the input address that index a table of this level: 9 unless told. */
  readonly indexBits?: number;
  /** The entry's name in the manual, e.g. `PDE`. */
  readonly entry: string;
  /** The table's name in the manual, e.g. `page directory`. */
  readonly table: string;
}

/** Names of the fields that carry a meaning the walks need. A format without such a field leaves the name out. */
export interface FieldRoles {
  /** An entry is present when any of these is set. */
  readonly present: readonly string[];
  readonly write?: string;
  readonly noExecute?: string;
  readonly user?: string;
  readonly accessed?: string;
  readonly dirty?: string;
  readonly global?: string;
  readonly protectionKey?: string;
  readonly address: string;
  /** Further address bits that stand apart: the field, and the address bit that its lowest bit means. */
  readonly addressHigh?: { readonly name: string; readonly to: number };
}

/** How an entry says that it maps a page. */
export interface LeafMark {
  readonly fields: readonly string[];
  /** Above level 1 a leaf has any of the fields set, or all of them clear. */
  readonly when: 'any-set' | 'clear';
  /** At level 1 an entry without the mark of a table or a leaf respectively: a leaf all the same, nothing, or refused. */
  readonly otherwise: 'leaf' | 'absent' | 'malformed';
}

export interface FormatSpec {
  readonly name: string;
  readonly title: string;
  /** Of a second stage: how it is called. */
  readonly stage?: string;
  /** Where the rules come from. */
  readonly source: string;
  readonly levels: readonly Level[];
  /** log2 of the page size: 12 unless told. */
  readonly pageBits?: number;
  /** Bytes of an entry: 8 unless told. */
  readonly entryBytes?: 4 | 8;
  /** Which widths of physical addresses there are, in bits: 32 … 52 unless told. */
  readonly physicalBits?: readonly [least: number, most: number];
  /** How many bits lower than in the address a frame's bits stand in an entry: 0 unless told. */
  readonly addressDown?: number;
  /** What the walk does about bits of no field: refuses the entry, or ignores them. */
  readonly unused?: 'reserved' | 'ignored';
  /** Whether the upper half of the input space is that of sign-extended addresses. */
  readonly canonical?: true;
  readonly leaf: LeafMark;
  /** Level whose entries the processor reads into registers when CR3 is loaded; it judges them then and not in a walk. */
  readonly loadedLevel?: number;
  /** Levels above 1 at which an entry may map a page, with what that needs. */
  readonly largeLevels: readonly { readonly level: number; readonly requires?: Feature }[];
  readonly fields: readonly Field[];
  readonly roles: FieldRoles;
  readonly illegal: readonly IllegalCombination[];
  /** Rights that having others takes away: on arm64 what EL0 may write EL1 does not execute. */
  readonly implied?: { readonly when: number; readonly takes: number };
}

export function fieldApplies(field: Field, level: number, kind: EntryKind): boolean {
  return (field.levels === undefined || field.levels.includes(level)) && (field.kind ?? kind) === kind;
}

export function fieldMask(field: Field): bigint {
  const [high, low] = field.bits;
  return ((1n << BigInt(high - low + 1)) - 1n) << BigInt(low);
}
