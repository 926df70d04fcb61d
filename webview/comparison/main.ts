// The Comparison view: the session's scenario under several policies, what each costs, and in what their tables differ.
import '../kit/theme.css';
import './comparison.css';
import { select as d3select, scaleLinear } from 'd3';
import type { Answer, ComparisonAnswer, ComparisonTables } from '../../engine/queries/answers.ts';
import { copyable } from '../kit/copy.ts';
import { h } from '../kit/element.ts';
import { formatAddress } from '../kit/format.ts';
import { keep, kept, onSession, session, watch } from '../kit/host.ts';
import { emptyState, problem, StopLine } from '../kit/page.ts';
import { type ComparedRow, comparedRows, modeChanges, tablesWords } from './rows.ts';

/** What survives a reload of the page. */
interface Kept {
  readonly policy: string;
  readonly values: readonly string[];
  readonly perChange: boolean;
}

function isKept(value: unknown): value is Kept {
  if (typeof value !== 'object' || value === null) return false;
  const { policy, values, perChange } = value as Partial<Kept>;
  return typeof policy === 'string' && Array.isArray(values) && typeof perChange === 'boolean';
}

const FIRST: Kept = { policy: 'roots', values: ['before', 'posted', 'today'], perChange: false };
/** Differences that are listed before one asks for all. */
const LINES_FIRST = 12;

const view = document.querySelector<HTMLElement>('#view')!;
const stopLine = new StopLine();
const picker = h('select', { 'aria-label': 'Policy' });
const choices = h('span', { class: 'choices', role: 'group', 'aria-label': 'Values to compare' });
const perChange = h('input', { type: 'checkbox' });
const perChangeLabel = h('label', {}, perChange, 'for each change of mode');
const toolbar = h('div', { class: 'toolbar' }, picker, choices, perChangeLabel);
const words = h('p', { class: 'quiet comparison-words', 'aria-live': 'polite' });
const head = h('tr');
const rows = h('tbody');
const table = h('table', { class: 'costs' }, h('thead', {}, head), rows);
const notes = h('div', { class: 'notes' });
const tables = h('div', { class: 'tables' });
const empty = emptyState('');
const body = h('div', { class: 'comparison' }, toolbar, words, notes, table, tables);
view.append(stopLine.element, empty, body);

let wanted = kept(isKept) ?? FIRST;
let shown: ComparisonAnswer | undefined;
let refused: string | undefined;

function say(title: string, ...lines: readonly string[]): void {
  empty.replaceChildren(...emptyState(title, ...lines).childNodes);
  empty.hidden = false;
  body.hidden = true;
}

function update(): void {
  const state = session();
  if (state.kind === 'none' || (state.kind === 'ended' && !shown)) {
    say(
      'No session. Press F5 on a scenario (a .mmu file).',
      'This view runs the session’s scenario from its beginning to its end under several values of a policy, and shows what each costs: roots freed and built, shadow pages, faults, flushes, entries; and in what the tables differ that they leave.',
    );
    return;
  }
  if (refused !== undefined && !shown) {
    say('This session has nothing to compare.', `${refused}.`);
    return;
  }
  if (!shown) {
    say('The scenario runs …');
    return;
  }
  empty.hidden = true;
  body.hidden = false;
  draw(shown);
}

function ask(): void {
  keep(wanted);
  words.textContent = 'Running …';
  watch('comparison', { kind: 'comparison', policy: wanted.policy, values: wanted.values }, receive);
}

function receive(answer: Answer): void {
  refused = answer.kind === 'error' ? answer.message : undefined;
  if (answer.kind === 'comparison') shown = answer;
  update();
  if (refused !== undefined) words.replaceChildren(problem(`${refused}.`));
}

function choose(change: Partial<Kept>): void {
  wanted = { ...wanted, ...change };
  ask();
}

function draw(answer: ComparisonAnswer): void {
  drawChoices(answer);
  const changes = modeChanges(answer);
  perChangeLabel.hidden = changes === undefined;
  perChange.checked = wanted.perChange && changes !== undefined;
  const compared = comparedRows(answer, perChange.checked);
  const different = compared.filter(({ differs }) => differs).length;
  words.textContent =
    answer.columns.length < 2
      ? 'Choose two values or more.'
      : `${answer.columns.length} runs of the whole scenario. ${different === 0 ? 'They cost the same.' : `They differ in ${different} of ${compared.length} counts.`}`;
  table.hidden = answer.columns.length === 0;
  notes.replaceChildren(
    ...answer.columns.flatMap(({ name, notes: failed }) => failed.map((each) => problem(`${name}: ${each}.`))),
  );
  drawRows(answer, compared);
  tables.replaceChildren(...(answer.columns.length < 2 ? [] : answer.tables.map((each) => drawTables(answer, each))));
}

