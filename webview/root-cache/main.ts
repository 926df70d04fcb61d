// The Root Cache view: which roots KVM keeps for each vCPU, of which roles, what led to them, and the pages below.
import '../kit/theme.css';
import './root-cache.css';
import type { Answer, RoleAnswer, RootCacheAnswer, VcpuRootsAnswer } from '../../engine/queries/answers.ts';
import { certaintyMark } from '../kit/certainty.ts';
import { copyable } from '../kit/copy.ts';
import { h } from '../kit/element.ts';
import { formatAddress } from '../kit/format.ts';
import { keep, kept, onSession, session, watch } from '../kit/host.ts';
import { emptyState, problem, StopLine } from '../kit/page.ts';
import { Timeline } from '../kit/timeline.ts';
import { Cards, cardsNow, cardsThen } from './cards.ts';
import { momentSentence, momentsOf, timelineMoments } from './moments.ts';
import { PageList } from './page-list.ts';
import { filterPages, pageRows } from './pages.ts';
import { roleGrid } from './role-grid.ts';
import { compareRoles, differingFields } from './roles.ts';

/** What survives a reload of the page. */
interface Kept {
  readonly vcpu: number;
  readonly mmu: 'root' | 'guest';
}

function isKept(value: unknown): value is Kept {
  if (typeof value !== 'object' || value === null || !('vcpu' in value && 'mmu' in value)) return false;
  return typeof value.vcpu === 'number' && (value.mmu === 'root' || value.mmu === 'guest');
}

const view = document.querySelector<HTMLElement>('#view')!;
const stopLine = new StopLine();
const picker = h('select', { 'aria-label': 'vCPU and MMU' });
const kind = h('span', { class: 'quiet' });
const toolbar = h('div', { class: 'toolbar' }, picker, kind);
const trust = h('p', { class: 'trust' });
const cause = h('p', { class: 'cause', 'aria-live': 'polite' });
const timeline = new Timeline('Changes of the roots', (index) => {
  at = index;
  draw();
});
const cards = new Cards();
const roles = h('div', { class: 'roles' });
const rolesTitle = h('h2', {});
const rolesWords = h('p', { class: 'quiet' });
const pagesTitle = h('h2', {});
const filter = h('input', {
  type: 'text',
  size: 14,
  spellcheck: 'false',
  autocomplete: 'off',
  placeholder: 'Filter by gfn',
  'aria-label': 'Filter pages by gfn, hexadecimal',
});
const pagesWords = h('div', { class: 'pages-words', 'aria-live': 'polite' });
const list = new PageList();
const empty = emptyState('');
const body = h(
  'div',
  { class: 'root-cache dims' },
  toolbar,
  trust,
  cause,
  timeline.element,
  cards.element,
  h('section', { class: 'of-now', 'aria-label': 'Roles' }, rolesTitle, rolesWords, roles),
  h(
    'section',
    { class: 'of-now', 'aria-label': 'Pages' },
    h('div', { class: 'pages-bar' }, pagesTitle, filter),
    pagesWords,
    list.element,
  ),
);
view.append(stopLine.element, empty, body);

let shown: RootCacheAnswer | undefined;
let chosen: Kept = kept(isKept) ?? { vcpu: 0, mmu: 'root' };
/** The moment that is shown, among the chosen MMU's; undefined: now. */
let at: number | undefined;

const KINDS: Readonly<Record<RootCacheAnswer['tables'], string>> = {
  ept: 'EPT, one root for all of guest memory',
  npt: 'NPT, one root for all of guest memory',
  shadow: 'Shadow paging, a root for each CR3 and role',
};

/** Of guest_mmu, by what its roots are looked for. */
const GUEST_KINDS: Readonly<Record<VcpuRootsAnswer['pgdName'], string>> = {
  EPTP: 'Shadow EPT, a root for each EPTP of L1’s and role',
  nCR3: 'Shadow NPT, a root for each nCR3 of L1’s and role',
  CR3: '',
};

