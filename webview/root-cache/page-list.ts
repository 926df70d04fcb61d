import type { ShadowPageAnswer } from '../../engine/queries/answers.ts';
import { certaintyMark } from '../kit/certainty.ts';
import { h } from '../kit/element.ts';
import { formatAddress } from '../kit/format.ts';
import { showTable } from '../kit/host.ts';
import { visibleRows } from '../kit/visible-rows.ts';
import { type PageRow, pageMarks, quadrantOf, withoutLevel } from './pages.ts';

const ROW_HEIGHT = 22;
/** Where a row does not fit on one line. */
const TALL_HEIGHT = 42;
const NARROW = 720;
/** Rows that are in sight at most before the list scrolls. */
const IN_SIGHT = 16;

/** KVM's pages, one a row; only the rows on screen are in the page. Enter or a double click leads to a page's table. */
export class PageList {
  readonly element: HTMLElement;
  readonly #list = h('div', { class: 'page-rows', role: 'listbox', tabindex: 0, 'aria-label': 'Pages by gfn' });
  readonly #space = h('div', { class: 'page-space', role: 'presentation' });
  #rows: readonly PageRow[] = [];
  /** The page that the keyboard is on, by hpa. */
  #active: string | undefined;
  #rowHeight = ROW_HEIGHT;
  /** What the page holds, to make rows anew only when these are others: a double click needs its row to stay. */
  #drawn:
    | { readonly rows: readonly PageRow[]; readonly first: number; readonly count: number; readonly height: number }
    | undefined;

  constructor() {
    this.#list.append(this.#space);
    this.element = h(
      'div',
      { class: 'page-list' },
      h(
        'div',
        { class: 'page-head', 'aria-hidden': 'true' },
        ...['gfn', 'level', 'quadrant', 'role', 'roots', 'marks', 'table at'].map((name) =>
          h('span', { class: `page-${name.replace(' ', '-')}` }, name),
        ),
      ),
      this.#list,
    );
    this.#list.addEventListener('scroll', () => this.#render());
    this.#list.addEventListener('keydown', (event) => this.#key(event));
    this.#list.addEventListener('focus', () => {
      if (this.#at() < 0) this.#activate(0);
    });
    new ResizeObserver(() => this.#resize()).observe(this.element);
  }

  show(rows: readonly PageRow[]): void {
    this.#rows = rows;
    this.#resize();
  }

