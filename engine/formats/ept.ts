import { EXEC, type FormatSpec, READ, WRITE } from './format.ts';
import { withFifthLevel } from './x86-64.ts';

/** Intel extended page tables, four levels, with the bits that KVM keeps in them (SDM vol. 3, 29.3; KVM: `spte.h`). */
export const EPT: FormatSpec = {
  name: 'ept',
  title: 'EPT, 4-level',
  stage: 'EPT',
  source: 'SDM vol. 3, 29.3; KVM spte.h',
  levels: [
    { level: 4, entry: 'EPT PML4E', table: 'EPT PML4' },
    { level: 3, entry: 'EPT PDPTE', table: 'EPT page-directory-pointer table' },
    { level: 2, entry: 'EPT PDE', table: 'EPT page directory' },
    { level: 1, entry: 'EPT PTE', table: 'EPT page table' },
  ],
  leaf: { fields: ['PS'], when: 'any-set', otherwise: 'leaf' },
  largeLevels: [{ level: 3, requires: '1g-pages' }, { level: 2 }],
  fields: [
    { name: 'R', bits: [0, 0], withholds: { 0: READ }, setBy: 'software', meaning: 'readable' },
    { name: 'W', bits: [1, 1], withholds: { 0: WRITE }, setBy: 'software', meaning: 'writable' },
    {
      name: 'X',
      bits: [2, 2],
      setBy: 'software',
      withholds: { 0: EXEC },
      meaning: 'executable (by the supervisor, with mode-based execute control)',
    },
    {
      name: 'memory type',
      bits: [5, 3],
      kind: 'leaf',
      setBy: 'software',
      meaning: 'memory type of the page',
      values: { 0: 'UC', 1: 'WC', 4: 'WT', 5: 'WP', 6: 'WB' },
      legal: [0, 1, 4, 5, 6],
    },
    {
      name: 'IPAT',
      bits: [6, 6],
      kind: 'leaf',
      setBy: 'software',
      meaning: 'ignore PAT: the guest’s PAT does not count',
    },
    { name: 'PS', bits: [7, 7], levels: [2], setBy: 'software', meaning: 'page size: the entry maps a 2M page' },
    {
      name: 'PS',
      bits: [7, 7],
      levels: [3],
      requires: '1g-pages',
      setBy: 'software',
      meaning: 'page size: the entry maps a 1G page',
    },
    { name: 'ignored', bits: [7, 7], levels: [1], setBy: 'software', ignored: true, meaning: 'ignored by the walk' },
    { name: 'A', bits: [8, 8], setBy: 'hardware', meaning: 'accessed: a translation has used the entry' },
    { name: 'D', bits: [9, 9], kind: 'leaf', setBy: 'hardware', meaning: 'dirty: the page has been written' },
    { name: 'ignored', bits: [9, 9], kind: 'table', setBy: 'software', ignored: true, meaning: 'ignored by the walk' },
    {
      name: 'user X',
      bits: [10, 10],
      setBy: 'software',
      ignored: true,
      meaning: 'executable by user code, with mode-based execute control; ignored without',
    },
    { name: 'MMU-present', bits: [11, 11], setBy: 'kvm', ignored: true, meaning: 'KVM holds this entry as present' },
    { name: 'address', bits: [51, 12], kind: 'table', setBy: 'software', meaning: 'frame of the next table' },
    { name: 'address', bits: [51, 12], kind: 'leaf', levels: [1], setBy: 'software', meaning: 'frame of the page' },
    { name: 'address', bits: [51, 21], kind: 'leaf', levels: [2], setBy: 'software', meaning: 'frame of the page' },
    { name: 'address', bits: [51, 30], kind: 'leaf', levels: [3], setBy: 'software', meaning: 'frame of the page' },
    {
      name: 'A/D type',
      bits: [53, 52],
      setBy: 'kvm',
      ignored: true,
      meaning: 'how KVM tracks accesses and writes here',
      values: { 0: 'A/D bits', 1: 'no A/D bits', 2: 'write-protection only' },
    },
    { name: 'saved R', bits: [54, 54], setBy: 'kvm', ignored: true, meaning: 'R before access tracking took it away' },
    { name: 'available', bits: [55, 55], setBy: 'software', ignored: true, meaning: 'not used by the walk' },
    { name: 'saved X', bits: [56, 56], setBy: 'kvm', ignored: true, meaning: 'X before access tracking took it away' },
    {
      name: 'host-writable',
      bits: [57, 57],
      setBy: 'kvm',
      ignored: true,
      meaning: 'the host lets KVM map the page writable',
    },
    {
      name: 'MMU-writable',
      bits: [58, 58],
      setBy: 'kvm',
      ignored: true,
      meaning: 'nothing in the MMU forbids making the page writable without a lock',
    },
    { name: 'available', bits: [62, 59], setBy: 'software', ignored: true, meaning: 'not used by the walk' },
    {
      name: 'suppress #VE',
      bits: [63, 63],
      setBy: 'software',
      ignored: true,
      meaning: 'a violation here exits instead of raising #VE',
    },
  ],
  roles: {
    present: ['R', 'W', 'X'],
    write: 'W',
    accessed: 'A',
    dirty: 'D',
    address: 'address',
  },
  illegal: [
    { mask: 0b011, value: 0b010, words: 'writable but not readable' },
    {
      mask: 0b111,
      value: 0b100,
      unless: 'execute-only',
      words: 'executable but not readable, which this processor does not support',
    },
  ],
};

/** The same with five levels. */
export const EPT_5: FormatSpec = withFifthLevel(EPT, 'ept-5', 'EPT, 5-level', 'EPT PML5E', 'EPT PML5');

/**
 * As a hypervisor that is a guest itself keeps them, for guests of its own (KVM: EPT12): nothing of KVM's is in them.
 * @param accessedDirty EPTP bit 6: whether the processor keeps accessed and dirty bits; else these bits are ignored
 */
export function nestedEpt(spec: FormatSpec, accessedDirty: boolean): FormatSpec {
  const free = { setBy: 'software', ignored: true, meaning: 'not used by the walk' } as const;
  const { accessed, dirty, ...roles } = spec.roles;
  return {
    ...spec,
    name: `nested-${spec.name}${accessedDirty ? '' : '-no-ad'}`,
    title: `nested ${spec.title}`,
    fields: spec.fields.map((field) =>
      field.setBy === 'kvm' || (!accessedDirty && (field.name === accessed || field.name === dirty))
        ? { ...free, name: 'available', bits: field.bits, ...(field.kind ? { kind: field.kind } : {}) }
        : field,
    ),
    roles: accessedDirty ? spec.roles : roles,
  };
}
