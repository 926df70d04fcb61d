import type { Stage } from '../../engine/guest/regime.ts';
import type { Row } from './dump.ts';

interface StageRow {
  readonly row: Row;
  readonly stage: Stage;
}

/** What two lists in the order of input addresses do not share: rows of the first as removed, of the second as added. */
export function* compareRows(
  before: Iterator<StageRow>,
  after: Iterator<StageRow>,
): Generator<StageRow & { readonly sign: '-' | '+' }> {
  let old = before.next();
  let now = after.next();
  while (!old.done || !now.done) {
    const order = old.done ? 1 : now.done ? -1 : old.value.row.frame - now.value.row.frame;
    if (order === 0 && isSame(old.value.row, now.value.row)) {
      old = before.next();
      now = after.next();
    } else if (order <= 0) {
      yield { sign: '-', ...old.value };
      old = before.next();
    } else {
      yield { sign: '+', ...now.value };
      now = after.next();
    }
  }
}

function isSame(a: Row, b: Row): boolean {
  return (
    a.frame === b.frame &&
    a.span === b.span &&
    a.target === b.target &&
    a.rights === b.rights &&
    a.lo === b.lo &&
    a.hi === b.hi
  );
}
