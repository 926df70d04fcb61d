import type { Gfn, Pfn } from '../memory/words.ts';

/** One of KVM's own tables (`struct kvm_mmu_page`), as far as the TDP MMU uses it. Values: a change makes a new one. */
export interface MmuPage {
  readonly pfn: Pfn;
  /** First guest frame that the table covers. */
  readonly gfn: Gfn;
  /** Level of its entries. */
  readonly level: number;
  /** The entry that points to it; −1 for a root. */
  readonly parent: Pfn;
  readonly parentIndex: number;
  /** For a root: vCPUs that use it, and the MMU's own reference. 0 otherwise. */
  readonly rootCount: number;
  /** A root that is being taken down. */
  readonly invalid: boolean;
  /** An invalid root that nobody has begun to zap: whoever does drops the MMU's reference, once. */
  readonly scheduledToZap: boolean;
}
