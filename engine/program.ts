import type { Hazard } from './attributes/hazards.ts';
import type { VmType } from './attributes/state.ts';
import type { Expression } from './expression.ts';
import type { Feature } from './formats/format.ts';
import type { PagingName, RegisterName } from './guest/registers.ts';
import type { HostUnmap } from './host/notifier.ts';
import type { Injection } from './injections.ts';
import type { PageInstruction } from './operation.ts';
import type { Policies } from './policies.ts';

/** Where a statement stands in its source: 1-based lines and columns, the end exclusive. */
export interface Span {
  readonly line: number;
  readonly column: number;
  readonly endLine: number;
  readonly endColumn: number;
}

/** A scenario as plain data: what the scenario language lowers to and a machine is made from. */
export interface Program {
  readonly machine: MachineConfig;
  readonly guests: readonly GuestTables[];
  readonly tasks: readonly TaskProgram[];
  /** Checked in order when every task has ended. */
  readonly expects: readonly Expectation[];
  /** What must not happen, in this run or, where all are explored, in any. */
  readonly never?: readonly NeverExpectation[];
}

export interface NeverExpectation {
  readonly hazard: Hazard;
  readonly span: Span;
}

export interface MachineConfig {
  readonly slots: readonly SlotConfig[];
  /** The TDP MMU's tables, or shadow tables of the guest's own. */
  readonly second: 'ept' | 'npt' | 'shadow';
  /** Levels of its tables: 4 unless told. */
  readonly secondLevels?: 4 | 5;
  /** Physical-address width of the host and of the guest's processor, 32 … 52. */
  readonly maxPhyAddr: number;
  /** What the processor offers, beside NX, which EFER.NXE rules. */
  readonly features: readonly Feature[];
  /** Absent: ordinary. */
  readonly vm?: VmType;
  /**
   * Memory that is private before anything runs; where it was `launched` its pages are there, and of SNP assigned and accepted, as the commands
   * leave it that measure a guest's first memory.
   */
  readonly privateRanges?: readonly { readonly base: bigint; readonly size: bigint; readonly launched: boolean }[];
  /** What the VMM does about KVM_EXIT_MEMORY_FAULT: converts the page, as absent, or stops the vCPU. */
  readonly memoryFault?: 'convert' | 'stop';
  /** Whether invariants are checked after every step. */
  readonly sanitize?: boolean;
  /** What was chosen where KVM could do otherwise; absent: today's kernel. */
  readonly policies?: Policies;
}

export interface SlotConfig {
  readonly id: number;
  /** Guest-physical start and size in bytes, multiples of 4K. */
  readonly base: bigint;
  readonly size: bigint;
  readonly readonly: boolean;
  /** Largest page of the host's mapping: 1 = 4K, 2 = 2M, 3 = 1G. */
  readonly pageLevel: number;
  /** Largest page of the guest_memfd for its private pages; absent: it has none. */
  readonly gmemLevel?: number;
}

/** An address space that exists before the vCPUs start. */
export interface GuestTables {
  readonly name: string;
  /** How its tables are made, and what its vCPUs' CR4 and EFER say at the start: 4-level unless told. */
  readonly paging?: PagingName;
  /** L1's second-stage tables for guests of its own: they map L2's physical addresses to L1's. */
  readonly nested?: { readonly accessedDirty: boolean };
  /** Of a nested guest, the tables behind its memory: its own lie in what they map. */
  readonly within?: string;
  /** Where table pages are taken from, upwards; absent: downwards from the end of the first slot. */
  readonly tablesAt?: bigint;
  readonly mappings: readonly Mapping[];
  readonly span: Span;
}

export interface Mapping {
  readonly gva: bigint;
  readonly size: bigint;
  readonly gpa: bigint;
  /** Largest page to use: 1, 2 or 3. */
  readonly pageLevel: number;
  readonly write: boolean;
  readonly execute: boolean;
  readonly user: boolean;
  /** Further fields of the leaves by name, e.g. G, PK, A, D. */
  readonly fields: Readonly<Record<string, number>>;
  /** Raw value that replaces the entry of this level for `gva`, instead of all above. */
  readonly raw?: { readonly level: number; readonly value: bigint };
  readonly span: Span;
}

export interface TaskProgram {
  readonly kind: 'vcpu' | 'host';
  /** `0` for vcpu 0; a host task's name. */
  readonly name: string;
  /** Name of the guest tables in CR3 at the start; absent: paging off. vCPUs only. */
  readonly guest?: string;
  readonly body: readonly Statement[];
  readonly span: Span;
}

export interface Expectation {
  readonly condition: Expression;
  /** As written, for messages. */
  readonly text: string;
  readonly span: Span;
}

interface Located {
  readonly span: Span;
}

/** A load, store or instruction fetch of 1, 2, 4 or 8 bytes. */
export interface AccessStatement extends Located {
  readonly kind: 'access';
  readonly access: 'read' | 'write' | 'fetch';
  readonly address: Expression;
  readonly size: 1 | 2 | 4 | 8;
  /** What a write stores; absent: the step number, so that writes can be told apart. */
  readonly value?: Expression;
  /** Privilege level of this access alone; absent: the vCPU's. */
  readonly cpl?: 0 | 3;
  readonly implicit: boolean;
  /** Whether it is made as private memory, whatever the guest's tables say; of a host's, which of a page's frames it touches. */
  readonly isPrivate?: boolean;
}

export interface RegisterStatement extends Located {
  readonly kind: 'register';
  readonly register: RegisterName;
  /** A named bit of it; absent: the whole register. */
  readonly bit?: string;
  readonly value: Expression;
}

