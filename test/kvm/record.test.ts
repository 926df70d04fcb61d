import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import test, { after } from 'node:test';
import { readRecordingFile } from '../../adapter/trace/file.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { folder } from '../cli/cli.ts';
import { TRACEFS, withoutRecording } from './kvm.ts';

// `kvm-mmu record`, as it was built: what a command makes KVM do, in a file.

const CLI = resolve('dist/cli.cjs');

const skip = withoutRecording() ?? false;
const withoutTraceCmd = spawnSync('trace-cmd', ['--version']).error ? 'trace-cmd is not installed' : false;
const recordTest = (name: string, body: () => void | Promise<void>): void => {
  test(name, { skip, timeout: 120_000 }, body);
};

let folders = 0;
/** An empty folder. */
function place(): string {
  const path = join(folder, `record${folders++}`);
  mkdirSync(path);
  return path;
}

interface Ran {
  readonly status: number | null;
  readonly out: string;
  readonly err: string;
}

function record(cwd: string, ...args: readonly string[]): Ran {
  const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, 'record', ...args], {
    cwd,
    encoding: 'utf8',
    timeout: 100_000,
  });
  return { status, out: stdout, err: stderr };
}

const ON_KVM = ['--', process.execPath, CLI, 'run', resolve('examples/on-kvm.mmu'), '--target', 'kvm'];
const leftBehind = (): string[] =>
  readdirSync(join(TRACEFS, 'instances')).filter((name) => /^kvm-mmu-helper-\d+-events$/.test(name));

