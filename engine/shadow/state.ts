import { LoggedMap } from '../logged-map.ts';
import type { Gfn, Pfn } from '../memory/words.ts';

/** What a shadow page has beyond a TDP MMU's table (`struct kvm_mmu_page`). */
export interface ShadowState {
  /** Its guest table may be written without KVM's knowing. Only at level 1. */
  readonly unsync: boolean;
  /** Indices of its entries below which there are such pages (`unsync_child_bitmap`). */
  readonly unsyncChildren: readonly number[];
  /** Emulated writes to its guest table since it was walked last (`write_flooding_count`). */
  readonly writeFlooding: number;
  /** `mmu_valid_gen` when it was allocated. */
  readonly validGen: number;
  /** Frame that holds `shadowed_translation`, gfn << 12 | access by entry; −1 for direct pages. */
  readonly translations: Pfn;
  /** Entries that point to it (`parent_ptes`): frame * 512 + index. */
  readonly parents: readonly number[];
  /** Whether it has been a root. */
  readonly wasRoot: boolean;
  /** Its place in `active_mmu_pages`: the least is the oldest. */
  readonly age: number;
}

/** Where an entry of KVM's tables stands, as one number: frame * 512 + index. */
export type SpteAddress = number;

/** rmap_head's key: of a gfn at a level. */
export function rmapKey(level: number, gfn: Gfn): number {
  return level * 2 ** 44 + gfn;
}

/** KVM's books about shadow pages. */
export class ShadowMmu {
  /** Gfns whose memory the host has unmapped and nobody has touched since: whoever does not wait gets no frame. */
  readonly unmapped = new LoggedMap<true>();
  /** Frames whose contents are in the host's swap: to have them takes waiting for the disk. */
  readonly swapped = new LoggedMap<true>();
  /** Shadow pages by the gfn of their guest table, the newest first (`mmu_page_hash`). */
  readonly hash = new LoggedMap<readonly Pfn[]>();
  /** Leaf entries by the gfn and level that they map. */
  readonly rmaps = new LoggedMap<readonly SpteAddress[]>();
  /** How many shadow pages of upper levels a gfn has (`gfn_write_track`). */
  readonly writeTracked = new LoggedMap<number>();
  /** `disallow_lpage` as far as shadow pages count in it, by the first gfn of the large page and its level. */
  readonly disallowLpage = new LoggedMap<number>();
}
