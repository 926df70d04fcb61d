import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Recording } from '../../engine/history/recording.ts';
import { buildRecord, PageBuilder } from './build-pages.ts';
import { parseFormat } from './format.ts';
import { parseHeaderPage, USUAL_LAYOUT } from './layout.ts';
import { LivePages } from './live.ts';
import { Decoders, PageCursor, readPages } from './pages.ts';

const common = `format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
`;
const REQUESTED = parseFormat(`name: kvm_mmu_spte_requested
ID: 118
${common}\tfield:u64 gfn;\toffset:8;\tsize:8;\tsigned:0;
\tfield:u64 pfn;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u8 level;\toffset:24;\tsize:1;\tsigned:0;
`);
const SPLIT = parseFormat(`name: kvm_mmu_split_huge_page
ID: 116
${common}\tfield:u64 gfn;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int errno;\toffset:16;\tsize:4;\tsigned:1;
\tfield:short level;\toffset:20;\tsize:2;\tsigned:1;
`);
const OTHER = parseFormat(`name: kvm_pio\nID: 5\n${common}`);
const FORMATS = [REQUESTED, SPLIT, OTHER];

/** 28 bytes: records are whole words. */
function requested(gfn: number): Uint8Array {
  const bytes = new Uint8Array(28);
  bytes.set(buildRecord(REQUESTED, { common_pid: 77, gfn, pfn: 1n << 63n, level: 2 }));
  return bytes;
}

function read(cpus: readonly PageBuilder[], formats = FORMATS): Recording {
  const recording = new Recording('pages');
  const decoders = new Decoders(recording, formats);
  readPages(
    cpus.map(({ pages }, cpu) => {
      const left = [...pages];
      return new PageCursor(
        cpu,
        { next: () => left.shift(), place: () => `page ${pages.length - left.length}` },
        decoders,
      );
    }),
    decoders,
  );
  decoders.report();
  recording.settle();
  return recording;
}

const rows = (recording: Recording): [time: number, cpu: number, gfn: number][] =>
  Array.from({ length: recording.length }, (_, i) => [recording.time(i), recording.cpu(i), recording.lo(i, 0)]);

test('records become events: times from deltas, fields at their sizes', () => {
  const cpu = new PageBuilder();
  cpu.record(1_000_000_000_000_000_123n, requested(1));
  cpu.record(1_000_000_000_000_000_200n, buildRecord(OTHER, {}));
  cpu.record(1_000_000_000_000_000_223n, buildRecord(SPLIT, { gfn: 2, errno: -12, level: -3, common_pid: 5 }));
  const recording = read([cpu]);
  assert.equal(recording.base, 1_000_000_000_000_000_123n);
  assert.deepEqual(rows(recording), [
    [0, 0, 1],
    [100, 0, 2],
  ]);
  assert.equal(recording.pid(0), 77);
  assert.equal(recording.value(0, 1), 1n << 63n);
  assert.equal(recording.number(0, 2), 2);
  // gfn spte level errno: this kernel has no spte.
  assert.deepEqual(
    [0, 1, 2, 3].map((field) => recording.known(1, field)),
    [true, false, true, true],
  );
  assert.equal(recording.number(1, 2), -3);
  assert.equal(recording.number(1, 3), -12);
  assert.deepEqual([...recording.unknown], [['kvm_pio', 1]]);
  assert.deepEqual(recording.problems, []);
});

test('time extends, absolute times, records taken back and long records', () => {
  const cpu = new PageBuilder();
  const base = (0x55n << 56n) + 1000n;
  cpu.record(base, requested(1));
  cpu.record(base + (5n << 30n) + 12_345n, requested(2)); // a time extend
  const absolute = base + (6n << 30n);
  const low = absolute & ((1n << 59n) - 1n);
  cpu.raw(Number((low & 0x7ffffffn) << 5n) | 31, Number(low >> 27n));
  cpu.raw((10 << 5) | 29, 12, 0, 0); // taken back: 12 bytes, and 10 ns that pass
  cpu.raw(7, ...new Uint32Array(requested(3).buffer)); // without time passing
  const long = new Uint8Array(200);
  long.set(requested(4));
  cpu.raw((5 << 5) | 0, 204, ...new Uint32Array(long.buffer));
  cpu.raw(29); // nothing follows
  cpu.raw(0xdeadbeef);
  const recording = read([cpu]);
  const six = Number(6n << 30n);
  assert.deepEqual(rows(recording), [
    [0, 0, 1],
    [Number(5n << 30n) + 12_345, 0, 2],
    [six + 10, 0, 3],
    [six + 15, 0, 4],
  ]);
  assert.deepEqual(recording.problems, []);
});

