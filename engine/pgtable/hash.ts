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
  // Two multiplicative lanes with different odd constants (those of MurmurHash3 and xxHash), mixed at the end.
  let a = 0x9747b28c;
  let b = 0x27d4eb2f;
  for (let visit = walker.next(); visit !== DONE; visit = walker.next()) {
    let { lo, hi } = walker;
    if (visit === TABLE_PRE) {
      lo &= ~format.anyAddressLo[2 * walker.level]!;
      hi &= ~format.addressHi[2 * walker.level]!;
    }
    const place = (walker.level << 16) | (walker.index << 1) | (visit === TABLE_PRE ? 1 : 0);
    for (const word of [place, lo, hi]) {
      a = Math.imul(a ^ word, 0xcc9e2d51);
      a = (a << 15) | (a >>> 17);
      b = Math.imul(b + word, 0x9e3779b1);
      b = (b << 13) | (b >>> 19);
    }
  }
  return `0x${(finish(a) >>> 0).toString(16).padStart(8, '0')}${(finish(b ^ a) >>> 0).toString(16).padStart(8, '0')}`;
}

function finish(word: number): number {
  word ^= word >>> 16;
  word = Math.imul(word, 0x85ebca6b);
  word ^= word >>> 13;
  word = Math.imul(word, 0xc2b2ae35);
  return word ^ (word >>> 16);
}
