/** A 32-bit hash of numbers: the same always, so that a case is made from its seed and number alone. */
function hash(...values: readonly number[]): number {
  let state = 0x9e3779b9;
  for (const value of values) {
    state = Math.imul(state ^ (value | 0), 0x85ebca6b);
    state ^= state >>> 13;
    state = Math.imul(state, 0xc2b2ae35);
    state ^= state >>> 16;
  }
  return state >>> 0;
}

/** Random numbers that two numbers determine. */
export class Random {
  readonly #seed: number;
  #count = 0;

  constructor(seed: number, number: number) {
    this.#seed = hash(seed, number);
  }

  /** 0 … limit − 1, for limits to 2³². */
  below(limit: number): number {
    return hash(this.#seed, this.#count++) % limit;
  }

  /** True once in `often` times. */
  once(often: number): boolean {
    return this.below(often) === 0;
  }

  pick<T>(among: readonly T[]): T {
    return among[this.below(among.length)]!;
  }

  /** Random bits, to 64. */
  bits(count: number): bigint {
    return BigInt.asUintN(count, (BigInt(this.below(2 ** 32)) << 32n) | BigInt(this.below(2 ** 32)));
  }
}
