import type { FormatSpec } from './format.ts';
import { X86_FIELDS } from './x86-64.ts';

/**
 * x86 PAE paging (SDM vol. 3, 4.4): four PDPTEs, which say nothing of rights, above two levels of 512 entries. Bits 62:52 are
 * reserved in all of them.
 */
export const PAE: FormatSpec = {
  name: 'pae',
  title: 'x86, PAE',
  source: 'SDM vol. 3, 4.4',
  levels: [
    { level: 3, entry: 'PDPTE', table: 'page-directory-pointer table', indexBits: 2 },
    { level: 2, entry: 'PDE', table: 'page directory' },
    { level: 1, entry: 'PTE', table: 'page table' },
  ],
  loadedLevel: 3,
  leaf: { fields: ['PS'], when: 'any-set', otherwise: 'leaf' },
  largeLevels: [{ level: 2 }],
  fields: [
    { name: 'P', bits: [0, 0], levels: [3], setBy: 'software', meaning: 'present: the entry maps something' },
    { name: 'PWT', bits: [3, 3], levels: [3], setBy: 'software', meaning: 'page-level write-through' },
    { name: 'PCD', bits: [4, 4], levels: [3], setBy: 'software', meaning: 'page-level cache disable' },
    { name: 'address', bits: [51, 12], levels: [3], setBy: 'software', meaning: 'frame of the next table' },
    // The 1G leaf and the upper levels of the 64-bit formats are not here.
    ...X86_FIELDS.map((field) => ({ ...field, levels: (field.levels ?? [1, 2]).filter((level) => level <= 2) })).filter(
      ({ levels }) => levels.length > 0,
    ),
    { name: 'available', bits: [11, 9], setBy: 'software', ignored: true, meaning: 'free for the operating system' },
  ],
  roles: {
    present: ['P'],
    write: 'W',
    user: 'U',
    noExecute: 'NX',
    accessed: 'A',
    dirty: 'D',
    global: 'G',
    address: 'address',
  },
  illegal: [],
};
