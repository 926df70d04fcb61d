import { PhysicalMemory } from '../../engine/memory/physical.ts';

/** A 32-bit hash of numbers: the same always, so that memory needs no storing. */
export function hash(...values: readonly number[]): number {
  let state = 0x9e3779b9;
  for (const value of values) {
    state = Math.imul(state ^ (value | 0), 0x85ebca6b);
    state ^= state >>> 13;
    state = Math.imul(state, 0xc2b2ae35);
    state ^= state >>> 16;
  }
  return state >>> 0;
}

/** Bits of a hash, taken from its low end one after the other. */
export class Bits {
  #state: number;
  #count = 0;

  constructor(seed: number) {
    this.#state = seed;
  }

  below(limit: number): number {
    this.#state = hash(this.#state, this.#count++);
    return this.#state % limit;
  }

  /** True once in `often` times. */
  once(often: number): boolean {
    return this.below(often) === 0;
  }
}

/** What lies at an 8-byte-aligned physical address. */
export type EntryAt = (address: bigint) => bigint;

/** Memory that is made of a function, as the oracle reads it and as the engine does. */
export function functionMemory(entryAt: EntryAt): {
  readonly engine: PhysicalMemory;
  readonly oracle: { read(address: bigint, bytes: 4 | 8): bigint };
} {
  const engine = new PhysicalMemory({
    page(pfn) {
      const page = new Uint32Array(1024);
      for (let index = 0; index < 512; index++) {
        const value = entryAt(BigInt(pfn) * 4096n + BigInt(index * 8));
        page[2 * index] = Number(value & 0xffffffffn);
        page[2 * index + 1] = Number(value >> 32n);
      }
      return page;
    },
  });
  const oracle = {
    read(address: bigint, bytes: 4 | 8): bigint {
      const aligned = entryAt(address & ~7n);
      if (bytes === 8) return aligned;
      return (address & 4n) === 0n ? aligned & 0xffffffffn : aligned >> 32n;
    },
  };
  return { engine, oracle };
}
