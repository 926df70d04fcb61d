// Of transitions something must be named, or the bundler leaves out what gives selections theirs.
import { select as d3select, easeCubicOut, interrupt } from 'd3';
import type {
  QuarterAnswer,
  RootCacheMoment,
  RootCardAnswer,
  TableQuery,
  VcpuRootsAnswer,
} from '../../engine/queries/answers.ts';
import { certaintyMark } from '../kit/certainty.ts';
import { copyable } from '../kit/copy.ts';
import { button, h } from '../kit/element.ts';
import { formatAddress } from '../kit/format.ts';
import { showTable } from '../kit/host.ts';
import { duration } from '../kit/motion.ts';
import { placeName } from './moments.ts';
import { roleGrid } from './role-grid.ts';
import { compareRoles, isDirect, reuseWords } from './roles.ts';

/** A card's way to its new place, ms. */
const MOVE = 420;

/** A root in its place, as it is drawn. */
interface Card {
  /** The same for the same root wherever it stands. */
  readonly key: string;
  readonly place: number;
  /** Root and what is compared with it: drawn anew when these differ. */
  readonly words: string;
  readonly state: 'empty' | 'invalid' | 'usable' | '';
  readonly content: () => readonly (Node | string)[];
}

type Fact = readonly [name: string, value: Node | string];

