import { select as d3select } from 'd3';
import type { RootCacheMoment } from '../../engine/queries/answers.ts';
import { button, h, svg } from '../kit/element.ts';
import { momentSentence, placeMoments, type Tick } from './moments.ts';

/** A vCPU's moments as a line with a tick for each, to go along by pointer and keyboard; the last is now. */
export class Timeline {
  readonly element: HTMLElement;
  readonly #slider = h('input', { type: 'range', min: 0, step: 1, 'aria-label': 'Changes of the roots' });
  readonly #ticks = svg('svg', { class: 'ticks', 'aria-hidden': 'true' });
  readonly #from = h('span', { class: 'quiet' });
  readonly #asOf = h('b', { class: 'as-of' });
  readonly #back: HTMLButtonElement;
  readonly #line: HTMLElement;
  readonly #none = h('p', { class: 'quiet' });
  #moments: readonly RootCacheMoment[] = [];

  /** @param go hears of the moment to show; undefined: now */
  constructor(go: (index: number | undefined) => void) {
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
  show(moments: readonly RootCacheMoment[], at: number | undefined, none: string, more: boolean): void {
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
    this.#slider.setAttribute(
      'aria-valuetext',
      `${at === undefined ? 'now' : `as of step ${moment.step}`}: ${momentSentence(moment, moments[shown - 1])}`,
    );
    this.#from.textContent = `${more ? 'older ones are forgotten; ' : ''}step ${moments[0]!.step}`;
    this.#asOf.textContent = at === undefined ? '' : `As of step ${moment.step}, wanted role ${moment.rootRole}`;
    this.#back.hidden = at === undefined;
    d3select(this.#ticks)
      .selectAll<SVGLineElement, Tick>('line')
      .data(placeMoments(moments), ({ index }) => index)
      .join('line')
      .attr('class', ({ index, begins }) => `tick${begins ? ' begins' : ''}${index === shown ? ' shown' : ''}`)
      .attr('x1', ({ x }) => `${x * 100}%`)
      .attr('x2', ({ x }) => `${x * 100}%`)
      .attr('y1', ({ begins }) => (begins ? 0 : 6))
      .attr('y2', 14);
  }
}
