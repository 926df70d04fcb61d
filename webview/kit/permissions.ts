import type { DecodedEntry } from '../../engine/formats/decode.ts';

/**
 * How an entry looks, the same in every view: a colour from the theme's charts and a pattern that says the same without
 * colour. `/` lines mean writable, `\` lines executable, so rwx is crossed. A bar below means user.
 */
export interface Look {
  /** Right kind; `none`: present, but allows nothing. */
  readonly kind: 'r' | 'rw' | 'rx' | 'rwx' | 'none' | 'absent' | 'malformed';
  /** CSS variable of the theme with the colour. */
  readonly colour: string;
  readonly user: boolean;
  /** Points to a table: drawn lighter than what it leads to. */
  readonly table: boolean;
}

export type Line = readonly [x1: number, y1: number, x2: number, y2: number];

/** Side of a pattern's tile, CSS pixels. */
export const TILE = 6;

const UP: Line = [-1, 7, 7, -1];
const UP_CORNERS: readonly Line[] = [
  [-1, 1, 1, -1],
  [5, 7, 7, 5],
];
const DOWN: Line = [-1, -1, 7, 7];
const DOWN_CORNERS: readonly Line[] = [
  [5, -1, 7, 1],
  [-1, 5, 1, 7],
];

/** Lines of the tile with which a look is filled. */
export const PATTERNS: Readonly<Record<Look['kind'], readonly Line[]>> = {
  r: [],
  rw: [UP, ...UP_CORNERS],
  rx: [DOWN, ...DOWN_CORNERS],
  rwx: [UP, DOWN, ...UP_CORNERS, ...DOWN_CORNERS],
  none: [[0, 3, 6, 3]],
  absent: [],
  malformed: [
    [0, 0, 3, 6],
    [3, 6, 6, 0],
  ],
};

export const COLOURS: Readonly<Record<Look['kind'], string>> = {
  r: '--vscode-charts-blue',
  rw: '--vscode-charts-green',
  rx: '--vscode-charts-purple',
  rwx: '--vscode-charts-orange',
  none: '--vscode-charts-lines',
  absent: '--vscode-charts-lines',
  malformed: '--vscode-charts-yellow',
};

export const WORDS: Readonly<Record<Look['kind'], string>> = {
  r: 'read',
  rw: 'read, write',
  rx: 'read, execute',
  rwx: 'read, write, execute',
  none: 'no access',
  absent: 'absent',
  malformed: 'malformed',
};

function rightsKind(rights: string): Look['kind'] {
  const write = rights[1] === 'w';
  const execute = rights[2] === 'x';
  if (write) return execute ? 'rwx' : 'rw';
  if (execute) return 'rx';
  return rights[0] === 'r' ? 'r' : 'none';
}

/** `rwx`-like rights as the engine writes them, with `u` or `s` where the format tells users from the supervisor. */
export function lookOfRights(rights: string, table = false): Look {
  const kind = rightsKind(rights);
  return { kind, colour: COLOURS[kind], user: rights[3] === 'u', table };
}

export function lookOf(entry: Pick<DecodedEntry, 'state' | 'rights'>): Look {
  if (entry.state === 'absent' || entry.state === 'malformed')
    return { kind: entry.state, colour: COLOURS[entry.state], user: false, table: false };
  return lookOfRights(entry.rights, entry.state === 'table');
}

/** What a swatch says: `rw-`, `rwx user`, `absent`. */
export function rightsWords(entry: Pick<DecodedEntry, 'state' | 'rights'>): string {
  if (entry.state === 'absent' || entry.state === 'malformed') return entry.state;
  const who = entry.rights[3];
  return `${entry.rights.slice(0, 3)}${who === 'u' ? ' user' : who === 's' ? ' sup' : ''}`;
}
