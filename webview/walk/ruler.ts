import type { AddressField, WalkAnswer } from '../../engine/queries/answers.ts';
import { copyable } from '../kit/copy.ts';
import { h } from '../kit/element.ts';
import { formatAddress, formatBits, shortEntry } from '../kit/format.ts';

/** Digits that the field can have: all of them are shown, as the offset's zeros are part of the address. */
function hexDigits(field: AddressField): string {
  return field.value.toString(16).padStart(Math.ceil((field.bits[0] - field.bits[1] + 1) / 4), '0');
}

/** The address, split into the indices that the walk uses. `here` marks the field at which the stop's walk ended. */
export function ruler(walk: WalkAnswer, here: number | undefined, selected: number | undefined): HTMLElement {
  return h(
    'section',
    { class: 'ruler', 'aria-label': `${walk.space} ${walk.address} in its fields` },
    h(
      'div',
      { class: 'ruler-address' },
      h('span', { class: 'quiet' }, `${walk.space} `),
      copyable(formatAddress(walk.address), walk.address, 'address'),
    ),
    h(
      'div',
      { class: 'ruler-fields', role: 'list' },
      ...walk.fields.map((field) => {
        const classes = [
          'ruler-field',
          field.level === 0 && 'offset',
          field.level === here && 'here',
          field.level === selected && 'selected',
        ];
        return h(
          'div',
          {
            class: classes.filter(Boolean).join(' '),
            role: 'listitem',
            title: `bits ${formatBits(field.bits)}${field.level > 0 ? `, level ${field.number}` : ''}`,
          },
          h('span', { class: 'ruler-name' }, shortEntry(field.name)),
          field.level > 0 && h('span', { class: 'ruler-value mono' }, `${field.value}`),
          h('span', { class: 'ruler-hex mono' }, `0x${hexDigits(field)}`),
        );
      }),
    ),
  );
}
