import { Kind } from './history/log.ts';
import type { Machine } from './machine.ts';

/** What a log entry of Kind.INDEX keeps, so that the change can be undone. */
export interface IndexChange {
  readonly map: LoggedMap<unknown>;
  readonly key: number;
  readonly before: unknown;
  readonly after: unknown;
}

/** An index of KVM's beside its tables, such as its reverse maps: every change is logged, and undone with the log. */
export class LoggedMap<V> {
  readonly #entries = new Map<number, V>();
  #observers: ((key: number, before: V | undefined, after: V | undefined) => void)[] | undefined;

  get(key: number): V | undefined {
    return this.#entries.get(key);
  }

  get size(): number {
    return this.#entries.size;
  }

  entries(): IterableIterator<[number, V]> {
    return this.#entries.entries();
  }

  /** Without a value the key is not there any more. */
  set(machine: Machine, key: number, value: V | undefined): void {
    machine.append(Kind.INDEX, key, 0, 0, 0, 0, { map: this, key, before: this.#entries.get(key), after: value });
    this.restore(key, value);
  }

  /** Calls back at every change from now on, undone ones included: for who keeps counts of what is in it. */
  observe(observer: (key: number, before: V | undefined, after: V | undefined) => void): void {
    this.#observers ??= [];
    this.#observers.push(observer);
  }

  restore(key: number, value: V | undefined): void {
    if (this.#observers) for (const observer of this.#observers) observer(key, this.#entries.get(key), value);
    if (value === undefined) this.#entries.delete(key);
    else this.#entries.set(key, value);
  }
}
