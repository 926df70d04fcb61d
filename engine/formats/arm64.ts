import {
  EXEC,
  type Field,
  type FormatSpec,
  type Level,
  READ,
  SUPER_EXEC,
  USER_EXEC,
  USER_READ,
  USER_WRITE,
  WRITE,
} from './format.ts';

/** Page sizes of arm64, as log2: 4K, 16K, 64K. */
export type Granule = 12 | 14 | 16;

/** What of a translation regime decides the shape of its tables. */
export interface Arm64Shape {
  readonly granule: Granule;
  /** Bits of the input address: 64 − TxSZ. */
  readonly inputBits: number;
  /** Levels of tables, the one of pages included. */
  readonly levels: number;
  /** Descriptors with 52-bit addresses: TCR.DS (FEAT_LPA2) in 4K and 16K granules, FEAT_LPA in 64K ones. */
  readonly wide: boolean;
  /** Whether TCR.HPD turns the permissions of table descriptors off. */
  readonly flat?: boolean;
}

/** Bits that a level of a granule resolves. */
function bitsPerLevel(granule: Granule): number {
  return granule - 3;
}

/** Levels that an input address needs, without concatenated tables (Arm ARM, D8.2). */
export function arm64Levels(granule: Granule, inputBits: number): number {
  return Math.ceil((inputBits - granule) / bitsPerLevel(granule));
}

function arm64Level({ granule, inputBits, levels }: Arm64Shape, level: number): Level {
  const bits = bitsPerLevel(granule);
  const number = 4 - level;
  const indexBits = level === levels ? inputBits - granule - bits * (levels - 1) : bits;
  return { level, number, entry: `L${number} descriptor`, table: `level ${number} table`, indexBits };
}

/** Levels above that of pages at which a block may stand (Arm ARM, D8.3: tables of block sizes). */
function blockLevels({ granule, levels, wide }: Arm64Shape): { readonly level: number }[] {
  const highest = (granule === 12 ? 3 : 2) + (wide ? 1 : 0);
  return [4, 3, 2].filter((level) => level <= highest && level <= levels).map((level) => ({ level }));
}

/** Where the address stands: bits 47 (or 49) down to the size of what it points to, and the rest of a 52-bit one. */
function addressFields(shape: Arm64Shape): Field[] {
  const { granule, levels, wide } = shape;
  const top = wide && granule < 16 ? 49 : 47;
  const leaves = [{ level: 1 }, ...blockLevels(shape)].map(
    ({ level }): Field => ({
      name: 'address',
      bits: [top, granule + (level - 1) * bitsPerLevel(granule)],
      kind: 'leaf',
      levels: [level],
      setBy: 'software',
      meaning: level === 1 ? 'frame of the page' : 'frame of the block',
    }),
  );
  const table: Field = {
    name: 'address',
    bits: [top, granule],
    kind: 'table',
    setBy: 'software',
    meaning: 'frame of the next table',
  };
  // FEAT_LPA: a block of 64K granules is never so small that bits 15:12 would be in its way.
  const high: Field[] = wide
    ? [
        {
          name: 'address high',
          bits: granule === 16 ? [15, 12] : [9, 8],
          setBy: 'software',
          meaning: granule === 16 ? 'bits 51:48 of the address' : 'bits 51:50 of the address',
        },
      ]
    : [];
  return levels === 1 ? [...leaves, ...high] : [...leaves, table, ...high];
}

const MARKS: readonly Field[] = [
  { name: 'valid', bits: [0, 0], setBy: 'software', meaning: 'the descriptor says something' },
  { name: 'table', bits: [1, 1], setBy: 'software', meaning: 'a table or, at level 3, a page; 0: a block' },
];

const shareability = (shape: Arm64Shape): Field[] =>
  shape.wide && shape.granule < 16
    ? []
    : [
        {
          name: 'SH',
          bits: [9, 8],
          kind: 'leaf',
          setBy: 'software',
          meaning: 'shareability',
          values: { 0: 'non-shareable', 1: 'reserved', 2: 'outer', 3: 'inner' },
        },
      ];