const idOf = ({ vcpu, mmu }: Kept): string => `${vcpu} ${mmu}`;

/** Says in place of the view what there is to see, or why nothing is. */
function say(title: string, ...lines: readonly string[]): void {
  empty.replaceChildren(...emptyState(title, ...lines).childNodes);
  empty.hidden = false;
  body.hidden = true;
}

function receive(answer: Answer): void {
  if (answer.kind !== 'root-cache') {
    shown = undefined;
    if (answer.kind === 'error' && session().kind !== 'none')
      say('This session does not tell of KVM’s roots.', `${answer.message}.`);
    return;
  }
  // What has happened since is to be seen: who looks at the past comes back.
  if (shown && (shown.step !== answer.step || shown.moments.length !== answer.moments.length)) at = undefined;
  shown = answer;
  update();
}

/** Shows what fits the session and the answer. */
function update(): void {
  const state = session();
  if (state.kind === 'running' && !state.stop) {
    say('There has been no stop yet.', 'At the first one this view shows the roots that KVM keeps.');
    return;
  }
  if (state.kind === 'none' || (state.kind === 'ended' && !state.stop)) {
    say(
      'No session. Press F5 on a scenario (a .mmu file).',
      'This view follows the session. It shows for each vCPU the root that KVM uses and the three that it keeps, their roles bit by bit beside the role that is wanted, which register write led there, and the pages of KVM’s tables.',
    );
    return;
  }
  if (!shown) return;
  if (shown.vcpus.length === 0) {
    say('There is no vCPU yet.', 'A vCPU has roots from its first entry into the guest on.');
    return;
  }
  empty.hidden = true;
  body.hidden = false;
  draw();
}

function draw(): void {
  if (!shown) return;
  const { vcpus, policy, tables } = shown;
  const vcpu = vcpus.find((each) => each.vcpu === chosen.vcpu && each.mmu === chosen.mmu) ?? vcpus[0]!;
  const isNested = vcpus.some(({ mmu }) => mmu === 'guest');
  const options = vcpus.map((each) =>
    h(
      'option',
      { value: idOf(each) },
      `vCPU ${each.vcpu}${isNested ? `, ${each.mmu}_mmu${each.active ? ' (walked now)' : ''}` : ''}`,
    ),
  );
  const texts = (list: Iterable<HTMLOptionElement>): string => [...list].map(({ text }) => text).join();
  if (texts(picker.options) !== texts(options)) picker.replaceChildren(...options);
  picker.value = idOf(vcpu);
  picker.hidden = vcpus.length < 2;
  const words = vcpu.mmu === 'guest' ? GUEST_KINDS[vcpu.pgdName] : KINDS[tables];
  kind.textContent = `${words}${policy === undefined ? '' : `; policy roots = ${policy}`}`;
  drawTrust(shown);
  drawRoots(shown, vcpu);
  drawRoles(vcpu);
  drawPages(shown);
}

function drawTrust({ certainty, why, policy }: RootCacheAnswer): void {
  // The emulator's own are exact, and that need not be said.
  trust.hidden = certainty === 'exact' && policy !== undefined;
  const words = why === undefined ? '' : `${why[0]?.toUpperCase() ?? ''}${why.slice(1)}.`;
  trust.replaceChildren(
    certaintyMark(certainty),
    words === '' && certainty === 'exact' ? 'Read from the kernel.' : words,
  );
}

