import type { Field, FormatSpec } from './format.ts';
import { withFifthLevel, X86_64, X86_FIELDS } from './x86-64.ts';

/** Bits of KVM's own in entries of x86's format (KVM: `spte.h`). */
export const SPTE_FIELDS: readonly Field[] = [
  {
    name: 'host-writable',
    bits: [9, 9],
    setBy: 'kvm',
    ignored: true,
    meaning: 'the host lets KVM map the page writable',
  },
  {
    name: 'MMU-writable',
    bits: [10, 10],
    setBy: 'kvm',
    ignored: true,
    meaning: 'nothing in the MMU forbids making the page writable without a lock',
  },
  { name: 'MMU-present', bits: [11, 11], setBy: 'kvm', ignored: true, meaning: 'KVM holds this entry as present' },
  {
    name: 'A/D type',
    bits: [53, 52],
    setBy: 'kvm',
    ignored: true,
    meaning: 'how KVM tracks accesses and writes here',
    values: { 0: 'A/D bits', 1: 'no A/D bits', 2: 'write-protection only' },
  },
  { name: 'available', bits: [62, 54], setBy: 'software', ignored: true, meaning: 'not used by the walk' },
];

/**
 * AMD nested page tables, four levels, with the bits that KVM keeps in them. The walk treats every access as a user
 * access, so U must be set in each entry (APM vol. 2, 15.25; KVM: `spte.h`).
 */
const { canonical: _signExtended, ...PLAIN } = X86_64;

export const NPT: FormatSpec = {
  ...PLAIN,
  name: 'npt',
  title: 'NPT, 4-level',
  stage: 'NPT',
  source: 'APM vol. 2, 15.25; KVM spte.h',
  fields: [...X86_FIELDS, ...SPTE_FIELDS],
};

/** The same with five levels, as a host with CR4.LA57 has it. */
export const NPT_5: FormatSpec = withFifthLevel(NPT, 'npt-5', 'NPT, 5-level', 'PML5E', 'PML5');