function names(recording: Recording): Map<string, number> {
  const counts = new Map<string, number>();
  for (let i = 0; i < recording.length; i++) {
    const { name } = TRACEPOINTS[recording.kind(i)]!;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}

const said = (err: string): { events: number; lost: number } => {
  const [, events, lost] = /^kvm-mmu: (\d+) events in [^;,]+(?:; (\d+) were lost|, none lost)$/m.exec(err) ?? [];
  assert.ok(events !== undefined, err);
  return { events: Number(events), lost: Number(lost ?? 0) };
};

recordTest('a scenario on KVM is recorded, and the file is read by this project and by trace-cmd', () => {
  const cwd = place();
  const { status, out, err } = record(cwd, ...ON_KVM);
  assert.equal(status, 0, err);
  assert.match(out, /^ok$/m);
  const { events, lost } = said(err);
  assert.equal(lost, 0);
  assert.deepEqual(readdirSync(cwd), ['trace.dat']);
  const recording = readRecordingFile(join(cwd, 'trace.dat'));
  assert.deepEqual(recording.problems, []);
  assert.equal(recording.clock, 'mono');
  assert.match(recording.kernel!, /^Linux /);
  const counts = names(recording);
  const unknown = [...recording.unknown.values()].reduce((sum, each) => sum + each, 0);
  assert.equal(recording.length + unknown, events);
  for (const name of ['kvm_mmu_get_page', 'kvm_mmu_prepare_zap_page']) assert.ok(counts.has(name), `no ${name}`);
  assert.ok(!counts.has('kvm_mmu_paging_element'));
  // Who it was: the helper's threads.
  const first = [...Array(recording.length).keys()].find(
    (i) => TRACEPOINTS[recording.kind(i)]!.name === 'kvm_mmu_get_page',
  );
  assert.match(recording.comm(recording.pid(first!)) ?? '', /^vcpu\d+$/);
});

recordTest('a command that makes KVM do nothing is a recording without events', () => {
  const cwd = place();
  // Others on this host may make some.
  const { events } = said(record(cwd, '--', 'true').err);
  const { length, problems } = readRecordingFile(join(cwd, 'trace.dat'));
  assert.deepEqual([problems, length <= events], [[], true]);
  if (!spawnSync('trace-cmd', ['--version']).error)
    assert.equal(spawnSync('trace-cmd', ['report', 'trace.dat'], { cwd }).status, 0);
});

recordTest('nothing of a command is left out, from its start to the end of its machine', () => {
  const cwd = place();
  const instance = join(TRACEFS, 'instances', `kvm-mmu-test-${process.pid}`);
  mkdirSync(instance);
  const counts = new Map<number, number>();
  try {
    writeFileSync(join(instance, 'options/event-fork'), '1');
    writeFileSync(join(instance, 'set_event_pid'), `${process.pid}`);
    writeFileSync(join(instance, 'events/kvmmmu/kvm_mmu_get_page/enable'), '1');
    writeFileSync(join(instance, 'events/kvmmmu/kvm_mmu_prepare_zap_page/enable'), '1');
    assert.equal(record(cwd, ...ON_KVM).status, 0);
    for (const [, pid] of readFileSync(join(instance, 'trace'), 'utf8').matchAll(/^ .*?-(\d+) +\[/gm))
      counts.set(Number(pid), (counts.get(Number(pid)) ?? 0) + 1);
  } finally {
    rmdirSync(instance);
  }
  assert.ok(counts.size > 0);
  const recording = readRecordingFile(join(cwd, 'trace.dat'));
  for (const [pid, count] of counts) {
    let recorded = 0;
    for (let i = 0; i < recording.length; i++) {
      const { name } = TRACEPOINTS[recording.kind(i)]!;
      if (recording.pid(i) === pid && /get_page|prepare_zap/.test(name)) recorded++;
    }
    assert.equal(recorded, count, `thread ${pid}`);
  }
});

test('trace-cmd reports the same events', { skip: skip || withoutTraceCmd, timeout: 120_000 }, () => {
  const cwd = place();
  const { events } = said(record(cwd, '-o', 'some.dat', ...ON_KVM).err);
  const { status, stdout, stderr } = spawnSync('trace-cmd', ['report', 'some.dat'], { cwd, encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  const counts = new Map<string, number>();
  for (const [, name] of stdout.matchAll(/^ .*?\d: ([a-z_]+): /gm)) counts.set(name!, (counts.get(name!) ?? 0) + 1);
  assert.equal(
    [...counts.values()].reduce((sum, each) => sum + each, 0),
    events,
  );
  const recording = readRecordingFile(join(cwd, 'some.dat'));
  for (const [name, count] of names(recording)) assert.equal(counts.get(name), count, name);
});

recordTest('all events are those of walks, too', () => {
  const cwd = place();
  const { status, err } = record(cwd, '--all', ...ON_KVM);
  assert.equal(status, 0, err);
  assert.ok(names(readRecordingFile(join(cwd, 'trace.dat'))).has('kvm_mmu_paging_element'));
});

recordTest('the command has the terminal, and its exit status is that of record', () => {
  const cwd = place();
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [CLI, 'record', '-o', 'a.dat', '--', 'sh', '-c', 'cat; echo err >&2; echo "$0 $1"; exit 7', '-o', '--all'],
    { cwd, encoding: 'utf8', input: 'in\n' },
  );
  assert.equal(status, 7);
  assert.equal(stdout, 'in\n-o --all\n');
  assert.match(stderr, /^err\nkvm-mmu: \d+ events in a\.dat, none lost\n$/);
  assert.equal(record(cwd, '--', 'sh', '-c', 'kill -KILL $$').status, 128 + 9);
  assert.ok(existsSync(join(cwd, 'trace.dat')));
});

// ---- what cannot be recorded

recordTest('a command that is not there is status 127, and leaves an earlier file alone', () => {
  const cwd = place();
  writeFileSync(join(cwd, 'trace.dat'), 'before');
  const { status, err } = record(cwd, '--', 'no-such-command', '-x');
  assert.equal(status, 127);
  assert.match(err, /no-such-command cannot be run: No such file or directory/);
  writeFileSync(join(cwd, 'plain'), 'text');
  assert.equal(record(cwd, '--', './plain').status, 126);
  assert.equal(readFileSync(join(cwd, 'trace.dat'), 'utf8'), 'before');
  assert.deepEqual(readdirSync(cwd).sort(), ['plain', 'trace.dat']);
});

for (const [what, args, words] of [
  ['no command', [], /record takes a command behind --/],
  ['nothing behind --', ['--'], /record takes a command behind --/],
  ['a command without --', ['ls'], /record takes no ls: the command stands behind --/],
  ['an unknown option', ['--nonsense', '--', 'ls'], /nonsense/],
] as const) {
  recordTest(`${what} is refused as usage`, () => {
    const cwd = place();
    const { status, err } = record(cwd, ...args);
    assert.equal(status, 2);
    assert.match(err, words);
    assert.deepEqual(readdirSync(cwd), []);
  });
}

for (const [what, args, words] of [
  [
    'a file that cannot be made',
    ['-o', 'none/trace.dat', '--', 'true'],
    /none\/trace\.dat cannot be written: .*ENOENT/,
  ],
  ['a folder in its place', ['-o', '.', '--', 'true'], /\. is there, and it is no file/],
  ['a helper that is not there', ['--helper', '/none', '--', 'true'], /there is no helper at \/none/],
  [
    'a helper that is another program',
    ['--helper', '/bin/true', '--', 'true'],
    /\/bin\/true records nothing: it is no helper/,
  ],
] as const) {
  recordTest(`${what} is said before anything runs`, () => {
    const cwd = place();
    const { status, err } = record(cwd, ...args);
    assert.equal(status, 3);
    assert.match(err, words);
    assert.deepEqual(readdirSync(cwd), []);
  });
}

recordTest('without tracefs it says so and runs nothing', () => {
  const cwd = place();
  const { status, stderr } = spawnSync(
    'unshare',
    ['-m', 'sh', '-c', `umount ${TRACEFS}; umount -R /sys/kernel/debug; exec "$@"`, 'sh', process.execPath, CLI].concat(
      ['record', '--', 'touch', 'ran'],
    ),
    { cwd, encoding: 'utf8' },
  );
  assert.equal(status, 3);
  assert.match(stderr, /tracefs is not mounted: mount -t tracefs tracefs \/sys\/kernel\/tracing/);
  assert.deepEqual(readdirSync(cwd), []);
});

recordTest('a user without permission is told so', () => {
  const cwd = place();
  chmodSync(folder, 0o755);
  chmodSync(cwd, 0o777);
  const { status, stderr } = spawnSync(process.execPath, [CLI, 'record', '--', 'true'], {
    ...{ cwd, encoding: 'utf8', uid: 65534, gid: 65534 },
  });
  // Where that user may not even read this project there is nothing to see.
  if (stderr.includes('EACCES') || stderr.includes('Cannot find module')) return;
  assert.equal(status, 3, stderr);
  assert.match(stderr, /no permission for tracefs: run the helper as root|tracefs is not mounted/);
});

// ---- ends

/** A recording in a process group of its own, as a shell's job; its command has said that it is ready. */
async function job(cwd: string, ...command: readonly string[]): Promise<{ child: ChildProcess; ended: Promise<Ran> }> {
  const child = spawn(process.execPath, [CLI, 'record', '--', ...command], {
    cwd,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  after(() => {
    try {
      process.kill(-child.pid!, 'SIGKILL');
    } catch {
      // It has ended, as it should.
    }
  });
  let out = '';
  let err = '';
  child.stderr!.on('data', (chunk: Buffer) => {
    err += chunk.toString();
  });
  const ended = new Promise<Ran>((done) => child.on('close', (status) => done({ status, out, err })));
  await new Promise<void>((done, fail) => {
    child.stdout!.on('data', (chunk: Buffer) => {
      out += chunk.toString();
      if (out.includes('ready\n')) done();
    });
    child.on('close', () => fail(new Error(`it has ended: ${out}${err}`)));
  });
  return { child, ended };
}

const TRAPS = 'trap "echo told; exit 5" INT TERM; echo ready; while :; do sleep 0.05; done';

for (const [what, end] of [
  ['Ctrl-C', (child: ChildProcess) => process.kill(-child.pid!, 'SIGINT')],
  ['SIGTERM to record alone', (child: ChildProcess) => child.kill('SIGTERM')],
] as const) {
  recordTest(`${what} reaches the command, and the file is written`, async () => {
    const cwd = place();
    const { child, ended } = await job(cwd, 'sh', '-c', TRAPS);
    end(child);
    const { status, out, err } = await ended;
    assert.equal(status, 5, err);
    assert.equal(out, 'ready\ntold\n');
    said(err);
    assert.deepEqual(readdirSync(cwd), ['trace.dat']);
    assert.deepEqual(readRecordingFile(join(cwd, 'trace.dat')).problems, []);
  });
}

recordTest('a command that handles no signal has those of its shell', async () => {
  const cwd = place();
  // Shells, and Node, let through what was blocked when they were started: tail does not.
  writeFileSync(join(cwd, 'said'), 'ready\n');
  const { child, ended } = await job(cwd, 'tail', '-f', 'said');
  process.kill(-child.pid!, 'SIGINT');
  const { status, err } = await ended;
  assert.equal(status, 128 + 2, err);
  said(err);
});

recordTest('a helper that is killed leaves an earlier file alone, and its own instance to the next', async () => {
  const cwd = place();
  writeFileSync(join(cwd, 'trace.dat'), 'before');
  const { child, ended } = await job(cwd, 'sh', '-c', 'echo ready; exec sleep 3');
  const { stdout } = spawnSync('ps', ['-o', 'pid=', '--ppid', `${child.pid}`], { encoding: 'utf8' });
  process.kill(Number(stdout.trim()), 'SIGKILL');
  const { status, err } = await ended;
  assert.equal(status, 3);
  assert.match(err, /the recording was cut off: the helper ended with SIGKILL; trace\.dat is not written/);
  assert.equal(readFileSync(join(cwd, 'trace.dat'), 'utf8'), 'before');
  assert.deepEqual(readdirSync(cwd), ['trace.dat']);
  record(place(), '--', 'true');
  assert.deepEqual(leftBehind(), []);
});

recordTest('a record that is killed ends the command, and nothing of it stays in tracefs', async () => {
  const cwd = place();
  const { child, ended } = await job(cwd, 'sh', '-c', 'echo ready; while :; do sleep 0.1; done');
  const own = (): string[] => leftBehind();
  assert.equal(own().length, 1);
  child.kill('SIGKILL');
  // Its helper notices at the next page, of whoever makes KVM do something.
  for (let waits = 0; waits < 100 && own().length > 0; waits++) {
    spawnSync(process.execPath, [CLI, ...ON_KVM.slice(3)]);
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.deepEqual(own(), []);
  await Promise.race([ended, new Promise((done) => setTimeout(done, 5000))]);
});

recordTest('an existing file is replaced, through a link too, once the new one is complete', () => {
  const cwd = place();
  writeFileSync(join(cwd, 'real.dat'), 'before');
  symlinkSync('real.dat', join(cwd, 'link.dat'));
  const { status, err } = record(cwd, '-o', 'link.dat', '--', 'sh', '-c', 'cat real.dat');
  assert.equal(status, 0, err);
  assert.ok(readFileSync(join(cwd, 'real.dat')).length > 4096);
  assert.deepEqual(readdirSync(cwd).sort(), ['link.dat', 'real.dat']);
});