const COMMON_LEAF: readonly Field[] = [
  {
    name: 'AF',
    bits: [10, 10],
    kind: 'leaf',
    setBy: 'hardware',
    meaning: 'accessed: 0 faults unless hardware sets it',
  },
  {
    name: 'DBM',
    bits: [51, 51],
    kind: 'leaf',
    setBy: 'software',
    meaning: 'dirty bit modifier: hardware may make the page writable at the first write',
  },
  {
    name: 'contiguous',
    bits: [52, 52],
    kind: 'leaf',
    setBy: 'software',
    meaning: 'one of a run of entries that a TLB may hold as one',
  },
  { name: 'software', bits: [58, 55], kind: 'leaf', setBy: 'software', ignored: true, meaning: 'free for software' },
];

const cache = new Map<string, FormatSpec>();

function cached(key: string, make: () => FormatSpec): FormatSpec {
  const known = cache.get(key);
  if (known) return known;
  const made = make();
  cache.set(key, made);
  return made;
}

const SIZES = { 12: '4K', 14: '16K', 16: '64K' } as const;
const shapeName = ({ granule, levels, inputBits, wide }: Arm64Shape): string =>
  `${SIZES[granule]}, ${levels} level${levels === 1 ? '' : 's'}, ${inputBits} bits${wide ? ', 52-bit descriptors' : ''}`;

function shared(shape: Arm64Shape): Pick<FormatSpec, 'levels' | 'pageBits' | 'leaf' | 'largeLevels' | 'unused'> {
  return {
    levels: Array.from({ length: shape.levels }, (_, depth) => arm64Level(shape, shape.levels - depth)),
    pageBits: shape.granule,
    leaf: { fields: ['table'], when: 'clear', otherwise: 'absent' },
    largeLevels: blockLevels(shape),
    unused: 'ignored',
  };
}

/**
 * arm64 stage-1 descriptors (Arm ARM, D8.3). `privileges` 2: the EL1&0 and EL2&0 (VHE) regimes; 1: EL2 without VHE, which knows
 * no user.
 */
