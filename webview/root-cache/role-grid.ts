import { h } from '../kit/element.ts';
import { fieldWords, type RoleCell } from './roles.ts';

/** A role's fields as a labelled grid. One that differs says from what: `0 ≠ 1`, framed and bold. */
export function roleGrid(cells: readonly RoleCell[], label: string): HTMLElement {
  return h(
    'dl',
    { class: 'role-grid', 'aria-label': label },
    ...cells.map(({ name, value, wanted }) => {
      const words = fieldWords(name, value);
      const other = wanted === undefined ? undefined : fieldWords(name, wanted);
      return h(
        'div',
        {
          class: `role-cell${other === undefined ? '' : ' differs'}${value === 0 ? ' zero' : ''}`,
          'data-name': name,
          title: other === undefined ? `${name} is ${words}` : `${name} is ${words}; the wanted root role has ${other}`,
        },
        h('dt', { class: 'mono' }, name),
        h('dd', { class: 'mono' }, words, other !== undefined && h('span', { class: 'wanted' }, ` ≠ ${other}`)),
      );
    }),
  );
}