export type Statement =
  | AccessStatement
  | RegisterStatement
  | (Located & { readonly kind: 'invlpg'; readonly address: Expression })
  /** The processor's types: 0 an address of a PCID, 1 a PCID, 2 all, 3 all that is not global. */
  | (Located & {
      readonly kind: 'invpcid';
      readonly type: 0 | 1 | 2 | 3;
      readonly pcid?: Expression;
      readonly address?: Expression;
    })
  | (Located & {
      readonly kind: 'repeat';
      readonly count?: Expression;
      readonly variable?: string;
      readonly body: readonly Statement[];
    })
  /** The guest edits its own tables (those in CR3), or as a hypervisor those of its guests, by their name. */
  | (Located & { readonly kind: 'map'; readonly mapping: Mapping; readonly nested?: string })
  | (Located & { readonly kind: 'unmap'; readonly gva: bigint; readonly size: bigint; readonly nested?: string })
  | (Located & {
      readonly kind: 'protect';
      readonly nested?: string;
      readonly gva: bigint;
      readonly size: bigint;
      readonly write: boolean;
      readonly execute: boolean;
      readonly user: boolean;
    })
  /** L1 runs a guest of its own for some statements (VMRESUME, VMRUN), until that exits. */
  | (Located & { readonly kind: 'enter'; readonly guest: string; readonly body: readonly Statement[] })
  /** Where such a block ends. */
  | (Located & { readonly kind: 'leave' })
  /** A system-management interrupt, whose handler does these statements. */
  | (Located & { readonly kind: 'smm'; readonly body: readonly Statement[] })
  /** Where it ends: RSM. */
  | (Located & { readonly kind: 'rsm' })
  /** The guest writes MSR_KVM_ASYNC_PF_EN: asynchronous page faults are told at `gpa`, or with none not at all. */
  | (Located & { readonly kind: 'async-pf'; readonly gpa?: bigint; readonly sendAlways: boolean })
  /** INVEPT of one EPTP, or of all. */
  | (Located & { readonly kind: 'invept'; readonly nested?: string })
  | (Located & { readonly kind: 'expect'; readonly expectation: Expectation })
  /** Waits until the condition holds. */
  | (Located & { readonly kind: 'wait'; readonly condition: Expression })
  | (Located & { readonly kind: 'slot-add'; readonly slot: SlotConfig })
  | (Located & { readonly kind: 'slot-delete'; readonly id: number })
  | (Located & { readonly kind: 'slot-move'; readonly id: number; readonly base: bigint })
  | (Located & { readonly kind: 'slot-log'; readonly id: number; readonly enable: boolean })
  /** kvm_zap_gfn_range; without a range kvm_mmu_zap_all_fast. */
  | (Located & { readonly kind: 'zap'; readonly range?: { readonly base: bigint; readonly size: bigint } })
  /** A host's KVM_SET_MEMORY_ATTRIBUTES, or the guest's request for it (page state change, MapGPA). */
  | (Located & {
      readonly kind: 'convert';
      readonly base: Expression;
      readonly size: bigint;
      readonly isPrivate: boolean;
    })
  /** A guest of SNP or TDX accepts a page, or of SNP says what its other VMPLs may do with it. */
  | (Located & {
      readonly kind: 'page-instruction';
      readonly address: Expression;
      readonly instruction: PageInstruction;
    })
  /** A guest of SNP goes on at another VMPL. */
  | (Located & { readonly kind: 'vmpl'; readonly vmpl: number })
  /** The host does RMPUPDATE itself, of the private frame of a page, and nothing else. */
  | (Located & {
      readonly kind: 'rmpupdate';
      readonly gpa: bigint;
      readonly level: 1 | 2;
      /** For whom: a guest, and as which page of it; absent: the hypervisor. */
      readonly to?: { readonly gpa: bigint; readonly asid: number };
    })
  /** fallocate(FALLOC_FL_PUNCH_HOLE) on guest_memfd: its pages of the range are freed. */
  | (Located & { readonly kind: 'punch'; readonly base: Expression; readonly size: bigint })
  /** The host unmaps the memory behind a range (MMU notifier); `migrate` moves its pages to other frames meanwhile, `swap-out` to the disk. */
  | (Located & { readonly kind: 'notifier'; readonly base: bigint; readonly size: bigint; readonly how: HostUnmap })
  /** The worker of NX huge pages runs once; of `ratio` tables one goes, rounded up. */
  | (Located & { readonly kind: 'recover-nx-huge-pages'; readonly ratio: number })
  /** KVM_SET_CPUID2: another width of the guests' physical addresses. */
  | (Located & { readonly kind: 'cpuid'; readonly maxPhyAddr: number })
  /** From here on KVM makes a mistake. */
  | (Located & { readonly kind: 'inject'; readonly name: Injection })
  /** Overwrites an entry of KVM's tables, as a bug would. */
  | (Located & { readonly kind: 'poke'; readonly gpa: bigint; readonly level: number; readonly value: Expression });

/** Who may execute a statement; both when absent. A host's accesses go through the kernel's direct map. */
export const STATEMENT_OWNER: Readonly<Partial<Record<Statement['kind'], 'vcpu' | 'host'>>> = {
  'page-instruction': 'vcpu',
  vmpl: 'vcpu',
  rmpupdate: 'host',
  punch: 'host',
  register: 'vcpu',
  invlpg: 'vcpu',
  invpcid: 'vcpu',
  enter: 'vcpu',
  smm: 'vcpu',
  invept: 'vcpu',
  'async-pf': 'vcpu',
  map: 'vcpu',
  unmap: 'vcpu',
  protect: 'vcpu',
  'slot-add': 'host',
  'slot-delete': 'host',
  'slot-move': 'host',
  'slot-log': 'host',
  zap: 'host',
  cpuid: 'host',
  notifier: 'host',
  'recover-nx-huge-pages': 'host',
  poke: 'host',
};
