// The Recording view: what was recorded, where in it the session stands, and its faults. Every moment can be gone to.
import '../kit/theme.css';
import './recording.css';
import type { Answer, FaultRow, FaultsAnswer, RecordingAnswer } from '../../engine/queries/answers.ts';
import { button, h, svg } from '../kit/element.ts';
import { formatAddress } from '../kit/format.ts';
import { onSession, seek, session, watch } from '../kit/host.ts';
import { emptyState, problem, StopLine } from '../kit/page.ts';
import { visibleRows } from '../kit/visible-rows.ts';
import { barHeights, timeWords } from './rows.ts';

const ROW_HEIGHT = 22;
const WIDTH = 960;
const HEIGHT = 72;

const CLASS_WORDS: Readonly<Record<FaultRow['class'], string>> = {
  'second-stage': 'fault',
  fast: 'fast fault',
  guest: 'given to the guest',
  mmio: 'MMIO',
};

const view = document.querySelector<HTMLElement>('#view')!;
const stopLine = new StopLine();
const chart = h('div', { class: 'chart' });
const slider = h('input', {
  type: 'range',
  min: 0,
  max: 1,
  value: 0,
  'aria-label': 'Moment of the recording, in events',
});
const where = h('p', { class: 'where' });
const notes = h('div', { class: 'notes' });
const list = h('div', { class: 'faults', role: 'listbox', tabindex: 0, 'aria-label': 'Faults' });
const rows = h('div', { class: 'fault-rows' });
const body = h('div', { class: 'recording dims' });
const empty = emptyState(
  'No recording is open.',
  'Debug a recording of KVM’s tracepoints: a launch configuration whose “trace” is a trace.dat, or the text of trace-cmd report, perf script or tracefs.',
);
let shown: RecordingAnswer | undefined;
let faults: FaultsAnswer | undefined;
let asked = '';

list.append(rows);
body.append(
  h(
    'section',
    { class: 'overview' },
    chart,
    slider,
    h(
      'div',
      { class: 'controls' },
      button('Previous fault', () => toFault(-1), { class: 'tool' }),
      button('Next fault', () => toFault(1), { class: 'tool' }),
      where,
    ),
  ),
  notes,
  h('h2', { class: 'faults-title' }, 'Faults'),
  list,
);
view.append(stopLine.element, empty, body);

// ---- moments

function go(position: number): void {
  if (shown && session().kind === 'stopped') seek(Math.max(0, Math.min(position, shown.length)));
}

/** The moment after the next fault, or after the one before the last. */
function toFault(step: 1 | -1): void {
  if (!shown) return;
  const number = step > 0 ? shown.fault : shown.fault - 2;
  const row = faults?.rows[number - (faults?.first ?? 0)];
  if (number < 0) go(0);
  else if (row) go(row.index + 1);
  else {
    // It is not on screen: it comes there first.
    list.scrollTop = number * ROW_HEIGHT;
    pending = number;
  }
}
let pending: number | undefined;

slider.addEventListener('change', () => go(Number(slider.value)));
slider.addEventListener('input', () => {
  where.textContent = `event ${Number(slider.value).toLocaleString('en')} of ${shown?.length.toLocaleString('en') ?? ''}`;
});

// ---- drawing

function drawChart({ buckets, lost, duration, time }: RecordingAnswer): void {
  const count = buckets.faults.length;
  const width = WIDTH / count;
  const bars = (counts: readonly number[], name: string, from: number, height: number): SVGElement[] =>
    barHeights(counts).flatMap((part, index) =>
      part === 0
        ? []
        : [
            svg('rect', {
              class: name,
              x: index * width,
              y: from + height * (1 - part),
              width: Math.max(1, width - 0.6),
              height: height * part,
            }),
          ],
    );
  const x = (at: number): number => (duration === 0 ? 0 : (at / duration) * WIDTH);
  const picture = svg(
    'svg',
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: 'none',
      role: 'img',
      'aria-label': `Faults and changes of entries over ${timeWords(duration)}`,
    },
    ...bars(buckets.faults, 'bar-faults', 0, HEIGHT / 2 - 2),
    ...bars(buckets.changes, 'bar-changes', HEIGHT / 2 + 2, HEIGHT / 2 - 2),
    ...lost.map(({ time: at }) => svg('line', { class: 'lost', x1: x(at), x2: x(at), y1: 0, y2: HEIGHT })),
    svg('rect', { class: 'happened', x: 0, y: 0, width: x(time), height: HEIGHT }),
    svg('line', { class: 'now', x1: x(time), x2: x(time), y1: 0, y2: HEIGHT }),
  );
  const legend = h(
    'p',
    { class: 'legend quiet' },
    h('span', { class: 'key key-faults' }),
    'faults',
    h('span', { class: 'key key-changes' }),
    'changes of entries',
    ...(lost.length > 0 ? [h('span', { class: 'key key-lost' }), 'events lost'] : []),
    h('span', { class: 'spacer' }),
    `${timeWords(duration)} in all`,
  );
  chart.replaceChildren(picture, legend);
}

