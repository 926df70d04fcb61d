import type { ErrorAnswer, TableAnswer, TableQuery } from '../../engine/queries/answers.ts';
import { unwatch, watch } from '../kit/host.ts';
import { tableKey } from './model.ts';

/** Tables that stay watched although nothing shows them now: who scrolls back finds them there. */
const SPARE = 200;

/** The tables that the view has asked for. */
export class Tables {
  readonly #answers = new Map<string, TableAnswer | ErrorAnswer>();
  /** In the order of last use. */
  readonly #watched = new Map<string, TableQuery>();
  readonly #changed: () => void;

  constructor(changed: () => void) {
    this.#changed = changed;
  }

  readonly get = (query: TableQuery): TableAnswer | ErrorAnswer | undefined => this.#answers.get(tableKey(query));

  /** Asks for the tables that are needed and are not watched, and gives up those that have been needless for longest. */
  need(queries: Iterable<TableQuery>): void {
    const needed = new Set<string>();
    for (const query of queries) {
      const key = tableKey(query);
      needed.add(key);
      const known = this.#watched.delete(key);
      this.#watched.set(key, query);
      if (known) continue;
      this.#watch(key, query);
    }
    let surplus = this.#watched.size - needed.size - SPARE;
    for (const key of this.#watched.keys()) {
      if (surplus <= 0) break;
      if (needed.has(key)) continue;
      this.#drop(key);
      surplus--;
    }
  }

  clear(): void {
    for (const key of [...this.#watched.keys()]) this.#drop(key);
  }

  #watch(key: string, query: TableQuery): void {
    watch(key, query, (answer) => {
      if (answer.kind !== 'table' && answer.kind !== 'error') return;
      this.#answers.set(key, answer);
      this.#changed();
    });
  }

  #drop(key: string): void {
    unwatch(key);
    this.#watched.delete(key);
    this.#answers.delete(key);
  }
}
