import { h } from './element.ts';
import type { SessionState } from './host.ts';

/** The line at the top that says where the session is: the stop's own sentence, the same as everywhere. */
export class StopLine {
  readonly element = h('header', { class: 'stop-line', 'aria-live': 'polite' });
  readonly #sentence = h('p', { class: 'sentence' });
  readonly #state = h('p', { class: 'state' });

  constructor() {
    this.element.append(this.#sentence, this.#state);
  }

  show(state: SessionState): void {
    const stop = state.kind === 'none' ? undefined : state.stop;
    this.#sentence.textContent = stop?.sentence ?? '';
    this.#sentence.hidden = !stop;
    this.element.classList.toggle('fault', state.kind === 'stopped' && stop?.fault !== undefined);
    const words = {
      none: '',
      stopped: '',
      running: stop ? 'Running. This is the last stop.' : 'Running.',
      ended: stop ? 'The session has ended. This is its last stop.' : 'The session has ended.',
    }[state.kind];
    this.#state.textContent = words;
    this.#state.hidden = words === '';
    document.body.classList.toggle('past', state.kind === 'running' || state.kind === 'ended');
  }
}

/** What a view says when there is nothing to show yet. */
export function emptyState(title: string, ...lines: readonly string[]): HTMLElement {
  return h(
    'section',
    { class: 'empty-state' },
    h('p', { class: 'empty-title' }, title),
    ...lines.map((line) => h('p', {}, line)),
  );
}

/** An answer that is an error, in words. */
export function problem(message: string): HTMLElement {
  return h('p', { class: 'problem', role: 'alert' }, message);
}
