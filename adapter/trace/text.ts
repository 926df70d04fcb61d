/**
 * Recordings as text, a line an event: tracefs's `trace` and `trace_pipe`, `trace-cmd report`, `perf script`. Lines are read
 * where they lie, without strings.
 */
import { Recording, type Shape } from '../../engine/history/recording.ts';
import { TRACEPOINTS, tracepoint } from '../../engine/history/tracepoints.ts';
import { Names } from './names.ts';
import type { ByteSource } from './source.ts';
import { isDigit, isSpace, SPACE } from './text-cursor.ts';
import { readEventText, TextValues } from './text-rules.ts';

const BLOCK = 1 << 20;
/** No tool prints longer ones; without a limit a file without line ends would be read whole. */
const LINE_MOST = 1 << 20;
const LINE_END = 0x0a;
const RETURN = 0x0d;
const OPEN = 0x5b;
const CLOSE = 0x5d;
const COLON = 0x3a;
const HASH = 0x23;
const DOT = 0x2e;
const MINUS = 0x2d;
const SLASH = 0x2f;
const CPU_MOST = 65535;
/** Words that may stand between CPU and time: flags, of perf also others. */
const WORDS_BEFORE_TIME = 2;
const GIGA = 1e9;

/** An event's name, as it was met. */
interface Named {
  readonly name: string;
  readonly kind: number;
  count: number;
}

/** The last shape of each kind, which the next event mostly has too. */
interface LastShape {
  shape: Shape;
  known: number;
  wide: number;
  roleKnown: number;
}

/** What could not be read of one sort: how often, and an example. */
class Complaint {
  count = 0;
  #first = '';

  add(line: number, bytes: Uint8Array, from: number, to: number): void {
    if (this.count++ > 0) return;
    const words = new TextDecoder().decode(bytes.subarray(from, Math.min(to, from + 100)));
    this.#first = `line ${line}: ${JSON.stringify(words)}`;
  }

  get first(): string {
    return this.#first;
  }
}

/**
 * Reads text; what is no event is counted. Its length may be 0: then it is for the caller to say that this was no trace.
 * Which tool wrote it shows in how threads and CPUs are written.
 */
export function readText(source: ByteSource): Recording {
  return new TextReader().read(source);
}

class TextReader {
  readonly #values = new TextValues();
  readonly #names = new Names<Named>((name) => ({ name, kind: kindOf(name), count: 0 }));
  readonly #comms = new Names<string>((name) => name);
  readonly #last: (LastShape | undefined)[] = [];
  readonly #notEvents = new Complaint();
  readonly #notUnderstood = new Map<string, Complaint>();
  readonly #losses: { time: number | undefined; readonly cpu: number; readonly count: number | undefined }[] = [];
  /** Losses that have no time yet. */
  #unplaced = 0;
  readonly #skipped: Named[] = [];
  #recording: Recording | undefined;
  #line = 0;
  #started = false;
  #firstSeconds = 0;
  #firstRest = 0;
  /** Of the line at hand: its time since the first line's, thread, and event. */
  #now = 0;
  #pid = 0;
  #commFrom = 0;
  #commTo = 0;
  #perf = false;
  #named: Named | undefined;
  #shift = 0;
  #lastPid = Number.NaN;
  #reportHeader = false;
  /** Events that were overwritten, as tracefs's head says. */
  #overwritten = 0;
  #wholeClock = false;

  read(source: ByteSource): Recording {
    let carry: Uint8Array = new Uint8Array(0);
    for (let offset = 0; offset < source.size; ) {
      const block = source.read(offset, BLOCK);
      if (block.length === 0) break;
      offset += block.length;
      // Always the same class: what reads single bytes is compiled for one, and a Buffer is another.
      const bytes = joined(carry, block);
      let from = 0;
      for (;;) {
        const end = bytes.indexOf(LINE_END, from);
        if (end < 0) break;
        this.#readLine(bytes, from, end);
        from = end + 1;
      }
      carry = new Uint8Array(bytes.subarray(from));
      if (carry.length <= LINE_MOST) continue;
      this.#line++;
      this.#notEvents.add(this.#line, carry, 0, carry.length);
      carry = new Uint8Array(0);
    }
    if (carry.length > 0) this.#readLine(carry, 0, carry.length);
    return this.#finish();
  }

