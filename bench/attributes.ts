// Private and shared memory, beside plain collections: updates, lookups, and the answers that the map is drawn of, in 1T.
import { performance } from 'node:perf_hooks';
import { AttributeStore } from '../engine/attributes/store.ts';
import { answer } from '../engine/queries/answer.ts';
import { Run } from '../engine/run.ts';
import { programOfTerabyte, scattered } from './attribute-memory.ts';

const RANGES = Number(process.env.BENCH_RANGES ?? 1e6);
const ROUNDS = 3;

/** Milliseconds of the quickest round; what `prepare` makes is not counted. */
function best<T>(prepare: () => T, work: (made: T) => void): number {
  let least = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    const made = prepare();
    const begin = performance.now();
    work(made);
    least = Math.min(least, performance.now() - begin);
  }
  return least;
}

const row = (what: string, value: number, unit: string, ratio?: number, beside = ''): void =>
  console.log(
    `${what.padEnd(52)} ${value.toPrecision(3).padStart(9)} ${unit.padEnd(14)}${ratio === undefined ? '' : ` ${ratio.toFixed(2).padStart(8)} × ${beside}`}`,
  );

/** Updates and lookups of a second, in millions. */
const perSecond = (ms: number): number => RANGES / ms / 1000;

const pages = scattered(RANGES, 1);
const others = scattered(RANGES, 2);

// ---- updates

const store = (): AttributeStore => new AttributeStore();
const ours = best(store, (made) => {
  for (const page of pages) made.set(page, page + 1, true);
});
const map = best(
  () => new Map<number, true>(),
  (made) => {
    for (const page of pages) made.set(page, true);
  },
);
row(`updates of ${RANGES} scattered pages in 1T`, perSecond(ours), 'million/s', map / ours, 'a Map by page');

// ---- lookups: half of them of private pages

const filled = store();
for (const page of pages) filled.set(page, page + 1, true);
const asMap = new Map(pages.map((page) => [page, true]));
const sorted = Float64Array.from(pages).sort();
const asked = pages.map((page, index) => (index % 2 === 0 ? page : others[index]!));
let found = 0;
const lookups = best(
  () => undefined,
  () => {
    for (const page of asked) if (filled.isPrivate(page)) found++;
  },
);
const inMap = best(
  () => undefined,
  () => {
    for (const page of asked) if (asMap.has(page)) found++;
  },
);
const inArray = best(
  () => undefined,
  () => {
    for (const page of asked) {
      let [low, high] = [0, sorted.length];
      while (low < high) {
        const middle = (low + high) >>> 1;
        if (sorted[middle]! < page) low = middle + 1;
        else high = middle;
      }
      if (sorted[low] === page) found++;
    }
  },
);
if (found % ROUNDS !== 0) throw new Error('the three do not find the same');
row(`lookups among ${RANGES} ranges`, perSecond(lookups), 'million/s', inMap / lookups, 'a Map by page');
row('', perSecond(lookups), 'million/s', inArray / lookups, 'a sorted array of pages');

// ---- answers: a million private pages, each with a page of guest_memfd and an RMP entry

const { machine } = new Run(programOfTerabyte(), 1 << 12);
for (const page of pages) {
  machine.attributes.store.set(page, page + 1, true);
  const pfn = machine.resolve(page);
  machine.attributes.folios.restore(pfn, page);
  machine.attributes.rmp.restore(pfn, { gfn: page, level: 1, validated: page % 2 === 0, asid: 1, rights: 0 });
}
const since = machine.log.length;
const window = (start: number, size: number) => {
  const query = {
    kind: 'attributes',
    start: `0x${start.toString(16)}`,
    end: `0x${(start + size).toString(16)}`,
    cells: 1024,
  } as const;
  const { answer: told } = answer(machine, query, { since, fault: undefined });
  if (told.kind !== 'attributes') throw new Error(told.kind === 'error' ? told.message : told.kind);
  return told;
};
const first = performance.now();
window(0, 2 ** 40);
row('first answer of 1T, which counts what is there', performance.now() - first, 'ms');
/** What somebody would write who has a list of private pages: each into the bin that it lies in. */
const binned = (start: number, size: number): number => {
  const bins = new Uint32Array(1024);
  for (const page of pages) {
    const at = page * 4096 - start;
    if (at >= 0 && at < size) bins[Math.floor((at / size) * 1024)]!++;
  }
  return bins[0]!;
};
for (const [words, size] of [
  ['1T', 2 ** 40],
  ['16G', 2 ** 34],
  ['1G', 2 ** 30],
  ['64M', 2 ** 26],
  ['4M', 2 ** 22],
] as const) {
  const start = size === 2 ** 40 ? 0 : 2 ** 39;
  const answered = best(
    () => undefined,
    () => void window(start, size),
  );
  const naive = best(
    () => undefined,
    () => void binned(start, size),
  );
  row(`answer of ${words} in 1024 cells`, answered, 'ms', answered / naive, 'counting a list of pages');
}
const bytes = JSON.stringify(window(0, 2 ** 40)).length;
row('its size', bytes / 1024, 'KiB');
