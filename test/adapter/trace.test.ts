import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { writeTraceDat } from '../../adapter/trace/dat-write.ts';
import { readRecordingFile } from '../../adapter/trace/file.ts';
import { parseFormat } from '../../adapter/trace/format.ts';
import { parseHeaderPage } from '../../adapter/trace/layout.ts';
import { LivePages } from '../../adapter/trace/live.ts';
import { openRecording } from '../../adapter/trace/open.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { withoutKvm } from '../kvm/kvm.ts';
import { differences } from './trace-forms.ts';

const TRACEFS = '/sys/kernel/tracing';
const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-trace-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const lacks = (program: string): string | undefined =>
  spawnSync(program, ['--version']).error && `there is no ${program}`;

/** Why nothing can be recorded here. Where root may, tracefs is mounted for as long. */
function withoutTracing(): string | undefined {
  const why = withoutKvm();
  if (why !== undefined) return why;
  if (process.getuid?.() !== 0) return 'tracing needs root';
  if (!existsSync('dist/cli.cjs')) return 'dist/cli.cjs is not built: npm run build';
  if (!existsSync(TRACEFS)) return `there is no ${TRACEFS}`;
  if (readdirSync(TRACEFS).length === 0) {
    if (spawnSync('mount', ['-t', 'tracefs', 'tracefs', TRACEFS]).status !== 0) return 'tracefs cannot be mounted';
    // Who uses it by then keeps it.
    after(() => void spawnSync('umount', [TRACEFS]));
  }
  if (!existsSync(join(TRACEFS, 'events/kvmmmu'))) return 'this kernel has no tracepoints kvmmmu';
  return undefined;
}

const tracing = withoutTracing();
const traceCmd = lacks('trace-cmd');
const WORKLOAD = ['dist/cli.cjs', 'run', 'examples/on-kvm.mmu', '--target', 'kvm'];

