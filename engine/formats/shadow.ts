import type { FormatSpec } from './format.ts';
import { SPTE_FIELDS } from './npt.ts';
import { PAE } from './pae.ts';
import { withFifthLevel, X86_64, X86_FIELDS } from './x86-64.ts';

/**
 * Shadow tables of x86: the processor walks them in the guest's stead, from the guest's virtual addresses to the host's memory.
 * Entries have 64 bits whatever the guest's have, and KVM's own bits (KVM: `spte.h`, `mmu.c`).
 */
export const SHADOW: FormatSpec = {
  ...X86_64,
  name: 'shadow',
  title: 'KVM shadow, 4-level',
  stage: 'shadow',
  source: 'SDM vol. 3, 4.5; KVM spte.h',
  fields: [...X86_FIELDS, ...SPTE_FIELDS],
};

/** The same for guests with five levels. */
export const SHADOW_5: FormatSpec = withFifthLevel(SHADOW, 'shadow-5', 'KVM shadow, 5-level', 'PML5E', 'PML5');

/** For 32-bit and PAE guests: the processor is in PAE mode, whose four entries at the top are KVM's `pae_root`. */
export const SHADOW_PAE: FormatSpec = {
  ...PAE,
  name: 'shadow-pae',
  title: 'KVM shadow, PAE',
  stage: 'shadow',
  source: 'SDM vol. 3, 4.4; KVM spte.h',
  fields: [...PAE.fields.filter(({ name }) => name !== 'available'), ...SPTE_FIELDS],
};
