/** Finds what belongs to a name that stands somewhere in bytes, without making a string of it. */
export class Names<T> {
  readonly #buckets = new Map<number, { readonly bytes: Uint8Array; readonly item: T }[]>();
  readonly #make: (name: string) => T;
  readonly #decoder = new TextDecoder();

  /** @param make what belongs to a name that is met for the first time */
  constructor(make: (name: string) => T) {
    this.#make = make;
  }

  find(bytes: Uint8Array, from: number, to: number): T {
    // Of the few names that a recording has, length and three letters tell most apart; whoever shares a bucket is compared.
    const length = to - from;
    const hash =
      (length << 24) ^
      ((bytes[to - 1] ?? 0) << 16) ^
      ((bytes[from + (length >> 1)] ?? 0) << 8) ^
      (bytes[from + 4] ?? 0);
    let bucket = this.#buckets.get(hash);
    if (bucket === undefined) {
      bucket = [];
      this.#buckets.set(hash, bucket);
    }
    next: for (const entry of bucket) {
      if (entry.bytes.length !== length) continue;
      for (let i = 0; i < length; i++) if (entry.bytes[i] !== bytes[from + i]) continue next;
      return entry.item;
    }
    // A copy, which slice() of Node's Buffer is not.
    const own = new Uint8Array(bytes.subarray(from, to));
    const item = this.#make(this.#decoder.decode(own));
    bucket.push({ bytes: own, item });
    return item;
  }
}
