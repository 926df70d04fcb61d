/**
 * Mistakes that a hypervisor could make, or has made, and that a scenario can have KVM make: for each, what happens instead.
 */
export const INJECTIONS = {
  'child-by-gfn': 'a linked shadow page is taken for its gfn alone, whatever its role',
  'no-write-protection': 'a table of the guest is shadowed without being write-protected',
  'no-flush-on-zap': 'shadow pages are freed without a flush of the TLBs',
} as const;
export type Injection = keyof typeof INJECTIONS;
