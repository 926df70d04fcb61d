import { COUNTERS } from '../engine/counters.ts';
import { REGISTER_BITS, REGISTERS, type RegisterName } from '../engine/guest/registers.ts';

// What expressions in a scenario can name. The meanings are engine/queries/scope.ts's; a test holds the two together.

export const isRegister = (name: string): name is RegisterName => (REGISTERS as readonly string[]).includes(name);

export const registerBits = (register: RegisterName): string[] => Object.keys(REGISTER_BITS[register] ?? {});

/** Dotted and plain names that are numbers everywhere. */
export const VALUES: readonly string[] = [
  ...COUNTERS,
  'step',
  'cr2',
  'loaded',
  'error_code',
  'mmu_invalidate_seq',
  'slots.generation',
  'tlb.entries',
  'vmpl',
];

/** First words of dotted names: `faults` of `faults.second`. */
export const FAMILIES: ReadonlySet<string> = new Set(
  VALUES.filter((name) => name.includes('.')).map((name) => name.split('.')[0]!),
);

/** Functions of one argument, and what they give. */
export const FUNCTIONS: Readonly<Record<string, string>> = {
  u8: 'the byte at a guest-physical address',
  u16: 'the 2 bytes at a guest-physical address',
  u32: 'the 4 bytes at a guest-physical address',
  u64: 'the 8 bytes at a guest-physical address',
  pte: 'the guest entry at which the walk of a guest-virtual address ends',
  gpa: 'the guest-physical address that a guest-virtual address translates to',
  hpa: 'the host-physical address behind a guest-physical address',
  spte: 'the entry of KVM’s tables at which the walk of a guest-physical address ends',
  is_private: 'whether the page of a guest-physical address is private (KVM_MEMORY_ATTRIBUTE_PRIVATE)',
  level: 'the level at which KVM’s tables map a guest-physical address; 0 when they do not',
};

export const FEATURES: Readonly<Record<string, string>> = {
  '1g-pages': 'pages of 1G in guest tables and in EPT',
  'execute-only': 'EPT entries that allow fetches and neither reads nor writes',
  l1tf: 'a bug of the processor (L1 terminal fault), for which KVM hides the address in its MMIO markers',
};
