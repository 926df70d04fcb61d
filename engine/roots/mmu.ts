import type { Pfn } from '../memory/words.ts';
import { type CpuRole, NO_ROLE } from './role.ts';

/** `kvm_mmu_root_info`. For direct roots `pgd` says nothing. */
export interface RootInfo {
  /** CR3, or nCR3 of a nested guest, with its PCID. */
  readonly pgd: bigint;
  /** Host frame of the table; −1: INVALID_PAGE. */
  readonly pfn: Pfn;
}

export const INVALID_ROOT: RootInfo = { pgd: 0n, pfn: -1 };
/** KVM_MMU_NUM_PREV_ROOTS */
export const PREV_ROOTS = 3;

/** `struct kvm_mmu`, as far as it is state: a value, so that a change makes a new one. */
export interface Mmu {
  readonly cpuRole: CpuRole;
  /** Role word of the root's table. */
  readonly rootRole: number;
  readonly root: RootInfo;
  /** `prev_roots`, the last used first. */
  readonly prevRoots: readonly RootInfo[];
  /** `mirror_root_hpa`: of TDX, KVM's copy of the secure EPT; −1 for none. It stays as long as the VM. */
  readonly mirrorRoot: Pfn;
  /** Frame of the four PDPTEs that the processor gets where it walks in PAE mode; −1 until they are needed. */
  readonly paeRoot: Pfn;
  /** `pdptrs`: the guest's PDPTEs as they were loaded, low and high words; undefined until the first time. */
  readonly pdptrs: readonly number[] | undefined;
}

export const NEW_MMU: Mmu = {
  cpuRole: NO_ROLE,
  rootRole: 0,
  root: INVALID_ROOT,
  prevRoots: Array.from({ length: PREV_ROOTS }, () => INVALID_ROOT),
  mirrorRoot: -1,
  paeRoot: -1,
  pdptrs: undefined,
};

/** Which roots: KVM_MMU_ROOT_CURRENT and KVM_MMU_ROOT_PREVIOUS(i). */
export const ROOT_CURRENT = 1;
export const rootPrevious = (index: number): number => 2 << index;
export const ROOTS_ALL = 0xf;

/** What a look into the cache came to. */
export interface Lookup {
  readonly root: RootInfo;
  readonly prevRoots: readonly RootInfo[];
  readonly found: boolean;
  /** The root that had not been used for longest, which had to go. */
  readonly evicted: RootInfo | undefined;
}

/**
 * cached_root_find_and_keep_current: the current root becomes the first of the previous ones, and each in turn is tried as the
 * current one. A miss gives up the last.
 */
export function findAndKeepCurrent(mmu: Mmu, usable: (root: RootInfo) => boolean): Lookup {
  if (usable(mmu.root)) return { root: mmu.root, prevRoots: mmu.prevRoots, found: true, evicted: undefined };
  let { root } = mmu;
  const prevRoots = [...mmu.prevRoots];
  for (let i = 0; i < prevRoots.length; i++) {
    [root, prevRoots[i]] = [prevRoots[i]!, root];
    if (usable(root)) return { root, prevRoots, found: true, evicted: undefined };
  }
  return { root: INVALID_ROOT, prevRoots, found: false, evicted: root.pfn >= 0 ? root : undefined };
}

/** cached_root_find_without_current: the first previous root that will do moves up, and leaves no gap. A miss changes nothing. */
export function findWithoutCurrent(mmu: Mmu, usable: (root: RootInfo) => boolean): Lookup {
  const at = mmu.prevRoots.findIndex(usable);
  if (at < 0) return { root: mmu.root, prevRoots: mmu.prevRoots, found: false, evicted: undefined };
  const prevRoots = mmu.prevRoots.filter((_, index) => index !== at);
  return { root: mmu.prevRoots[at]!, prevRoots: [...prevRoots, INVALID_ROOT], found: true, evicted: undefined };
}
