import type { DecodedEntry } from '../formats/decode.ts';

/**
 * Questions about a machine and their answers, as plain JSON: what views, hovers, variables and the command line show.
 * 64-bit values are `0x…` strings. `certainty` says how far a value can be trusted: the emulator's are all exact.
 */
export type Certainty = 'exact' | 'inferred' | 'stale' | 'unknown';

export type Query =
  /** How an address is translated; without `access`, as a supervisor read. */
  | {
      readonly kind: 'walk';
      readonly vcpu: number;
      readonly space: 'gva' | 'gpa';
      readonly address: string;
      readonly access?: 'read' | 'write' | 'fetch';
      readonly cpl?: 0 | 3;
      readonly implicit?: boolean;
      /** Which memory is meant in a VM with private memory, where the guest's tables do not tell it: what its attribute says, unless told. */
      readonly private?: boolean;
    }
  /** One table, its entries joined into runs. */
  | TableQuery
  /** The trees of tables that there are. */
  | { readonly kind: 'roots' }
  /** Guest memory: slots and what backs them. */
  | { readonly kind: 'slots' }
  | { readonly kind: 'costs' }
  /** Every vCPU's roots and roles, and KVM's pages. */
  | { readonly kind: 'root-cache' }
  /** The scenario's runs to its end under several values of a policy, beside each other. */
  | { readonly kind: 'comparison'; readonly policy: string; readonly values: readonly string[] }
  /** Private and shared memory as a whole: slots, conversions under way, and what changed when. */
  | { readonly kind: 'attribute-map'; readonly at?: number }
  /** A window of guest-physical memory in cells. */
  | AttributesQuery
  /** All that is known of one page of guest-physical memory. */
  | { readonly kind: 'page'; readonly gpa: string; readonly at?: number }
  /** Of a recording that a machine is shown from: where in it the session stands, and what is in it. */
  | { readonly kind: 'recording' }
  /** Its faults, from the `first` on. */
  | { readonly kind: 'faults'; readonly first: number; readonly count: number }
  /** Changes of entries and memory in a guest-physical or host-physical range, newest first. */
  | { readonly kind: 'history'; readonly space: 'gpa' | 'hpa'; readonly address: string; readonly size: string };

export interface AttributesQuery {
  readonly kind: 'attributes';
  /** First and last + 1 address, gpa. They are widened to whole cells. */
  readonly start: string;
  readonly end: string;
  /** Into how many cells at most, 1 … 4096: a cell is the least power of two of pages that does. */
  readonly cells: number;
  /** As memory was at a position of the log, which the moments of an `attribute-map` name; now, unless told. */
  readonly at?: number;
  /** What has changed since this position of the log is marked; since the last stop, unless told. */
  readonly since?: number;
}

export interface TableQuery {
  readonly kind: 'table';
  /** `nested`: L1's second-stage tables for the guest of its own that the vCPU runs. */
  readonly space: 'guest' | 'nested' | 'second';
  /** Whose format: a vCPU for guest tables. */
  readonly vcpu: number;
  /** Where the table begins: gpa of a guest table (of a nested guest, as it knows it), hpa of a second-stage table. */
  readonly table: string;
  readonly level: number;
  /** First input address that the table covers. */
  readonly base: string;
}

export interface ErrorAnswer {
  readonly kind: 'error';
  readonly message: string;
}

export interface AddressField {
  /** E.g. `PML4E`; `offset` for the rest. */
  readonly name: string;
  readonly level: number;
  /** The level as the manual counts it. */
  readonly number: number;
  readonly bits: readonly [high: number, low: number];
  readonly value: number;
}

/** A level of a tree of tables, as views need it. */
export interface LevelShape {
  readonly level: number;
  /** The level as the manual counts it. */
  readonly number: number;
  /** `PDE`, `L2 descriptor` */
  readonly entry: string;
  /** Bytes that an entry covers, and entries of a table. */
  readonly span: number;
  readonly entries: number;
}

export interface ReferenceAnswer {
  readonly number: number;
  readonly stage: 'guest' | 'second';
  readonly level: number;
  /** What this reference is for: `PML4 (level 4)`, or `page`. */
  readonly purpose: string;
  /** Guest level being located or read; 0: the page itself. */
  readonly forLevel: number;
  readonly table: string;
  readonly index: number;
  /** hpa of the entry. */
  readonly address: string;
  readonly entry: DecodedEntry;
  readonly note?: string;
  /** Where it is another than the walk's. */
  readonly certainty?: Certainty;
  /** The walk ended here, for good or bad. */
  readonly decides: boolean;
}

