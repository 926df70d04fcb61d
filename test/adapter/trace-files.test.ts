import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { inflateSync } from 'node:zlib';
import { buildRecord, PageBuilder } from '../../adapter/trace/build-pages.ts';
import { writeTraceDat } from '../../adapter/trace/dat-write.ts';
import { TraceError } from '../../adapter/trace/errors.ts';
import { decompress, readRecordingFile } from '../../adapter/trace/file.ts';
import { parseFormat } from '../../adapter/trace/format.ts';
import { openRecording } from '../../adapter/trace/open.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { traceDat7 } from './trace-dat7.ts';
import { differences } from './trace-forms.ts';
import { datParts } from './trace-parts.ts';

const shadow = readFileSync('test/trace/shadow.dat');
const parts = datParts(shadow);

const same = (left: Recording, right: Recording): void => {
  assert.deepEqual(differences(left, right, 0).found, []);
  assert.equal(left.length, right.length);
};

/** Bytes with some of them replaced. */
function spoiled(bytes: Uint8Array, at: number, ...values: number[]): Uint8Array {
  const copy = new Uint8Array(bytes);
  copy.set(values, at);
  return copy;
}

test('what is written is read back', () => {
  const written = Buffer.concat([...writeTraceDat(parts)]);
  const recording = openRecording(written);
  same(recording, openRecording(shadow));
  assert.deepEqual(
    [recording.kernel, recording.clock, recording.source],
    ['Linux host 6.18.44 x86_64', 'mono', 'trace.dat'],
  );
  // A page that the helper sends ends where its data do.
  const short = parts.cpus.map((pages) =>
    pages.map((page) =>
      page.slice(0, 16 + (new DataView(page.buffer, page.byteOffset).getUint32(8, true) & 0x7ffffff)),
    ),
  );
  assert.deepEqual(Buffer.concat([...writeTraceDat({ ...parts, cpus: short })]).length, written.length);
  same(openRecording(Buffer.concat([...writeTraceDat({ ...parts, cpus: short })])), recording);
  assert.throws(() => [...writeTraceDat({ ...parts, cpus: [[new Uint8Array(5000)]] })], TraceError);
});

test('a writer’s file: pages of 8192 bytes, and the clock behind the table of CPUs', () => {
  const format = parts.formats.find(({ text }) => text.startsWith('name: kvm_mmu_spte_requested\n'))!;
  const parsed = parseFormat(format.text, format.system);
  const builder = new PageBuilder({ pageSize: 8192, data: 16 });
  for (let gfn = 0; gfn < 1000; gfn++)
    builder.record(BigInt(gfn), buildRecord(parsed, { gfn, pfn: 64n << 32n, level: 1 }));
  assert.ok(builder.pages.length > 2);
  const headerPage = parts.headerPage.replace('4080', '8176');
  const file = Buffer.concat([
    ...writeTraceDat({ ...parts, headerPage, formats: [format], cpus: [[], builder.pages] }),
  ]);
  const recording = openRecording(file);
  assert.deepEqual(
    [recording.problems, recording.length, recording.cpu(999), recording.lo(999, 0)],
    [[], 1000, 1, 999],
  );
  const behind = file.indexOf('flyrecord\0') + 10 + 2 * 16;
  assert.equal(file.readBigUInt64LE(behind), 6n);
  assert.equal(file.toString('latin1', behind + 8, behind + 14), '[mono]');
});

test('version 7, with sections, options in two parts, and zlib', () => {
  for (const compression of ['none', 'zlib'] as const) {
    const recording = openRecording(traceDat7(parts, compression), decompress);
    assert.deepEqual(recording.problems, []);
    same(recording, openRecording(shadow));
    assert.deepEqual([recording.kernel, recording.clock], ['Linux host 6.18.44 x86_64', 'mono']);
    assert.equal(recording.comms.size, parts.comms.size);
  }
});

