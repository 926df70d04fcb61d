import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { TraceError } from './errors.ts';
import { unzstd } from './zstd.ts';

const lacks = spawnSync('zstd', ['--version']).error && 'there is no zstd';

function pack(bytes: Uint8Array, level: number): Uint8Array {
  const { status, stdout } = spawnSync('zstd', ['-q', `-${level}`, '-c'], { input: bytes, maxBuffer: 1 << 26 });
  assert.equal(status, 0);
  return new Uint8Array(stdout);
}

/** Bytes of every sort: none, one, one again and again, a few letters, noise, what repeats near and far. */
function samples(): Uint8Array[] {
  let state = 1;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 8;
  };
  const text = Array.from({ length: 30_000 }, () => `gfn ${next() % 500} spte ${(next() % 9).toString(2)}\n`).join('');
  return [
    new Uint8Array(0),
    Uint8Array.of(7),
    new Uint8Array(300_000),
    Uint8Array.from({ length: 200_000 }, () => 97 + (next() % 8)),
    Uint8Array.from({ length: 200_000 }, () => Math.min(255, Math.floor(255 * (next() / (1 << 24)) ** 6))),
    Uint8Array.from({ length: 50_000 }, () => next() & 255),
    new TextEncoder().encode(text),
  ];
}

test('what zstd packs is unpacked, at every level', { skip: lacks ?? false }, () => {
  for (const [i, sample] of samples().entries()) {
    for (const level of [1, 3, 7, 19]) {
      const packed = pack(sample, level);
      assert.equal(Buffer.compare(unzstd(packed, sample.length), sample), 0, `sample ${i}, level ${level}`);
      if (sample.length > 0) assert.throws(() => unzstd(packed, sample.length - 1), TraceError);
    }
  }
});

test('a raw block and a run, and what is no frame', () => {
  // RFC 8878, 3.1.1: a single segment of 5 bytes; 3 as they are, then 2 of one.
  const frame = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 5, 3 << 3, 0, 0, 1, 2, 3, (2 << 3) | 2 | 1, 0, 0, 9];
  assert.deepEqual([...unzstd(Uint8Array.from(frame), 5)], [1, 2, 3, 9, 9]);
  for (let length = 0; length < frame.length; length++)
    assert.throws(() => unzstd(Uint8Array.from(frame.slice(0, length)), 5), TraceError);
  assert.throws(() => unzstd(Uint8Array.from(frame), 4), /more than the 4 bytes/);
  assert.throws(() => unzstd(Uint8Array.of(1, 2, 3, 4, 5), 4), /no frame/);
});