export interface WalkAnswer {
  readonly kind: 'walk';
  readonly certainty: Certainty;
  readonly vcpu: number;
  readonly space: 'gva' | 'gpa';
  readonly address: string;
  readonly access: 'read' | 'write' | 'fetch';
  readonly cpl: number;
  readonly implicit: boolean;
  /** Whether the guest's paging is on: else there is no guest stage. */
  readonly paging: boolean;
  /** `ept`, `npt`, `arm64-s2`, `sv39x4`; `none` without a second stage. */
  readonly second: string;
  /** How it is called: `EPT`, `stage 2`. */
  readonly secondName: string;
  /** Levels of the second stage, the root's first; none without one. */
  readonly secondLevels: readonly LevelShape[];
  readonly fields: readonly AddressField[];
  readonly registers: readonly { readonly name: string; readonly value: string }[];
  readonly references: readonly ReferenceAnswer[];
  readonly outcome: WalkOutcome;
  /** The outcome in one sentence. */
  readonly sentence: string;
}

export interface WalkOutcome {
  /** `refused`: the tables allow the access, and the RMP or TDX's module does not. */
  readonly status: 'done' | 'refused' | 'guest-fault' | 'violation' | 'misconfiguration' | 'untranslatable' | 'no-root';
  readonly gpa?: string;
  readonly hpa?: string;
  /** Size of the page in the guest's tables and in the second stage, bytes. */
  readonly guestSize?: number;
  readonly secondSize?: number;
  /** Rights of all guest entries together, `rwxu`. */
  readonly rights?: string;
  readonly errorCode?: string;
  readonly exitInfo?: string;
  readonly reason: string;
}

export interface EntryRun {
  readonly index: number;
  readonly count: number;
  /** First input address, and bytes per entry. */
  readonly input: string;
  readonly size: number;
  /** The first entry of the run. */
  readonly entry: DecodedEntry;
  readonly note?: string;
  /** Where it is another than the table's. */
  readonly certainty?: Certainty;
  /** The table that the entry points to. */
  readonly child?: TableQuery;
  /** The child lies on the way here: the tables contain themselves. */
  readonly recursive?: true;
  /** Set since the last stop; the first entry's value before. */
  readonly was?: string;
  /** The stop's fault ended here. */
  readonly faulting: boolean;
}

export interface TableAnswer {
  readonly kind: 'table';
  readonly certainty: Certainty;
  readonly query: TableQuery;
  /** `page directory (level 2)` */
  readonly name: string;
  readonly format: string;
  readonly present: number;
  /** What KVM's `kvm_mmu_page` says of it, in words; of KVM's tables alone. */
  readonly page?: string;
  readonly runs: readonly EntryRun[];
}

export interface RootAnswer {
  readonly id: string;
  /** `vCPU 0: guest tables of kernel (CR3)` */
  readonly title: string;
  readonly space: TableQuery['space'];
  readonly vcpus: readonly number[];
  readonly table: TableQuery;
  readonly format: string;
  /** Levels of the tables, the root's first. */
  readonly levels: readonly LevelShape[];
  /** Whether addresses of the upper half are written sign-extended. */
  readonly canonical: boolean;
  /** Entries that are present in the root table. */
  readonly present: number;
  readonly invalid: boolean;
  /** Where it is another than the answer's. */
  readonly certainty?: Certainty;
}

export interface RootsAnswer {
  readonly kind: 'roots';
  readonly certainty: Certainty;
  /** Why KVM's tables are less than exact, in words. */
  readonly why?: string;
  readonly roots: readonly RootAnswer[];
}

export interface SlotsAnswer {
  readonly kind: 'slots';
  readonly certainty: Certainty;
  readonly generation: number;
  readonly slots: readonly {
    readonly id: number;
    readonly gpa: string;
    readonly size: number;
    readonly hpa: string;
    readonly pageSize: number;
    readonly readonly: boolean;
    readonly logDirty: boolean;
    readonly invalid: boolean;
  }[];
}

export interface CostsAnswer {
  readonly kind: 'costs';
  readonly certainty: Certainty;
  readonly steps: number;
  readonly counters: Readonly<Record<string, number>>;
}

export interface HistoryAnswer {
  readonly kind: 'history';
  readonly certainty: Certainty;
  readonly changes: readonly {
    readonly step: number;
    readonly task: string;
    readonly what: string;
    readonly address: string;
    readonly old: string;
    readonly new: string;
  }[];
  /** More changes than are listed. */
  readonly more: boolean;
  /** First step that is remembered. */
  readonly since: number;
}