test('CPUs are merged by time; of one time a CPU’s events keep their order', () => {
  const [left, right, third] = [new PageBuilder(), new PageBuilder(), new PageBuilder()];
  for (const [time, gfn] of [
    [10n, 1],
    [10n, 2],
    [30n, 3],
  ] as const)
    left.record(time, requested(gfn));
  for (const [time, gfn] of [
    [5n, 4],
    [10n, 5],
    [20n, 6],
    [40n, 7],
  ] as const)
    right.record(time, requested(gfn));
  third.record(1n, buildRecord(OTHER, {}));
  third.record(25n, requested(8));
  const recording = read([left, right, third]);
  assert.equal(recording.base, 5n);
  assert.deepEqual(
    rows(recording)
      .map(([time, cpu, gfn]) => (time === 5 ? cpu * 10 + gfn : gfn))
      .join(' '),
    '4 1 2 15 6 8 3 7',
  );
});

test('missed events are losses, counted where the page says how many', () => {
  const cpu = new PageBuilder();
  cpu.record(100n, requested(1));
  cpu.newPage(200n);
  cpu.record(210n, requested(2));
  cpu.missed(34);
  cpu.newPage(300n);
  cpu.record(310n, requested(3));
  cpu.missed();
  const recording = read([cpu]);
  assert.deepEqual(rows(recording), [
    [0, 0, 1],
    [110, 0, 2],
    [210, 0, 3],
  ]);
  const losses = recording.losses.map(({ count, beforeIndex, after, time }) => ({ count, beforeIndex, after, time }));
  assert.deepEqual(losses, [
    { count: 34, beforeIndex: 1, after: 0, time: 100 },
    { count: undefined, beforeIndex: 2, after: 110, time: 200 },
  ]);
});

test('a page that contradicts itself is used up to there, and said', () => {
  const cases: [name: string, spoil: (cpu: PageBuilder) => void, problem: RegExp][] = [
    ['record longer than the page', (cpu) => cpu.raw(28, 1), /record of 112 bytes where 4 are left/],
    ['long record of length 2', (cpu) => cpu.raw(0, 2, 0), /record of 2 bytes/],
    ['half a time extend', (cpu) => cpu.raw(30), /ends within a record/],
    ['a short record', (cpu) => cpu.raw(2, 118, 0), /1 records are shorter than their format says/],
    [
      'a long page',
      (cpu) => new DataView(cpu.pages[0]!.buffer).setUint32(8, 5000, true),
      /5000 of its 4080 bytes are in use/,
    ],
  ];
  for (const [name, spoil, problem] of cases) {
    const cpu = new PageBuilder();
    cpu.record(100n, requested(1));
    spoil(cpu);
    if (name !== 'a long page') cpu.newPage(200n);
    if (name !== 'a long page') cpu.record(210n, requested(2));
    const recording = read([cpu]);
    assert.equal(recording.lo(0, 0), 1, name);
    if (name !== 'a long page') assert.equal(recording.lo(recording.length - 1, 0), 2, name);
    assert.match(recording.problems.join('\n'), problem, name);
  }
});

test('a page cut short is used as far as it goes', () => {
  const cpu = new PageBuilder();
  for (let i = 0; i < 10; i++) cpu.record(BigInt(i), requested(i));
  const whole = cpu.pages[0]!;
  for (let length = 1; length < 16 + 10 * 32; length++) {
    cpu.pages[0] = whole.slice(0, length);
    const recording = read([cpu]);
    assert.equal(recording.length, Math.max(0, Math.floor((length - 16) / 32)));
    assert.match(recording.problems[0] ?? '', new RegExp(`ends after ${length} bytes of a page`));
  }
});