function drawRoots({ moments: all, moreMoments, policy }: RootCacheAnswer, vcpu: VcpuRootsAnswer): void {
  const moments = momentsOf(all, vcpu);
  if (at !== undefined && at >= moments.length - 1) at = undefined;
  const moment = moments[at ?? moments.length - 1];
  const direct = vcpu.rootRole.fields.some(({ name, value }) => name === 'direct' && value === 1);
  const none =
    policy === undefined
      ? 'No history: KVM remembers only the roots that it has, and nothing has recorded the changes. The emulator keeps one.'
      : moments.length === 0
        ? 'No history yet: nothing has changed the roots.'
        : '';
  cause.hidden = !moment;
  cause.textContent = moment ? momentSentence(moment, moments[(at ?? moments.length - 1) - 1]) : '';
  timeline.show(timelineMoments(moments), at, none, moreMoments);
  body.classList.toggle('then', at !== undefined);
  if (at !== undefined && moment) cards.show(cardsThen(moment, vcpu.pgdName, direct));
  else cards.show(cardsNow(vcpu));
}

function rolePanel(title: string, role: RoleAnswer | undefined, grid: HTMLElement): HTMLElement {
  return h(
    'div',
    { class: 'role-panel' },
    h('h3', {}, title, role && ' ', role && copyable(formatAddress(role.word), role.word, 'role')),
    grid,
  );
}

function drawRoles({ cpuRole, extRole, rootRole, mmu, nestedRole, rolesAreInferred }: VcpuRootsAnswer): void {
  const suffix = at === undefined ? '' : ', now';
  const compared = compareRoles(cpuRole.fields, rootRole.fields);
  const differing = differingFields(compared);
  rolesTitle.textContent = `Roles${suffix}`;
  const whose = mmu === 'guest' ? 'That of L1’s tables' : 'The processor’s';
  rolesWords.textContent =
    differing.length === 0
      ? `A root must have the root role. ${whose} is the same.`
      : `A root must have the root role. ${whose} differs from it in ${differing.join(', ')}.`;
  if (rolesAreInferred) rolesWords.append(' ', certaintyMark('inferred'));
  roles.replaceChildren(
    rolePanel('Root role', rootRole, roleGrid(rootRole.fields, 'Root role that is wanted')),
    rolePanel('CPU role', cpuRole, roleGrid(compared, 'CPU role')),
    rolePanel('CPU role, extended', undefined, roleGrid(extRole, 'Extended CPU role')),
    ...(nestedRole
      ? [rolePanel('nested_mmu: CPU role of L2', nestedRole, roleGrid(nestedRole.fields, 'CPU role of L2'))]
      : []),
  );
}

function drawPages({ pages, morePages, tables }: RootCacheAnswer): void {
  const total = pages.length + morePages;
  const name = tables === 'shadow' ? 'Shadow pages' : 'Pages of KVM’s tables';
  pagesTitle.textContent = `${name}: ${total.toLocaleString('en')}${at === undefined ? '' : ', now'}`;
  filter.hidden = total === 0;
  const found = filterPages(pages, filter.value);
  if ('error' in found) {
    pagesWords.replaceChildren(problem(found.error));
    list.element.hidden = true;
    return;
  }
  const words = [
    ...(total === 0 ? ['There is none yet: KVM makes them as the guest touches memory.'] : []),
    ...(morePages > 0 ? [`The first ${pages.length.toLocaleString('en')} by gfn are listed.`] : []),
    ...(found.length === pages.length
      ? []
      : [found.length === 0 ? 'No page is of such a gfn.' : `${found.length} of ${pages.length} are of such a gfn.`]),
  ];
  pagesWords.replaceChildren(words.join(' '));
  list.element.hidden = found.length === 0;
  list.show(pageRows(found));
}

picker.addEventListener('change', () => {
  const found = shown?.vcpus.find((each) => idOf(each) === picker.value);
  if (!found) return;
  chosen = { vcpu: found.vcpu, mmu: found.mmu };
  at = undefined;
  keep(chosen satisfies Kept);
  draw();
});
filter.addEventListener('input', () => {
  if (shown) drawPages(shown);
});
window.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || at === undefined) return;
  at = undefined;
  draw();
});

onSession((state) => {
  stopLine.show(state);
  update();
});
watch('root-cache', { kind: 'root-cache' }, receive);
