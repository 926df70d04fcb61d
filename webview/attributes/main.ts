// The Memory Attributes view: which guest-physical memory is private and which shared, and what a conversion makes of it.
import '../kit/theme.css';
import './attributes.css';
import type { Answer, AttributeMapAnswer, PageAnswer } from '../../engine/queries/answers.ts';
import { button, h } from '../kit/element.ts';
import { formatAddress, formatSize, parseAddress } from '../kit/format.ts';
import { lastStop, onSession, session, unwatch, watch } from '../kit/host.ts';
import { emptyState, problem, StopLine } from '../kit/page.ts';
import { Timeline } from '../kit/timeline.ts';
import { Details } from './details.ts';
import { factsAt } from './layout.ts';
import { memoryLegend } from './legend.ts';
import { type Band, bandsOf } from './looks.ts';
import { MemoryMap, type Place } from './map.ts';
import { type Moment, Tiles } from './tiles.ts';
import { grouped, rangeWords } from './words.ts';

const PAGE = 4096;
/** A page is asked about once the pointer has rested on it for so long, ms. */
const REST = 60;

const view = document.querySelector<HTMLElement>('#view')!;
const stopLine = new StopLine();
const slots = h('select', { 'aria-label': 'Go to a slot', title: 'Go to a slot' });
const address = h('input', {
  type: 'text',
  size: 14,
  spellcheck: 'false',
  autocomplete: 'off',
  placeholder: 'Find a gpa',
  'aria-label': 'Guest-physical address to find, hexadecimal',
});
const search = h('form', { role: 'search', class: 'search' }, address);
const searchAnswer = h('p', { class: 'search-answer', 'aria-live': 'polite' });
const toHere = button('Now', () => showHere(), { class: 'tool', title: 'Go to what happens now (End)' });
const kind = h('span', { class: 'quiet' });
const happening = h('p', { class: 'happening' });
const cause = h('p', { class: 'cause', 'aria-live': 'polite' });
const legendPlace = h('div', {});
const empty = emptyState('');

const tiles = new Tiles(() => {
  map.redraw();
  drawDetails();
});
const map = new MemoryMap(
  () => tiles.all(),
  (keys) => tiles.need(keys),
);
const details = new Details(() => place(undefined, false));
const timeline = new Timeline('Changes of private and shared memory', (index) => {
  at = index;
  update();
});
const body = h(
  'div',
  { class: 'attributes' },
  h(
    'div',
    { class: 'toolbar' },
    slots,
    search,
    h(
      'span',
      { class: 'zoom' },
      toHere,
      button('All', () => map.whole(), { class: 'tool', title: 'All slots (Home)' }),
      button('−', () => map.zoom(0.5), { class: 'tool', title: 'Zoom out (-)', 'aria-label': 'Zoom out' }),
      button('+', () => map.zoom(2), { class: 'tool', title: 'Zoom in (+)', 'aria-label': 'Zoom in' }),
    ),
    kind,
  ),
  searchAnswer,
  h('div', { class: 'dims' }, map.element),
  happening,
  timeline.element,
  cause,
  legendPlace,
  details.element,
);
view.append(stopLine.element, empty, body);

/** As it is now, and as it was at the moment that is shown. */
let now: AttributeMapAnswer | undefined;
let then: AttributeMapAnswer | undefined;
/** The moment that is shown, among all; undefined: now. */
let at: number | undefined;
let bands: readonly Band[] = [];
let bandsKey = '';
/** The first answer of a session decides what is seen first. */
let isNew = true;
let shownPlace: Place | undefined;
let isPinned = false;
let asked = '';
let page: PageAnswer | undefined;
let pageError: string | undefined;
let resting: ReturnType<typeof setTimeout> | undefined;

/** Says in place of the view what there is to see, or why nothing is. */
function say(title: string, ...lines: readonly string[]): void {
  empty.replaceChildren(...emptyState(title, ...lines).childNodes);
  empty.hidden = false;
  body.hidden = true;
}

function receive(answer: Answer): void {
  if (answer.kind !== 'attribute-map') {
    now = undefined;
    if (answer.kind === 'error' && session().kind !== 'none')
      say('There is no private memory to show.', `${answer.message[0]!.toUpperCase()}${answer.message.slice(1)}.`);
    return;
  }
  // What has happened since is to be seen: who looks at the past comes back.
  if (now && (now.step !== answer.step || now.moments.length !== answer.moments.length)) at = undefined;
  now = answer;
  update();
}

