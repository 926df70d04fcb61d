import type { LevelShape, WalkAnswer } from '../../engine/queries/answers.ts';
import { decidingFields, decidingWords } from '../kit/deciding.ts';
import { h } from '../kit/element.ts';
import { entryState, entrySummary, entryTitle } from '../kit/entry.ts';
import { formatAddress, formatSize, saysLevel, shortEntry } from '../kit/format.ts';
import { lookOf, rightsWords } from '../kit/permissions.ts';
import { swatch } from '../kit/swatch.ts';
import { tooltip } from '../kit/tooltip.ts';
import { type Cell, type Row, walkGrid } from './grid.ts';

const UNREACHED = 'not reached';

/** Whether the walk ended in a failure. */
export function fails(walk: WalkAnswer): boolean {
  return !['done', 'no-root'].includes(walk.outcome.status);
}

/**
 * The walk's references as a grid of buttons: a row for each guest table and the page, in each row the second-stage
 * references that locate it, then the guest's entry. `here`: the walk is the stop's, so its end has the accent.
 */
export function walkCells(walk: WalkAnswer, here: boolean, select: (number: number) => void): HTMLElement {
  const grid = walkGrid(walk);
  const columns = grid.secondLevels.length;
  const element = h('div', {
    class: `walk-grid${walk.paging ? '' : ' no-guest'}`,
    role: 'group',
    'aria-label': `Memory references of the walk, in order: ${walk.references.length} were made`,
  });
  element.style.setProperty('--second-columns', `${columns}`);
  const second = walk.secondName;
  element.append(
    h('div', { class: 'column-head corner' }),
    ...grid.secondLevels.map((level) => columnHead(second, level)),
    h(
      'div',
      { class: 'column-head guest' },
      h('span', {}, walk.paging ? 'guest' : 'page'),
      walk.paging && h('span', { class: 'level' }, 'its entry'),
    ),
    ...grid.rows.flatMap((row) => [
      rowHead(row),
      ...row.second.map((cell) => walkCell(walk, cell, here, select)),
      row.guest ? walkCell(walk, row.guest, here, select) : pageCell(walk, here),
    ]),
  );
  moveWithArrows(element);
  return element;
}

function columnHead(stage: string, { entry, number }: LevelShape): HTMLElement {
  const name = shortEntry(entry);
  return h(
    'div',
    { class: 'column-head', title: `${stage} ${name}, level ${number}` },
    h('span', {}, name),
    h('span', { class: 'level' }, h('span', { class: 'stage' }, `${stage} `), `level ${number}`),
  );
}

function rowHead(row: Row): HTMLElement {
  return h(
    'div',
    { class: 'row-head' },
    h(
      'span',
      {},
      row.name,
      row.number !== undefined && !saysLevel(row.name) && h('span', { class: 'level' }, ` level ${row.number}`),
    ),
    h(
      'span',
      { class: 'mono row-gpa', title: row.gpa === undefined ? undefined : `gpa ${row.gpa}` },
      row.gpa === undefined ? '' : formatAddress(row.gpa),
    ),
  );
}

function walkCell(walk: WalkAnswer, cell: Cell, here: boolean, select: (number: number) => void): HTMLElement {
  const { reference } = cell;
  if (!reference) {
    const words = cell.state === 'skipped' ? 'not needed: a large page above' : UNREACHED;
    return h(
      'div',
      { class: `cell ${cell.state} ${cell.stage}`, title: words },
      h('span', { class: 'offscreen-words' }, words),
    );
  }
  const { entry, number, index } = reference;
  const deciding = decidingFields(walk, reference);
  const ends = reference.decides && fails(walk) && walk.outcome.status !== 'refused';
  const decided = decidingWords(reference, deciding);
  const element = h(
    'button',
    {
      type: 'button',
      class: ['cell', 'reached', cell.stage, ends && (here ? 'here' : 'ends'), deciding.size > 0 && 'deciding']
        .filter(Boolean)
        .join(' '),
      'data-number': number,
      tabindex: -1,
      'aria-label': `Reference ${number}, for ${reference.purpose}: ${entryTitle(reference)}, level ${entry.number}, ${entryState(entry)}${ends ? '; the walk ended here' : ''}${decided ? `; ${decided} decided` : ''}`,
    },
    swatch(lookOf(entry)),
    h('span', { class: 'cell-number' }, `${number}`),
    h('span', { class: 'cell-index mono' }, `${index}`),
    h(
      'span',
      { class: 'cell-words' },
      decided ||
        `${cellRights(cell)}${entry.size !== undefined && entry.size > 4096 ? ` ${formatSize(entry.size)}` : ''}`,
    ),
  );
  element.addEventListener('click', () => select(number));
  tooltip(element, () =>
    entrySummary({ entry, index, deciding, here, note: reference.note === 'empty' ? undefined : reference.note }),
  );
  return element;
}

/** Rights in a small cell. Where a second stage knows users all its entries are theirs: not worth a word. */
function cellRights({ stage, reference }: Cell): string {
  const words = rightsWords(reference!.entry);
  return stage === 'second' ? words.replace(/ user$/, '') : words;
}

/** Where the last row leads: the page, once it is found. */
function pageCell(walk: WalkAnswer, here: boolean): HTMLElement {
  const { outcome } = walk;
  const isRefused = outcome.status === 'refused';
  const found =
    outcome.status === 'done' || isRefused ? outcome.hpa : outcome.status === 'no-root' ? outcome.gpa : undefined;
  if (found === undefined)
    return h(
      'div',
      { class: 'cell unreached guest', title: UNREACHED },
      h('span', { class: 'offscreen-words' }, UNREACHED),
    );
  return h(
    'div',
    {
      class: `cell page guest${isRefused ? (here ? ' here' : ' ends') : ''}`,
      title: isRefused ? outcome.reason : `${outcome.hpa === undefined ? 'gpa' : 'hpa'} ${found}`,
    },
    h('span', { class: 'cell-index mono' }, formatAddress(found)),
    h('span', { class: 'cell-words' }, outcome.hpa === undefined ? 'gpa' : 'hpa'),
  );
}

/** One stop for Tab; arrows go along the order of references, up and down to the row above and below. */
function moveWithArrows(grid: HTMLElement): void {
  grid.addEventListener('keydown', (event) => {
    const cells = [...grid.querySelectorAll<HTMLElement>('button.cell')];
    const at = cells.indexOf(event.target as HTMLElement);
    if (at < 0) return;
    const place = cells[at]!.getBoundingClientRect();
    const vertical = (sign: number) =>
      cells
        .filter((cell) => sign * (cell.getBoundingClientRect().top - place.top) > 1)
        .sort((a, b) => distance(a, place) - distance(b, place))[0];
    const next = {
      ArrowRight: () => cells[at + 1],
      ArrowLeft: () => cells[at - 1],
      ArrowDown: () => vertical(1),
      ArrowUp: () => vertical(-1),
      Home: () => cells[0],
      End: () => cells.at(-1),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const cell = next();
    cell?.focus();
    cell?.click();
  });
}

function distance(cell: HTMLElement, from: DOMRect): number {
  const box = cell.getBoundingClientRect();
  return Math.abs(box.left - from.left) + 10 * Math.abs(box.top - from.top);
}
