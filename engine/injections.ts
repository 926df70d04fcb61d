/** Mistakes in converting memory. */
export const CONVERSION_INJECTIONS = {
  'attributes-without-zap': 'memory becomes private or shared, and what maps it as the other stays',
  'mixed-tail': 'the last 2M block of a conversion is not noted as mixed',
  'mixed-1g-first': '1G blocks are judged before the 2M blocks that they are judged by',
  'mixed-unaligned': 'a 2M block that a conversion covers in part alone is not noted as mixed',
  'edges-not-invalidated': 'large pages at the ends of a conversion are no part of its invalidation',
  'seq-after-attributes': 'a fault asks for the attribute first, and remembers mmu_invalidate_seq then',
  'begin-without-range': 'an invalidation of a conversion is begun without its range',
  'end-before-store': 'the invalidation ends before the attributes are stored',
  'store-fails': 'there is no memory for the second half of the attributes',
  'rmp-update-fails': 'RMPUPDATE fails',
  'tdx-shared-bit': 'the shared bit of a TDX guest’s address is left in the gfn',
} as const;

/**
 * Mistakes that a hypervisor could make, or has made, and that a scenario can have KVM make from then on: for each, what happens
 * instead of what should.
 */
export const INJECTIONS = {
  'quadrant-copied': 'a child page gets the quadrant of its parent',
  'quadrant-wrong-bit': 'a child page’s quadrant is taken from the next bit of the entry’s index',
  'child-by-gfn': 'a linked shadow page is taken for its gfn alone, whatever its role',
  'unprotected-table': 'a table of the guest’s is shadowed without being write-protected',
  'unflushed-protection': 'a table of the guest’s is write-protected without a flush of the TLBs',
  'unsync-late': 'a table becomes writable before its shadow page is marked unsync, at the next fault',
  'unflushed-free': 'shadow pages are freed without a flush of the TLBs',
  'root-leak': 'a root that a vCPU gives up keeps its reference',
  'root-wrong-role': 'a cached root is taken for its CR3 alone, whatever its role',
  'previous-roots-kept': 'a flush of a PCID leaves the previous roots of that PCID',
  'wp-unloads': 'each write that changes CR0.WP gives up all roots',
  'roles-kept': 'a change of CPUID leaves roles and roots, and with them the old reserved bits',
  'mmio-generation': 'an MMIO marker counts whatever generation of the memslots it is of',
  'ad-bits-lost': 'walks set neither A nor D in the guest’s entries',
  'ad-bits-wrong-entry': 'walks set A and D in the guest’s entry beside the one that they used',
  'error-without-present': 'the error code of a #PF lacks P',
  'error-with-fetch': 'the error code of a fetch’s #PF has F, though neither NX nor SMEP is on',
  'nx-huge-executable': 'with NX huge pages, large pages are made executable all the same',
  'nx-splits-leak': 'a table that NX huge pages stood in the way of goes, and is still counted',
  'smap-ac-implicit': 'RFLAGS.AC excuses implicit accesses from SMAP too',
  ...CONVERSION_INJECTIONS,
  'rmp-in-use':
    'the first RMPUPDATE of an operation, and KVM’s PSMASH at a fault, find their entry in use by another processor, and are repeated',
} as const;
export type Injection = keyof typeof INJECTIONS;

export function isInjection(name: string): name is Injection {
  return Object.hasOwn(INJECTIONS, name);
}
