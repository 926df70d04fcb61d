import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { withRole } from '../roots/role.ts';
import type { ShadowState } from '../shadow/state.ts';

/** One of KVM's own tables (`struct kvm_mmu_page`). Values: a change makes a new one. */
export interface MmuPage {
  readonly pfn: Pfn;
  /** First guest frame that the table covers; of a shadow page with a guest table, that table's. */
  readonly gfn: Gfn;
  /** Level of its entries. */
  readonly level: number;
  /** `kvm_mmu_page_role`, in today's layout; whether it is invalid is in it. */
  readonly role: number;
  /** Of the TDP MMU: the entry that points to it; −1 for a root. */
  readonly parent: Pfn;
  readonly parentIndex: number;
  /** For a root: vCPUs' references, and the TDP MMU's own. 0 otherwise. */
  readonly rootCount: number;
  /** A root that is being taken down. */
  readonly invalid: boolean;
  /** An invalid root that nobody has begun to zap: whoever does drops the MMU's reference, once. */
  readonly scheduledToZap: boolean;
  /** It stands for a large page that would be executable (`nx_huge_page_disallowed`). */
  readonly nxHugePageDisallowed: boolean;
  /** Of a table that mirrors one of the TDX module's: that one's frame (`external_spt`). */
  readonly external?: Pfn;
  /** Of shadow pages alone. */
  readonly shadow?: ShadowState;
}

/** tdp_mmu_init_child_sp: the role of a table below another of the TDP MMU's. */
export function childRole(machine: Machine, parent: Pfn): number {
  const { role } = machine.page(parent);
  return withRole(role, { level: roleField(role, 'level') - 1 });
}
