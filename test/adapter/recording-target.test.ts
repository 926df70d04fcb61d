import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { FilterName } from '../../adapter/breakpoints.ts';
import { RecordingTarget } from '../../adapter/targets/recording.ts';
import type { Halt, Motion, Watcher } from '../../adapter/targets/target.ts';
import { faultsAnswer, recordingAnswer } from '../../engine/queries/recording-answers.ts';
import { Events, leaf, ROOT } from '../engine/events.ts';

// What a session on a recording says of its events: whose they are, and no more than that.

const AT_FAULTS = { wants: (filter: FilterName) => filter === 'second-stage', admits: () => true, hit: () => [] };
const NOTHING = { wants: () => false, admits: () => false, hit: () => [] };

class Session {
  readonly target: RecordingTarget;

  constructor(events: Events, machine = 0) {
    events.recording.settle();
    this.target = new RecordingTarget(events.recording, 'x.dat', machine, () => {});
  }

  move(motion: object, watcher: object = NOTHING): Promise<Halt> {
    return this.target.move({ task: 0, ...motion } as Motion, watcher as unknown as Watcher);
  }

  async at(position: number): Promise<this> {
    await this.move({ kind: 'seek', position });
    return this;
  }

  get position(): number {
    return this.view.position;
  }

  get view() {
    return this.target.machine.mirror!.recording!();
  }

  name(name: string): unknown {
    return this.target.guest.scope(0 as never)!.name([name]);
  }

  told(halt: Halt) {
    return this.target.guest.describe(halt as never, 'task' in halt ? halt.task : 0).stop;
  }
}

/** A machine on VMX, whose vCPU is called 3. */
const violation = (): Events =>
  new Events()
    .entry(10, 3)
    .tell(10, 'kvm_exit', { exit_reason: 48, isa: 1, vcpu_id: 3 })
    .page(10, 0, ROOT)
    .fault(10, 3, 0x5000, 0x184)
    .change(10, 4, 0, 0n, 0x2000_907n)
    .change(55, 3, 0, 0n, 0x2001_907n);

test('an EPT violation is told by its exit qualification, not by an error code', async () => {
  const session = await new Session(violation()).at(4);
  assert.deepEqual(
    ['fetch', 'write', 'user'].map((name) => session.name(name)),
    [true, false, undefined],
  );
  const npt = new Events().page(10, 0, ROOT).fault(10, 0, 0x5000, 0x16).change(10, 4, 0, 0n, 0x2000_827n);
  const other = await new Session(npt).at(2);
  assert.deepEqual(
    ['fetch', 'write', 'user'].map((name) => other.name(name)),
    [true, true, true],
  );
});

test('an event’s vCPU is its own or its thread’s, and else none', async () => {
  const session = await new Session(violation()).at(4);
  assert.equal(session.name('vcpu'), 3n);
  assert.equal((await session.at(5)).name('vcpu'), 3n);
  const halt = await session.move({ kind: 'seek', position: 6 });
  assert.equal(session.name('vcpu'), undefined);
  assert.equal(session.told(halt).taskName, 'thread 55');
  assert.equal(session.told(await session.move({ kind: 'step-back' })).taskName, 'vCPU 3');
});

/** Two machines with a vCPU each, one after the other. */
const two = (): Events =>
  new Events()
    .entry(10, 0)
    .page(10, 0, ROOT)
    .map(10, 0, 0x1000n, 5, 0x77n)
    .entry(30, 0)
    .page(30, 0, ROOT)
    .map(30, 0, 0x2000n, 5, 0x88n)
    .fault(30, 0, 0x6000)
    .change(30, 1, 6, 0n, leaf(0x89n))
    .fault(10, 0, 0x7000)
    .change(10, 1, 7, 0n, leaf(0x79n));

test('of several machines only one is shown: its faults, and stops at them', async () => {
  const session = new Session(two());
  assert.equal(session.view.machines, 2);
  const thread = session.view.recording.pid(session.view.faults[0]!);
  const faults = faultsAnswer(session.view, 0, 100);
  assert.deepEqual(
    faults.rows.map((row) => row.thread),
    ['vCPU 0', 'vCPU 0'],
  );
  assert.equal(
    recordingAnswer(session.view).buckets.faults.reduce((sum, count) => sum + count),
    2,
  );
  const stops: number[] = [];
  while ((await session.move({ kind: 'continue' }, AT_FAULTS)).kind === 'matched') stops.push(session.position);
  assert.equal(stops.length, 2);
  assert.ok(stops.every((position) => session.view.recording.pid(position - 1) === thread));
  // The other's events are told as its own.
  const other = two().recording;
  const foreign = Array.from({ length: other.length }, (_, at) => at).find((at) => other.pid(at) !== thread)!;
  const told = session.told(await session.move({ kind: 'seek', position: foreign + 1 }));
  assert.equal(told.taskName, `thread ${other.pid(foreign)}`);
  assert.equal(told.walk, undefined);
});

test('a step goes along the thread where the session stands, if it is of no vCPU', async () => {
  const events = new Events()
    .unmap(70)
    .entry(10, 0)
    .unmap(71)
    .unmap(70)
    .page(10, 0, ROOT)
    .map(10, 0, 0x1000n, 5, 0x77n);
  const session = await new Session(events).at(1);
  await session.move({ kind: 'step-over' });
  assert.equal(session.position, 4);
  await session.at(2);
  await session.move({ kind: 'step-over' });
  assert.equal(session.position, 5);
  const nobody = new Session(new Events().unmap(70).unmap(71).unmap(70));
  await nobody.at(1);
  await nobody.move({ kind: 'step-over' });
  assert.equal(nobody.position, 3);
});

test('many breakpoints cost no more than few', async () => {
  const events = new Events();
  for (let count = 0; count < 60_000; count++) events.entry(10, 0);
  const session = new Session(events);
  const paths = [...Array(30).keys()].map((chunk) => `x.dat from event ${chunk * 2000 + 1}.events`);
  const lines = Array.from({ length: 200 }, (_, index) => ({ line: 10 * index + 1 }));
  for (const path of paths) await session.target.guest.setLines(path, lines as never);
  const begin = Date.now();
  await session.move({ kind: 'continue' });
  assert.ok(Date.now() - begin < 2000, `${Date.now() - begin} ms`);
  assert.equal(session.position, 60_000);
  // Both ways, they are stopped at.
  const hits = { ...NOTHING, hit: (points: { id: number }[]) => points.map(({ id }) => id) };
  const halt = await session.move({ kind: 'reverse-continue' }, hits);
  assert.equal(halt.kind, 'matched');
  assert.equal(session.position, 59_991);
});