function momentOf({ moments }: AttributeMapAnswer): Moment | undefined {
  if (at === undefined) return undefined;
  // What has changed since the moment before, whoever did it.
  return { at: moments[at]!.at, since: moments[at - 1]?.at ?? moments[at]!.since };
}

/** Shows what fits the session and the answer. */
function update(): void {
  const state = session();
  if (state.kind === 'running' && !state.stop) {
    say('There has been no stop yet.', 'At the first one this view shows the machine’s memory.');
    return;
  }
  if (state.kind === 'none' || (state.kind === 'ended' && !state.stop)) {
    say(
      'No session. Press F5 on a scenario (a .mmu file), such as conversion.mmu.',
      'This view follows the session. It shows guest-physical memory from the whole machine down to single pages: private and shared, in conversion, guest_memfd and RMP, the kernel’s direct map, and what the second stage maps. What the last step changed is marked.',
    );
    return;
  }
  if (!now) return;
  if (now.slots.length === 0) {
    say('The machine has no memory.', 'Each memslot is a band here.');
    return;
  }
  empty.hidden = true;
  body.hidden = false;
  draw();
}

function draw(): void {
  if (!now) return;
  const { moments, vm, stages, rmp, frames, policy } = now;
  if (at !== undefined && at >= moments.length - 1) at = undefined;
  const moment = momentOf(now);
  if (moment)
    watch('then', { kind: 'attribute-map', at: moment.at }, (answer) => {
      then = answer.kind === 'attribute-map' ? answer : undefined;
      drawMap();
    });
  else {
    unwatch('then');
    then = undefined;
  }
  const key = `${stages.join()} ${rmp} ${frames}`;
  if (key !== bandsKey) {
    bands = bandsOf(now);
    bandsKey = key;
    legendPlace.replaceChildren(memoryLegend(now));
  }
  tiles.show(bands, moment);
  kind.textContent = `${{ snp: 'SEV-SNP', tdx: 'TDX', 'software-protected': 'Software-protected VM' }[vm] ?? vm}; ${frames ? `policy conversion = ${policy}` : 'conversions are KVM’s own'}`;
  drawSlots(now);
  drawHappening(now);
  drawTimeline(now);
  drawMap();
  ask();
}

function drawSlots({ slots: list }: AttributeMapAnswer): void {
  const options = list.map(({ id, gpa, size, gmem }) =>
    h(
      'option',
      { value: `${id}` },
      `slot ${id}: ${formatAddress(gpa)} +${formatSize(size)}${gmem ? '' : ', no guest_memfd'}`,
    ),
  );
  const texts = (of: Iterable<HTMLOptionElement>): string => [...of].map(({ text }) => text).join();
  const all = [h('option', { value: '' }, 'Go to…'), ...options];
  if (texts(slots.options) !== texts(all)) slots.replaceChildren(...all);
}

function drawHappening({ conversions, invalidation }: AttributeMapAnswer): void {
  const words = [
    ...conversions.map(
      ({ task, gpa, size, to, fn, step, page: next }) =>
        `${task} makes ${rangeWords(gpa, size)} ${to}${fn === undefined ? '' : `: in ${fn}, next is ${step ?? 'its end'}`}${next === undefined ? '' : `, at page ${formatAddress(next)}`}.`,
    ),
    ...(invalidation
      ? [`${rangeWords(invalidation.gpa, invalidation.size)} is being invalidated: faults there retry.`]
      : []),
  ];
  happening.textContent = at === undefined ? words.join(' ') : '';
  happening.classList.toggle('here', at === undefined && conversions.length > 0);
  happening.hidden = happening.textContent === '';
}

function drawTimeline({ moments, moreMoments }: AttributeMapAnswer): void {
  const shown = moments[at ?? moments.length - 1];
  const sentence = (words: string, by: string, step: number): string => `${grouped(words)} (${by}, step ${step}).`;
  timeline.show(
    moments.map(({ words, by, step, begins }) => ({
      step,
      begins: begins === true,
      sentence: sentence(words, by, step),
    })),
    at,
    '',
    moreMoments,
  );
  timeline.element.hidden = moments.length < 2;
  cause.textContent =
    shown && moments.length > 1
      ? `${at === undefined ? 'Last: ' : ''}${sentence(shown.words, shown.by, shown.step)}`
      : '';
  body.classList.toggle('then', at !== undefined);
}

/** The range that a moment is about, where the view shows one; now, what happens. */
function here(): Place | undefined {
  if (at !== undefined) {
    const range = now?.moments[at]?.range;
    return range && { start: Number(range.gpa), size: range.size };
  }
  const fault = faultPlace();
  const conversion = now?.conversions[0];
  if (conversion) return { start: Number(conversion.gpa), size: conversion.size };
  return fault === undefined ? undefined : { start: Math.floor(fault / PAGE) * PAGE, size: PAGE };
}