export interface RecordingAnswer {
  readonly kind: 'recording';
  readonly certainty: Certainty;
  /** `trace.dat`, `perf script`. */
  readonly source: string;
  readonly kernel?: string;
  /** Events, and how many of them have happened. */
  readonly length: number;
  readonly position: number;
  /** Nanoseconds since the first event, unless the recording's clock counts otherwise: of the last that has happened, and in all. */
  readonly time: number;
  readonly duration: number;
  /** Faults in all, and how many have happened. */
  readonly faults: number;
  readonly fault: number;
  /** The virtual machine that is shown, of so many. */
  readonly machine: number;
  readonly machines: number;
  /** The last event that has happened. */
  readonly event: string;
  /** Counts in equal stretches of time. */
  readonly buckets: { readonly faults: readonly number[]; readonly changes: readonly number[] };
  /** Where events were lost. */
  readonly lost: readonly { readonly at: number; readonly time: number; readonly count?: number }[];
  readonly problems: readonly string[];
}

export interface FaultRow {
  /** Its number among all events. */
  readonly index: number;
  readonly time: number;
  readonly thread: string;
  readonly class: 'second-stage' | 'fast' | 'guest' | 'mmio';
  readonly text: string;
  readonly space?: 'gva' | 'gpa';
  readonly address?: string;
}

export interface FaultsAnswer {
  readonly kind: 'faults';
  readonly certainty: Certainty;
  readonly first: number;
  readonly total: number;
  readonly rows: readonly FaultRow[];
}

/** A field of a role: 0 or 1 of most, a number of `level`, `quadrant`, `access` and `smm`. */
export interface RoleFieldAnswer {
  readonly name: string;
  readonly value: number;
}

export interface RoleAnswer {
  readonly word: string;
  readonly fields: readonly RoleFieldAnswer[];
}

/** One of the tables behind `pae_root`. */
export interface QuarterAnswer {
  readonly hpa: string;
  readonly gfn: string;
  readonly role: string;
  readonly words: string;
  readonly table: TableQuery;
}

/** A root that a vCPU has or keeps (`kvm_mmu_root_info`). */
export interface RootCardAnswer {
  readonly hpa: string;
  /** CR3 that it was made for; says nothing of a direct root. */
  readonly pgd?: string;
  readonly levels: number;
  readonly invalid: boolean;
  /** Whether a switch to the guest's CR3 and role of now would take it (is_root_usable). */
  readonly isUsable: boolean;
  readonly table: TableQuery;
  /** Of a root with a page of its own: the role word and its fields. */
  readonly role?: string;
  readonly fields?: readonly RoleFieldAnswer[];
  readonly certainty?: Certainty;
  /** vCPUs' references, and the TDP MMU's own. */
  readonly references?: number;
  /** In PAE mode, the tables of each 1G; null where there is none. */
  readonly quarters?: readonly (QuarterAnswer | null)[];
}

/** The roots of one of a vCPU's MMUs: `root_mmu`, or `guest_mmu` where the vCPU has run guests of its own. */
export interface VcpuRootsAnswer {
  readonly vcpu: number;
  readonly mmu: 'root' | 'guest';
  /** Whether the processor walks its tables now. */
  readonly active: boolean;
  /** What a root is looked for by: CR3, or EPTP or nCR3 of L1's tables for its guests. */
  readonly pgd: string;
  readonly pgdName: 'CR3' | 'EPTP' | 'nCR3';
  /** `nested_mmu`: the role of the nested guest that runs, or ran last. */
  readonly nestedRole?: RoleAnswer;
  /** What the guest's processor is in, and the extended fields of that. */
  readonly cpuRole: RoleAnswer;
  readonly extRole: readonly RoleFieldAnswer[];
  /** The role that a root must have. */
  readonly rootRole: RoleAnswer;
  /** Where no kernel told the roles: the processor's follows from its registers, and a root's is taken for the wanted one. */
  readonly rolesAreInferred?: true;
  /** The current root and three before it, the last used first; null: none. */
  readonly roots: readonly (RootCardAnswer | null)[];
}

export interface ShadowPageAnswer {
  readonly hpa: string;
  readonly gfn: string;
  readonly level: number;
  readonly role: string;
  readonly fields: readonly RoleFieldAnswer[];
  readonly words: string;
  readonly certainty: Certainty;
  /** References as a root. */
  readonly roots: number;
  readonly unsync: boolean;
  /** Entries below which something is unsync. */
  readonly unsyncChildren: number;
  readonly writeFlooding: number;
  /** It stands for a large page that would be executable. */
  readonly nxDisallowed?: true;
  readonly table: TableQuery;
}