  #finish(): Recording {
    const recording = this.#recordingOf();
    for (const { name, count } of this.#skipped) recording.skip(name, count);
    const { late } = recording.settle();
    if (late > 0)
      recording.problems.push(`${late} lines stand behind later ones, and were put in order of their times`);
    if (this.#overwritten > 0) recording.lose({ after: undefined, time: 0, cpu: undefined, count: this.#overwritten });
    const end = recording.length > 0 ? recording.time(recording.length - 1) : 0;
    for (const { time, cpu, count } of this.#losses)
      recording.lose({ after: undefined, time: time === undefined ? end : time - this.#shift, cpu, count });
    for (const [name, { count, first }] of this.#notUnderstood)
      recording.problems.push(`${count} lines of ${name} have other words than any kernel known here; ${first}`);
    const { count, first } = this.#notEvents;
    if (count > 0) recording.problems.push(`${count} lines are no events; ${first}`);
    if (this.#wholeClock) {
      recording.clock ??= 'counter';
      recording.problems.push('times are whole numbers: the clock counts something else than nanoseconds');
    }
    return recording;
  }

  #readLine(bytes: Uint8Array, from: number, lineEnd: number): void {
    this.#line++;
    let end = lineEnd;
    if (end > from && bytes[end - 1] === RETURN) end--;
    let first = from;
    while (first < end && isSpace(bytes[first]!)) first++;
    if (first === end) return;
    // A prefix such as "instance:", for threads' names have a space before them.
    let start = from;
    if (first === from && this.#readHead(bytes, from, end)) return;
    if (first === from) start = behindPrefix(bytes, from, end);
    for (let open = start + 1; open < end; open++) {
      if (bytes[open] === OPEN && isSpace(bytes[open - 1]!) && this.#readEvent(bytes, start, open, end)) return;
    }
    this.#notEvents.add(this.#line, bytes, from, end);
  }

  /** A line that does not begin with a space; whether it is none that could be an event. */
  #readHead(bytes: Uint8Array, from: number, end: number): boolean {
    const byte = bytes[from];
    if (byte !== HASH && byte !== 0x43 && byte !== 0x63 && byte !== 0x76) return false;
    const line = new TextDecoder().decode(bytes.subarray(from, Math.min(end, from + 200)));
    if (byte === HASH) {
      const entries = /entries-in-buffer\/entries-written: (\d+)\/(\d+)/.exec(line);
      if (entries) this.#overwritten = Math.max(0, Number(entries[2]) - Number(entries[1]));
      return true;
    }
    if (/^(cpus=\d+|version = )/.test(line)) {
      this.#reportHeader = true;
      return true;
    }
    if (/^CPU \d+ is empty/.test(line)) return true;
    // "CPU:1 [LOST 12 EVENTS]", "CPU:1 [12 EVENTS DROPPED]", "CPU:1 [EVENTS DROPPED]"
    const lost = /^CPU:\s*(\d+) \[(?:LOST )?(\d+)? ?EVENTS(?: DROPPED)?\]/.exec(line);
    if (!lost) return /^CPU:\s*\d+ \[SUBBUFFER START\]|^##### CPU \d+ buffer started/.test(line);
    const count = lost[2] === undefined ? undefined : Number(lost[2]);
    this.#unplaced++;
    this.#losses.push({ time: undefined, cpu: Math.min(CPU_MOST, Number(lost[1])), count });
    return true;
  }

  /** The event of a line whose CPU may stand at `open`; false when it does not. */
  #readEvent(bytes: Uint8Array, start: number, open: number, end: number): boolean {
    const values = this.#values;
    values.bytes = bytes;
    values.end = end;
    values.at = open + 1;
    const cpu = values.count(5);
    if (cpu < 0 || cpu > CPU_MOST || values.at >= end || bytes[values.at] !== CLOSE) return false;
    values.at++;
    if (!this.#readThread(bytes, start, open) || !this.#readTime()) return false;
    values.spaces();
    if (!this.#readName()) return this.#readPerfLoss(cpu);
    const recording = this.#recordingOf();
    if (this.#unplaced > 0) this.#placeLosses(cpu);
    const named = this.#named!;
    if (named.kind < 0) {
      if (named.count++ === 0) this.#skipped.push(named);
      return true;
    }
    const from = values.at;
    if (!readEventText(named.kind, values)) {
      let complaint = this.#notUnderstood.get(named.name);
      if (!complaint) {
        complaint = new Complaint();
        this.#notUnderstood.set(named.name, complaint);
      }
      complaint.add(this.#line, bytes, from, end);
      return true;
    }
    if (this.#pid !== this.#lastPid) {
      this.#lastPid = this.#pid;
      recording.name(this.#pid, this.#comms.find(bytes, this.#commFrom, this.#commTo));
    }
    this.#store(recording, named.kind, cpu);
    return true;
  }

  /** The tool shows in the first event. */
  #recordingOf(): Recording {
    if (this.#recording) return this.#recording;
    const source = this.#perf ? 'perf script' : this.#reportHeader ? 'trace-cmd report' : 'tracefs text';
    this.#values.pointers = source !== 'tracefs text';
    this.#recording = new Recording(source);
    return this.#recording;
  }

  /** `NAME-TID`, of perf `NAME TID` or `NAME PID/TID`, before the CPU; tracefs may put `(PID)` between. */
  #readThread(bytes: Uint8Array, start: number, open: number): boolean {
    let at = open;
    while (at > start && isSpace(bytes[at - 1]!)) at--;
    if (at > start && bytes[at - 1] === 0x29) {
      while (at > start && bytes[at - 1] !== 0x28) at--;
      at--;
      while (at > start && isSpace(bytes[at - 1]!)) at--;
    }
    let pid = 0;
    let scale = 1;
    const digitsEnd = at;
    for (; at > start && isDigit(bytes[at - 1]!); at--) {
      pid += (bytes[at - 1]! - 0x30) * scale;
      scale *= 10;
    }
    if (at === digitsEnd || digitsEnd - at > 10 || at <= start) return false;
    let separator = bytes[at - 1]!;
    if (separator === SLASH) {
      at--;
      while (at > start && isDigit(bytes[at - 1]!)) at--;
      if (at <= start) return false;
      separator = SPACE;
    }
    if (separator !== MINUS && !isSpace(bytes[at - 1]!)) return false;
    this.#perf = separator !== MINUS;
    this.#pid = pid | 0;
    let to = at - 1;
    while (to > start && isSpace(bytes[to - 1]!)) to--;
    let from = start;
    while (from < to && isSpace(bytes[from]!)) from++;
    this.#commFrom = from;
    this.#commTo = to;
    return true;
  }

  /** Sets `#now` from `12.345678:`, in front of which flags may stand; nanoseconds or, without a point, what the clock counts. */
  #readTime(): boolean {
    const values = this.#values;
    const { bytes, end } = values;
    for (let words = 0; words <= WORDS_BEFORE_TIME; words++) {
      values.spaces();
      const from = values.at;
      let at = from;
      let seconds = 0;
      for (; at < end && isDigit(bytes[at]!); at++) seconds = seconds * 10 + bytes[at]! - 0x30;
      const point = at;
      const fraction = at < end && bytes[at] === DOT;
      let rest = 0;
      if (fraction) {
        for (at++; at < end && isDigit(bytes[at]!); at++) if (at <= point + 9) rest = rest * 10 + bytes[at]! - 0x30;
        for (let place = at - point; place <= 9; place++) rest *= 10;
      }
      if (point > from && at < end && bytes[at] === COLON && at - from <= 30) {
        if (!fraction) {
          const cut = Math.max(from, point - 9);
          seconds = digits(bytes, from, cut);
          rest = digits(bytes, cut, point);
        }
        if (!this.#started) {
          this.#started = true;
          this.#firstSeconds = seconds;
          this.#firstRest = rest;
          this.#wholeClock = !fraction;
        }
        this.#now = (seconds - this.#firstSeconds) * GIGA + (rest - this.#firstRest);
        values.at = at + 1;
        return true;
      }
      values.at = at;
      while (values.at < end && !isSpace(bytes[values.at]!)) values.at++;
    }
    return false;
  }

  /** Sets `#named` from `NAME: ` or perf's `SYSTEM:NAME: `. */
  #readName(): boolean {
    const values = this.#values;
    const { bytes, end } = values;
    let from = values.at;
    for (let at = from; at < end; at++) {
      const byte = bytes[at]!;
      if (isSpace(byte)) return false;
      if (byte !== COLON) continue;
      if (at + 1 < end && !isSpace(bytes[at + 1]!)) {
        from = at + 1;
        continue;
      }
      if (at === from) return false;
      this.#named = this.#names.find(bytes, from, at);
      values.at = at + 1;
      return true;
    }
    return false;
  }

  /** With --show-lost-events perf writes `PERF_RECORD_LOST lost 12` in place of an event. */
  #readPerfLoss(cpu: number): boolean {
    const values = this.#values;
    if (!values.literal(PERF_LOST)) return false;
    const count = values.count(15);
    this.#losses.push({ time: this.#now, cpu, count: count < 0 ? undefined : count });
    return true;
  }

  /** Losses of which a line told that had no time: they end with the next event of their CPU. */
  #placeLosses(cpu: number): void {
    for (const loss of this.#losses) {
      if (loss.time !== undefined || loss.cpu !== cpu) continue;
      loss.time = this.#now;
      this.#unplaced--;
    }
  }

  #store(recording: Recording, kind: number, cpu: number): void {
    const values = this.#values;
    const { known, roleKnown } = values;
    const { fields } = TRACEPOINTS[kind]!;
    let wide = 0;
    for (let field = 0; field < fields.length; field++) {
      if (((known >>> field) & 1) === 0) continue;
      const { wide: usually, signed } = fields[field]!;
      // Fields that are wider than usual are stored as they are, unless the upper word is only a sign.
      if (
        usually ||
        (values.hi_[field] !== 0 && !(signed && values.hi_[field] === SIGN && values.lo_[field]! > 0x7fffffff))
      )
        wide |= 1 << field;
    }
    let last = this.#last[kind];
    if (!last || last.known !== known || last.wide !== wide || last.roleKnown !== roleKnown) {
      last = { shape: recording.shapeOf(kind, known, wide, roleKnown), known, wide, roleKnown };
      this.#last[kind] = last;
    }
    const { shape } = last;
    // Time 0 is the first event's that is stored.
    if (recording.length === 0) {
      this.#shift = this.#now;
      recording.base = BigInt(this.#firstSeconds) * BigInt(GIGA) + BigInt(this.#firstRest) + BigInt(this.#now);
    }
    recording.append(this.#now - this.#shift, cpu, this.#pid, shape);
    const { words } = recording;
    let to = recording.wordAt;
    for (let field = 0; field < fields.length; field++) {
      if (((known >>> field) & 1) === 0) continue;
      words[to++] = values.lo_[field]!;
      if ((wide >>> field) & 1) words[to++] = values.hi_[field]!;
    }
  }
}

const SIGN = 0xffffffff;
const PERF_LOST = Uint8Array.from('PERF_RECORD_LOST lost ', (char) => char.charCodeAt(0));

function kindOf(name: string): number {
  return tracepoint(name)?.kind ?? -1;
}

function digits(bytes: Uint8Array, from: number, to: number): number {
  let value = 0;
  for (let at = from; at < to; at++) value = value * 10 + bytes[at]! - 0x30;
  return value;
}

/** Where a line goes on behind `instance:` and spaces, which trace-cmd report puts before each line of an instance. */
function behindPrefix(bytes: Uint8Array, from: number, end: number): number {
  for (let at = from; at < end && !isSpace(bytes[at]!); at++) {
    if (bytes[at] === COLON && at + 1 < end && isSpace(bytes[at + 1]!)) return at + 1;
  }
  return from;
}

function joined(left: Uint8Array, right: Uint8Array): Uint8Array {
  if (left.length === 0) return new Uint8Array(right.buffer, right.byteOffset, right.length);
  const both = new Uint8Array(left.length + right.length);
  both.set(left);
  both.set(right, left.length);
  return both;
}
