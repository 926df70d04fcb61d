import { select as d3select } from 'd3';
import { button, h, svg } from './element.ts';

/** A moment that a timeline goes to. */
export interface TimelineMoment {
  readonly step: number;
  /** Something new begins here: its tick stands out. */
  readonly begins: boolean;
  /** What changed, in one sentence. */
  readonly sentence: string;
  /** Said beside `as of step`. */
  readonly note?: string;
}

/** A place on the line of all moments: `x` from 0 to 1. Equally far apart: most follow each other within few steps, and each must be hit. */
export function placeOfMoment(index: number, count: number): number {
  return count <= 1 ? 1 : index / (count - 1);
}

/** Moments as a line with a tick for each, to go along by pointer and keyboard; the last is now. */
export class Timeline {
  readonly element: HTMLElement;
  readonly #slider: HTMLInputElement;
  readonly #ticks = svg('svg', { class: 'ticks', 'aria-hidden': 'true' });
  readonly #from = h('span', { class: 'quiet' });
  readonly #asOf = h('b', { class: 'as-of' });
  readonly #back: HTMLButtonElement;
  readonly #line: HTMLElement;
  readonly #none = h('p', { class: 'quiet' });
  #moments: readonly TimelineMoment[] = [];

  /** @param go hears of the moment to show; undefined: now */
  constructor(label: string, go: (index: number | undefined) => void) {
    this.#slider = h('input', { type: 'range', min: 0, step: 1, 'aria-label': label });
    this.#back = button('Back to now', () => go(undefined), { class: 'secondary', title: 'Back to now (Escape)' });
    this.#line = h(
      'div',
      {},
      h('div', { class: 'timeline-line' }, this.#ticks, this.#slider),
      h(
        'div',
        { class: 'timeline-ends' },
        this.#from,
        h('span', { class: 'spacer' }),
        this.#asOf,
        this.#back,
        h('span', { class: 'quiet' }, 'now'),
      ),
    );
    this.element = h('section', { class: 'timeline', 'aria-label': 'History' }, this.#line, this.#none);
    this.#slider.addEventListener('input', () => {
      const index = Number(this.#slider.value);
      go(index === this.#moments.length - 1 ? undefined : index);
    });
  }

  /** @param at the moment that is shown; undefined: now. @param none what is said where there are no moments */
  show(moments: readonly TimelineMoment[], at: number | undefined, none: string, more: boolean): void {
    this.#moments = moments;
    const last = moments.length - 1;
    const shown = at ?? last;
    this.#line.hidden = moments.length === 0;
    this.#none.hidden = none === '';
    this.#none.textContent = none;
    this.#slider.max = `${Math.max(0, last)}`;
    this.#slider.value = `${shown}`;
    this.#slider.disabled = last < 1;
    const moment = moments[shown];
    if (!moment) return;
    const { step, sentence, note } = moment;
    this.#slider.setAttribute('aria-valuetext', `${at === undefined ? 'now' : `as of step ${step}`}: ${sentence}`);
    this.#from.textContent = `${more ? 'older ones are forgotten; ' : ''}step ${moments[0]!.step}`;
    this.#asOf.textContent = at === undefined ? '' : `As of step ${step}${note === undefined ? '' : `, ${note}`}`;
    this.#back.hidden = at === undefined;
    const x = (_: TimelineMoment, index: number): string => `${placeOfMoment(index, moments.length) * 100}%`;
    d3select(this.#ticks)
      .selectAll<SVGLineElement, TimelineMoment>('line')
      .data(moments, (_, index) => index)
      .join('line')
      .attr('class', ({ begins }, index) => `tick${begins ? ' begins' : ''}${index === shown ? ' shown' : ''}`)
      .attr('x1', x)
      .attr('x2', x)
      .attr('y1', ({ begins }) => (begins ? 0 : 6))
      .attr('y2', 14);
  }
}
