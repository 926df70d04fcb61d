/**
 * What a table entry means, as data. A format lists its levels and its bit-fields once; masks, decoding, encoding,
 * reserved bits and the words shown to people all derive from that list (`compile.ts`, `decode.ts`).
 */

export type EntryKind = 'leaf' | 'table';

/** Something a machine has or lacks that changes which bits are legal. */
export type Feature =
  | 'nx' // EFER.NXE (for host tables: always on under KVM)
  | '1g-pages' // CPUID.80000001H:EDX[26], or EPT's 1G capability
  | 'execute-only' // IA32_VMX_EPT_VPID_CAP[0]
  | 'amd'; // AMD's reserved bits where they differ from Intel's

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
  readonly level: number;
  /** The entry's name in the manual, e.g. `PDE`. */
  readonly entry: string;
  /** The table's name in the manual, e.g. `page directory`. */
  readonly table: string;
}

/** Names of the fields that carry a meaning the walks need. A format without such a field leaves the name out. */
export interface FieldRoles {
  /** An entry is present when any of these is set. */
  readonly present: readonly string[];
  readonly read?: string;
  readonly write: string;
  /** Set allows execution … */
  readonly execute?: string;
  /** … or set forbids it. */
  readonly noExecute?: string;
  readonly user?: string;
  readonly accessed?: string;
  readonly dirty?: string;
  readonly global?: string;
  readonly protectionKey?: string;
  /** Set in an entry above level 1 that maps a page. */
  readonly largePage: string;
  readonly address: string;
}

export interface FormatSpec {
  readonly name: string;
  readonly title: string;
  /** Where the rules come from. */
  readonly source: string;
  readonly levels: readonly Level[];
  /** Levels above 1 at which an entry may map a page, with what that needs. */
  readonly largeLevels: readonly { readonly level: number; readonly requires?: Feature }[];
  readonly fields: readonly Field[];
  readonly roles: FieldRoles;
  readonly illegal: readonly IllegalCombination[];
}

export function fieldApplies(field: Field, level: number, kind: EntryKind): boolean {
  return (field.levels === undefined || field.levels.includes(level)) && (field.kind ?? kind) === kind;
}

export function fieldMask(field: Field): bigint {
  const [high, low] = field.bits;
  return ((1n << BigInt(high - low + 1)) - 1n) << BigInt(low);
}
