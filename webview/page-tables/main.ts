// The Page Tables view: what is mapped here.
import '../kit/theme.css';
import './page-tables.css';
import type { RootAnswer, TableQuery } from '../../engine/queries/answers.ts';
import { certaintyMark } from '../kit/certainty.ts';
import { button, h } from '../kit/element.ts';
import { entryDetails } from '../kit/entry.ts';
import { formatAddress, parseAddress } from '../kit/format.ts';
import { keep, kept, lastStop, onSession, onShowTable, session, unwatch, watch } from '../kit/host.ts';
import { legend, legendMark } from '../kit/legend.ts';
import { emptyState, problem, StopLine } from '../kit/page.ts';
import { Selection } from '../kit/selection.ts';
import { fit } from '../kit/viewport.ts';
import {
  type EntryPath,
  findTable,
  mappedRange,
  memberOf,
  pathOf,
  positionOf,
  positionOfAddress,
  runAt,
  runOf,
  tableOf,
  totalSize,
} from './model.ts';
import { Partition } from './partition.ts';
import { rowKey, treeRows } from './rows.ts';
import { runFacts } from './run-words.ts';
import { Tables } from './tables.ts';
import { Tree } from './tree.ts';

/** What survives a reload of the page. */
interface Kept {
  readonly root: string;
  readonly expanded: readonly string[];
}

function isKept(value: unknown): value is Kept {
  return (
    typeof value === 'object' &&
    value !== null &&
    'root' in value &&
    typeof value.root === 'string' &&
    'expanded' in value &&
    Array.isArray(value.expanded)
  );
}

const view = document.querySelector<HTMLElement>('#view')!;
const selection = new Selection<EntryPath>();
const tables = new Tables(() => update());
const expanded = new Set<string>();
let roots: readonly RootAnswer[] = [];
/** Why the tables of KVM are less than exact. */
let why = '';
let root: RootAnswer | undefined;
/** An address on its way to being shown: its tables may still have to be asked for. */
let revealing: { readonly position: number; readonly level: number } | undefined;
/** A table that another view led to, until it is found. */
let finding: TableQuery | undefined;
/** The roots have been told. */
let told = false;
/** The partition still waits to learn what is mapped. */
let fitting = false;
let scheduled = false;

const stopLine = new StopLine();
const picker = h('select', { 'aria-label': 'Tables', class: 'root-picker' });
const address = h('input', {
  type: 'text',
  size: 18,
  spellcheck: 'false',
  autocomplete: 'off',
  'aria-label': 'Address to find, hexadecimal',
});
const search = h('form', { role: 'search', class: 'search' }, address);
const answer = h('p', { class: 'search-answer', 'aria-live': 'polite' });
const toFault = button('Fault', () => revealFault(), {
  class: 'tool',
  title: 'Go to the entry at which the fault ended',
});
const tree = new Tree(selection, (key, open) => {
  if (open) expanded.add(key);
  else expanded.delete(key);
  remember();
  update();
});
const partition = new Partition(tables.get, selection, () => update());
const details = h('aside', { class: 'details', 'aria-label': 'Selected entry', tabindex: -1 });
const empty = emptyState(
  'No session. Press F5 on a scenario (a .mmu file).',
  'This view follows the session. It shows the guest’s tables and KVM’s: above, the address space with a row for each level, to zoom into; below, the entries themselves. The entry at which a fault ended is marked, and so is what changed since the last stop.',
);
const none = h('p', { class: 'nothing' });
const toolbar = h(
  'div',
  { class: 'toolbar' },
  picker,
  search,
  h(
    'span',
    { class: 'zoom' },
    toFault,
    button('Mapped', () => showMapped(), { class: 'tool', title: 'Zoom to what is mapped (Home)' }),
    button('All', () => partition.whole(), { class: 'tool', title: 'The whole address space (End)' }),
    button('−', () => partition.zoom(0.5), { class: 'tool', title: 'Zoom out (-)', 'aria-label': 'Zoom out' }),
    button('+', () => partition.zoom(2), { class: 'tool', title: 'Zoom in (+)', 'aria-label': 'Zoom in' }),
  ),
);
const trust = h('p', { class: 'trust' });
const panes = h('div', { class: 'panes dims' }, tree.element, details);
const marks = legend(legendMark('mark-here', 'fault'), legendMark('mark-changed', 'changed since the last stop'));
const content = h(
  'div',
  { class: 'content' },
  toolbar,
  trust,
  answer,
  none,
  h('div', { class: 'dims' }, partition.element),
  panes,
  marks,
);
view.append(stopLine.element, empty, content);
partition.onHome = () => showMapped();

function remember(): void {
  if (root) keep({ root: root.id, expanded: [...expanded] } satisfies Kept);
}

