import { h } from './element.ts';

/** Puts text on the clipboard; through a selection where the page may not use the clipboard itself. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h('textarea', { class: 'offscreen', 'aria-hidden': 'true', tabindex: -1 });
    const focused = document.activeElement;
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand('copy');
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}

/** A value that a click, Enter or Ctrl+C copies. `text` is what is copied, `shown` what is seen. */
export function copyable(shown: string, text: string, what: string): HTMLElement {
  const element = h('button', { type: 'button', class: 'copyable mono', title: `Copy ${what} ${text}` }, shown);
  const copy = async (): Promise<void> => {
    if (!(await copyText(text))) return;
    element.classList.add('copied');
    setTimeout(() => element.classList.remove('copied'), 900);
  };
  element.addEventListener('click', (event) => {
    event.stopPropagation();
    void copy();
  });
  element.addEventListener('keydown', (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === 'c' && !getSelection()?.toString()) {
      event.preventDefault();
      void copy();
    }
  });
  return element;
}
