// The Walk view: where a translation stopped, and why.
import '../kit/theme.css';
import './walk.css';
import type { Answer, WalkAnswer } from '../../engine/queries/answers.ts';
import { certaintyMark } from '../kit/certainty.ts';
import { copyable } from '../kit/copy.ts';
import { decidingFields } from '../kit/deciding.ts';
import { h } from '../kit/element.ts';
import { entryDetails } from '../kit/entry.ts';
import { formatAddress } from '../kit/format.ts';
import { keep, kept, lastStop, onSession, session, unwatch, watch } from '../kit/host.ts';
import { legend, legendMark } from '../kit/legend.ts';
import { emptyState, problem, StopLine } from '../kit/page.ts';
import { Selection } from '../kit/selection.ts';
import { hideTooltip } from '../kit/tooltip.ts';
import { AskBox, type WalkQuery } from './ask.ts';
import { fails, walkCells } from './cells.ts';
import { fieldLevel } from './grid.ts';
import { outcome, registers } from './outcome.ts';
import { drawPath } from './path.ts';
import { ruler } from './ruler.ts';

interface Kept {
  readonly asked: WalkQuery;
}

function isKept(value: unknown): value is Kept {
  return (
    typeof value === 'object' &&
    value !== null &&
    'asked' in value &&
    typeof value.asked === 'object' &&
    value.asked !== null &&
    'address' in value.asked
  );
}

/** The number of the selected reference. */
const selection = new Selection<number>();
let asked = kept(isKept)?.asked;
let watched = '';
let shown: WalkAnswer | undefined;
let stopDrawing = (): void => {};

const view = document.querySelector<HTMLElement>('#view')!;
const stopLine = new StopLine();
const body = h('div', { class: 'walk-body dims' });
const details = h('aside', { class: 'details', 'aria-label': 'Selected entry' });
const askBox = new AskBox(
  (query) => {
    asked = query;
    keep({ asked });
    follow();
  },
  () => {
    asked = undefined;
    keep({});
    follow();
  },
);
const empty = emptyState(
  'No session. Press F5 on a scenario (a .mmu file).',
  'This view follows the session. At a page fault it shows the address in its fields, each table entry that the processor read to translate it, in order, and the one at which it stopped.',
);
view.append(stopLine.element, askBox.element, empty, body);

/** Watches the walk that is to be shown: the asked one, else the stop's. */
function follow(): void {
  const query = asked ?? lastStop()?.walk;
  askBox.show(query ?? { kind: 'walk', vcpu: 0, space: 'gva', address: '0x0' }, asked !== undefined);
  if (!query) {
    if (watched !== '') unwatch('walk');
    watched = '';
    shown = undefined;
    if (lastStop())
      body.replaceChildren(
        h(
          'p',
          { class: 'nothing' },
          'Nothing is being translated at this stop. Type an address above to see its walk.',
        ),
      );
    return;
  }
  const key = JSON.stringify(query);
  if (key === watched) {
    if (shown) draw(shown);
    return;
  }
  watched = key;
  watch('walk', query, receive);
}

function receive(answer: Answer): void {
  if (answer.kind !== 'walk') {
    shown = undefined;
    body.replaceChildren(problem(answer.kind === 'error' ? answer.message : `a ${answer.kind} came instead of a walk`));
    return;
  }
  const same = shown && shown.address === answer.address && shown.references.length === answer.references.length;
  shown = answer;
  if (!same || selection.value === undefined || selection.value > answer.references.length)
    selection.set(answer.references.at(-1)?.number);
  draw(answer);
}

