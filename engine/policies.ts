import type { VmType } from './attributes/state.ts';

/**
 * Where KVM can do a thing in more than one way, and a run may choose. Each seam is cut exactly where the ways differ; the
 * default is today's kernel.
 */
export interface Policies {
  /**
   * When dirty logging starts: `eager` splits large pages at once (KVM's `eager_page_split`), `lazy` at the first write; `all` splits those
   * of shadow paging at once too, as was posted in February 2022.
   */
  readonly 'page-split': 'eager' | 'lazy' | 'all';
  /**
   * What becomes of roots when the guest's mode changes: `before` is Linux 5.15, which gives up all of them, and whose role of the TDP
   * MMU has CR0.WP and EFER.NX in it; `posted` is the series of February 2022, which looks for a root of the new role among those it
   * keeps; `today` is Linux 7.1.
   */
  readonly roots: 'today' | 'before' | 'posted';
  /**
   * Which part of a table of 4-byte entries a child page shadows: `parity` of its parent's entry, as today; by the faulting `address`, as
   * Linux 5.15; `copied` from the parent, the mistake that was posted; or `skip`, the other way that was thought of: by the address, where
   * there is one, and splitting leaves such tables alone.
   */
  readonly quadrant: 'parity' | 'address' | 'copied' | 'skip';
  /**
   * In which order the ioctl that makes memory private or shared does what it has to (`attributes/orderings.ts`): `today` is Linux 7.1, the
   * others were proposed, or tried in thought, in March 2023.
   */
  readonly conversion: Ordering;
  /** What a conversion does to second-stage entries of the range, where its ordering zaps them at all. */
  readonly 'attribute-zap': 'zap' | 'flush' | 'none';
  /** What becomes of an error of the architecture's callback, once the attribute is stored. */
  readonly 'attribute-errors': 'logged' | 'returned';
  /** Whether a private page has frames of its own, or is the shared page's frame, converted in place. */
  readonly 'guest-memfd': 'separate' | 'in-place';
  /**
   * KVM's module parameter `nx_huge_pages` (`--param kvm.nx_huge_pages=force` in a lab). `on`: no large page is executable, and where the
   * guest executes there are pages of 4K, against machine checks that a guest can provoke by an instruction's address in the TLB in two
   * sizes (iTLB multihit). KVM has it on by itself (`auto`) where the processor has that fault.
   */
  readonly 'nx-huge-pages': 'off' | 'on';
  /**
   * KVM's module parameter `tdp_mmu` (`--param kvm.tdp_mmu=N` in a lab). `off`: the tables of EPT and NPT are shadow pages, direct ones,
   * as they were before the TDP MMU; a root that is given up stays in the hash with all that hangs below it. With shadow paging there is
   * no TDP MMU, whatever this says.
   */
  readonly 'tdp-mmu': 'on' | 'off';
}

/** O8, and O1 to O7. */
export const ORDERINGS = [
  'today',
  'rfc-v8',
  'under-lock',
  'split-direct-map',
  'reversed-direct-map',
  'deferred',
  'no-zap',
  'flush-only',
] as const;
export type Ordering = (typeof ORDERINGS)[number];

export const DEFAULT_POLICIES: Policies = {
  'page-split': 'eager',
  roots: 'today',
  quadrant: 'parity',
  conversion: 'today',
  'attribute-zap': 'zap',
  'attribute-errors': 'logged',
  'guest-memfd': 'separate',
  'nx-huge-pages': 'off',
  'tdp-mmu': 'on',
};

/** What each policy can be, its default first. */
export const POLICY_VALUES: { readonly [K in keyof Policies]: readonly Policies[K][] } = {
  'page-split': ['eager', 'lazy', 'all'],
  roots: ['today', 'before', 'posted'],
  quadrant: ['parity', 'address', 'copied', 'skip'],
  conversion: ORDERINGS,
  'attribute-zap': ['zap', 'flush', 'none'],
  'attribute-errors': ['logged', 'returned'],
  'guest-memfd': ['separate', 'in-place'],
  'nx-huge-pages': ['off', 'on'],
  'tdp-mmu': ['on', 'off'],
};

function isPolicy(name: string): name is keyof Policies {
  return Object.hasOwn(POLICY_VALUES, name);
}

/** Why a VM cannot have these policies; undefined when it can. */
export function policyProblem(policies: Policies, vm: VmType = 'ordinary'): string | undefined {
  if (vm === 'ordinary' || policies['tdp-mmu'] === 'on') return undefined;
  return `policy tdp-mmu = off: private memory (vm ${vm}) needs the TDP MMU`;
}

/** These policies with one chosen by name, or what is wrong with the choice and what there is. */
export function choosePolicy(
  policies: Policies,
  name: string,
  value: string,
  vm?: VmType,
): Policies | { readonly error: string } {
  if (!isPolicy(name)) return { error: `unknown policy ${name}; there are ${Object.keys(POLICY_VALUES).join(', ')}` };
  const chosen = (POLICY_VALUES[name] as readonly string[]).find((candidate) => candidate === value);
  if (chosen === undefined)
    return {
      error: `policy ${name} cannot be ${value || 'empty'}; it is ${POLICY_VALUES[name].join(', ').replace(/, ([^,]*)$/, ' or $1')}`,
    };
  const next = { ...policies, [name]: chosen };
  const problem = policyProblem(next, vm);
  return problem === undefined ? next : { error: problem };
}
