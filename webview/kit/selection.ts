/** One selected thing, shared by the parts of a view. Listeners hear which part selected it, to not answer themselves. */
export class Selection<T> {
  #value: T | undefined;
  readonly #listeners: ((value: T | undefined, source: unknown) => void)[] = [];

  get value(): T | undefined {
    return this.#value;
  }

  set(value: T | undefined, source?: unknown): void {
    this.#value = value;
    for (const listener of this.#listeners) listener(value, source);
  }

  onChange(listener: (value: T | undefined, source: unknown) => void): void {
    this.#listeners.push(listener);
  }
}
