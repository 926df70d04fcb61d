import type { Certainty } from '../../engine/queries/answers.ts';
import { h } from './element.ts';

const WORDS: Readonly<Record<Certainty, string>> = {
  exact: 'exact',
  inferred: 'inferred',
  stale: 'stale',
  unknown: 'not told',
};
const MEANINGS: Readonly<Record<Certainty, string>> = {
  exact: 'Read where it is.',
  inferred: 'Worked out from what was recorded; nothing contradicts it.',
  stale: 'It was so once: something has happened since that was not told.',
  unknown: 'Nobody has told it.',
};

/** How far a value can be trusted, as a word with a border: solid where it is so, dashed where it follows from other things. */
export function certaintyMark(certainty: Certainty, why = ''): HTMLElement {
  return h(
    'span',
    { class: `certainty ${certainty}`, title: why === '' ? MEANINGS[certainty] : `${MEANINGS[certainty]} ${why}` },
    WORDS[certainty],
  );
}
