import { EXEC, type Field, type FormatSpec, READ, SUPER_EXEC, USER, WRITE } from './format.ts';

const NAMES = { 3: 'Sv39', 4: 'Sv48', 5: 'Sv57' } as const;
export type RiscvLevels = keyof typeof NAMES;

/**
 * RISC-V paging, Sv39 with 3 levels to Sv57 with 5; the G-stage's root table has four times the entries (privileged
 * specification, "Sv39" and "Two-Stage Address Translation"). An entry with R, W and X clear points to a table, at any level one
 * of them set makes it a page; a large page must be aligned, which is to say that the PPN bits below it are reserved.
 */
function riscv(levels: RiscvLevels, gStage: boolean): FormatSpec {
  const name = `${NAMES[levels]}${gStage ? 'x4' : ''}`;
  const leaves = Array.from({ length: levels }, (_, below): Field => {
    const what = below === 0 ? 'frame of the page' : 'frame of the large page';
    return {
      name: 'PPN',
      bits: [53, 10 + 9 * below],
      kind: 'leaf',
      levels: [below + 1],
      setBy: 'software',
      meaning: what,
    };
  });
  return {
    name: name.toLowerCase(),
    title: `RISC-V ${name}`,
    ...(gStage ? { stage: 'G-stage' } : {}),
    source: `RISC-V privileged specification, ${gStage ? 'two-stage address translation' : NAMES[levels]}`,
    levels: Array.from({ length: levels }, (_, depth) => {
      const level = levels - depth;
      const entry = `level-${level - 1} PTE`;
      const root = gStage && depth === 0 ? { indexBits: 11 } : {};
      return { level, number: level - 1, entry, table: `level ${level - 1} page table`, ...root };
    }),
    physicalBits: [32, 56],
    addressDown: 2,
    ...(gStage ? {} : { canonical: true as const }),
    leaf: { fields: ['R', 'W', 'X'], when: 'any-set', otherwise: 'malformed' },
    largeLevels: Array.from({ length: levels - 1 }, (_, below) => ({ level: below + 2 })),
    fields: [
      { name: 'V', bits: [0, 0], setBy: 'software', meaning: 'valid: the entry says something' },
      { name: 'R', bits: [1, 1], kind: 'leaf', withholds: { 0: READ }, setBy: 'software', meaning: 'readable' },
      { name: 'W', bits: [2, 2], kind: 'leaf', withholds: { 0: WRITE }, setBy: 'software', meaning: 'writable' },
      { name: 'X', bits: [3, 3], kind: 'leaf', withholds: { 0: EXEC }, setBy: 'software', meaning: 'executable' },
      {
        name: 'U',
        bits: [4, 4],
        kind: 'leaf',
        // The G-stage makes every access as a user.
        withholds: gStage ? { 0: READ | WRITE | EXEC } : { 0: USER, 1: SUPER_EXEC },
        setBy: 'software',
        meaning: gStage ? 'must be set: the G-stage makes every access as a user' : 'user: accessible in U-mode',
      },
      { name: 'G', bits: [5, 5], setBy: 'software', ignored: true, meaning: 'global: in every address space' },
      {
        name: 'A',
        bits: [6, 6],
        kind: 'leaf',
        setBy: 'hardware',
        meaning: 'accessed: a translation has used the entry',
      },
      { name: 'D', bits: [7, 7], kind: 'leaf', setBy: 'hardware', meaning: 'dirty: the page has been written' },
      { name: 'RSW', bits: [9, 8], setBy: 'software', ignored: true, meaning: 'free for software' },
      ...leaves,
      { name: 'PPN', bits: [53, 10], kind: 'table', setBy: 'software', meaning: 'frame of the next table' },
      {
        name: 'PBMT',
        bits: [62, 61],
        kind: 'leaf',
        requires: 'svpbmt',
        setBy: 'software',
        meaning: 'memory type, in place of the PMA’s',
        values: { 0: 'PMA', 1: 'NC', 2: 'IO', 3: 'reserved' },
      },
    ],
    roles: { present: ['V'], accessed: 'A', dirty: 'D', global: 'G', address: 'PPN' },
    illegal: [{ mask: 0b110, value: 0b100, words: 'writable but not readable' }],
  };
}

export const SV39 = riscv(3, false);
export const SV48 = riscv(4, false);
export const SV57 = riscv(5, false);
export const SV39X4 = riscv(3, true);
export const SV48X4 = riscv(4, true);
export const SV57X4 = riscv(5, true);