/** Shows other tables, from the start. */
function choose(next: RootAnswer | undefined): void {
  const changed = next?.id !== root?.id;
  root = next;
  picker.value = next?.id ?? '';
  const certainty = next?.certainty;
  trust.hidden = certainty === undefined;
  if (certainty !== undefined)
    trust.replaceChildren(
      certaintyMark(certainty),
      certainty === 'exact' ? 'Read from the kernel.' : `${why[0]?.toUpperCase() ?? ''}${why.slice(1)}.`,
    );
  address.placeholder = next?.table.space === 'guest' ? 'Find a gva' : 'Find a gpa';
  if (changed) {
    tables.clear();
    expanded.clear();
    selection.set(undefined);
    revealing = undefined;
    answer.replaceChildren();
    unwatch('search');
    if (next) {
      partition.show(next, { start: 0, size: totalSize(next) });
      fitting = true;
      openFirst = true;
    }
  }
  partition.show(next);
  update();
}

/** The tree has still to scroll to what was selected elsewhere. */
let unseen = false;
/** Tables with a single entry open by themselves. */
let openFirst = false;

function update(): void {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
}

function draw(): void {
  if (!root) {
    tree.show([]);
    return;
  }
  const needed: TableQuery[] = [];
  const need = (query: TableQuery) => needed.push(query);
  if (finding && find(finding, need)) return;
  if (openFirst) openSingles(root, need);
  const reached = revealing ? follow(root, revealing, need) : undefined;
  if (fitting) fitMapped(root, need);
  partition.need(need);
  const rows = treeRows(root, tables.get, expanded, need);
  tables.need(needed);
  const fault = faultPath();
  tree.show(rows, fault);
  partition.fault = fault ? positionOf(fault, root) : undefined;
  partition.redraw();
  if (unseen) unseen = !tree.revealSelection();
  if (reached) arrive(root, reached);
  showDetails();
}

/** Opens tables from the root down for as long as there is no choice. */
function openSingles(from: RootAnswer, need: (query: TableQuery) => void): void {
  let query = from.table;
  const path: number[] = [];
  for (;;) {
    need(query);
    const table = tables.get(query);
    if (!table) return;
    const present = table.kind === 'table' ? table.runs.filter(({ entry }) => entry.state !== 'absent') : [];
    const child = present.length === 1 && !present[0]!.recursive ? present[0]!.child : undefined;
    if (!child) break;
    path.push(present[0]!.index);
    expanded.add(rowKey(path));
    query = child;
  }
  openFirst = false;
}

function fitMapped(of: RootAnswer, need: (query: TableQuery) => void): void {
  let waiting = false;
  const range = mappedRange(of, tables.get, (query) => {
    waiting = true;
    need(query);
  });
  if (waiting) return;
  fitting = false;
  if (range) partition.moveTo(fit(range.start, range.size, totalSize(of)));
}

function showMapped(): void {
  fitting = true;
  update();
}

/** Opens the tables on the way to an address. The entry's path once it is reached, undefined while answers are due. */
function follow(
  of: RootAnswer,
  target: { readonly position: number; readonly level: number },
  need: (query: TableQuery) => void,
): EntryPath | undefined {
  const path: number[] = [];
  let query = of.table;
  let base = 0;
  for (;;) {
    need(query);
    const table = tables.get(query);
    if (!table) return undefined;
    if (table.kind === 'error') return path;
    const size = table.runs[0]?.size ?? 1;
    const index = Math.floor((target.position - base) / size);
    const run = runAt(table, index);
    path.push(index);
    if (!run?.child || run.recursive || query.level <= target.level) return path;
    expanded.add(rowKey(path));
    base += index * size;
    query = run.child;
  }
}

function arrive(of: RootAnswer, path: EntryPath): void {
  revealing = undefined;
  selection.set(path, 'reveal');
  const run = runOf(path, of, tables.get);
  const start = positionOf(path, of);
  fitting = false;
  if (run) partition.reveal(start, run.size);
  remember();
}

/** Goes to the table that another view led to; whether other tables are shown for that. */
function find(target: TableQuery, need: (query: TableQuery) => void): boolean {
  const found = findTable(target, roots, tables.get, need);
  if (found === 'waiting') return false;
  finding = undefined;
  if (!found) {
    answer.replaceChildren(
      problem(`No root’s tables lead to the table of level ${target.level} at hpa ${formatAddress(target.table)}.`),
    );
    return false;
  }
  const { root: of, path } = found;
  const moved = of.id !== root?.id;
  if (moved) choose(of);
  answer.replaceChildren();
  if (path.length === 0) {
    selection.set(undefined);
    showMapped();
  } else {
    for (let depth = 1; depth <= path.length; depth++) expanded.add(rowKey(path.slice(0, depth)));
    unseen = true;
    reveal(positionOf(path, of), target.level + 1);
  }
  return moved;
}

function reveal(position: number, level = 1): void {
  revealing = { position, level };
  update();
}

/** The tables that a fault concerns. */
function faultRoot(): RootAnswer | undefined {
  const fault = lastStop()?.fault;
  if (!fault) return undefined;
  const space = fault.kind === 'guest' || fault.kind === 'nested' ? fault.kind : 'second';
  return roots.find((each) => each.table.space === space && each.vcpus.includes(fault.vcpu));
}

/** Where the fault is in the tables that are shown. */
function faultPath(): EntryPath | undefined {
  const fault = lastStop()?.fault;
  if (!fault || !root || faultRoot()?.id !== root.id) return undefined;
  const at = fault.kind === 'guest' ? fault.gva : fault.gpa;
  const position = at === undefined ? undefined : positionOfAddress(at, root);
  return position === undefined ? undefined : pathOf(position, root, fault.level);
}