/** A vCPU's roots after a change. */
export interface RootCacheMoment {
  readonly step: number;
  readonly vcpu: number;
  readonly mmu: 'root' | 'guest';
  readonly by: string;
  /** What came before it: `cr0 0x80050033 → 0x80040033 (wp 1 → 0)`, `L1 runs inner`. */
  readonly cause?: string;
  readonly rootRole: string;
  readonly roots: readonly ({ readonly hpa: string; readonly pgd: string } | null)[];
}

export interface RootCacheAnswer {
  readonly kind: 'root-cache';
  readonly certainty: Certainty;
  readonly why?: string;
  readonly tables: 'ept' | 'npt' | 'shadow';
  readonly step: number;
  /** What becomes of roots; of the emulator alone. */
  readonly policy?: string;
  readonly vcpus: readonly VcpuRootsAnswer[];
  /** By gfn, the upper levels first. */
  readonly pages: readonly ShadowPageAnswer[];
  /** Pages that are not listed. */
  readonly morePages: number;
  /** What was before, the oldest first; of the emulator alone. */
  readonly moments: readonly RootCacheMoment[];
  readonly moreMoments: boolean;
}

/** How many of a cell's pages. */
export type Amount = 'none' | 'some' | 'all';

/** How a second stage maps the pages of a cell. */
export interface CellMapping {
  /** Of the pages that a slot holds. */
  readonly mapped: 'some' | 'all';
  /** Levels of the leaves, the least first: 1 is 4K, 2 is 2M, 3 is 1G. */
  readonly levels: readonly number[];
  /** Which frames: the private ones of guest_memfd, or the shared ones of userspace's mapping; KVM does not tell. */
  readonly frames: 'private' | 'shared' | 'both' | 'untold';
  /** How many of these map a frame that is not the page's now: private as shared, or shared as private. */
  readonly stale: Amount;
  /** How many of these have the entry's D bit. */
  readonly dirty: Amount;
}

/** A band of the map in which something has changed. */
export type Change = 'attribute' | 'private-page' | 'direct-map' | 'second-stage' | 'mirror';

/** What is the same of all pages of a cell, and of what there is a part. */
export interface CellFacts {
  /** Pages that a slot holds; what follows is of these alone. */
  readonly slot: Amount;
  /** Those of slots with guest_memfd. */
  readonly gmem: Amount;
  readonly private: Amount;
  /** What a conversion that has not returned makes of some of them. */
  readonly converting?: 'private' | 'shared' | 'both';
  /** Some lie in the range that is being invalidated. */
  readonly invalidating?: true;
  /** guest_memfd has a page for them. */
  readonly folios?: 'some' | 'all';
  /** Their private frames are the guest's in the RMP; of these, by entries of 2M, and accepted (PVALIDATE). */
  readonly rmp?: { readonly assigned: 'some' | 'all'; readonly large: Amount; readonly validated: Amount };
  /** The kernel's direct map has their private frames in 4K; it leaves them out. */
  readonly split?: 'some' | 'all';
  readonly holes?: 'some' | 'all';
  /** By second stage, as the `attribute-map` names them; null: nothing is mapped. */
  readonly stages: readonly (CellMapping | null)[];
  readonly changed?: readonly Change[];
}

export interface AttributesAnswer {
  readonly kind: 'attributes';
  readonly certainty: Certainty;
  /** gpa of the first cell. */
  readonly start: string;
  /** Bytes of a cell: 4096 times a power of two. */
  readonly cellSize: number;
  readonly cells: number;
  /** The different cells that there are. */
  readonly facts: readonly CellFacts[];
  /** Pairs: so many cells, and the number of their facts. Together they are all cells. */
  readonly runs: readonly number[];
}

/** A range of guest-physical memory. */
export interface RangeAnswer {
  readonly gpa: string;
  /** Bytes. */
  readonly size: number;
}

export interface ConversionAnswer extends RangeAnswer {
  readonly task: string;
  readonly to: 'private' | 'shared';
  /** The function that runs for it, and its next step. */
  readonly fn?: string;
  readonly step?: string;
  readonly text?: string;
  /** The page that is next. */
  readonly page?: string;
}

/** A step that changed something about private and shared memory. */
export interface AttributeMoment {
  /** Positions of the log before and after it. */
  readonly since: number;
  readonly at: number;
  readonly step: number;
  readonly by: string;
  readonly words: string;
  /** Where, if it is about a part of memory. */
  readonly range?: RangeAnswer;
  /** A conversion began. */
  readonly begins?: true;
}

