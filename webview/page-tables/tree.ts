import { select as d3select } from 'd3';
import { copyText } from '../kit/copy.ts';
import { h, svg } from '../kit/element.ts';
import { entryState, entrySummary } from '../kit/entry.ts';
import { formatAddress, formatIndices, formatSize, shortEntry } from '../kit/format.ts';
import { lookOf, rightsWords } from '../kit/permissions.ts';
import type { Selection } from '../kit/selection.ts';
import { swatch } from '../kit/swatch.ts';
import { hideTooltip, showTooltipSoon } from '../kit/tooltip.ts';
import type { EntryPath } from './model.ts';
import { type Row, rowKey, rowOfPath } from './rows.ts';
import { runFacts, runNote } from './run-words.ts';

const ROW_HEIGHT = 22;
/** Rows that are made beyond both edges, so that scrolling shows no gap. */
const SPARE = 8;

/** The entries as an ARIA tree; only the rows on screen are in the page. */
export class Tree {
  readonly element: HTMLElement;
  readonly #tree = h('div', { class: 'tree', role: 'tree', tabindex: 0, 'aria-label': 'Entries of the tables' });
  readonly #space = h('div', { class: 'tree-space', role: 'presentation' });
  readonly #selection: Selection<EntryPath>;
  readonly #toggle: (key: string, open: boolean) => void;
  #rows: readonly Row[] = [];
  /** Way to the entry at which the fault ended: a closed table on it is marked. */
  #fault: EntryPath | undefined;
  /** Key of the row that the keyboard is on. */
  #active: string | undefined;

  constructor(selection: Selection<EntryPath>, toggle: (key: string, open: boolean) => void) {
    this.#selection = selection;
    this.#toggle = toggle;
    this.#tree.append(this.#space);
    this.element = h(
      'div',
      { class: 'tree-table' },
      h(
        'div',
        { class: 'tree-head', 'aria-hidden': 'true' },
        ...['entry', 'address', 'size', 'rights', 'leads to', ''].map((name) => h('span', {}, name)),
      ),
      this.#tree,
    );
    this.#tree.addEventListener('scroll', () => this.#render());
    new ResizeObserver(() => this.#render()).observe(this.#tree);
    this.#tree.addEventListener('keydown', (event) => this.#key(event));
    this.#tree.addEventListener('focus', () => {
      if (this.#at() < 0 && this.#rows[0]) this.#activate(0);
    });
    selection.onChange((_, source) => {
      if (source !== this) this.revealSelection();
      else this.#render();
    });
  }

  show(rows: readonly Row[], fault?: EntryPath): void {
    this.#rows = rows;
    this.#fault = fault;
    this.#space.style.height = `${rows.length * ROW_HEIGHT}px`;
    this.#render();
  }

  /** Scrolls to the selected entry, if it is in an open table. */
  revealSelection(): boolean {
    const path = this.#selection.value;
    const at = path ? rowOfPath(this.#rows, path) : -1;
    if (at >= 0) {
      this.#active = this.#rows[at]!.key;
      this.#scrollTo(at);
    }
    this.#render();
    return at >= 0;
  }

  focus(): void {
    this.#tree.focus();
  }

  #at(): number {
    return this.#active === undefined ? -1 : this.#rows.findIndex(({ key }) => key === this.#active);
  }

