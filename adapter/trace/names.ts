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
    let hash = 0x811c9dc5;
    for (let at = from; at < to; at++) hash = Math.imul(hash ^ bytes[at]!, 0x01000193);
    let bucket = this.#buckets.get(hash);
    if (bucket === undefined) {
      bucket = [];
      this.#buckets.set(hash, bucket);
    }
    next: for (const entry of bucket) {
      if (entry.bytes.length !== to - from) continue;
      for (let i = 0; i < entry.bytes.length; i++) if (entry.bytes[i] !== bytes[from + i]) continue next;
      return entry.item;
    }
    // A copy, which slice() of Node's Buffer is not.
    const own = new Uint8Array(bytes.subarray(from, to));
    const item = this.#make(this.#decoder.decode(own));
    bucket.push({ bytes: own, item });
    return item;
  }
}
