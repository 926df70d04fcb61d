import { type FormatSpec, USER, WRITE } from './format.ts';

/**
 * x86 32-bit paging: two levels of 1024 entries of 4 bytes (SDM vol. 3, 4.3). With CR4.PSE a PDE can map 4M, anywhere in the
 * first 64G (PSE-36, which KVM always offers); without, bit 7 of a PDE is ignored.
 */
export const X86_32: FormatSpec = {
  name: 'x86-32',
  title: 'x86, 32-bit',
  source: 'SDM vol. 3, 4.3; KVM mmu.c for PSE-36',
  levels: [
    { level: 2, entry: 'PDE', table: 'page directory', indexBits: 10 },
    { level: 1, entry: 'PTE', table: 'page table', indexBits: 10 },
  ],
  entryBytes: 4,
  leaf: { fields: ['PS'], when: 'any-set', otherwise: 'leaf' },
  largeLevels: [{ level: 2, requires: 'pse' }],
  fields: [
    { name: 'P', bits: [0, 0], setBy: 'software', meaning: 'present: the entry maps something' },
    { name: 'W', bits: [1, 1], withholds: { 0: WRITE }, setBy: 'software', meaning: 'writable' },
    { name: 'U', bits: [2, 2], withholds: { 0: USER }, setBy: 'software', meaning: 'user: accessible at CPL 3' },
    { name: 'PWT', bits: [3, 3], setBy: 'software', meaning: 'page-level write-through: bit 0 of the PAT index' },
    { name: 'PCD', bits: [4, 4], setBy: 'software', meaning: 'page-level cache disable: bit 1 of the PAT index' },
    { name: 'A', bits: [5, 5], setBy: 'hardware', meaning: 'accessed: a translation has used the entry' },
    { name: 'D', bits: [6, 6], kind: 'leaf', setBy: 'hardware', meaning: 'dirty: the page has been written' },
    { name: 'ignored', bits: [6, 6], kind: 'table', setBy: 'software', ignored: true, meaning: 'ignored by the walk' },
    {
      name: 'PS',
      bits: [7, 7],
      levels: [2],
      requires: 'pse',
      setBy: 'software',
      meaning: 'page size: the entry maps a 4M page',
    },
    {
      name: 'PS',
      bits: [7, 7],
      levels: [2],
      unless: 'pse',
      setBy: 'software',
      ignored: true,
      meaning: 'ignored while CR4.PSE is 0',
    },
    { name: 'PAT', bits: [7, 7], levels: [1], setBy: 'software', meaning: 'bit 2 of the PAT index' },
    {
      name: 'G',
      bits: [8, 8],
      kind: 'leaf',
      setBy: 'software',
      meaning: 'global: survives a CR3 write when CR4.PGE is set',
    },
    { name: 'ignored', bits: [8, 8], kind: 'table', setBy: 'software', ignored: true, meaning: 'ignored by the walk' },
    { name: 'available', bits: [11, 9], setBy: 'software', ignored: true, meaning: 'free for the operating system' },
    { name: 'PAT', bits: [12, 12], kind: 'leaf', levels: [2], setBy: 'software', meaning: 'bit 2 of the PAT index' },
    {
      name: 'address high',
      bits: [16, 13],
      kind: 'leaf',
      levels: [2],
      setBy: 'software',
      meaning: 'bits 35:32 of the page’s address (PSE-36)',
    },
    { name: 'address', bits: [31, 12], kind: 'table', setBy: 'software', meaning: 'frame of the next table' },
    { name: 'address', bits: [31, 12], kind: 'leaf', levels: [1], setBy: 'software', meaning: 'frame of the page' },
    { name: 'address', bits: [31, 22], kind: 'leaf', levels: [2], setBy: 'software', meaning: 'frame of the page' },
  ],
  roles: {
    present: ['P'],
    write: 'W',
    user: 'U',
    accessed: 'A',
    dirty: 'D',
    global: 'G',
    address: 'address',
    addressHigh: { name: 'address high', to: 32 },
  },
  illegal: [],
};
