import type { LevelShape, ReferenceAnswer, WalkAnswer } from '../../engine/queries/answers.ts';

/** One memory reference of the walk, or its place when it was not made. */
export interface Cell {
  readonly stage: 'guest' | 'second';
  readonly level: number;
  /** Guest level being located; 0: the page. */
  readonly forLevel: number;
  readonly reference?: ReferenceAnswer;
  /** `skipped`: a large page made it unnecessary. `unreached`: the walk ended before. */
  readonly state: 'reached' | 'skipped' | 'unreached';
}

/** What it takes to read one guest table's entry: where that table is, through the second stage, then the entry. */
export interface Row {
  readonly forLevel: number;
  /** `PML4`, `PD`, `page`. */
  readonly name: string;
  /** The level as the manual counts it; the page has none. */
  readonly number?: number;
  /** Where the table or page lies, as far as the walk found out. */
  readonly gpa?: string;
  readonly second: readonly Cell[];
  /** The guest's entry; the page's row has none. */
  readonly guest?: Cell;
}

export interface WalkGrid {
  /** Second-stage levels from the root down; empty without a second stage. */
  readonly secondLevels: readonly LevelShape[];
  readonly rows: readonly Row[];
}

/** A table by the name of its entries: `PD` of PDEs, `L2 table` of L2 descriptors. */
function tableName(entry: string): string {
  return entry.endsWith(' descriptor') ? entry.replace(/descriptor$/, 'table') : entry.replace(/E$/, '');
}

/** A two-dimensional walk as a grid in which the references' order is the order of reading. */
export function walkGrid(walk: WalkAnswer): WalkGrid {
  const { secondLevels } = walk;
  const guestLevels = walk.paging ? walk.fields.map(({ level }) => level).filter((level) => level > 0) : [];
  const guestLeaf = walk.references.find(({ stage, entry }) => stage === 'guest' && entry.state === 'leaf')?.level ?? 1;
  const rows = [...guestLevels, 0].map((forLevel): Row => {
    const guestSkipped = forLevel > 0 && forLevel < guestLeaf;
    const inRow = walk.references.filter((reference) => rowOf(reference) === forLevel);
    const secondLeaf = inRow.find(({ stage, entry }) => stage === 'second' && entry.state === 'leaf')?.level ?? 1;
    const cell = (stage: Cell['stage'], level: number, skipped: boolean): Cell => {
      const reference = inRow.find((each) => each.stage === stage && each.level === level);
      return {
        stage,
        level,
        forLevel,
        state: reference ? 'reached' : skipped ? 'skipped' : 'unreached',
        ...(reference ? { reference } : {}),
      };
    };
    const gpa = tableAddress(walk, forLevel);
    const field = walk.fields.find(({ level }) => level === forLevel);
    return {
      forLevel,
      ...(forLevel > 0 && field ? { number: field.number } : {}),
      name: forLevel === 0 ? 'page' : tableName(field!.name),
      ...(gpa === undefined ? {} : { gpa }),
      second: secondLevels.map(({ level }) => cell('second', level, guestSkipped || level < secondLeaf)),
      ...(forLevel > 0 ? { guest: cell('guest', forLevel, guestSkipped) } : {}),
    };
  });
  return { secondLevels, rows };
}

function rowOf(reference: ReferenceAnswer): number {
  return reference.stage === 'guest' ? reference.level : reference.forLevel;
}

function tableAddress(walk: WalkAnswer, forLevel: number): string | undefined {
  if (forLevel === 0)
    return walk.outcome.gpa !== undefined && reachesPage(walk)
      ? walk.outcome.gpa
      : walk.paging
        ? undefined
        : walk.address;
  const read = walk.references.find(({ stage, level }) => stage === 'guest' && level === forLevel);
  if (read) return read.table;
  const above = walk.references.find(({ stage, level }) => stage === 'guest' && level === forLevel + 1);
  if (above) return above.entry.state === 'table' ? above.entry.address : undefined;
  const cr3 = walk.registers.find(({ name }) => name === 'CR3')?.value;
  const top = Math.max(...walk.fields.map(({ level }) => level));
  // Bits 11:0 of CR3 are a PCID and flags.
  return forLevel === top && cr3 !== undefined ? `0x${((BigInt(cr3) >> 12n) << 12n).toString(16)}` : undefined;
}

/** Whether the walk came to the page itself: else the outcome's gpa is a guest table's. */
function reachesPage(walk: WalkAnswer): boolean {
  const last = walk.references.at(-1);
  return (
    ['done', 'refused', 'no-root'].includes(walk.outcome.status) || (last?.stage === 'second' && last.forLevel === 0)
  );
}

/** Which field of the address a reference uses: the index into the table that is read or located; 0 is the offset. */
export function fieldLevel(reference: ReferenceAnswer, walk: WalkAnswer): number {
  return walk.paging ? rowOf(reference) : reference.level;
}
