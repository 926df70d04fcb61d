import { jsonAnswer } from './json-answer.ts';
import { fromLatin1, quote, RspError } from './packet.ts';

/** What `qKvm.TraceFormats` says (native/PROTOCOL.md, "Events"): all that is needed to read pages. Texts are those of tracefs. */
export interface TraceFormats {
  /** The trace clock, whose unit is nanoseconds. */
  readonly clock: string;
  /** `Linux HOST 6.18.0 x86_64`. */
  readonly uname: string;
  /** `events/header_page` and `events/header_event`. */
  readonly headerPage: string;
  readonly headerEvent: string;
  /** All that can be recorded; `format` is the event's file. */
  readonly events: readonly { readonly system: string; readonly name: string; readonly format: string }[];
}

/** A page of a CPU's ring buffer, as `trace_pipe_raw` gives it. */
export interface TracePage {
  readonly cpu: number;
  readonly bytes: Uint8Array;
}

/** Events that were lost since the recording began. */
export interface TraceLost {
  /** Overwritten before they were read. The next page of their CPU says so too. */
  readonly overrun: number;
  /** Never recorded; no page says so. */
  readonly dropped: number;
}

/** An answer to `qKvm.Trace` of this many bytes of pages, or more, has not all that there was. */
export const FULL_ANSWER = 0x40000;
/** A record's CPU and length. */
const HEADER = 6;
/** Pages of the ring buffer are not longer in any kernel that the helper reads. */
const LONGEST_PAGE = 1 << 16;

/** @throws RspError */
export function parseTraceFormats(text: string): TraceFormats {
  const { parse, record, list, words } = jsonAnswer('qKvm.TraceFormats');
  const answer = parse(text);
  return {
    clock: words(answer, 'clock'),
    uname: words(answer, 'uname'),
    headerPage: words(answer, 'headerPage'),
    headerEvent: words(answer, 'headerEvent'),
    events: list(answer, 'events').map((value) => {
      const event = record(value, 'an event');
      return { system: words(event, 'system'), name: words(event, 'name'), format: words(event, 'format') };
    }),
  };
}

/** @throws RspError */
export function parseTraceLost(text: string): TraceLost {
  const { parse, count } = jsonAnswer('qKvm.TraceLost');
  const answer = parse(text);
  return { overrun: count(answer, 'overrun'), dropped: count(answer, 'dropped') };
}

/**
 * The answer to `qKvm.Trace`, which is no error: `b`, then pages of several CPUs, those of one in their order. They share
 * the answer's memory.
 * @throws RspError naming what contradicts itself, and where
 */
export function parseTrace(answer: Uint8Array): TracePage[] {
  if (answer[0] !== 0x62) {
    const begin = quote(fromLatin1(answer.subarray(0, 8)));
    throw new RspError(`the answer to qKvm.Trace begins with ${begin}, not with b`);
  }
  const view = new DataView(answer.buffer, answer.byteOffset, answer.byteLength);
  const pages: TracePage[] = [];
  for (let at = 1; at < answer.length; ) {
    if (answer.length - at < HEADER)
      throw new RspError(`the answer to qKvm.Trace ends within the ${HEADER} bytes before a page, at ${at}`);
    const length = view.getUint32(at + 2, true);
    const from = at + HEADER;
    if (length === 0 || length > LONGEST_PAGE || length > answer.length - from)
      throw new RspError(
        `a page in the answer to qKvm.Trace at ${at} has ${length} bytes: from 1 to ${Math.min(LONGEST_PAGE, answer.length - from)} are possible`,
      );
    pages.push({ cpu: view.getUint16(at, true), bytes: answer.subarray(from, from + length) });
    at = from + length;
  }
  return pages;
}
