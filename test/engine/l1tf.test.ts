import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Format } from '../../engine/formats/compile.ts';
import { EPT } from '../../engine/formats/ept.ts';
import { SHADOW, SHADOW_PAE } from '../../engine/formats/shadow.ts';
import { project } from '../../engine/history/project.ts';
import { toBigint } from '../../engine/memory/words.ts';
import { Run } from '../../engine/run.ts';
import {
  GENERATION_MASK,
  isMmio,
  makeMmio,
  mmioGeneration,
  mmioGfn,
  spteFormat,
  spteNote,
} from '../../engine/tdp/spte.ts';
import { parseScenario } from '../../scenario/index.ts';

const SPECS = { EPT, SHADOW, SHADOW_PAE };

for (const [name, spec] of Object.entries(SPECS))
  test(`${name}: with L1TF a marker has the 5 highest address bits set and the gfn's own above, and gives gfn and generation back`, () => {
    fc.assert(
      fc.property(
        fc
          .integer({ min: 36, max: 46 })
          .chain((width) => fc.tuple(fc.constant(width), fc.bigInt({ min: 0n, max: (1n << BigInt(width - 12)) - 1n }))),
        fc.integer({ min: 0, max: GENERATION_MASK }),
        ([width, number], generation) => {
          const spte = spteFormat(new Format(spec, { maxPhyAddr: width, features: new Set(['nx', 'l1tf']) }));
          const { lo, hi } = makeMmio(spte, Number(number), generation);
          // Intel's processors of fewer bits address their L1 cache by 44.
          const bits = BigInt(Math.max(44, width));
          const mask = 0x1fn << (bits - 5n);
          const own = toBigint(spte.mmio!.lo, spte.mmio!.hi);
          const gen = (BigInt(generation & 0xff) << 3n) | (BigInt(generation >> 8) << 52n);
          const address = number << 12n;
          assert.equal(toBigint(lo, hi), own | gen | address | mask | ((address & mask) << 5n));
          assert.equal(mmioGfn(spte, lo, hi), Number(number));
          assert.equal(mmioGeneration(lo, hi), generation);
          assert.ok(isMmio(spte, lo, hi));
        },
      ),
      { numRuns: 500 },
    );
  });

test('without L1TF a marker has the address as it is', () => {
  for (const spec of Object.values(SPECS)) {
    const spte = spteFormat(new Format(spec, { maxPhyAddr: 46, features: new Set(['nx']) }));
    const { lo, hi } = makeMmio(spte, 0x3_dead_beef, 5);
    assert.equal(toBigint(lo, hi) & 0x7_ffff_ffff_f000n, 0x3dead_beef_000n);
    assert.equal(mmioGfn(spte, lo, hi), 0x3_dead_beef);
    assert.match(spteNote(spte, lo, hi)!, /^MMIO marker, memslot generation 5/);
  }
});

test('of a marker that hides its address the note tells it, and where its bits stand', () => {
  const spte = spteFormat(new Format(EPT, { maxPhyAddr: 46, features: new Set(['nx', 'l1tf']) }));
  const { lo, hi } = makeMmio(spte, 0x3_dead_beef, 5);
  assert.match(
    spteNote(spte, lo, hi)!,
    /^MMIO marker of gpa 0x3deadbeef000, whose bits 45:41 stand in 50:46 because of L1TF, memslot generation 5:/,
  );
});

for (const second of ['tdp ept 4-level', 'shadow'])
  test(`${second}: on a processor with L1TF device memory is found by its markers, at the highest addresses too`, () => {
    const text = `machine x86-64 {
  memory 0 +64M
  second-stage ${second}
  cpu 1g-pages execute-only l1tf
  sanitize
}
guest g {
  map 0x400000 -> 0x3e00_0000_1000 4K
  map 0x401000 -> 0x1_2345_6000 4K
}
vcpu 0 in g {
  repeat 3 { read 0x400000 read 0x401000 }
  invlpg 0x400000
  write 0x400000 = 7
}
expect emulated == 7
`;
    const { program, diagnostics } = parseScenario(text);
    assert.ok(program, JSON.stringify(diagnostics));
    const run = new Run(program);
    assert.ok(run.runToEnd(10_000));
    assert.deepEqual(run.machine.small.failures, []);
    const markers = [...run.machine.pages.keys()]
      .flatMap((pfn) => Array.from({ length: 512 }, (_, index) => run.machine.readEntry(pfn, index)))
      .filter((value) => (value & 0x800n) === 0n && (value & 7n) !== 0n);
    assert.ok(markers.length >= 2);
    for (const value of markers) assert.equal((value >> 41n) & 0x1fn, 0x1fn, 'no memory has such an address');
    const found = [...project(run.machine)].flatMap(({ event, text: fields }) =>
      event === 'handle_mmio_page_fault' ? [/gfn (\w+)/.exec(fields)![1]] : [],
    );
    assert.deepEqual([...new Set(found)].sort(), ['123456', '3e0000001']);
  });