function drawNotes({ lost, problems, kernel, source, length, machines, machine }: RecordingAnswer): void {
  const count = lost.reduce((sum, each) => sum + (each.count ?? 0), 0);
  const lines = [
    `${length.toLocaleString('en')} events, ${source}${kernel === undefined ? '' : `, ${kernel}`}${machines > 1 ? `; virtual machine ${machine + 1} of ${machines}` : ''}`,
    ...(lost.length > 0
      ? [
          `Events were lost in ${lost.length} place${lost.length === 1 ? '' : 's'}${count > 0 ? `, ${count} of them counted` : ''}: from there on tables are stale.`,
        ]
      : []),
    ...problems,
  ];
  notes.replaceChildren(...lines.map((line, index) => h('p', { class: index === 0 ? 'quiet' : 'warning' }, line)));
}

function showRecording(answer: Answer): void {
  if (answer.kind !== 'recording') {
    shown = undefined;
    body.hidden = true;
    empty.hidden = false;
    if (answer.kind === 'error' && session().kind !== 'none')
      empty.replaceChildren(...emptyState('This session is not one of a recording.', answer.message).childNodes);
    return;
  }
  const moved = shown?.position !== answer.position;
  shown = answer;
  body.hidden = false;
  empty.hidden = true;
  slider.max = `${answer.length}`;
  slider.value = `${answer.position}`;
  where.textContent = `event ${answer.position.toLocaleString('en')} of ${answer.length.toLocaleString('en')}, ${timeWords(answer.time)}; fault ${answer.fault.toLocaleString('en')} of ${answer.faults.toLocaleString('en')}`;
  drawChart(answer);
  drawNotes(answer);
  rows.style.height = `${answer.faults * ROW_HEIGHT}px`;
  // The last fault that has happened stays in sight.
  const top = Math.max(0, answer.fault - 1) * ROW_HEIGHT;
  if (moved && (top < list.scrollTop || top > list.scrollTop + list.clientHeight - ROW_HEIGHT))
    list.scrollTop = Math.max(0, top - list.clientHeight / 2);
  askRows();
  drawRows();
}

function askRows(): void {
  if (!shown) return;
  const wanted = visibleRows(list.scrollTop, list.clientHeight, ROW_HEIGHT, shown.faults);
  const key = `${wanted.first} ${wanted.count}`;
  if (key === asked) return;
  asked = key;
  watch('faults', { kind: 'faults', ...wanted }, (answer) => {
    if (answer.kind === 'error') rows.replaceChildren(problem(answer.message));
    if (answer.kind !== 'faults') return;
    faults = answer;
    drawRows();
    if (pending === undefined) return;
    const row = answer.rows[pending - answer.first];
    pending = undefined;
    if (row) go(row.index + 1);
  });
}

function drawRows(): void {
  if (!faults || !shown) return;
  const { position, fault } = shown;
  if (faults.total === 0) {
    rows.replaceChildren(h('p', { class: 'quiet' }, 'No fault was recorded.'));
    return;
  }
  const { first } = faults;
  rows.replaceChildren(
    ...faults.rows.map((row, offset) => {
      const number = first + offset;
      const isHere = number === fault - 1;
      const element = h(
        'div',
        {
          class: `fault-row ${row.class}${isHere ? ' here' : ''}${row.index >= position ? ' later' : ''}`,
          role: 'option',
          'aria-selected': isHere ? 'true' : 'false',
          title: row.text,
        },
        h('span', { class: 'mono time' }, timeWords(row.time)),
        h('span', { class: 'thread' }, row.thread),
        h('span', { class: 'class' }, CLASS_WORDS[row.class]),
        h(
          'span',
          { class: 'mono address' },
          row.address === undefined ? '' : `${row.space} ${formatAddress(row.address)}`,
        ),
        h('span', { class: 'mono text' }, row.text),
      );
      element.style.top = `${number * ROW_HEIGHT}px`;
      element.addEventListener('click', () => go(row.index + 1));
      return element;
    }),
  );
}

list.addEventListener('scroll', askRows);
list.addEventListener('keydown', (event) => {
  if (event.key !== 'ArrowDown' && event.key !== 'ArrowUp') return;
  event.preventDefault();
  toFault(event.key === 'ArrowDown' ? 1 : -1);
});
new ResizeObserver(askRows).observe(list);

onSession((state) => {
  stopLine.show(state);
  if (state.kind === 'none') {
    body.hidden = true;
    empty.hidden = false;
  }
});
watch('recording', { kind: 'recording' }, showRecording);
