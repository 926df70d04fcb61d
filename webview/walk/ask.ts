import type { Query } from '../../engine/queries/answers.ts';
import { button, h, select } from '../kit/element.ts';
import { parseAddress } from '../kit/format.ts';

export type WalkQuery = Extract<Query, { kind: 'walk' }>;

/** Asks for the walk of another address than the stop's. */
export class AskBox {
  readonly element: HTMLFormElement;
  readonly #address = h('input', {
    type: 'text',
    size: 20,
    spellcheck: 'false',
    autocomplete: 'off',
    placeholder: 'Walk another address',
    'aria-label': 'Address to walk, hexadecimal',
  });
  readonly #space = select('Address space', { gva: 'gva', gpa: 'gpa' });
  readonly #access = select('Access', { read: 'read', write: 'write', fetch: 'fetch' });
  readonly #cpl = select('Privilege', { 0: 'CPL 0', 3: 'CPL 3' });
  readonly #vcpu = select('vCPU', { 0: 'vCPU 0' });
  readonly #error = h('span', { class: 'ask-error', role: 'alert' });
  readonly #back: HTMLButtonElement;

  constructor(ask: (query: WalkQuery) => void, back: () => void) {
    this.#back = button('Back to the stop', back, { class: 'secondary' });
    this.#back.hidden = true;
    this.#vcpu.hidden = true;
    this.element = h(
      'form',
      { class: 'toolbar', role: 'search' },
      this.#address,
      this.#space,
      this.#access,
      this.#cpl,
      this.#vcpu,
      h('button', { type: 'submit', class: 'secondary' }, 'Walk'),
      this.#back,
      this.#error,
    );
    this.#space.addEventListener('change', () => {
      this.#cpl.disabled = this.#space.value === 'gpa';
    });
    this.element.addEventListener('submit', (event) => {
      event.preventDefault();
      const parsed = parseAddress(this.#address.value);
      this.#error.textContent = 'error' in parsed ? parsed.error : '';
      this.#address.toggleAttribute('aria-invalid', 'error' in parsed);
      if ('error' in parsed) return;
      const access = this.#access.value;
      ask({
        kind: 'walk',
        vcpu: Number(this.#vcpu.value),
        space: this.#space.value === 'gpa' ? 'gpa' : 'gva',
        address: parsed.address,
        access: access === 'write' || access === 'fetch' ? access : 'read',
        cpl: this.#cpl.value === '3' ? 3 : 0,
      });
    });
  }

  /** Sets the controls to a walk that is shown, so that a small change to it is a small change here. */
  show(query: WalkQuery, asked: boolean): void {
    this.#back.hidden = !asked;
    this.#space.value = query.space;
    this.#access.value = query.access ?? 'read';
    this.#cpl.value = `${query.cpl ?? 0}`;
    this.#cpl.disabled = query.space === 'gpa';
    this.#vcpu.value = `${query.vcpu}`;
    if (asked) this.#address.value = query.address;
    else if (document.activeElement !== this.#address) this.#address.value = '';
    this.#error.textContent = '';
  }

  vcpus(ids: readonly number[]): void {
    const chosen = this.#vcpu.value;
    this.#vcpu.replaceChildren(...ids.map((id) => h('option', { value: id }, `vCPU ${id}`)));
    this.#vcpu.value = ids.includes(Number(chosen)) ? chosen : `${ids[0] ?? 0}`;
    this.#vcpu.hidden = ids.length < 2;
  }
}
