import type { Tables, Tree } from './tables.ts';
import { ABSENT_TOO, DONE, LEAF, READ_ONLY, TABLE_PRE, Walker } from './walker.ts';

/**
 * A 64-bit hash of every entry of a tree in walk order: level, index and value, absent entries included, but without
 * the address part of table entries. Two trees that map alike with tables at other addresses hash alike (seed S5).
 * @throws PgtableError on a tree that contains itself.
 */
export function hashTables(tables: Tables, tree: Tree): string {
  const { format } = tree;
  const walker = new Walker(tables, tree, 0, format.inputFrames, LEAF | ABSENT_TOO | TABLE_PRE | READ_ONLY);
  const hash = new WordHash();
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    let { lo, hi } = walker;
    if (visit === TABLE_PRE) {
      lo &= ~format.anyAddressLo[2 * walker.level]!;
      hi &= ~format.addressHi[2 * walker.level]!;
    }
    const place = (walker.level << 16) | (walker.index << 1) | (visit === TABLE_PRE ? 1 : 0);
    hash.add(place);
    hash.add(lo);
    hash.add(hi);
  }
  return hash.digest();
}

/** 64 bits of words in their order: two multiplicative lanes with different odd constants (those of MurmurHash3 and xxHash), mixed at the end. */
export class WordHash {
  #a = 0x9747b28c;
  #b = 0x27d4eb2f;

  /** @param word 32 bits */
  add(word: number): void {
    this.#a = Math.imul(this.#a ^ word, 0xcc9e2d51);
    this.#a = (this.#a << 15) | (this.#a >>> 17);
    this.#b = Math.imul(this.#b + word, 0x9e3779b1);
    this.#b = (this.#b << 13) | (this.#b >>> 19);
  }

  digest(): string {
    const words = [finish(this.#a), finish(this.#b ^ this.#a)];
    return `0x${words.map((word) => (word >>> 0).toString(16).padStart(8, '0')).join('')}`;
  }
}

function finish(word: number): number {
  word ^= word >>> 16;
  word = Math.imul(word, 0x85ebca6b);
  word ^= word >>> 13;
  word = Math.imul(word, 0xc2b2ae35);
  return word ^ (word >>> 16);
}