export interface AttributeMapAnswer {
  readonly kind: 'attribute-map';
  readonly certainty: Certainty;
  readonly vm: string;
  readonly step: number;
  /** Second stages, as they are called: `NPT`; of TDX `shared EPT` and `S-EPT (mirror)`. */
  readonly stages: readonly string[];
  /** Whether there is an RMP. */
  readonly rmp: boolean;
  /** Whether it is known which frames are behind pages: those of guest_memfd, of the direct map, and of entries. */
  readonly frames: boolean;
  readonly policy: string;
  readonly slots: readonly (RangeAnswer & {
    readonly id: number;
    readonly readonly: boolean;
    readonly logDirty: boolean;
    readonly invalid: boolean;
    readonly gmem: boolean;
  })[];
  /** KVM_SET_MEMORY_ATTRIBUTES that have not returned. Of the past they are not remembered. */
  readonly conversions: readonly ConversionAnswer[];
  readonly invalidation?: RangeAnswer & { readonly count: number };
  /** The oldest first. */
  readonly moments: readonly AttributeMoment[];
  readonly moreMoments: boolean;
}

export interface PageRow {
  /** `attribute`, `RMP entry`. */
  readonly name: string;
  readonly words: string;
  /** An address in it that can be copied. */
  readonly value?: string;
  readonly certainty: Certainty;
  /** `here`: this happens now. `problem`: this must not be. `unverified`: a rule that was not held against anything. */
  readonly mark?: 'here' | 'problem' | 'unverified';
  /** The table that says so. */
  readonly table?: TableQuery;
}

export interface PageAnswer {
  readonly kind: 'page';
  readonly certainty: Certainty;
  readonly gpa: string;
  /** In one sentence. */
  readonly sentence: string;
  readonly rows: readonly PageRow[];
}

export type Answer =
  | WalkAnswer
  | AttributesAnswer
  | AttributeMapAnswer
  | PageAnswer
  | RootCacheAnswer
  | TableAnswer
  | RootsAnswer
  | SlotsAnswer
  | CostsAnswer
  | HistoryAnswer
  | RecordingAnswer
  | FaultsAnswer
  | ComparisonAnswer
  | ErrorAnswer;

/** Why and where a session stopped, in the words that every place shows. */
export interface StopAnswer {
  readonly reason: 'entry' | 'step' | 'breakpoint' | 'exception' | 'pause' | 'data' | 'end' | 'stuck';
  readonly sentence: string;
  readonly task: number;
  readonly taskName: string;
  readonly step: number;
  /** The walk that failed, for a fault. */
  readonly walk?: Extract<Query, { kind: 'walk' }>;
  readonly fault?: FaultAnswer;
}

export interface FaultAnswer {
  readonly kind: 'guest' | 'violation' | 'misconfiguration' | 'mmio' | 'nested' | 'rmp';
  readonly vcpu: number;
  readonly access: 'read' | 'write' | 'fetch';
  readonly gva: string;
  readonly gpa?: string;
  readonly level: number;
  readonly index: number;
  readonly errorCode: string;
  readonly errorWords: string;
  readonly reason: string;
}

/** A run of the scenario, beside others. */
export interface ComparisonColumn {
  readonly name: string;
  readonly ok: boolean;
  /** What it failed in, if it did. */
  readonly notes: readonly string[];
}

/** The tables that the runs leave to a vCPU. */
export interface ComparisonTables {
  readonly vcpu: number;
  /** By column, a hash of the tables in which only leaves and their places count; null where there are none. */
  readonly hashes: readonly (string | null)[];
  /** In what columns differ from the first, leaf by leaf. */
  readonly differences: readonly {
    readonly column: number;
    readonly lines: readonly { readonly address: string; readonly one: string; readonly other: string }[];
    readonly more: number;
  }[];
}

export interface ComparisonAnswer {
  readonly kind: 'comparison';
  readonly certainty: Certainty;
  /** In what the runs differ: `policy roots`. */
  readonly subject: string;
  readonly columns: readonly ComparisonColumn[];
  /** What was counted, by column; null where a run does not tell. `modes.changed` is what other rows can be divided by. */
  readonly rows: readonly { readonly name: string; readonly values: readonly (number | null)[] }[];
  readonly tables: readonly ComparisonTables[];
  /** What can be compared, and what the scenario itself chooses. */
  readonly policies?: readonly { readonly name: string; readonly values: readonly string[]; readonly own: string }[];
}
