import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  backingPfn,
  disallowsHugePage,
  frameRange,
  hostMappingLevel,
  type Memslot,
  Memslots,
  newBacking,
  withMoved,
} from './memslots.ts';
import { PhysicalMemory } from './physical.ts';
import { formatSize, frameHi, frameLo, frameOf } from './words.ts';

const slot = (id: number, base: number, pages: number, change: Partial<Memslot> = {}): Memslot => ({
  id,
  base,
  pages,
  readonly: false,
  logDirty: false,
  invalid: false,
  backing: newBacking(0x100000 + base, pages, 3),
  ...change,
});

test('a slot is found by any of its frames and by no other', () => {
  const slots = new Memslots()
    .with(slot(1, 100, 10))
    .with(slot(0, 0, 50))
    .with(slot(2, 110, 5));
  for (const [gfn, id] of [
    [0, 0],
    [49, 0],
    [100, 1],
    [109, 1],
    [110, 2],
    [114, 2],
  ] as const)
    assert.equal(slots.find(gfn)?.id, id);
  for (const gfn of [50, 99, 115, 2 ** 39]) assert.equal(slots.find(gfn), undefined);
  assert.deepEqual(
    slots.overlapping(49, 101).map((found) => found.id),
    [0, 1],
  );
  assert.equal(slots.generation, 3);
});

test('slots that overlap, are empty or out of range are refused by name', () => {
  const slots = new Memslots().with(slot(0, 16, 16));
  const refuses = (bad: Memslot, message: RegExp) => assert.throws(() => slots.with(bad), { message });
  refuses(slot(1, 31, 1), /slot 1 \(gpa 0x1f000 \+4K\) overlaps slot 0 \(gpa 0x10000 \+64K\)/);
  refuses(slot(1, 0, 17), /overlaps slot 0/);
  refuses(slot(1, 0, 0), /at least one page/);
  refuses(slot(-1, 0, 1), /slot id -1 is out of range/);
  refuses(slot(40000, 0, 1), /slot id 40000 is out of range/);
  refuses(slot(1, 2 ** 40 - 1, 2), /beyond guest-physical bit 51/);
  assert.equal(slots.with(slot(0, 20, 16)).find(35)?.id, 0, 'a slot may take its own place');
  assert.equal(slots.with(slot(1, 32, 1)).list.length, 2);
  assert.throws(() => slots.without(7), { message: 'there is no slot 7; slots: 0' });
  assert.throws(() => frameRange('slot 3', 0x1001n, 0x1000n), {
    message: 'slot 3: start 0x1001 is not a multiple of 4K',
  });
  assert.throws(() => frameRange('slot 3', 0n, 0n), { message: 'slot 3: size must be at least 4K' });
});

test('the host’s mapping limits a page’s size: its page size, and pages that were moved', () => {
  const big = slot(0, 0, 512 * 512 * 2);
  assert.equal(hostMappingLevel(big, 5), 3);
  assert.equal(hostMappingLevel(slot(0, 0, 512 * 512, { backing: { ...big.backing, pageLevel: 2 } }), 5), 2);
  const moved = slot(0, 0, 512 * 512 * 2, { backing: withMoved(big.backing, new Map([[700, 9]])) });
  assert.equal(backingPfn(moved, 700), 9);
  assert.equal(backingPfn(moved, 701), 0x100000 + 701);
  assert.equal(hostMappingLevel(moved, 701), 1);
  assert.equal(hostMappingLevel(moved, 5), 2);
  assert.equal(hostMappingLevel(moved, 512 * 512 + 5), 3);
});

test('a large page must lie within its slot, and guest and host must be aligned alike', () => {
  const odd = slot(0, 256, 1024, { backing: newBacking(0x100100, 1024, 2) });
  assert.equal(disallowsHugePage(odd, 300, 2), true);
  assert.equal(disallowsHugePage(odd, 512, 2), false);
  assert.equal(disallowsHugePage(odd, 1024, 2), true);
  const skewed = slot(0, 0, 1024, { backing: newBacking(0x100001, 1024, 2) });
  assert.equal(disallowsHugePage(skewed, 0, 2), true);
});

test('a clone shares pages until one side writes, and neither sees the other’s writes', () => {
  const memory = new PhysicalMemory();
  memory.writable(7)[3] = 1;
  memory.writable(2 ** 30)[3] = 2;
  const copy = memory.clone();
  assert.equal(copy.page(7), memory.page(7));
  copy.writable(7)[3] = 5;
  memory.writable(7)[4] = 6;
  copy.writable(8)[0] = 9;
  assert.deepEqual([memory.page(7)[3], memory.page(7)[4], copy.page(7)[3], copy.page(7)[4]], [1, 6, 5, 0]);
  assert.equal(memory.isWritten(8), false);
  assert.equal(copy.page(2 ** 30)[3], 2);
  memory.drop(7);
  assert.equal(memory.page(7)[3], 0);
  assert.equal(copy.page(7)[3], 5);
  assert.deepEqual([...copy.frames()], [7, 8, 2 ** 30]);
});

test('frames and words convert without loss up to bit 51', () => {
  for (const frame of [0, 1, 0xfffff, 0x100000, 2 ** 39 + 12345, 2 ** 40 - 1])
    assert.equal(frameOf(frameLo(frame), frameHi(frame)), frame);
  assert.deepEqual([4096, 2097152, 2 ** 30, 5000, 512].map(formatSize), ['4K', '2M', '1G', '5000', '512']);
});