function draw(walk: WalkAnswer): void {
  hideTooltip();
  const focused = body.contains(document.activeElement)
    ? document.activeElement?.getAttribute('data-number')
    : undefined;
  const here = asked === undefined && fails(walk);
  const last = walk.references.at(-1);
  const selected = walk.references.find(({ number }) => number === selection.value);
  const stop = lastStop();
  const says = asked !== undefined || !stop?.sentence.includes(walk.sentence) ? `${walk.sentence}.` : '';
  const cells = walkCells(walk, here, (number) => selection.set(number, 'grid'));
  body.replaceChildren(
    h(
      'div',
      { class: 'walk-picture' },
      says !== '' &&
        h(
          'p',
          { class: 'walk-sentence' },
          `${asked === undefined ? 'Now: ' : ''}${says}`,
          walk.certainty !== 'exact' && certaintyMark(walk.certainty),
        ),
      ruler(walk, here && last ? fieldLevel(last, walk) : undefined, selected ? fieldLevel(selected, walk) : undefined),
      registers(walk),
      walk.references.length > 0 && h('div', { class: 'grid-scroll' }, cells),
      outcome(walk, asked === undefined ? stop : undefined),
    ),
    details,
    legend(
      legendMark('mark-here', 'where it stopped'),
      legendMark('mark-unreached', 'not reached'),
      legendMark('mark-skipped', 'not needed: large page'),
    ),
  );
  stopDrawing();
  stopDrawing = drawPath(cells);
  showSelected(walk);
  if (focused) cells.querySelector<HTMLElement>(`[data-number="${focused}"]`)?.focus();
}

function showSelected(walk: WalkAnswer): void {
  const selected = walk.references.find(({ number }) => number === selection.value);
  for (const cell of body.querySelectorAll<HTMLElement>('button.cell')) {
    const is = cell.dataset.number === `${selected?.number}`;
    cell.classList.toggle('selected', is);
    cell.setAttribute('aria-pressed', `${is}`);
    cell.tabIndex = is ? 0 : -1;
  }
  const level = selected ? fieldLevel(selected, walk) : undefined;
  const fields = body.querySelectorAll('.ruler-field');
  walk.fields.forEach((field, index) => {
    fields[index]?.classList.toggle('selected', field.level === level);
  });
  if (!selected) {
    details.replaceChildren();
    return;
  }
  const { entry, index, note, number, purpose, table, address, stage } = selected;
  // Without tables that say where the host has it, the guest's memory is by its own addresses.
  const place =
    stage === 'guest' && (walk.second === 'shadow' || (walk.second === 'none' && walk.outcome.status !== 'no-root'))
      ? 'gpa'
      : 'hpa';
  details.replaceChildren(
    entryDetails({
      entry,
      index,
      // Says nothing that “not present” does not say.
      note: note === 'empty' ? undefined : note,
      deciding: decidingFields(walk, selected),
      here: asked === undefined && fails(walk),
      facts: [
        ['reference', `${number}, ${selected.stage === 'second' ? 'to locate the ' : 'in the '}${purpose}`],
        [
          'table',
          h(
            'span',
            {},
            `${selected.stage === 'second' ? 'hpa' : 'gpa'} `,
            copyable(formatAddress(table), table, 'table'),
          ),
        ],
        ['entry at', h('span', {}, `${place} `, copyable(formatAddress(address), address, 'address of the entry'))],
        ...(entry.address === undefined
          ? []
          : [['points to', copyable(formatAddress(entry.address), entry.address, 'target')] as const]),
      ],
    }),
  );
}

selection.onChange(() => {
  if (shown) showSelected(shown);
});

onSession((state) => {
  stopLine.show(state);
  const nothing = state.kind === 'none' || (state.kind !== 'stopped' && !state.stop);
  empty.hidden = !nothing;
  askBox.element.hidden = nothing;
  body.hidden = nothing;
  for (const control of askBox.element.elements)
    if (control instanceof HTMLInputElement || control instanceof HTMLButtonElement)
      control.disabled = state.kind !== 'stopped';
  if (state.kind === 'stopped') follow();
});

// Which vCPUs there are; and the reply to a first question brings the stop to a view that opens during one.
watch('roots', { kind: 'roots' }, (answer) => {
  if (answer.kind !== 'roots') return;
  const ids = [...new Set(answer.roots.flatMap(({ vcpus }) => vcpus))].sort((a, b) => a - b);
  askBox.vcpus(ids.length > 0 ? ids : [lastStop()?.walk?.vcpu ?? 0]);
  if (session().kind === 'stopped' && shown)
    askBox.show(
      asked ?? lastStop()?.walk ?? { kind: 'walk', vcpu: 0, space: 'gva', address: '0x0' },
      asked !== undefined,
    );
});
