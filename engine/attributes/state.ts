import { LoggedMap } from '../logged-map.ts';
import type { Gfn } from '../memory/words.ts';
import { AttributeStore } from './store.ts';

/**
 * What protects a VM's memory from its host: nothing; the attributes alone (KVM_X86_SW_PROTECTED_VM, for developing); AMD's SEV-SNP;
 * Intel's TDX.
 */
export const VM_TYPES = ['ordinary', 'software-protected', 'snp', 'tdx'] as const;
export type VmType = (typeof VM_TYPES)[number];

/** What the RMP keeps of a host frame that is a guest's; of one that is the hypervisor's it has no entry here (all zeros). */
export interface RmpEntry {
  /** The guest frame for which it was assigned. */
  readonly gfn: Gfn;
  /** 2: the entry is for the 512 frames of an aligned 2M, and stands at the first of them. */
  readonly level: 1 | 2;
  /** Whether the guest has accepted it (PVALIDATE). */
  readonly validated: boolean;
  /** Whose it is: the address space of the guest that it was assigned to. */
  readonly asid: number;
  /** What VMPLs 1 to 3 may do with it, four bits each from the lowest up (RMPADJUST); VMPL 0 may do all. */
  readonly rights: number;
}

/** The VM's own address space; the hypervisor's is 0. */
export const GUEST_ASID = 1;

/** Whose a frame is that has an entry: `the guest’s`. */
export function ownerWords({ asid }: RmpEntry): string {
  return asid === GUEST_ASID ? 'the guest’s' : `another guest’s (ASID ${asid})`;
}

/** A conversion under way, from its ioctl to its end. */
export interface Conversion {
  readonly task: number;
  readonly start: Gfn;
  readonly end: Gfn;
  readonly isPrivate: boolean;
}

/** All that a machine keeps of private and shared memory. Changes go through the machine's log. */
export class MemoryAttributes {
  readonly store = new AttributeStore();
  /** KVM_LPAGE_MIXED_FLAG: 2M and 1G blocks over which no large page may be mapped, by `rmapKey`. */
  readonly mixed: LoggedMap<true> = new LoggedMap();
  /** The RMP, by host frame. */
  readonly rmp: LoggedMap<RmpEntry> = new LoggedMap();
  /** The VMPL at which a vCPU of SNP runs, by vCPU; without an entry 0, the most privileged. */
  readonly vmpls: LoggedMap<number> = new LoggedMap();
  /** Pages that guest_memfd has, by host frame: the guest frame. */
  readonly folios: LoggedMap<Gfn> = new LoggedMap();
  /** Pages of a TDX guest that its launch has filled, and that the module takes as they are, once. */
  readonly launched: LoggedMap<true> = new LoggedMap();
  /** Host frames that the TDX module has added to a running guest, and that the guest has not accepted yet. */
  readonly pending: LoggedMap<true> = new LoggedMap();
  /** Host frames of a TDX guest to which the host has written: who reads them next takes a machine check. */
  readonly poisoned: LoggedMap<true> = new LoggedMap();
  /** 2M blocks of the kernel's direct map that are mapped in 4K, by number. */
  readonly split: LoggedMap<true> = new LoggedMap();
  /** Host frames that the direct map leaves out. */
  readonly holes: LoggedMap<true> = new LoggedMap();
}