function revealFault(): void {
  const fault = lastStop()?.fault;
  const of = faultRoot();
  if (!fault || !of) return;
  if (of.id !== root?.id) choose(of);
  const path = faultPath();
  if (path) reveal(positionOf(path, of), fault.level);
}

function showDetails(): void {
  const path = selection.value;
  const run = root && path ? runOf(path, root, tables.get) : undefined;
  if (!run || !path || !root) {
    details.replaceChildren(h('p', { class: 'quiet' }, 'Select an entry to see its bits.'));
    return;
  }
  const index = path.at(-1)!;
  // An absent run is shown as what it is: a range with nothing in it.
  const one = run.entry.state === 'leaf' ? memberOf(run, index) : run;
  const table = tableOf(path, root, tables.get);
  details.replaceChildren(
    entryDetails({
      entry: one.entry,
      index: one.index,
      count: one.count,
      was: one.was,
      note: one.note,
      here: one.faulting,
      facts: [
        ...runFacts(one),
        ...(table ? [['in', `${table.name}, ${table.format}`] as const] : []),
        ...(table?.page ? [['kvm_mmu_page', table.page] as const] : []),
        ...(root.certainty && table ? [['trust', certaintyMark(one.certainty ?? table.certainty)] as const] : []),
      ],
    }),
  );
}

selection.onChange((path, source) => {
  showDetails();
  if (!path || !root) return;
  // The tree opens to what was pointed at in the partition, and the partition goes to what was chosen in the tree.
  if (source === partition) {
    for (let depth = 1; depth < path.length; depth++) expanded.add(rowKey(path.slice(0, depth)));
    unseen = true;
    update();
  } else if (source === tree) {
    const run = runOf(path, root, tables.get);
    const start = positionOf(path, root);
    if (run) partition.reveal(start, run.size);
  }
});

search.addEventListener('submit', (event) => {
  event.preventDefault();
  if (!root) return;
  const parsed = parseAddress(address.value);
  const refuse = (words: string) => {
    unwatch('search');
    answer.replaceChildren(problem(words));
  };
  if ('error' in parsed) return refuse(parsed.error);
  const position = positionOfAddress(parsed.address, root);
  if (position === undefined) return refuse(`${parsed.address} lies outside of what these tables translate.`);
  reveal(position);
  answer.replaceChildren();
  const vcpu = root.vcpus[0];
  if (vcpu === undefined) return;
  watch(
    'search',
    { kind: 'walk', vcpu, space: root.table.space === 'guest' ? 'gva' : 'gpa', address: parsed.address },
    (found) => {
      if (found.kind === 'error') answer.replaceChildren(problem(found.message));
      else if (found.kind === 'walk') answer.replaceChildren(`${found.sentence}.`);
    },
  );
});

picker.addEventListener('change', () => choose(roots.find(({ id }) => id === picker.value)));

watch('roots', { kind: 'roots' }, (found) => {
  if (found.kind === 'error') {
    none.textContent = found.message;
    return;
  }
  if (found.kind !== 'roots') return;
  told = true;
  roots = found.roots;
  if (roots.length === 0) finding = undefined;
  why = found.why ?? '';
  picker.replaceChildren(
    ...roots.map(({ id, title, format, vcpus, present }) =>
      h(
        'option',
        { value: id },
        `${title}: ${vcpus.length > 0 ? `vCPU ${vcpus.join(', ')}` : 'no vCPU'}, ${format}${present === 0 ? ', empty' : ''}`,
      ),
    ),
  );
  none.textContent =
    roots.length > 0
      ? ''
      : 'There are no tables yet: KVM makes its root when a vCPU first runs, and the guest’s paging is off.';
  for (const part of [toolbar, partition.element, panes, marks]) part.hidden = roots.length === 0;
  const same = roots.find(({ id }) => id === root?.id);
  if (same) {
    // What was empty and no longer is comes into view; else the eye keeps its place.
    const appeared = root?.present === 0 && same.present > 0;
    choose(same);
    if (appeared) showMapped();
    return;
  }
  const before = kept(isKept);
  choose(roots.find(({ id }) => id === before?.root) ?? faultRoot() ?? roots[0]);
  if (before && before.root === root?.id) for (const key of before.expanded) expanded.add(key);
  else if (root && faultRoot()?.id === root.id) revealFault();
});

onShowTable((table) => {
  finding = table;
  if (told) update();
});

let over = false;
onSession((state) => {
  stopLine.show(state);
  const nothing = state.kind === 'none' || (state.kind !== 'stopped' && !state.stop);
  empty.hidden = !nothing;
  content.hidden = nothing;
  toFault.hidden = lastStop()?.fault === undefined;
  address.disabled = session().kind !== 'stopped';
  if (state.kind === 'ended') over = true;
  // Another session: its tables are others, even where they lie in the same places.
  if (state.kind === 'stopped' && over) {
    over = false;
    choose(undefined);
  }
  update();
});
