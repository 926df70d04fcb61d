import type { Amount, AttributeMapAnswer, CellFacts, CellMapping, Change } from '../../engine/queries/answers.ts';
import type { Paint } from '../kit/canvas.ts';
import type { Line } from '../kit/permissions.ts';

/** How cells look: a colour of the theme's charts, and a pattern that says the same without colour. */
export const PAINT_NAMES = [
  'private',
  'shared',
  'mixed',
  'file',
  'assigned',
  'validated',
  'mapped',
  'whole',
  'split',
  'hole',
  'stale',
] as const;
export type PaintName = (typeof PAINT_NAMES)[number];

const UP: readonly Line[] = [
  [-1, 7, 7, -1],
  [-1, 1, 1, -1],
  [5, 7, 7, 5],
];
const DOWN: readonly Line[] = [
  [-1, -1, 7, 7],
  [5, -1, 7, 1],
  [-1, 5, 1, 7],
];

function paint(name: string, colour: string, lines: readonly Line[], tint = 0.22): Paint {
  return { name: `memory ${name}`, colour: `--vscode-charts-${colour}`, lines, tint, ink: 0.8 };
}

export const PAINTS: Readonly<Record<PaintName, Paint>> = {
  private: paint('private', 'purple', UP),
  shared: paint('shared', 'blue', []),
  // Stripes across: both kinds side by side.
  mixed: paint('mixed', 'purple', [
    [1.5, 0, 1.5, 6],
    [2.5, 0, 2.5, 6],
  ]),
  // Dots.
  file: paint(
    'file',
    'foreground',
    [
      [0.5, 1.5, 2, 1.5],
      [3.5, 4.5, 5, 4.5],
    ],
    0.12,
  ),
  assigned: paint('assigned', 'orange', [
    [0, 1.5, 6, 1.5],
    [0, 4.5, 6, 4.5],
  ]),
  validated: paint('validated', 'green', DOWN),
  mapped: paint('mapped', 'green', []),
  whole: paint('whole', 'foreground', [], 0.04),
  split: paint('split', 'foreground', [[0.5, 0, 0.5, 6]], 0.1),
  hole: paint('hole', 'yellow', [...UP, ...DOWN], 0.3),
  stale: paint(
    'stale',
    'yellow',
    [
      [0, 0, 3, 6],
      [3, 6, 6, 0],
    ],
    0.35,
  ),
};

export const PAINT_WORDS: Readonly<Record<PaintName, string>> = {
  private: 'private',
  shared: 'shared',
  mixed: 'some of both',
  file: 'guest_memfd has it',
  assigned: 'RMP: assigned',
  validated: 'RMP: validated',
  mapped: 'mapped',
  whole: 'direct map in 2M',
  split: 'in 4K',
  hole: 'left out of it',
  stale: 'stale: maps the other frame',
};

/** A cell as a band draws it. */
export interface CellLook {
  /** Cells with the same are joined. */
  readonly key: string;
  readonly paint: Paint | undefined;
  /** A part of the cell's pages alone: drawn lower. */
  readonly isPart: boolean;
  /** The rectangles that it is made of, bytes; 0: it is drawn as one. */
  readonly box: number;
  /** What is written over a run of such cells, the longest that fits. */
  readonly words: readonly string[];
  /** What is written into each rectangle. */
  readonly symbol: string;
  /** A line below: dirty. */
  readonly bar: Amount;
  readonly isChanged: boolean;
}

export interface Band {
  readonly id: string;
  readonly name: string;
  /** CSS pixels. */
  readonly height: number;
  look(facts: CellFacts): CellLook | undefined;
}

const PAGE = 4096;
const LARGE = 512 * PAGE;
const LEVELS = ['', '4K', '2M', '1G'];

type Rest = Partial<Omit<CellLook, 'key' | 'paint'>>;

function look(facts: CellFacts, change: Change, name: PaintName | undefined, rest: Rest = {}): CellLook | undefined {
  const isChanged = facts.changed?.includes(change) ?? false;
  if (name === undefined && !isChanged && !rest.words) return undefined;
  const { isPart = false, box = PAGE, words = [], symbol = '', bar = 'none' } = rest;
  const key = [name, isPart, box, words[0], symbol, bar, isChanged].join('|');
  return { key, paint: name && PAINTS[name], isPart, box, words, symbol, bar, isChanged };
}