function faultPlace(): number | undefined {
  const gpa = lastStop()?.fault?.gpa;
  return gpa === undefined || at !== undefined ? undefined : Number(gpa);
}

function showHere(): void {
  const range = here() ?? rangeOfLast();
  if (range) map.fit({ start: range.start - 8 * PAGE, size: range.size + 16 * PAGE }, 0);
}

/** What changed last, where nothing happens now. */
function rangeOfLast(): Place | undefined {
  const range = now?.moments.findLast((moment) => moment.range)?.range;
  return range && { start: Number(range.gpa), size: range.size };
}

function drawMap(): void {
  if (!now) return;
  map.show({ map: at === undefined ? now : { ...(then ?? now), conversions: [] }, bands, fault: faultPlace() });
  if (!isNew) return;
  isNew = false;
  // Slots far apart are specks on one screen: then the first with private memory is shown.
  const spaces = now.slots.map(({ gpa, size, gmem }) => ({ start: Number(gpa), size, gmem }));
  const end = Math.max(...spaces.map(({ start, size }) => start + size));
  const start = Math.min(...spaces.map((space) => space.start));
  const filled = spaces.reduce((sum, { size }) => sum + size, 0);
  const first = spaces.find(({ gmem }) => gmem);
  map.fit(first && filled < (end - start) / 10 ? first : { start, size: end - start }, 0.02, false);
}

/** Another place is pointed at, or gone to. */
function place(next: Place | undefined, pinned: boolean): void {
  isPinned = pinned && next !== undefined;
  shownPlace = next;
  map.cursor = next;
  map.pinned = isPinned;
  if (next === undefined) {
    asked = '';
    page = undefined;
    pageError = undefined;
    unwatch('page');
  }
  clearTimeout(resting);
  resting = setTimeout(ask, REST);
  drawDetails();
}

/** Asks about the page that is shown, once. */
function ask(): void {
  if (!shownPlace || !now) return;
  const moment = momentOf(now);
  const gpa = `0x${shownPlace.start.toString(16)}`;
  const question = `${gpa} ${moment?.at ?? ''}`;
  if (question === asked) return;
  asked = question;
  watch('page', { kind: 'page', gpa, ...(moment ? { at: moment.at } : {}) }, (answer) => {
    page = answer.kind === 'page' ? answer : undefined;
    pageError = answer.kind === 'error' ? answer.message : undefined;
    drawDetails();
  });
}

function drawDetails(): void {
  if (!shownPlace || !now) {
    details.show(undefined);
    return;
  }
  const { start } = shownPlace;
  const isAnswered = page !== undefined && Number(page.gpa) === start;
  details.show({
    place: shownPlace,
    pinned: isPinned,
    facts: factsAt(tiles.all(), start)?.facts,
    page: isAnswered ? page : undefined,
    error: pageError,
    map: { stages: now.stages, frames: now.frames },
  });
}

map.onPlace = place;
map.onHere = showHere;

slots.addEventListener('change', () => {
  const slot = now?.slots.find(({ id }) => `${id}` === slots.value);
  slots.value = '';
  if (slot) map.fit({ start: Number(slot.gpa), size: slot.size });
});

search.addEventListener('submit', (event) => {
  event.preventDefault();
  const parsed = parseAddress(address.value);
  if ('error' in parsed) {
    searchAnswer.replaceChildren(problem(parsed.error));
    return;
  }
  const found = Number(BigInt(parsed.address) >> 12n) * PAGE;
  if (found >= 2 ** 52) {
    searchAnswer.replaceChildren(
      problem(`${formatAddress(parsed.address)} is no guest-physical address: it has more than 52 bits.`),
    );
    return;
  }
  searchAnswer.replaceChildren();
  const target = { start: found, size: PAGE };
  map.reveal(target);
  place(target, true);
});

window.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  if (at !== undefined) {
    at = undefined;
    update();
  } else if (isPinned) place(undefined, false);
});

let over = false;
onSession((state) => {
  stopLine.show(state);
  address.disabled = state.kind !== 'stopped';
  if (state.kind === 'ended') over = true;
  // Another session is another machine.
  if (state.kind === 'stopped' && over) {
    over = false;
    isNew = true;
    at = undefined;
    tiles.clear();
    place(undefined, false);
  }
  update();
});
watch('map', { kind: 'attribute-map' }, receive);