function run(program: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 28 });
  assert.equal(status, 0, `${program} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return stdout;
}

interface Recorded {
  /** By the number of the CPU. */
  readonly cpus: Uint8Array[][];
  /** The instance's file `trace`. */
  readonly text: string;
  readonly formats: { system: string; text: string }[];
}

const tracefs = (name: string): string => readFileSync(join(TRACEFS, name), 'utf8');

/** Why trace-cmd extracts nothing here: where the kernel is locked down it may refuse. */
function extract(instance: string, path: string): string | undefined {
  const { status, stderr } = spawnSync('trace-cmd', ['extract', '-B', instance, '-o', path], { encoding: 'utf8' });
  return status === 0 ? undefined : stderr.trim();
}

/** Records the workload in an instance of our own: everything of kvmmmu, and what is understood of kvm. */
function record(take: (instance: string) => void = () => {}): Recorded {
  const instance = join(TRACEFS, 'instances', `kvm-mmu-test-${process.pid}`);
  const events = ['kvm', 'kvmmmu'].flatMap((system) =>
    readdirSync(join(TRACEFS, 'events', system))
      .filter((name) => TRACEPOINTS.some((each) => each.system === system && each.name === name))
      .map((name) => ({ system, name })),
  );
  mkdirSync(instance);
  try {
    writeFileSync(join(instance, 'buffer_size_kb'), '8192');
    writeFileSync(join(instance, 'trace_clock'), 'mono');
    for (const { system, name } of events) writeFileSync(join(instance, 'events', system, name, 'enable'), '1');
    run(process.execPath, ...WORKLOAD);
    writeFileSync(join(instance, 'tracing_on'), '0');
    const text = readFileSync(join(instance, 'trace'), 'utf8');
    take(`kvm-mmu-test-${process.pid}`);
    // trace-cmd removes an instance that it has emptied.
    if (!existsSync(instance)) return { cpus: [], text, formats: [] };
    const { pageSize } = parseHeaderPage(tracefs('events/header_page'));
    const cpus: Uint8Array[][] = [];
    for (const name of readdirSync(join(instance, 'per_cpu'))) {
      const pages: Uint8Array[] = [];
      cpus[Number(name.slice(3))] = pages;
      const fd = openSync(join(instance, 'per_cpu', name, 'trace_pipe_raw'), constants.O_RDONLY | constants.O_NONBLOCK);
      try {
        for (;;) {
          const page = new Uint8Array(pageSize);
          let length = 0;
          try {
            length = readSync(fd, page);
          } catch (error) {
            if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
          }
          if (length === 0) break;
          pages.push(page.subarray(0, length));
        }
      } finally {
        closeSync(fd);
      }
    }
    const formats = events.map(({ system, name }) => ({ system, text: tracefs(`events/${system}/${name}/format`) }));
    return { cpus, text, formats };
  } finally {
    if (existsSync(instance)) rmdirSync(instance);
  }
}

/** Text has microseconds. */
const MICROSECOND = 1000;

test('tracefs and trace-cmd report tell of a recording what its trace.dat tells', () => {
  const binary = readRecordingFile('test/trace/shadow.dat');
  assert.equal(binary.source, 'trace.dat');
  assert.deepEqual(binary.problems, []);
  for (const [file, source] of [
    ['shadow.report.txt', 'trace-cmd report'],
    ['shadow.tracefs.txt', 'tracefs text'],
  ] as const) {
    const written = readRecordingFile(`test/trace/${file}`);
    assert.equal(written.source, source);
    const { found, compared } = differences(binary, written, MICROSECOND);
    assert.deepEqual(found, []);
    assert.ok(compared > 2.5 * binary.length, `${file}: only ${compared} values of ${binary.length} events`);
    assert.deepEqual([...written.unknown], [...binary.unknown]);
    assert.deepEqual(written.problems, []);
  }
});

test('perf script tells all that its text has', () => {
  const recording = readRecordingFile('test/trace/shadow.perf.txt');
  assert.equal(recording.source, 'perf script');
  assert.deepEqual(recording.problems, []);
  assert.equal(recording.length, readFileSync('test/trace/shadow.perf.txt', 'utf8').trim().split('\n').length);
  // Shadow pages are in no words of perf's: it prints their fields, the whole role among them.
  assert.ok(Array.from({ length: recording.length }, (_, i) => recording.shape(i).roleKnown).includes(0xffffffef));
});

test('a recording made here: pages, tracefs’s text, trace.dat and trace-cmd report agree', {
  skip: tracing ?? traceCmd ?? false,
}, () => {
  const { cpus, text, formats } = record();
  const headerPage = tracefs('events/header_page');
  const live = new LivePages(
    formats.map((format) => parseFormat(format.text, format.system)),
    parseHeaderPage(headerPage),
  );
  // A page a batch, CPU by CPU: events of most batches are older than what is there.
  for (const [cpu, pages] of cpus.entries()) {
    for (const page of pages) {
      const before = live.recording.length;
      live.appendPages(cpu, page);
      assert.ok(live.commit() <= before);
    }
  }
  const pages = live.recording;
  assert.ok(pages.length > 1000, `only ${pages.length} events`);
  assert.deepEqual(pages.problems, []);
  const written = openRecording(new TextEncoder().encode(text));
  assert.deepEqual(written.problems, []);
  const names = new Set(Array.from({ length: written.length }, (_, i) => written.pid(i)));
  for (const pid of names) pages.name(pid, written.comm(pid)!);
  assert.deepEqual(differences(pages, written, MICROSECOND).found, []);

  const dat = join(folder, 'made.dat');
  const uname = run('uname', '-srm').trim();
  const headerEvent = tracefs('events/header_event');
  const comms = pages.comms;
  writeFileSync(
    dat,
    Buffer.concat([...writeTraceDat({ formats, headerPage, headerEvent, cpus, comms, uname, clock: 'mono' })]),
  );
  const ours = readRecordingFile(dat);
  assert.deepEqual([ours.problems, ours.kernel, ours.clock], [[], uname, 'mono']);
  assert.deepEqual(differences(pages, ours, 0).found, []);

  const report = openRecording(new TextEncoder().encode(run('trace-cmd', 'report', dat)));
  assert.equal(report.source, 'trace-cmd report');
  assert.deepEqual(report.problems, []);
  const { found, compared } = differences(ours, report, MICROSECOND);
  assert.deepEqual(found, []);
  assert.ok(compared > 1.5 * ours.length);

  // Without the plugin that knows kvm, and with nanoseconds.
  const plain = openRecording(new TextEncoder().encode(run('trace-cmd', 'report', '-N', '-t', dat)));
  assert.deepEqual(plain.problems, []);
  assert.deepEqual(differences(ours, plain, 0).found, []);

  const seven = join(folder, 'made-7.dat');
  run('trace-cmd', 'convert', '--file-version', '7', '--compression', 'none', '-i', dat, '-o', seven);
  assert.deepEqual(differences(ours, readRecordingFile(seven), 0).found, []);
});

test('a trace.dat that trace-cmd compressed is read', {
  skip: traceCmd ?? false,
}, (context) => {
  const packed = join(folder, 'packed.dat');
  run(
    'trace-cmd',
    'convert',
    '--file-version',
    '7',
    '--compression',
    'any',
    '-i',
    'test/trace/shadow.dat',
    '-o',
    packed,
  );
  const algorithm = /tracing7\0.{6}(\w+)\0/s.exec(readFileSync(packed).toString('latin1'))?.[1];
  context.diagnostic(`trace-cmd compresses with ${algorithm}`);
  assert.ok(algorithm === 'zstd' || algorithm === 'zlib', `trace-cmd compresses with ${algorithm}`);
  assert.deepEqual(differences(readRecordingFile(packed), readRecordingFile('test/trace/shadow.dat'), 0).found, []);
});

const perf = lacks('perf');

test('what perf records and prints here is understood', { skip: tracing ?? perf ?? false }, () => {
  const data = join(folder, 'perf.data');
  run('perf', 'record', '-q', '-a', '-o', data, '-e', 'kvmmmu:*', '--', process.execPath, ...WORKLOAD);
  const recording = openRecording(new TextEncoder().encode(run('perf', 'script', '-i', data)));
  assert.equal(recording.source, 'perf script');
  assert.deepEqual(recording.problems, []);
  assert.ok(recording.length > 1000);
  assert.deepEqual([...recording.unknown], []);
});

test('an instance that trace-cmd extracts, in versions 6 and 7', { skip: tracing ?? traceCmd ?? false }, (context) => {
  const extracted = join(folder, 'extracted.dat');
  let refused: string | undefined;
  const { text } = record((instance) => {
    refused = extract(instance, extracted);
  });
  if (refused !== undefined) {
    context.skip(`trace-cmd extract: ${refused}`);
    return;
  }
  const written = openRecording(new TextEncoder().encode(text));
  for (const version of ['6', '7']) {
    const path = join(folder, `extracted-${version}.dat`);
    run('trace-cmd', 'convert', '--file-version', version, '--compression', 'none', '-i', extracted, '-o', path);
    const recording = readRecordingFile(path);
    assert.deepEqual(differences(recording, written, MICROSECOND).found, [], `version ${version}`);
    assert.match(recording.kernel ?? '', /^Linux /);
    const report = openRecording(new TextEncoder().encode(run('trace-cmd', 'report', path)));
    assert.equal(report.source, 'trace-cmd report');
    assert.deepEqual(differences(recording, report, MICROSECOND).found, []);
  }
});
