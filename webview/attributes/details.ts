import type { AttributeMapAnswer, CellFacts, PageAnswer, PageRow } from '../../engine/queries/answers.ts';
import { certaintyMark } from '../kit/certainty.ts';
import { copyable } from '../kit/copy.ts';
import { button, h } from '../kit/element.ts';
import { formatAddress, formatSize } from '../kit/format.ts';
import { showTable } from '../kit/host.ts';
import type { Place } from './map.ts';
import { cellRows, grouped, rangeWords } from './words.ts';

function rowValue({ words, value, certainty, table, name, mark }: PageRow): (Node | string | undefined)[] {
  return [
    value === undefined ? undefined : copyable(formatAddress(value), value, name),
    value === undefined ? grouped(words) : `: ${grouped(words)}`,
    certainty === 'exact' ? undefined : certaintyMark(certainty),
    mark === 'unverified' ? h('span', { class: 'certainty' }, 'unverified') : undefined,
    table &&
      button('Show table', () => showTable(table), {
        class: 'link show-table',
        'data-action': `table ${table.table}`,
        'aria-label': `Show the table of ${name} in Page Tables`,
      }),
  ];
}

function pageRows(answer: PageAnswer): HTMLElement {
  return h(
    'dl',
    { class: 'facts page-facts' },
    ...answer.rows.flatMap((row) => [
      h('dt', row.mark ? { class: row.mark } : {}, row.name),
      h('dd', { class: row.mark ?? '', 'data-row': row.name }, ...rowValue(row)),
    ]),
  );
}

/** What is told of the place that is pointed at. */
export interface Told {
  readonly place: Place;
  readonly pinned: boolean;
  readonly facts: CellFacts | undefined;
  /** The page, or a cell's first. */
  readonly page: PageAnswer | undefined;
  readonly error: string | undefined;
  readonly map: Pick<AttributeMapAnswer, 'stages' | 'frames'>;
}

/** All that is known of a page; of a cell what its pages have in common too. */
export class Details {
  readonly element = h('aside', { class: 'details', 'aria-label': 'Page', tabindex: -1 });
  readonly #title = h('h2', {});
  readonly #sentence = h('p', { class: 'page-sentence', 'aria-live': 'polite' });
  readonly #body = h('div', {});
  readonly #unpin: HTMLButtonElement;
  #drawn = '';

  constructor(unpin: () => void) {
    this.#unpin = button('Unpin', unpin, { class: 'secondary', title: 'Follow the pointer again (Escape)' });
    this.element.append(h('div', { class: 'details-head' }, this.#title, this.#unpin), this.#sentence, this.#body);
  }

  show(told: Told | undefined): void {
    const drawn = JSON.stringify(told ?? null);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    this.#unpin.hidden = !told?.pinned;
    if (!told) {
      this.#title.textContent = 'Page';
      this.#sentence.textContent = '';
      this.#body.replaceChildren(
        h('p', { class: 'quiet' }, 'Point at a page to see all that is known of it; a click or Enter keeps it here.'),
      );
      return;
    }
    const { place, facts, page, error, map } = told;
    const isCell = place.size > 4096;
    this.#title.textContent = isCell
      ? `${rangeWords(place.start, place.size)}: ${(place.size / 4096).toLocaleString('en')} pages`
      : `Page at ${formatAddress(BigInt(place.start))}`;
    this.#sentence.textContent = error === undefined ? (isCell ? '' : page ? `${page.sentence}.` : '') : error;
    this.#sentence.classList.toggle('problem', error !== undefined);
    this.#body.replaceChildren(
      ...(isCell && facts
        ? [
            h(
              'dl',
              { class: 'facts cell-facts' },
              ...cellRows(facts, map).flatMap(([name, words]) => [h('dt', {}, name), h('dd', {}, words)]),
            ),
            h('h3', {}, `Its first page, of ${formatSize(place.size)}`),
          ]
        : []),
      ...(page ? [pageRows(page)] : []),
    );
  }
}