function drawChoices({ policies = [] }: ComparisonAnswer): void {
  if (picker.options.length === 0)
    picker.replaceChildren(...policies.map(({ name }) => h('option', { value: name }, `policy ${name}`)));
  picker.value = wanted.policy;
  const policy = policies.find(({ name }) => name === wanted.policy);
  const focused = document.activeElement?.getAttribute('data-value');
  choices.replaceChildren(
    ...(policy?.values ?? []).map((value) => {
      const box = h('input', { type: 'checkbox', 'data-value': value, checked: wanted.values.includes(value) });
      box.addEventListener('change', () =>
        choose({
          values: policy!.values.filter((each) => (each === value ? box.checked : wanted.values.includes(each))),
        }),
      );
      return h('label', {}, box, value === policy!.own ? `${value} (the scenario’s)` : value);
    }),
  );
  if (focused) choices.querySelector<HTMLElement>(`[data-value="${focused}"]`)?.focus();
}

function drawRows({ columns }: ComparisonAnswer, compared: readonly ComparedRow[]): void {
  head.replaceChildren(
    h('th', { scope: 'col' }, 'count'),
    ...columns.map(({ name, ok }) => h('th', { scope: 'col' }, name, ok ? '' : ' (failed)')),
  );
  const width = scaleLinear([0, 1], [0, 100]);
  d3select(rows)
    .selectAll<HTMLTableRowElement, ComparedRow>('tr')
    .data(compared, ({ name }) => name)
    .join('tr')
    .classed('same', ({ differs }) => !differs)
    .each(function ({ name, cells }) {
      this.replaceChildren(
        h('th', { scope: 'row', class: 'mono' }, name),
        ...cells.map(({ words: value, share = 0 }) => {
          const bar = h('span', { class: 'bar', 'aria-hidden': 'true' });
          // The page's policy allows no style in attributes.
          bar.style.width = `${width(share)}%`;
          return h('td', {}, h('span', { class: 'value' }, value), bar);
        }),
      );
    })
    .order();
}

function drawTables(answer: ComparisonAnswer, of: ComparisonTables): HTMLElement {
  const names = answer.columns.map(({ name }) => name);
  return h(
    'section',
    { 'aria-label': `Tables of vCPU ${of.vcpu}` },
    h('h2', {}, `Tables of vCPU ${of.vcpu} at the end`),
    h('p', {}, tablesWords(answer, of.vcpu)),
    h(
      'dl',
      { class: 'facts' },
      ...of.hashes.flatMap((hash, column) => [
        h('dt', {}, names[column]!),
        h('dd', { class: 'mono' }, hash === null ? 'none' : copyable(hash, hash, 'hash of the tables')),
      ]),
    ),
    ...of.differences.filter(({ lines }) => lines.length > 0).map((each) => differencesList(names, each)),
  );
}

function differencesList(
  names: readonly string[],
  { column, lines, more }: ComparisonTables['differences'][number],
): HTMLElement {
  const item = ({ address, one, other }: (typeof lines)[number]): HTMLElement =>
    h(
      'tr',
      {},
      h('td', { class: 'mono' }, copyable(formatAddress(address), address, 'address')),
      h('td', { class: 'mono' }, one),
      h('td', { class: 'mono' }, other),
    );
  const list = h('tbody', {}, ...lines.slice(0, LINES_FIRST).map(item));
  const rest = lines.length - LINES_FIRST;
  const all = h('button', { type: 'button', class: 'link' }, `${rest + more} more`);
  all.addEventListener('click', () => {
    list.replaceChildren(...lines.map(item));
    if (more > 0) all.replaceWith(h('p', { class: 'quiet' }, `and ${more} more`));
    else all.remove();
  });
  return h(
    'div',
    { class: 'differences' },
    h(
      'table',
      {},
      h(
        'thead',
        {},
        h('tr', {}, ...['address', names[0]!, names[column]!].map((name) => h('th', { scope: 'col' }, name))),
      ),
      list,
    ),
    rest > 0 && all,
  );
}

picker.addEventListener('change', () => {
  const policy = shown?.policies?.find(({ name }) => name === picker.value);
  if (policy) choose({ policy: policy.name, values: policy.values });
});
perChange.addEventListener('change', () => {
  wanted = { ...wanted, perChange: perChange.checked };
  keep(wanted);
  update();
});

onSession((state) => {
  stopLine.show(state);
  update();
});
ask();