  #scrollTo(at: number): void {
    const top = at * ROW_HEIGHT;
    const { scrollTop, clientHeight } = this.#tree;
    if (top < scrollTop || top + ROW_HEIGHT > scrollTop + clientHeight)
      this.#tree.scrollTop = top - Math.max(0, Math.floor((clientHeight - ROW_HEIGHT) / 2));
  }

  #activate(at: number): void {
    const row = this.#rows[Math.max(0, Math.min(at, this.#rows.length - 1))];
    if (!row) return;
    this.#active = row.key;
    const top = this.#rows.indexOf(row) * ROW_HEIGHT;
    if (top < this.#tree.scrollTop) this.#tree.scrollTop = top;
    else if (top + ROW_HEIGHT > this.#tree.scrollTop + this.#tree.clientHeight)
      this.#tree.scrollTop = top + ROW_HEIGHT - this.#tree.clientHeight;
    if (row.run) this.#selection.set(row.path, this);
    else this.#render();
  }

  #key(event: KeyboardEvent): void {
    const at = this.#at();
    const row = this.#rows[at];
    const page = Math.max(1, Math.floor(this.#tree.clientHeight / ROW_HEIGHT) - 1);
    const open = () => {
      if (row?.expandable && !row.expanded) this.#toggle(row.key, true);
      else if (row?.expanded) this.#activate(at + 1);
    };
    const close = () => {
      if (row?.expanded) this.#toggle(row.key, false);
      else if (row) {
        const parent = this.#rows.findLastIndex((each, index) => index < at && each.depth < row.depth);
        if (parent >= 0) this.#activate(parent);
      }
    };
    const action = {
      ArrowDown: () => this.#activate(at + 1),
      ArrowUp: () => this.#activate(at - 1),
      PageDown: () => this.#activate(at + page),
      PageUp: () => this.#activate(at - page),
      Home: () => this.#activate(0),
      End: () => this.#activate(this.#rows.length - 1),
      ArrowRight: open,
      ArrowLeft: close,
      '+': () => row?.expandable && this.#toggle(row.key, true),
      '-': () => row?.expanded && this.#toggle(row.key, false),
      Enter: () => row?.expandable && this.#toggle(row.key, !row.expanded),
      ' ': () => row?.expandable && this.#toggle(row.key, !row.expanded),
    }[event.key];
    if (action && !event.ctrlKey && !event.metaKey && !event.altKey) action();
    else if ((event.ctrlKey || event.metaKey) && event.key === 'c' && row?.run) void copyText(row.run.entry.value);
    else return;
    hideTooltip();
    event.preventDefault();
  }

  #render(): void {
    const { scrollTop, clientHeight } = this.#tree;
    const from = Math.max(0, Math.floor(scrollTop / ROW_HEIGHT) - SPARE);
    const visible = this.#rows.slice(from, Math.ceil((scrollTop + clientHeight) / ROW_HEIGHT) + SPARE);
    const selectedAt = this.#selection.value ? rowOfPath(this.#rows, this.#selection.value) : -1;
    const selectedKey = this.#rows[selectedAt]?.key;
    d3select(this.#space)
      .selectAll<HTMLElement, Row>('.tree-row')
      .data(visible, (row) => row.key)
      .join((enter) => enter.append(() => h('div', { class: 'tree-row', role: 'treeitem' })))
      .each((row, index, elements) => {
        const element = elements[index]!;
        element.style.transform = `translateY(${(from + index) * ROW_HEIGHT}px)`;
        const selected = row.key === selectedKey;
        const words = `${JSON.stringify([row.run, row.message, row.expanded, selected, this.#leads(row)])}`;
        if (element.dataset.words === words) return;
        element.dataset.words = words;
        this.#fill(element, row, selected);
      });
    const active = this.#at();
    if (active >= from && active < from + visible.length)
      this.#tree.setAttribute('aria-activedescendant', rowId(this.#rows[active]!));
    else this.#tree.removeAttribute('aria-activedescendant');
  }

  /** Whether the fault's entry is hidden below this row. */
  #leads(row: Row): boolean {
    const fault = this.#fault;
    return (
      fault !== undefined &&
      row.run?.child !== undefined &&
      !row.expanded &&
      row.path.length < fault.length &&
      row.path.every((index, depth) => index === fault[depth])
    );
  }

  #fill(element: HTMLElement, row: Row, selected: boolean): void {
    const { run } = row;
    const state = run?.entry.state ?? '';
    element.className = [
      'tree-row',
      state,
      selected && 'selected',
      run?.faulting && 'here',
      run?.was !== undefined && 'changed',
      this.#leads(row) && 'leads',
    ]
      .filter(Boolean)
      .join(' ');
    element.id = rowId(row);
    element.dataset.path = rowKey(row.path);
    element.setAttribute('aria-level', `${row.depth + 1}`);
    element.setAttribute('aria-posinset', `${row.position}`);
    element.setAttribute('aria-setsize', `${row.siblings}`);
    element.setAttribute('aria-selected', `${selected}`);
    if (row.expandable) element.setAttribute('aria-expanded', `${row.expanded}`);
    else element.removeAttribute('aria-expanded');
    const name = h('span', { class: 'tree-name' });
    name.style.paddingLeft = `${row.depth * 12}px`;
    name.append(row.expandable ? twisty() : h('span', { class: 'twisty' }));
    if (!run) {
      name.append(h('span', { class: 'tree-message' }, row.message ?? ''));
      element.replaceChildren(name);
      return;
    }
    const { entry } = run;
    const absent = entry.state === 'absent';
    name.append(
      h('span', {}, `${shortEntry(entry.name)} `, h('span', { class: 'mono' }, formatIndices(run.index, run.count))),
    );
    const note = runNote(run);
    const fault = run.faulting ? 'fault' : this.#leads(row) ? 'fault below' : '';
    element.setAttribute(
      'aria-label',
      `${entry.name} ${formatIndices(run.index, run.count)}, level ${entry.number}, from ${formatAddress(run.input)}, ${formatSize(run.size * run.count)}, ${entryState(entry)}${run.faulting ? ', the fault ended here' : this.#leads(row) ? ', the fault is below' : ''}${note ? `, ${note}` : ''}`,
    );
    element.replaceChildren(
      name,
      h('span', { class: 'mono', title: run.input }, formatAddress(run.input)),
      h('span', { class: 'mono size' }, formatSize(run.size * run.count)),
      h('span', { class: 'tree-rights' }, swatch(lookOf(entry)), absent ? 'absent' : rightsWords(entry)),
      h('span', { class: 'mono target' }, entry.address === undefined ? '' : formatAddress(entry.address)),
      h(
        'span',
        { class: 'tree-note', title: note },
        fault !== '' && h('b', {}, fault),
        fault !== '' && note !== '' && '; ',
        note,
      ),
    );
    element.onclick = (event) => {
      const toggles = row.expandable && (event.target as Element).closest('.twisty');
      this.#active = row.key;
      if (toggles) this.#toggle(row.key, !row.expanded);
      this.#selection.set(row.path, this);
    };
    element.ondblclick = () => {
      if (row.expandable) this.#toggle(row.key, !row.expanded);
    };
    element.onpointermove = (event) => {
      const box = element.getBoundingClientRect();
      showTooltipSoon(
        () =>
          entrySummary({
            entry,
            index: run.index,
            count: run.count,
            was: run.was,
            note: run.note,
            here: run.faulting,
            facts: runFacts(run),
          }),
        { left: event.clientX, top: box.top, width: 0, height: box.height },
      );
    };
    element.onpointerleave = hideTooltip;
  }
}

function rowId(row: Row): string {
  return `row-${row.key.replaceAll('/', '-')}`;
}

function twisty(): Element {
  return svg(
    'svg',
    { class: 'twisty', viewBox: '0 0 16 16', 'aria-hidden': 'true' },
    svg('path', { d: 'M6 4l4 4-4 4' }),
  );
}
