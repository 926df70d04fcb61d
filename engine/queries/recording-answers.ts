import { eventAddress, eventClass, eventText, isFault } from '../history/event-text.ts';
import type { Recording } from '../history/recording.ts';
import { hex } from '../memory/words.ts';
import type { FaultsAnswer, RecordingAnswer } from './answers.ts';

/** Stretches of time that an overview counts events in. */
const BUCKETS = 240;
/** Rows that are told at once. */
const ROWS_MOST = 500;

/** A recording that a machine is shown from, at a moment. */
export interface RecordingView {
  readonly recording: Recording;
  /** Events up to here have happened. */
  readonly position: number;
  /** Indices of all faults of the machine. */
  readonly faults: Uint32Array;
  readonly shadow: boolean;
  /** How threads are called: `vCPU 0`, or their names. */
  thread(pid: number): string;
  /** Whether a thread is another machine's. */
  isForeign(pid: number): boolean;
  /** The machine that is shown, of how many. */
  readonly machine: number;
  readonly machines: number;
}

/** Indices of the faults of a recording, of the threads that count. */
export function faultIndices(recording: Recording, counts: (pid: number) => boolean): Uint32Array {
  let found = new Uint32Array(1024);
  let count = 0;
  for (let at = 0; at < recording.length; at++) {
    if (!isFault(recording, at) || !counts(recording.pid(at))) continue;
    if (count === found.length) {
      const larger = new Uint32Array(2 * found.length);
      larger.set(found);
      found = larger;
    }
    found[count++] = at;
  }
  return found.subarray(0, count);
}

/** By their faults, which are each view's own. */
const overviews = new WeakMap<Uint32Array, RecordingAnswer['buckets']>();

/** How many faults and changes of entries there are in each stretch of time. */
function bucketsOf(view: RecordingView): RecordingAnswer['buckets'] {
  const { recording } = view;
  const known = overviews.get(view.faults);
  if (known) return known;
  const first = recording.length > 0 ? recording.time(0) : 0;
  const span = recording.length > 0 ? Math.max(1, recording.time(recording.length - 1) - first) : 1;
  const faults = new Array<number>(BUCKETS).fill(0);
  const changes = new Array<number>(BUCKETS).fill(0);
  const bucketAt = (at: number): number =>
    Math.min(BUCKETS - 1, Math.floor(((recording.time(at) - first) / span) * BUCKETS));
  for (const at of view.faults) faults[bucketAt(at)]!++;
  for (let at = 0; at < recording.length; at++)
    if (eventClass(recording, at) === 'change' && !view.isForeign(recording.pid(at))) changes[bucketAt(at)]!++;
  const buckets = { faults, changes };
  overviews.set(view.faults, buckets);
  return buckets;
}

export function recordingAnswer(view: RecordingView): RecordingAnswer {
  const { recording, position, machine, machines } = view;
  const { length } = recording;
  const first = length > 0 ? recording.time(0) : 0;
  return {
    kind: 'recording',
    certainty: 'exact',
    source: recording.source,
    ...(recording.kernel === undefined ? {} : { kernel: recording.kernel }),
    length,
    position,
    time: position > 0 ? recording.time(position - 1) - first : 0,
    duration: length > 0 ? recording.time(length - 1) - first : 0,
    faults: view.faults.length,
    fault: lowerBound(view.faults, position),
    machine,
    machines,
    event: position > 0 ? eventText(recording, position - 1) : '',
    buckets: bucketsOf(view),
    lost: recording.losses.map(({ time, count, beforeIndex }) => ({
      at: beforeIndex,
      time: time - first,
      ...(count === undefined ? {} : { count }),
    })),
    problems: recording.problems,
  };
}

/** How many of the faults come before an event. */
function lowerBound(faults: Uint32Array, position: number): number {
  let low = 0;
  let high = faults.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (faults[middle]! < position) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function faultsAnswer(view: RecordingView, from: number, count: number): FaultsAnswer {
  const { recording, faults } = view;
  const first = recording.length > 0 ? recording.time(0) : 0;
  const rows = [...faults.subarray(from, from + Math.min(count, ROWS_MOST))].map((at) => {
    const address = eventAddress(recording, at, view.shadow);
    return {
      index: at,
      time: recording.time(at) - first,
      thread: view.thread(recording.pid(at)),
      class: eventClass(recording, at) as 'second-stage' | 'fast' | 'guest' | 'mmio',
      text: eventText(recording, at),
      ...(address ? { space: address.space, address: hex(address.address) } : {}),
    };
  });
  return { kind: 'faults', certainty: 'exact', first: from, total: faults.length, rows };
}