function attributeLook(facts: CellFacts): CellLook | undefined {
  if (facts.slot === 'none') return look(facts, 'attribute', undefined);
  const isPart = facts.slot === 'some';
  if (facts.private === 'some')
    return look(facts, 'attribute', 'mixed', { isPart, words: ['private and shared', 'both'] });
  return facts.private === 'all'
    ? look(facts, 'attribute', 'private', { isPart, words: ['private'], symbol: 'P' })
    : look(facts, 'attribute', 'shared', { isPart, words: ['shared'], symbol: 'S' });
}

/** The private frame: guest_memfd’s page, and what the RMP says of it. */
function privatePageLook(facts: CellFacts): CellLook | undefined {
  const { rmp, folios } = facts;
  if (!rmp) {
    if (facts.gmem === 'none')
      return look(facts, 'private-page', undefined, facts.slot === 'none' ? {} : { words: ['no guest_memfd'] });
    if (!folios) return look(facts, 'private-page', undefined, { words: ['no page'] });
    return look(facts, 'private-page', 'file', { isPart: folios === 'some', words: ['guest_memfd'] });
  }
  const isPart = rmp.assigned === 'some';
  const size = rmp.large === 'all' ? '2M' : rmp.large === 'none' ? '4K' : '4K and 2M';
  const box = rmp.large === 'all' ? LARGE : rmp.large === 'none' ? PAGE : 0;
  if (rmp.validated === 'none')
    return look(facts, 'private-page', 'assigned', {
      isPart,
      box,
      words: [`RMP ${size}, not validated`, `RMP ${size}`, size],
      symbol: '?',
    });
  const words = [
    `RMP ${size}, ${rmp.validated === 'all' ? 'validated' : 'some validated'}`,
    `RMP ${size}${rmp.validated === 'all' ? ' ✓' : ''}`,
    size,
  ];
  return look(facts, 'private-page', 'validated', {
    isPart: isPart || rmp.validated === 'some',
    box,
    words,
    symbol: rmp.validated === 'all' ? '✓' : '',
  });
}

function directMapLook(facts: CellFacts): CellLook | undefined {
  const { holes, split } = facts;
  if (holes) return look(facts, 'direct-map', 'hole', { isPart: holes === 'some', words: ['left out'], symbol: '×' });
  if (facts.gmem === 'none') return look(facts, 'direct-map', undefined);
  if (!split) return look(facts, 'direct-map', 'whole', { box: LARGE, words: ['in 2M'] });
  return look(facts, 'direct-map', 'split', { isPart: split === 'some', words: ['in 4K'] });
}

function frameWords({ frames, stale }: CellMapping): readonly string[] {
  if (frames === 'untold') return [];
  const which = frames === 'both' ? 'both kinds' : `${frames}`;
  return stale === 'none' ? [which] : [`${which}, ${stale === 'some' ? 'some ' : ''}stale`];
}

const FRAME_PAINTS: Readonly<Record<CellMapping['frames'], PaintName>> = {
  private: 'private',
  shared: 'shared',
  both: 'mixed',
  untold: 'mapped',
};

function stageLook(facts: CellFacts, stage: number): CellLook | undefined {
  const change = stage === 0 ? 'second-stage' : 'mirror';
  const mapping = facts.stages[stage];
  if (!mapping) return look(facts, change, undefined, facts.slot === 'none' ? {} : { words: ['not mapped'] });
  const { levels, frames, stale, mapped, dirty } = mapping;
  const sizes = levels.map((level) => LEVELS[level]!);
  const name: PaintName = stale !== 'none' ? 'stale' : FRAME_PAINTS[frames];
  return look(facts, change, name, {
    isPart: mapped === 'some',
    box: levels.length === 1 ? PAGE * 512 ** (levels[0]! - 1) : 0,
    words: [[sizes.join(' and '), ...frameWords(mapping)].join(' '), sizes.join('/')],
    symbol: levels.length === 1 ? sizes[0]! : '',
    bar: dirty,
  });
}

/** The bands of a machine, from above. */
export function bandsOf({
  stages,
  rmp,
  frames,
}: Pick<AttributeMapAnswer, 'stages' | 'rmp' | 'frames'>): readonly Band[] {
  return [
    { id: 'attribute', name: 'Attribute', height: 44, look: attributeLook },
    ...(frames
      ? [
          { id: 'private-page', name: rmp ? 'guest_memfd, RMP' : 'guest_memfd', height: 44, look: privatePageLook },
          { id: 'direct-map', name: 'Direct map', height: 24, look: directMapLook },
        ]
      : []),
    ...stages.map((name, stage) => ({
      id: `stage-${stage}`,
      name,
      height: 44,
      look: (facts: CellFacts) => stageLook(facts, stage),
    })),
  ];
}