function facts(rows: readonly Fact[]): HTMLElement {
  return h('dl', { class: 'facts' }, ...rows.flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

function addressFacts(hpa: string, pgd: string | undefined, pgdName: string, direct: boolean): Fact[] {
  return [
    ['hpa', copyable(formatAddress(hpa), hpa, 'hpa')],
    [
      pgdName,
      direct ? 'any: it is direct' : pgd === undefined ? 'not told' : copyable(formatAddress(pgd), pgd, pgdName),
    ],
  ];
}

function tablesButton(table: TableQuery, what: string): HTMLElement {
  return button('Show tables', () => showTable(table), {
    class: 'secondary',
    'data-action': `tables ${table.table}`,
    'aria-label': `Show tables of ${what}`,
  });
}

function quarters(list: readonly (QuarterAnswer | null)[]): HTMLElement {
  return h(
    'ul',
    { class: 'quarters', 'aria-label': 'Entries of pae_root' },
    ...list.map((quarter, index) => {
      const name = h('span', { class: 'quiet' }, `${index}G`);
      if (!quarter) return h('li', {}, name, h('span', { class: 'quiet' }, 'none'));
      const link = button(formatAddress(quarter.hpa), () => showTable(quarter.table), {
        class: 'link mono',
        'data-action': `tables ${quarter.table.table}`,
        title: `Show the table at hpa ${quarter.hpa}`,
      });
      return h(
        'li',
        {},
        name,
        h('span', {}, 'gfn ', h('span', { class: 'mono' }, formatAddress(quarter.gfn))),
        link,
        h('span', { class: 'quarter-role mono' }, quarter.words),
      );
    }),
  );
}

function rootContent(root: RootCardAnswer, place: number, vcpu: VcpuRootsAnswer): (Node | string)[] {
  const name = placeName(place).toLowerCase();
  const { references, levels, role, fields, certainty } = root;
  const size = [
    `${levels} levels`,
    ...(references === undefined ? [] : [`${references} reference${references === 1 ? '' : 's'}`]),
  ];
  return [
    h('p', { class: `reuse${root.isUsable ? ' usable' : ''}` }, reuseWords(root, vcpu, place === 0)),
    facts([
      ...addressFacts(root.hpa, root.pgd, vcpu.pgdName, isDirect(root)),
      ['tables', size.join(', ')],
      ...(role === undefined ? [] : ([['role', copyable(formatAddress(role), role, 'role')]] as const)),
      ...(certainty === undefined || certainty === 'exact' ? [] : ([['trust', certaintyMark(certainty)]] as const)),
    ]),
    ...(fields ? [roleGrid(compareRoles(fields, vcpu.rootRole.fields), `Role of the ${name} root`)] : []),
    ...(root.quarters ? [quarters(root.quarters)] : []),
    tablesButton(root.table, `the ${name} root`),
  ];
}

function emptyContent(place: number, isPast: boolean): Node[] {
  const words =
    place > 0
      ? 'No root is kept here.'
      : isPast
        ? 'There was no root.'
        : 'No root yet: KVM takes one when the vCPU enters the guest.';
  return [h('p', { class: 'quiet' }, words)];
}

/** The four roots of a vCPU, now. */
export function cardsNow(vcpu: VcpuRootsAnswer): Card[] {
  return withKeys(
    vcpu.roots.map((root, place) => ({
      key: root ? `${root.hpa} ${root.pgd ?? ''}` : '',
      place,
      words: JSON.stringify([place, root, root && vcpu.rootRole.fields, root && vcpu.pgd]),
      state: !root ? 'empty' : root.invalid ? 'invalid' : root.isUsable ? 'usable' : '',
      content: () => (root ? rootContent(root, place, vcpu) : emptyContent(place, false)),
    })),
  );
}

/** The four roots of a vCPU at a moment: of them no more is remembered than where they were, and for which CR3. */
export function cardsThen({ roots }: RootCacheMoment, pgdName: string, direct: boolean): Card[] {
  return withKeys(
    roots.map((root, place) => ({
      key: root ? `${root.hpa} ${root.pgd}` : '',
      place,
      words: JSON.stringify([place, root, direct, 'then']),
      state: root ? '' : 'empty',
      content: () => (root ? [facts(addressFacts(root.hpa, root.pgd, pgdName, direct))] : emptyContent(place, true)),
    })),
  );
}

/** A root may be kept twice; an empty place is itself wherever it is. */
function withKeys(cards: readonly Card[]): Card[] {
  const seen = new Map<string, number>();
  return cards.map((card) => {
    if (card.key === '') return { ...card, key: `empty ${card.place}` };
    const count = seen.get(card.key) ?? 0;
    seen.set(card.key, count + 1);
    return count === 0 ? card : { ...card, key: `${card.key} ${count}` };
  });
}

/** Cards that move to where their roots have gone. */
export class Cards {
  readonly element = h('div', { class: 'cards', role: 'list', 'aria-label': 'Roots' });

  show(cards: readonly Card[]): void {
    const boxes = this.element.querySelectorAll<HTMLElement>('.card');
    const before = new Map([...boxes].map((box) => [box.dataset.key, box.getBoundingClientRect()]));
    const focused = document.activeElement?.getAttribute('data-action');
    d3select(this.element)
      .selectAll<HTMLElement, Card>('.card')
      .data(cards, function (card) {
        return card?.key ?? this.dataset.key;
      })
      .join((enter) => enter.append(({ key }) => h('article', { class: 'card', role: 'listitem', 'data-key': key })))
      .each((card, index, elements) => fill(elements[index]!, card))
      .order();
    const time = duration(MOVE);
    for (const box of this.element.querySelectorAll<HTMLElement>('.card')) {
      interrupt(box);
      d3select(box).style('transform', null).style('opacity', null).classed('moving', false);
      if (time > 0 && before.size > 0) move(box, before.get(box.dataset.key), time);
    }
    if (focused && document.activeElement === document.body)
      this.element.querySelector<HTMLElement>(`[data-action="${focused}"]`)?.focus();
  }
}

function fill(element: HTMLElement, { place, words, state, content }: Card): void {
  element.className = `card ${state}${place === 0 ? ' current' : ''}`;
  element.dataset.place = `${place}`;
  if (element.dataset.words === words) return;
  element.dataset.words = words;
  element.replaceChildren(h('h2', {}, placeName(place)), ...content());
}

function move(box: HTMLElement, from: DOMRect | undefined, time: number): void {
  const chosen = d3select(box);
  if (!from) {
    if (!box.classList.contains('empty'))
      chosen
        .style('opacity', '0')
        .transition()
        .duration(time)
        .style('opacity', '1')
        .on('end', () => chosen.style('opacity', null));
    return;
  }
  const to = box.getBoundingClientRect();
  const [x, y] = [from.left - to.left, from.top - to.top];
  // An empty place has nowhere to come from.
  if ((Math.abs(x) < 1 && Math.abs(y) < 1) || box.classList.contains('empty')) return;
  chosen
    .classed('moving', true)
    .style('transform', `translate(${x}px,${y}px)`)
    .transition()
    .duration(time)
    .ease(easeCubicOut)
    .styleTween('transform', () => (t) => `translate(${x * (1 - t)}px,${y * (1 - t)}px)`)
    .on('end', () => chosen.style('transform', null).classed('moving', false));
}
