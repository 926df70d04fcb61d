import { EXEC, type Field, type FormatSpec, USER, WRITE } from './format.ts';

/** Fields that x86-64 and NPT entries share: NPT is the same format, walked as user accesses. */
export const X86_FIELDS: readonly Field[] = [
  { name: 'P', bits: [0, 0], setBy: 'software', meaning: 'present: the entry maps something' },
  { name: 'W', bits: [1, 1], withholds: { 0: WRITE }, setBy: 'software', meaning: 'writable' },
  { name: 'U', bits: [2, 2], withholds: { 0: USER }, setBy: 'software', meaning: 'user: accessible at CPL 3' },
  { name: 'PWT', bits: [3, 3], setBy: 'software', meaning: 'page-level write-through: bit 0 of the PAT index' },
  { name: 'PCD', bits: [4, 4], setBy: 'software', meaning: 'page-level cache disable: bit 1 of the PAT index' },
  { name: 'A', bits: [5, 5], setBy: 'hardware', meaning: 'accessed: a translation has used the entry' },
  { name: 'D', bits: [6, 6], kind: 'leaf', setBy: 'hardware', meaning: 'dirty: the page has been written' },
  { name: 'ignored', bits: [6, 6], kind: 'table', setBy: 'software', ignored: true, meaning: 'ignored by the walk' },
  { name: 'PS', bits: [7, 7], levels: [2], setBy: 'software', meaning: 'page size: the entry maps a 2M page' },
  {
    name: 'PS',
    bits: [7, 7],
    levels: [3],
    requires: '1g-pages',
    setBy: 'software',
    meaning: 'page size: the entry maps a 1G page',
  },
  { name: 'PAT', bits: [7, 7], levels: [1], setBy: 'software', meaning: 'bit 2 of the PAT index' },
  {
    name: 'G',
    bits: [8, 8],
    kind: 'leaf',
    setBy: 'software',
    meaning: 'global: survives a CR3 write when CR4.PGE is set',
  },
  {
    name: 'ignored',
    bits: [8, 8],
    kind: 'table',
    levels: [2, 3],
    setBy: 'software',
    ignored: true,
    meaning: 'ignored by the walk',
  },
  {
    name: 'ignored',
    bits: [8, 8],
    kind: 'table',
    levels: [4],
    unless: 'amd',
    setBy: 'software',
    ignored: true,
    meaning: 'ignored by the walk',
  },
  { name: 'PAT', bits: [12, 12], kind: 'leaf', levels: [2, 3], setBy: 'software', meaning: 'bit 2 of the PAT index' },
  { name: 'address', bits: [51, 12], kind: 'table', setBy: 'software', meaning: 'frame of the next table' },
  { name: 'address', bits: [51, 12], kind: 'leaf', levels: [1], setBy: 'software', meaning: 'frame of the page' },
  { name: 'address', bits: [51, 21], kind: 'leaf', levels: [2], setBy: 'software', meaning: 'frame of the page' },
  { name: 'address', bits: [51, 30], kind: 'leaf', levels: [3], setBy: 'software', meaning: 'frame of the page' },
  { name: 'NX', bits: [63, 63], requires: 'nx', setBy: 'software', withholds: { 1: EXEC }, meaning: 'no execute' },
];

/** x86-64 paging with four levels (SDM vol. 3, 4.5; APM vol. 2, 5.3). */
export const X86_64: FormatSpec = {
  name: 'x86-64',
  title: 'x86-64, 4-level',
  source: 'SDM vol. 3, 4.5; APM vol. 2, 5.3',
  levels: [
    { level: 4, entry: 'PML4E', table: 'PML4' },
    { level: 3, entry: 'PDPTE', table: 'page-directory-pointer table' },
    { level: 2, entry: 'PDE', table: 'page directory' },
    { level: 1, entry: 'PTE', table: 'page table' },
  ],
  canonical: true,
  leaf: { fields: ['PS'], when: 'any-set', otherwise: 'leaf' },
  largeLevels: [{ level: 3, requires: '1g-pages' }, { level: 2 }],
  fields: [
    ...X86_FIELDS,
    // Of guests whose host may not see their memory; behind the address, which then ends below.
    { name: 'C', bits: [51, 51], requires: 'c-bit', setBy: 'software', meaning: 'private: the memory is encrypted' },
    {
      name: 'S',
      bits: [47, 47],
      requires: 'shared-47',
      setBy: 'software',
      meaning: 'shared: the host sees the memory',
    },
    {
      name: 'S',
      bits: [51, 51],
      requires: 'shared-51',
      setBy: 'software',
      meaning: 'shared: the host sees the memory',
    },
    { name: 'available', bits: [11, 9], setBy: 'software', ignored: true, meaning: 'free for the operating system' },
    {
      name: 'available',
      bits: [62, 52],
      kind: 'table',
      setBy: 'software',
      ignored: true,
      meaning: 'free for the operating system',
    },
    {
      name: 'available',
      bits: [58, 52],
      kind: 'leaf',
      setBy: 'software',
      ignored: true,
      meaning: 'free for the operating system',
    },
    {
      name: 'PK',
      bits: [62, 59],
      kind: 'leaf',
      setBy: 'software',
      meaning: 'protection key: selects two bits of PKRU when CR4.PKE is set',
    },
  ],
  roles: {
    present: ['P'],
    write: 'W',
    user: 'U',
    noExecute: 'NX',
    accessed: 'A',
    dirty: 'D',
    global: 'G',
    protectionKey: 'PK',
    address: 'address',
  },
  illegal: [],
};

/** A format with a fifth level on top, whose entries are like those of the fourth. */
export function withFifthLevel(
  spec: FormatSpec,
  name: string,
  title: string,
  entry: string,
  table: string,
): FormatSpec {
  return {
    ...spec,
    name,
    title,
    levels: [{ level: 5, entry, table }, ...spec.levels],
    fields: spec.fields.map((field) =>
      field.levels?.includes(4) ? { ...field, levels: [...field.levels, 5] } : field,
    ),
  };
}

/** x86-64 paging with five levels, CR4.LA57 (SDM vol. 3, 4.5). */
export const X86_64_5: FormatSpec = withFifthLevel(X86_64, 'x86-64-5', 'x86-64, 5-level', 'PML5E', 'PML5');