test('times of x86-tsc become nanoseconds where the file says how; lost events that the kernel counted are told', () => {
  const conversion = Buffer.alloc(16);
  conversion.writeUInt32LE(1 << 20, 0);
  conversion.writeUInt32LE(22, 4);
  const stats = Buffer.from('CPU: 1\nentries: 5\noverrun: 12\ncommit overrun: 0\ndropped events: 3\n\0');
  const recording = openRecording(
    traceDat7(parts, 'none', [
      [14, conversion],
      [2, stats],
    ]),
  );
  const plain = openRecording(shadow);
  assert.equal(recording.base, plain.base / 4n);
  for (let i = 0; i < plain.length; i++) assert.equal(recording.time(i), Math.round(plain.time(i) / 4));
  assert.deepEqual(recording.problems, [
    'CPU 1: the kernel counted 12 events lost (overrun)',
    'CPU 1: the kernel counted 3 events lost (dropped events)',
  ]);
});

test('version 7 with zstd, as trace-cmd writes it, where the host has no zstd', () => {
  const recording = openRecording(readFileSync('test/trace/shadow-zstd.dat'));
  assert.deepEqual(recording.problems, []);
  same(recording, openRecording(shadow));
});

test('what cannot be undone, or is not what it says, is said', () => {
  const zlib = traceDat7(parts, 'zlib');
  const refuse = (bytes: Uint8Array, message: RegExp, undo = decompress): void => {
    assert.throws(
      () => openRecording(bytes, undo),
      (error) => error instanceof TraceError && message.test(error.message),
    );
  };
  refuse(zlib, /compressed with zlib, which cannot be undone here; "trace-cmd convert/, () => undefined);
  refuse(zlib, /has \d+ bytes, not the \d+ it should/, (_, bytes) => inflateSync(bytes).subarray(1));
  refuse(spoiled(shadow, 10, 0x39), /of version "9"; 6 and 7/);
  refuse(spoiled(shadow, 12, 1), /big-endian machine/);
  refuse(spoiled(shadow, 12, 7), /byte order is 7/);
  refuse(spoiled(shadow, 13, 2), /long has 2 bytes/);
  const commit = shadow.indexOf('size:8;\tsigned:1');
  refuse(spoiled(shadow, commit + 5, 0x34), /32-bit kernel/);
  const systems = shadow.indexOf('kvm\0');
  refuse(spoiled(shadow, systems - 4, 0xff, 0xff, 0xff, 0xff), /number of systems is 4294967295/);
  refuse(new Uint8Array(0), /is empty/);
  refuse(shadow.subarray(0, 5), /first 5 bytes of a trace.dat/);
  refuse(Buffer.from('\x7fELF\x02\x01', 'latin1'), /is an ELF file/);
  refuse(Buffer.from([0xff, 0xd8, 0xff, 0xe0]), /is a JPEG/);
  refuse(Buffer.from('PERFILE2'), /perf script/);
  refuse(Buffer.from([1, 2, 3, 4]), /begins with 01 02 03 04/);
  refuse(Buffer.from('Dear all,\nthere is no trace here.\n'), /begins with "Dear all,.*2 lines are no events; line 1/s);
});

test('a trace.dat with text in place of pages', () => {
  const at = shadow.indexOf('flyrecord\0');
  const text = readFileSync('test/trace/shadow.tracefs.txt');
  const recording = openRecording(Buffer.concat([shadow.subarray(0, at), Buffer.from('latency  \0'), text]));
  assert.deepEqual(
    [recording.source, recording.kernel, recording.problems],
    ['tracefs text', 'Linux host 6.18.44 x86_64', []],
  );
  assert.deepEqual(differences(recording, openRecording(shadow), 1000).found, []);
});

test('a file’s errors name it', () => {
  const path = join(tmpdir(), `kvm-mmu-trace-${process.pid}`);
  writeFileSync(path, 'x');
  assert.throws(
    () => readRecordingFile(path),
    (error) => error instanceof TraceError && error.message.startsWith(`${path} is not a trace`),
  );
  assert.throws(() => readRecordingFile('/nowhere'), /cannot read \/nowhere/);
  assert.throws(() => readRecordingFile('/tmp'), /\/tmp is not a file/);
});

test('a file cut anywhere is refused or used as far as it goes', () => {
  const whole = openRecording(shadow);
  let used = 0;
  for (let length = 0; length < shadow.length; length += 97) {
    try {
      const recording = openRecording(shadow.subarray(0, length));
      used++;
      assert.ok(recording.length <= whole.length);
      assert.notDeepEqual(recording.problems, [], `${length} bytes`);
    } catch (error) {
      if (!(error instanceof TraceError)) throw new Error(`${length} bytes`, { cause: error });
    }
  }
  assert.ok(used > 20, `only ${used} were used`);
});

test('of an instance’s pages whose place is wrong, those of the others are used', () => {
  const table = shadow.indexOf('flyrecord\0') + 10;
  const recording = openRecording(spoiled(shadow, table, 0xff, 0xff, 0xff, 0xff, 0xff));
  assert.match(
    recording.problems.join(),
    /pages of CPU 0 are left out: they should be \d+ bytes at offset 0xffffffffff/,
  );
  assert.ok(recording.length > 0);
});

/** A small generator with a seed that a failure names. */
function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0;
    return (state ^ (state >>> 13)) >>> 0;
  };
}

