import type { StopAnswer, WalkAnswer } from '../../engine/queries/answers.ts';
import { copyable } from '../kit/copy.ts';
import { h } from '../kit/element.ts';
import { formatAddress, formatSize } from '../kit/format.ts';
import { lookOfRights, rightsWords } from '../kit/permissions.ts';
import { swatch } from '../kit/swatch.ts';

/** What the walk came to; the reason only when it has not been said above. */
export function outcome(walk: WalkAnswer, stop: StopAnswer | undefined): HTMLElement {
  const { status, gpa, hpa, guestSize, secondSize, rights, errorCode, exitInfo, reason } = walk.outcome;
  const facts: [string, Node | string][] = [];
  if (status !== 'done' && !stop?.sentence.includes(reason)) facts.push(['because', reason]);
  if (gpa !== undefined) facts.push(['gpa', copyable(formatAddress(gpa), gpa, 'gpa')]);
  if (hpa !== undefined) facts.push(['hpa', copyable(formatAddress(hpa), hpa, 'hpa')]);
  const sizes = [
    guestSize && `guest ${formatSize(guestSize)}`,
    secondSize && `${walk.secondName} ${formatSize(secondSize)}`,
  ];
  if (sizes.some(Boolean)) facts.push(['page', sizes.filter(Boolean).join(', ')]);
  if (rights !== undefined)
    facts.push([
      'rights',
      h('span', { class: 'rights' }, swatch(lookOfRights(rights)), rightsWords({ state: 'leaf', rights })),
    ]);
  if (errorCode !== undefined) {
    // `0x6 W|U`: the number is there already.
    const words = stop?.fault?.errorCode === errorCode ? stop.fault.errorWords.replace(/^0x\S+ ?/, '') : '';
    facts.push([
      'error code',
      h('span', {}, copyable(formatAddress(errorCode), errorCode, 'error code'), words && ` ${words}`),
    ]);
  }
  if (exitInfo !== undefined)
    facts.push([
      walk.second.startsWith('ept') ? 'qualification' : 'exit info',
      copyable(formatAddress(exitInfo), exitInfo, 'exit information'),
    ]);
  return h(
    'section',
    { class: 'outcome', 'aria-label': 'Outcome' },
    h('dl', { class: 'facts' }, ...facts.flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
  );
}

/** Registers that count in the walk; those that the outcome names stand out. */
export function registers(walk: WalkAnswer): HTMLElement {
  return h(
    'ul',
    { class: 'registers', 'aria-label': 'Registers that count' },
    ...walk.registers.map(({ name, value }) => {
      const short = name.split('.').at(-1)!;
      const counts = walk.outcome.status !== 'done' && new RegExp(`\\b${short}\\b`).test(walk.outcome.reason);
      return h(
        'li',
        { class: counts ? 'counts' : undefined },
        `${name} `,
        copyable(value.startsWith('0x') ? formatAddress(value) : value, value, name),
      );
    }),
  );
}
