import { h } from './element.ts';
import { type Box, placeTooltip } from './place.ts';

/** Before a tooltip appears under the pointer, ms: VS Code's own delay for hovers is of this order. */
const DELAY = 350;

const element = h('div', { class: 'tooltip', role: 'tooltip', id: 'tooltip' });
element.hidden = true;
let timer: ReturnType<typeof setTimeout> | undefined;

function show(content: Node, anchor: Box): void {
  if (!element.isConnected) document.body.append(element);
  element.replaceChildren(content);
  element.hidden = false;
  const { width, height } = element.getBoundingClientRect();
  const place = placeTooltip(anchor, { width, height }, { width: innerWidth, height: innerHeight });
  element.style.left = `${place.left}px`;
  element.style.top = `${place.top}px`;
}

export function hideTooltip(): void {
  clearTimeout(timer);
  element.hidden = true;
}

/** Shows a tooltip for a place that is no element, such as something drawn on a canvas. */
export function showTooltipSoon(content: () => Node, anchor: Box): void {
  clearTimeout(timer);
  if (!element.hidden) show(content(), anchor);
  else timer = setTimeout(() => show(content(), anchor), DELAY);
}

/** Gives an element a tooltip, under the pointer and on keyboard focus. */
export function tooltip(target: HTMLElement, content: () => Node): void {
  const anchor = () => target.getBoundingClientRect();
  target.addEventListener('pointerenter', () => {
    hideTooltip();
    timer = setTimeout(() => show(content(), anchor()), DELAY);
  });
  target.addEventListener('pointerleave', hideTooltip);
  target.addEventListener('pointerdown', hideTooltip);
  target.addEventListener('focus', () => {
    if (!target.matches(':focus-visible')) return;
    show(content(), anchor());
    target.setAttribute('aria-describedby', 'tooltip');
  });
  target.addEventListener('blur', () => {
    hideTooltip();
    target.removeAttribute('aria-describedby');
  });
}

window.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') hideTooltip();
});
window.addEventListener('scroll', hideTooltip, true);
window.addEventListener('blur', hideTooltip);
