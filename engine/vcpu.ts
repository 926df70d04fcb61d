import { type GuestCpu, type PagingMode, pagingMode, type Registers } from './guest/registers.ts';
import type { SecondStage } from './guest/walk.ts';
import { Tlb } from './memory/tlb.ts';
import type { Pfn } from './memory/words.ts';
import { type Mmu, NEW_MMU } from './roots/mmu.ts';

/** Requests that a vCPU handles before it enters the guest (KVM_REQ_*). */
export const REQ_MMU_FREE_OBSOLETE_ROOTS = 1;
export const REQ_TLB_FLUSH = 2;
export const REQ_MMU_SYNC = 4;
export const REQ_LOAD_MMU_PGD = 8;
export const REQ_TLB_FLUSH_CURRENT = 16;
export const REQ_TLB_FLUSH_GUEST = 32;
export const REQ_APF_HALT = 64;
export const REQ_APF_READY = 128;
export const REQ_VM_DEAD = 256;

const REQUESTS: Readonly<Record<string, number>> = {
  MMU_FREE_OBSOLETE_ROOTS: REQ_MMU_FREE_OBSOLETE_ROOTS,
  TLB_FLUSH: REQ_TLB_FLUSH,
  MMU_SYNC: REQ_MMU_SYNC,
  LOAD_MMU_PGD: REQ_LOAD_MMU_PGD,
  TLB_FLUSH_CURRENT: REQ_TLB_FLUSH_CURRENT,
  TLB_FLUSH_GUEST: REQ_TLB_FLUSH_GUEST,
  APF_HALT: REQ_APF_HALT,
  APF_READY: REQ_APF_READY,
  VM_DEAD: REQ_VM_DEAD,
};

/** The requests in a vCPU's word, as KVM calls them: `TLB_FLUSH, MMU_SYNC`; `none`. */
export function requestWords(requests: number): string {
  const names = Object.keys(REQUESTS).filter((name) => (requests & REQUESTS[name]!) !== 0);
  return names.length === 0 ? 'none' : names.join(', ');
}

/** What a vCPU that runs a nested guest keeps of L1, and of the guest's second stage. */
export interface GuestMode {
  /** The program's name of the guest (L2). */
  readonly guest: string;
  /** L1's registers, which its VM exit brings back. */
  readonly l1: Registers;
  /** L1's own second-stage tables for it; absent where L1 gives it tables of L1-physical addresses in CR3. */
  readonly nested: NestedStage | undefined;
}

export interface NestedStage {
  readonly name: string;
  /** EPTP or nCR3. */
  readonly pgd: bigint;
  /** How they are walked: from L2's physical addresses to L1's. */
  readonly mode: PagingMode;
}

/** `root_mmu`; `guest_mmu`, which shadows L1's tables for its guests; `nested_mmu`, whose role alone counts, of L2's own tables. */
export const MMUS = ['root', 'guest', 'nested'] as const;
export type MmuName = (typeof MMUS)[number];

export class Vcpu {
  readonly id: number;
  registers: Registers;
  mode: PagingMode;
  readonly tlb = new Tlb();
  mmus: Readonly<Record<MmuName, Mmu>> = { root: NEW_MMU, guest: NEW_MMU, nested: NEW_MMU };
  /** Absent while L1 itself runs. */
  guestMode: GuestMode | undefined;
  /** In system-management mode, the registers that RSM brings back. */
  smm: Registers | undefined;
  /** Registers of nested guests that have run, by name, as L1 keeps them (VMCS12, VMCB12). */
  saved: Readonly<Record<string, Registers>> = {};
  requests = 0;
  /** The hardware's view of the root; rebuilt when it changes. */
  second: SecondStage | undefined;
  /** Of TDX: the tables that it walks for private memory. */
  secure: SecondStage | undefined;
  /** With shadow paging: how the processor walks KVM's tables, instead of the guest's. */
  shadowed: PagingMode | undefined;

  constructor(id: number, registers: Registers, cpu: GuestCpu) {
    this.id = id;
    this.registers = registers;
    this.mode = pagingMode(registers, cpu);
  }

  /** The mode in which the processor walks tables by itself. */
  get hardware(): PagingMode {
    return this.shadowed ?? this.mode;
  }

  /** Which MMU's tables the processor walks (`vcpu->arch.mmu`). */
  get active(): MmuName {
    return this.guestMode?.nested ? 'guest' : 'root';
  }

  get mmu(): Mmu {
    return this.mmus[this.active];
  }

  /** The tables that the active MMU reads, and shadows where it is not direct: the guest's own, or L1's for a nested guest. */
  get walked(): PagingMode {
    return this.guestMode?.nested?.mode ?? this.mode;
  }

  /** Root of the tables the processor walks; −1 while there is none. */
  get root(): Pfn {
    return this.mmu.root.pfn;
  }
}