test('damaged files of every kind: nothing but TraceError, and an end', () => {
  const fixtures: [name: string, bytes: Uint8Array][] = [
    ['dat 6', shadow],
    ['dat 7', traceDat7(parts, 'none')],
    ['dat 7 zlib', traceDat7(parts, 'zlib')],
    ['dat 7 zstd', readFileSync('test/trace/shadow-zstd.dat')],
    ...['report', 'tracefs', 'perf'].map((form): [string, Uint8Array] => [
      form,
      readFileSync(`test/trace/shadow.${form}.txt`),
    ]),
  ];
  const first = Number(process.env.FUZZ_SEED ?? Date.now() % 1e9);
  const budget = Number(process.env.FUZZ_MS ?? 2500) / fixtures.length;
  for (const [name, bytes] of fixtures) {
    const begin = performance.now();
    for (let seed = first; performance.now() - begin < budget; seed++) {
      const next = random(seed);
      const copy = new Uint8Array(bytes.subarray(0, next() % 4 === 0 ? next() % bytes.length : bytes.length));
      // Of a trace.dat most bytes are formats' text: half of the damage goes to the parts that have numbers.
      for (let flips = 1 + (next() % 12); flips > 0 && copy.length > 0; flips--) {
        const at = next() % 2 ? next() % copy.length : Math.min(copy.length - 1, hot(copy, next));
        copy[at] = next() % 3 ? next() & 0xff : copy[at]! ^ (1 << (next() & 7));
      }
      const started = performance.now();
      try {
        const recording = openRecording(copy, name.endsWith('zstd') ? undefined : decompress);
        for (let i = 0; i < recording.length; i++) recording.value(i, 0);
        assert.ok(recording.losses.every(({ beforeIndex }) => beforeIndex >= 0 && beforeIndex <= recording.length));
        assert.ok(recording.bytes < 64 << 20);
      } catch (error) {
        if (!(error instanceof TraceError)) throw new Error(`${name}, FUZZ_SEED=${seed}`, { cause: error });
      }
      assert.ok(performance.now() - started < 2000, `${name}, FUZZ_SEED=${seed}: too slow`);
    }
  }
});

/** A place that a reader takes numbers from: the head, what surrounds the table of CPUs, pages. */
function hot(bytes: Uint8Array, next: () => number): number {
  switch (next() % 3) {
    case 0:
      return next() % 64;
    case 1: {
      const table = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).indexOf('flyrecord');
      return Math.max(0, table) + (next() % 256);
    }
    default:
      return Math.max(0, bytes.length - 1 - (next() % 8192));
  }
}
