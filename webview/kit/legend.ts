import { h } from './element.ts';
import { lookOf, lookOfRights } from './permissions.ts';
import { swatch } from './swatch.ts';

/** What colours and patterns mean. `marks` adds a view's own. */
export function legend(...marks: readonly HTMLElement[]): HTMLElement {
  const item = (look: Parameters<typeof swatch>[0], words: string) =>
    h('span', { class: 'legend-item', role: 'listitem' }, swatch(look), words);
  return h(
    'div',
    { class: 'legend', role: 'list', 'aria-label': 'Legend' },
    ...['r--', 'rw-', 'r-x', 'rwx'].map((rights) => item(lookOfRights(rights), rights)),
    item(lookOfRights('r--u'), 'user'),
    item(lookOfRights('rwx', true), 'table'),
    item(lookOf({ state: 'absent', rights: '---' }), 'absent'),
    item(lookOf({ state: 'malformed', rights: '---' }), 'malformed'),
    ...marks,
  );
}

export function legendMark(className: string, words: string): HTMLElement {
  return h('span', { class: 'legend-item', role: 'listitem' }, h('span', { class: className }), words);
}
