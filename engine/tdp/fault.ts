import type { Gfn, Pfn } from '../memory/words.ts';

/** How the handling of a second-stage fault ended (KVM: RET_PF_*). */
export const RET_PF = {
  CONTINUE: 0,
  RETRY: 1,
  EMULATE: 2,
  WRITE_PROTECTED: 3,
  INVALID: 4,
  FIXED: 5,
  SPURIOUS: 6,
} as const;
/** KVM_RUN fails with an errno instead. */
export const EINVAL = -22;
/** With KVM_EXIT_MEMORY_FAULT: the page is not of the kind that the access took it for. */
export const EFAULT = -14;
/** KVM_RUN fails, for RMPUPDATE has failed; nothing that userspace could mend (EIO). */
export const RMP_FAILED = -5;
/** EFAULT, where the access was private (KVM_MEMORY_EXIT_FLAG_PRIVATE). */
export const EFAULT_PRIVATE = EFAULT - 4096;

/** No frame behind the gfn: no slot (KVM_PFN_NOSLOT), or a write to a read-only slot (KVM_PFN_ERR_RO_FAULT). */
export const PFN_NOSLOT = -1;
export const PFN_RO_FAULT = -2;

/** Bits of KVM's error code above the 32 of `PFERR_*`: whether the final address or a guest table was being accessed. */
export const PFERR_GUEST_FINAL = 2 ** 32;
export const PFERR_GUEST_PAGE = 2 ** 33;
/** Of SNP: the RMP refuses; the access was private (C-bit); page sizes differ; the VMPL has no right to it. */
export const PFERR_GUEST_RMP = 2 ** 31;
export const PFERR_GUEST_ENC = 2 ** 34;
export const PFERR_GUEST_SIZEM = 2 ** 35;
export const PFERR_GUEST_VMPL = 2 ** 36;
/** KVM's own, of an access to private memory: of SNP set where ENC is. */
export const PFERR_PRIVATE_ACCESS = 2 ** 49;

/** What made a walk fail, as it is told: to the log, to breakpoints and to people. Immutable. */
export interface FaultInfo {
  readonly vcpu: number;
  /** `nested`: L1's second-stage tables refuse an access of its guest's. */
  /** `rmp`: the tables allow the access, and the RMP does not. */
  readonly kind: 'guest' | 'violation' | 'misconfiguration' | 'mmio' | 'nested' | 'rmp';
  /** The nested guest (L2) whose access it was. */
  readonly guest?: string | undefined;
  readonly access: 'read' | 'write' | 'fetch';
  readonly cpl: number;
  readonly implicit: boolean;
  readonly gva: bigint;
  /** Unknown for a guest fault. */
  readonly gpa: bigint | undefined;
  /** The page itself, or a guest table on the way to it. */
  readonly target: 'page' | 'table';
  /** Guest level at which the guest's walk stood. */
  readonly guestLevel: number;
  /** Level, index and value of the entry that decided, in the guest's or the second-stage tables. */
  readonly level: number;
  readonly index: number;
  readonly lo: number;
  readonly hi: number;
  /** Table that holds it: gfn for guest tables and L1's, pfn for second-stage tables. */
  readonly table: number;
  /** PFERR_* bits, for a violation with GUEST_FINAL or GUEST_PAGE. */
  readonly errorCode: number;
  /** Exit qualification (EPT) or EXITINFO1 (NPT). */
  readonly exitInfo: number;
  /** Whether the access was to private memory, where the guest tells the two apart. */
  readonly isPrivate?: boolean;
  /** Of TDX: the module has the page, and the guest has not accepted it. */
  readonly isPending?: boolean;
  /** Why, in words that continue "…: ". */
  readonly reason: string;
}

/** Whether what a log entry or a local holds is a fault. */
export function isFaultInfo(value: unknown): value is FaultInfo {
  return typeof value === 'object' && value !== null && 'errorCode' in value && 'reason' in value;
}

/** The working state of a fault, after `struct kvm_page_fault`. Lives in the locals of the functions that handle it. */
export interface PageFault {
  readonly info: FaultInfo;
  readonly vcpu: number;
  /** What faulted (`addr`): of shadow paging a virtual address, else a guest-physical one; of a nested guest L2's. */
  readonly addr: bigint;
  /** The frame that is to be mapped: of L1 where a nested guest faulted. Behind shadow pages it is known by a walk alone. */
  gfn: Gfn;
  readonly write: boolean;
  readonly exec: boolean;
  readonly present: boolean;
  readonly rsvd: boolean;
  /** Whether private memory is to be mapped. */
  readonly isPrivate: boolean;
  /** What the faulting access needs, in ACC_* bits. */
  readonly needs: number;
  maxLevel: number;
  reqLevel: number;
  goalLevel: number;
  slot: number;
  mmuSeq: number;
  pfn: Pfn;
  mapWritable: boolean;
  /** No vCPU waits for it: the page of an asynchronous fault is mapped before it is asked for again. */
  readonly prefetch: boolean;
  /** A fetch, while no large page may be executable. */
  hugePageDisallowed: boolean;
}
