import { isMemoryKind, Kind } from '../engine/history/log.ts';
import type { Machine } from '../engine/machine.ts';
import { answer, type Moment } from '../engine/queries/answer.ts';
import type { Answer, Query } from '../engine/queries/answers.ts';

interface Watch {
  readonly query: Query;
  frames: ReadonlySet<number>;
  /** What was sent last. */
  sent: string;
  /** The answer marks what happened since the stop before, so it must be asked again at the next. */
  marked: boolean;
}

/** Views that are open on a machine: knows which answers may have changed, and sends only those that have. */
export class Watches {
  readonly #watches = new Map<string, Watch>();
  #position = 0;
  #fault: Moment['fault'];

  set(id: string, query: Query): void {
    this.#watches.set(id, { query, frames: new Set(), sent: '', marked: true });
  }

  delete(id: string): void {
    this.#watches.delete(id);
  }

  /** One answer, now. */
  ask(machine: Machine, id: string, moment: Moment): Answer {
    const watch = this.#watches.get(id)!;
    const read = answer(machine, watch.query, moment);
    watch.frames = read.frames;
    watch.sent = JSON.stringify(read.answer);
    watch.marked = isMarked(read.answer);
    return read.answer;
  }

  /** Answers that differ from what was sent before. */
  changed(machine: Machine, moment: Moment): { id: string; answer: Answer }[] {
    const touched = this.#touchedFrames(machine);
    // Another fault may end in a table that nobody has written to.
    const moved = moment.fault !== this.#fault;
    this.#fault = moment.fault;
    const answers: { id: string; answer: Answer }[] = [];
    for (const [id, watch] of this.#watches) {
      // Runs from the scenario's beginning: where this one stands is nothing to them.
      if (watch.query.kind === 'comparison') continue;
      const stays = touched && !watch.marked && !(moved && watch.query.kind === 'table') && watch.frames.size > 0;
      if (stays && ![...watch.frames].some((frame) => touched.has(frame))) continue;
      const before = watch.sent;
      const now = this.ask(machine, id, moment);
      if (watch.sent !== before) answers.push({ id, answer: now });
    }
    return answers;
  }

  /** Frames written since the last time; undefined when anything may have changed. */
  #touchedFrames(machine: Machine): Set<number> | undefined {
    const { log } = machine;
    // A mirror's memory changes without a trace in the log; attributes and the RMP are no frames, and walks depend on them.
    if (machine.mirror || machine.vm !== 'ordinary') return undefined;
    const from = this.#position;
    this.#position = log.length;
    // Undone entries are gone: what they changed back cannot be read from the log.
    if (log.length < from || from < log.first) return undefined;
    const frames = new Set<number>();
    for (let position = from; position < log.length; position++) {
      const kind = log.kindAt(position);
      if (isMemoryKind(kind)) frames.add(Math.floor(log.at(position).address / 512));
      else if (
        kind === Kind.REGISTER ||
        kind === Kind.SLOTS ||
        kind === Kind.MMU ||
        kind === Kind.GUEST_MODE ||
        kind === Kind.SMM ||
        (kind >= Kind.TABLE_ALLOC && kind <= Kind.TABLE_STATE)
      )
        return undefined;
    }
    return frames;
  }
}

/** Walks and tables that point at a fault or at changes look different at the next stop although nothing changed. */
function isMarked(result: Answer): boolean {
  if (result.kind === 'table') return result.runs.some((run) => run.was !== undefined || run.faulting);
  return result.kind !== 'walk';
}
