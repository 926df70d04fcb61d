import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AttributesAnswer, CellFacts } from '../../engine/queries/answers.ts';
import { cellSize, coverView, factsAt, makeTile, type Tile, tileEnd, tilesFor } from './layout.ts';
import { bandsOf, type CellLook } from './looks.ts';

const K = 1024;
const GIGABYTE = 2 ** 30;
const SHARED: CellFacts = { slot: 'all', gmem: 'all', private: 'none', stages: [null] };
const PRIVATE: CellFacts = { ...SHARED, private: 'all' };
const bands = bandsOf({ stages: ['NPT'], rmp: true, frames: true });
const looks = bands.map(({ look }) => look);

function answer(start: number, size: number, facts: CellFacts[], runs: number[]): AttributesAnswer {
  const cells = runs.filter((_, at) => at % 2 === 0).reduce((sum, each) => sum + each, 0);
  return {
    kind: 'attributes',
    certainty: 'exact',
    start: `0x${start.toString(16)}`,
    cellSize: size,
    cells,
    facts,
    runs,
  };
}

const tileOf = (cell: number, index: number): Tile<CellLook> =>
  makeTile({ cell, index }, answer(index * 1024 * cell, cell, [SHARED], [1024, 0]), looks);

test('a cell is a page where one is wider than a pixel, and else between one and two pixels', () => {
  assert.equal(cellSize({ start: 0, size: 64 * K }, 800), 4 * K);
  assert.equal(cellSize({ start: 0, size: 800 * 4 * K }, 800), 4 * K);
  for (const size of [5 * 2 ** 20, GIGABYTE, 1000 * GIGABYTE]) {
    const cell = cellSize({ start: 0, size }, 800);
    const pixels = (cell / size) * 800;
    assert.ok(pixels >= 1 && pixels < 2, `${size}: ${pixels}`);
    assert.equal(Math.log2(cell) % 1, 0);
  }
});

test('few tiles show any view, and they cover it', () => {
  for (const size of [4 * K, 3 * 2 ** 20, 77 * GIGABYTE, 1024 * GIGABYTE])
    for (const start of [0, 4 * K, 13 * GIGABYTE]) {
      const tiles = tilesFor({ start, size }, 900);
      assert.ok(tiles.length <= 3, `${tiles.length} tiles`);
      assert.ok(tiles[0]!.index * 1024 * tiles[0]!.cell <= start);
      assert.ok(tileEnd(tiles.at(-1)!) >= start + size);
    }
});

test('until the best has come, what is known at other scales is drawn in its place, the coarsest first', () => {
  const view = { start: 0, size: 8 * 2 ** 20 };
  const best = tilesFor(view, 800)[0]!;
  assert.deepEqual(coverView(view, 800, []), []);
  const coarse = tileOf(best.cell * 64, 0);
  const fine = tileOf(4 * K, 0);
  const drawn = coverView(view, 800, [fine, coarse]);
  assert.deepEqual(
    drawn.map(({ tile, start, end }) => [tile.cell, start, end]),
    [
      [coarse.cell, 0, view.size],
      [fine.cell, 0, 4 * 2 ** 20],
    ],
  );
  const exact = tileOf(best.cell, best.index);
  assert.deepEqual(
    coverView(view, 800, [fine, coarse, exact]).map(({ tile }) => tile.cell),
    [best.cell],
  );
});

test('cells that look alike in a band are joined there, and not in others', () => {
  const mapped: CellFacts = {
    ...SHARED,
    stages: [{ mapped: 'all', levels: [1], frames: 'shared', stale: 'none', dirty: 'none' }],
  };
  const tile = makeTile(
    { cell: 4096, index: 0 },
    answer(0, 4096, [SHARED, mapped, PRIVATE], [4, 0, 4, 1, 1016, 2]),
    looks,
  );
  const spans = (band: number) =>
    tile.bands[band]!.map(({ start, end, look }) => [start / 4096, end / 4096, look.words[0]]);
  assert.deepEqual(spans(0), [
    [0, 8, 'shared'],
    [8, 1024, 'private'],
  ]);
  assert.deepEqual(spans(3), [
    [0, 4, 'not mapped'],
    [4, 8, '4K shared'],
    [8, 1024, 'not mapped'],
  ]);
});

test('what has changed in one band stands apart there alone', () => {
  const changed: CellFacts = { ...PRIVATE, changed: ['attribute'] };
  const tile = makeTile({ cell: 4096, index: 0 }, answer(0, 4096, [PRIVATE, changed], [7, 0, 1, 1, 1016, 0]), looks);
  assert.deepEqual(
    tile.bands.map((spans) => spans.filter(({ look }) => look.isChanged).map(({ start }) => start / 4096)),
    [[7], [], [], []],
  );
  assert.equal(tile.bands[1]!.length, 1);
});

test('of a place the finest that is known is told', () => {
  const coarse = makeTile({ cell: 2 ** 21, index: 0 }, answer(0, 2 ** 21, [SHARED], [1024, 0]), looks);
  const fine = makeTile({ cell: 4096, index: 0 }, answer(0, 4096, [SHARED, PRIVATE], [3, 0, 1021, 1]), looks);
  assert.equal(factsAt([coarse, fine], 3 * 4096)?.facts, PRIVATE);
  assert.deepEqual(factsAt([fine, coarse], 2 ** 22), { facts: SHARED, cell: 2 ** 21 });
  assert.equal(factsAt([coarse, fine], 2 ** 40), undefined);
});

test('private and shared, whole and part, 4K and 2M look different without colour', () => {
  const paints = new Map<string, string>();
  for (const facts of [SHARED, PRIVATE, { ...SHARED, private: 'some' as const }]) {
    const { paint } = bands[0]!.look(facts)!;
    paints.set(JSON.stringify(paint!.lines), paint!.name);
  }
  assert.equal(paints.size, 3);
  const rmp = (large: 'none' | 'all', validated: 'none' | 'all', assigned: 'some' | 'all' = 'all') =>
    bands[1]!.look({ ...PRIVATE, folios: 'all', rmp: { assigned, large, validated } })!;
  assert.notDeepEqual(rmp('none', 'none').paint!.lines, rmp('none', 'all').paint!.lines);
  assert.notEqual(rmp('none', 'all').box, rmp('all', 'all').box);
  assert.equal(rmp('none', 'all', 'some').isPart, true);
});