  #resize(): void {
    const narrow = this.element.clientWidth < NARROW;
    this.element.classList.toggle('narrow', narrow);
    this.#rowHeight = narrow ? TALL_HEIGHT : ROW_HEIGHT;
    this.#space.style.height = `${this.#rows.length * this.#rowHeight}px`;
    this.#list.style.height = `${Math.min(this.#rows.length, narrow ? IN_SIGHT / 2 : IN_SIGHT) * this.#rowHeight}px`;
    this.#render();
  }

  #at(): number {
    return this.#rows.findIndex(({ page }) => page.hpa === this.#active);
  }

  #activate(wanted: number): void {
    const at = Math.max(0, Math.min(wanted, this.#rows.length - 1));
    const row = this.#rows[at];
    if (!row) return;
    this.#active = row.page.hpa;
    const top = at * this.#rowHeight;
    const { scrollTop, clientHeight } = this.#list;
    if (top < scrollTop) this.#list.scrollTop = top;
    else if (top + this.#rowHeight > scrollTop + clientHeight)
      this.#list.scrollTop = top + this.#rowHeight - clientHeight;
    this.#render();
  }

  #key(event: KeyboardEvent): void {
    const at = this.#at();
    const page = Math.max(1, Math.floor(this.#list.clientHeight / this.#rowHeight) - 1);
    const action = {
      ArrowDown: () => this.#activate(at + 1),
      ArrowUp: () => this.#activate(at - 1),
      PageDown: () => this.#activate(at + page),
      PageUp: () => this.#activate(at - page),
      Home: () => this.#activate(0),
      End: () => this.#activate(this.#rows.length - 1),
      Enter: () => this.#rows[at] && showTable(this.#rows[at].page.table),
    }[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    action();
    event.preventDefault();
  }

  #render(): void {
    const { first, count } = visibleRows(
      this.#list.scrollTop,
      this.#list.clientHeight,
      this.#rowHeight,
      this.#rows.length,
    );
    const [rows, height] = [this.#rows, this.#rowHeight];
    const drawn = this.#drawn;
    if (drawn?.rows !== rows || drawn.first !== first || drawn.count !== count || drawn.height !== height) {
      this.#drawn = { rows, first, count, height };
      this.#space.replaceChildren(
        ...rows.slice(first, first + count).map((row, offset) => this.#row(row, first + offset)),
      );
    }
    for (const row of this.#space.querySelectorAll<HTMLElement>('.page-row')) {
      const selected = row.dataset.hpa === this.#active;
      row.classList.toggle('selected', selected);
      row.setAttribute('aria-selected', `${selected}`);
    }
    const at = this.#at();
    if (at >= first && at < first + count) this.#list.setAttribute('aria-activedescendant', `page-${at}`);
    else this.#list.removeAttribute('aria-activedescendant');
  }

  #row({ page, isFirst, ofGfn }: PageRow, at: number): HTMLElement {
    const quadrant = quadrantOf(page);
    const marks = pageMarks(page);
    const link = h('span', { class: 'link mono', title: `Show the table at hpa ${page.hpa}` }, formatAddress(page.hpa));
    link.addEventListener('click', () => showTable(page.table));
    const row = h(
      'div',
      {
        class: `page-row${isFirst ? ' first' : ''}`,
        role: 'option',
        id: `page-${at}`,
        'aria-posinset': at + 1,
        'aria-setsize': this.#rows.length,
        'aria-label': pageLabel(page, quadrant, marks),
        'data-hpa': page.hpa,
      },
      h(
        'span',
        {
          class: `page-gfn mono${isFirst ? '' : ' again'}`,
          title: ofGfn > 1 ? `${ofGfn} pages shadow gfn ${page.gfn}` : undefined,
        },
        formatAddress(page.gfn),
      ),
      h('span', { class: 'page-level' }, h('span', { class: 'short' }, 'level '), `${page.level}`),
      h(
        'span',
        { class: 'page-quadrant' },
        quadrant !== undefined && h('span', { class: 'short' }, 'quadrant '),
        quadrant === undefined ? '' : `${quadrant}`,
      ),
      h('span', { class: 'page-role mono', title: page.words }, withoutLevel(page.words)),
      h(
        'span',
        { class: `page-roots${page.roots === 0 ? ' quiet' : ''}` },
        `${page.roots}`,
        h('span', { class: 'short' }, page.roots === 1 ? ' root' : ' roots'),
      ),
      h(
        'span',
        { class: 'page-marks', title: marks.join(', ') },
        page.certainty !== 'exact' && certaintyMark(page.certainty),
        marks.join(', '),
      ),
      h('span', { class: 'page-table-at' }, link),
    );
    row.style.top = `${at * this.#rowHeight}px`;
    row.addEventListener('click', () => this.#activate(at));
    row.addEventListener('dblclick', () => showTable(page.table));
    return row;
  }
}

function pageLabel(page: ShadowPageAnswer, quadrant: number | undefined, marks: readonly string[]): string {
  const parts = [
    `gfn ${formatAddress(page.gfn)}`,
    `level ${page.level}`,
    ...(quadrant === undefined ? [] : [`quadrant ${quadrant}`]),
    `role ${withoutLevel(page.words)}`,
    `${page.roots} roots`,
    ...marks,
    `table at hpa ${formatAddress(page.hpa)}`,
  ];
  return parts.join(', ');
}
