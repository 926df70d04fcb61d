import type { Pfn } from './memory/words.ts';

/** A frame that has been taken: one that was given back before, or a new one. */
export interface TakenFrame {
  readonly pfn: Pfn;
  readonly recycled: boolean;
}

/** Host frames for KVM's own use, from a first one up; what is given back is taken again, the last first. Each call can be taken back. */
export class TableFrames {
  #next: Pfn;
  readonly #free: Pfn[] = [];

  constructor(first: Pfn) {
    this.#next = first;
  }

  /** The frame that was given back last, else a new one. */
  take(): TakenFrame {
    const recycled = this.#free.pop();
    return { pfn: recycled ?? this.#next++, recycled: recycled !== undefined };
  }

  /** A frame is needed no longer. */
  give(pfn: Pfn): void {
    this.#free.push(pfn);
  }

  /** Takes back the last `take`, which had this outcome. */
  untake({ pfn, recycled }: TakenFrame): void {
    if (recycled) this.#free.push(pfn);
    else this.#next--;
  }

  /** Takes back the last `give`. */
  ungive(): void {
    this.#free.pop();
  }
}