test('header_page: what layouts are read, and what is said of others', () => {
  const page = (commit: number, data: number, size: number): string =>
    `\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\tfield: local_t commit;\toffset:8;\tsize:${commit};\tsigned:1;\n\tfield: char data;\toffset:${data};\tsize:${size};\tsigned:0;\n`;
  assert.deepEqual(parseHeaderPage(page(8, 16, 4080)), USUAL_LAYOUT);
  assert.deepEqual(parseHeaderPage(page(8, 16, 65520)), { pageSize: 65536, data: 16 });
  assert.throws(() => parseHeaderPage(page(4, 12, 4084)), /of a 32-bit kernel/);
  assert.throws(() => parseHeaderPage(page(8, 24, 4072)), /data at 24/);
  assert.throws(() => parseHeaderPage(page(8, 16, 99_999_999)), /pages of 100000015 bytes/);
  assert.throws(() => parseHeaderPage('nothing'), /no field timestamp/);
});

test('pages of another size', () => {
  const layout = { pageSize: 65536, data: 16 };
  const cpu = new PageBuilder(layout);
  for (let i = 0; i < 5000; i++) cpu.record(BigInt(i), requested(i));
  assert.equal(cpu.pages.length, 3);
  const live = new LivePages(FORMATS, layout);
  live.appendPages(0, cpu.bytes());
  live.commit();
  assert.deepEqual([live.recording.length, live.recording.lo(4999, 0), live.recording.time(4999)], [5000, 4999, 4999]);
});

test('live: batches go on where the last ended, and older events are put where they belong', () => {
  const live = new LivePages(FORMATS);
  const batch = (cpu: number, ...events: (readonly [time: bigint, gfn: number])[]): void => {
    const builder = new PageBuilder();
    for (const [time, gfn] of events) builder.record(time, requested(gfn));
    live.appendPages(cpu, builder.bytes());
  };
  batch(0, [100n, 1], [200n, 2]);
  batch(1, [150n, 3]);
  assert.equal(live.commit(), 0);
  assert.deepEqual(rows(live.recording), [
    [0, 0, 1],
    [50, 1, 3],
    [100, 0, 2],
  ]);
  batch(0, [300n, 4]);
  assert.equal(live.commit(), 3);
  batch(1, [160n, 5], [400n, 6]);
  assert.equal(live.commit(), 2);
  assert.deepEqual(
    rows(live.recording).map(([, , gfn]) => gfn),
    [1, 3, 5, 2, 4, 6],
  );
  // A CPU that was never heard of may be older than everything.
  batch(7, [90n, 7]);
  assert.equal(live.commit(), 0);
  assert.deepEqual(rows(live.recording)[0], [-10, 7, 7]);
  assert.equal(live.recording.base, 100n);
  assert.equal(live.commit(), 7);
});

test('live: what is held back comes with the next batch, in order', () => {
  const live = new LivePages(FORMATS);
  const batch = (cpu: number, ...events: (readonly [time: bigint, gfn: number])[]): void => {
    const builder = new PageBuilder();
    for (const [time, gfn] of events) builder.record(time, requested(gfn));
    live.appendPages(cpu, builder.bytes());
  };
  batch(0, [100n, 1], [200n, 2], [300n, 3]);
  batch(1, [210n, 4]);
  assert.equal(live.commit(true), 0);
  assert.deepEqual(
    rows(live.recording).map(([, , gfn]) => gfn),
    [1, 2, 4],
  );
  batch(1, [250n, 5], [350n, 6]);
  assert.equal(live.commit(true), 3);
  assert.deepEqual(
    rows(live.recording).map(([, , gfn]) => gfn),
    [1, 2, 4, 5, 3, 6],
  );
  batch(0, [400n, 7]);
  live.commit(true);
  assert.equal(live.commit(), 7);
  assert.deepEqual(
    rows(live.recording).map(([time]) => time),
    [0, 100, 110, 150, 200, 250, 300],
  );
});

test('a role of a kernel up to 5.17 becomes one of today', () => {
  const page = (print: string): ReturnType<typeof parseFormat> =>
    parseFormat(
      `name: kvm_mmu_sync_page\nID: 9\n${common}\tfield:__u32 role;\toffset:8;\tsize:4;\tsigned:0;\n\nprint fmt: "%s", ({ role.${print} ? 8 : 4; })\n`,
    );
  const cpu = new PageBuilder();
  const format = page('gpte_is_8_bytes');
  cpu.record(1n, buildRecord(format, { role: 0x3794 }));
  const role = 2;
  assert.equal(read([cpu], [format]).value(0, role), 0x3784n);
  assert.equal(read([cpu], [page('has_4_byte_gpte')]).value(0, role), 0x3794n);
  assert.equal(read([cpu], [format]).shape(0).roleKnown, 0xffffffff);
});