export function arm64Stage1(shape: Arm64Shape, privileges: 1 | 2): FormatSpec {
  const title = `arm64 stage-1${privileges === 1 ? ' EL2' : ''}, ${shapeName(shape)}`;
  const tableBits: Field[] = shape.flat
    ? []
    : privileges === 2
      ? [
          {
            name: 'PXNTable',
            bits: [59, 59],
            kind: 'table',
            withholds: { 1: SUPER_EXEC },
            setBy: 'software',
            meaning: 'nothing below is executable at EL1',
          },
          {
            name: 'UXNTable',
            bits: [60, 60],
            kind: 'table',
            withholds: { 1: USER_EXEC },
            setBy: 'software',
            meaning: 'nothing below is executable at EL0',
          },
          {
            name: 'APTable',
            bits: [62, 61],
            kind: 'table',
            withholds: { 1: USER_READ | USER_WRITE, 2: WRITE, 3: WRITE | USER_READ },
            setBy: 'software',
            meaning: 'limits of access to all below',
            values: { 0: 'no limit', 1: 'not at EL0', 2: 'read-only', 3: 'read-only, not at EL0' },
          },
        ]
      : [
          {
            name: 'XNTable',
            bits: [60, 60],
            kind: 'table',
            withholds: { 1: EXEC },
            setBy: 'software',
            meaning: 'nothing below is executable',
          },
          {
            name: 'APTable[1]',
            bits: [62, 62],
            kind: 'table',
            withholds: { 1: WRITE },
            setBy: 'software',
            meaning: 'nothing below is writable',
          },
        ];
  const leafBits: Field[] =
    privileges === 2
      ? [
          {
            name: 'AP',
            bits: [7, 6],
            kind: 'leaf',
            withholds: { 0: USER_READ | USER_WRITE, 2: WRITE | USER_READ, 3: WRITE },
            setBy: 'software',
            meaning: 'access permissions',
            values: { 0: 'EL1 rw', 1: 'EL1 and EL0 rw', 2: 'EL1 r', 3: 'EL1 and EL0 r' },
          },
          {
            name: 'PXN',
            bits: [53, 53],
            kind: 'leaf',
            withholds: { 1: SUPER_EXEC },
            setBy: 'software',
            meaning: 'not executable at EL1',
          },
          {
            name: 'UXN',
            bits: [54, 54],
            kind: 'leaf',
            withholds: { 1: USER_EXEC },
            setBy: 'software',
            meaning: 'not executable at EL0',
          },
          {
            name: 'nG',
            bits: [11, 11],
            kind: 'leaf',
            setBy: 'software',
            meaning: 'not global: the entry belongs to the current ASID',
          },
        ]
      : [
          {
            name: 'AP[2]',
            bits: [7, 7],
            kind: 'leaf',
            withholds: { 1: WRITE },
            setBy: 'software',
            meaning: 'read-only',
          },
          {
            name: 'XN',
            bits: [54, 54],
            kind: 'leaf',
            withholds: { 1: EXEC },
            setBy: 'software',
            meaning: 'not executable',
          },
        ];
  return cached(`1 ${privileges} ${title} ${shape.flat === true}`, () => ({
    ...shared(shape),
    name: 'arm64-s1',
    title,
    source: 'Arm ARM, D8.3',
    ...(privileges === 2 ? { implied: { when: USER_WRITE, takes: SUPER_EXEC } } : {}),
    fields: [
      ...MARKS,
      {
        name: 'AttrIndx',
        bits: [4, 2],
        kind: 'leaf',
        setBy: 'software',
        meaning: 'memory type: which byte of MAIR',
      },
      { name: 'NS', bits: [5, 5], kind: 'leaf', setBy: 'software', meaning: 'non-secure, in a secure regime' },
      ...leafBits,
      ...shareability(shape),
      ...COMMON_LEAF,
      {
        name: 'GP',
        bits: [50, 50],
        kind: 'leaf',
        setBy: 'software',
        meaning: 'guarded page: branch targets are checked',
      },
      ...tableBits,
      ...addressFields(shape),
    ],
    roles: {
      present: ['valid'],
      accessed: 'AF',
      address: 'address',
      ...(shape.wide ? { addressHigh: { name: 'address high', to: shape.granule === 16 ? 48 : 50 } } : {}),
    },
    illegal: [],
  }));
}

/** arm64 stage-2 descriptors (Arm ARM, D8.3), with FEAT_XNX. */
export function arm64Stage2(shape: Arm64Shape): FormatSpec {
  const title = `arm64 stage-2, ${shapeName(shape)}`;
  return cached(title, () => ({
    ...shared(shape),
    name: 'arm64-s2',
    title,
    stage: 'stage 2',
    source: 'Arm ARM, D8.3',
    fields: [
      ...MARKS,
      {
        name: 'MemAttr',
        bits: [5, 2],
        kind: 'leaf',
        setBy: 'software',
        meaning: 'memory type',
        values: { 0: 'device nGnRnE', 1: 'device nGnRE', 5: 'normal, non-cacheable', 15: 'normal, write-back' },
      },
      {
        name: 'S2AP',
        bits: [7, 6],
        kind: 'leaf',
        withholds: { 0: READ | WRITE, 1: WRITE, 2: READ },
        setBy: 'software',
        meaning: 'access permissions',
        values: { 0: 'none', 1: 'r', 2: 'w', 3: 'rw' },
      },
      {
        name: 'XN',
        bits: [54, 53],
        kind: 'leaf',
        withholds: { 1: SUPER_EXEC, 2: EXEC, 3: USER_EXEC },
        setBy: 'software',
        meaning: 'who may not execute',
        values: { 0: 'executable', 1: 'at EL0 only', 2: 'not executable', 3: 'at EL1 only' },
      },
      ...shareability(shape),
      ...COMMON_LEAF,
      ...addressFields(shape),
    ],
    roles: {
      present: ['valid'],
      accessed: 'AF',
      address: 'address',
      ...(shape.wide ? { addressHigh: { name: 'address high', to: shape.granule === 16 ? 48 : 50 } } : {}),
    },
    illegal: [],
  }));
}
