/**
 * An event's `format` file in tracefs, which says where a record has its fields (Documentation/trace/events.rst, "Event
 * formats"); a recording carries those of the kernel that made it.
 */
import { fieldIndex, TRACEPOINTS, tracepoint } from '../../engine/history/tracepoints.ts';
import { TraceError } from './errors.ts';

export interface FormatField {
  readonly name: string;
  /** As C declares it, without the name. */
  readonly type: string;
  /** Of the record, in bytes. */
  readonly offset: number;
  /** In bytes; of an array, the whole of it. */
  readonly size: number;
  readonly signed: boolean;
  readonly array: boolean;
}

export interface EventFormat {
  readonly id: number;
  /** Undefined when the file was read by itself: it does not say. */
  readonly system: string | undefined;
  readonly name: string;
  /** All of them, those that every event has first. */
  readonly fields: readonly FormatField[];
  /** What is behind `print fmt:`; empty when nothing is. */
  readonly print: string;
}

/** No record is longer than a page of the ring buffer, and those are 64 KiB at most. */
const LONGEST_RECORD = 1 << 16;

/** @throws TraceError when the text has no name or id, or a field that lies outside of any record */
export function parseFormat(text: string, system?: string): EventFormat {
  const name = /^name: (\S+)$/m.exec(text)?.[1];
  if (name === undefined) throw new TraceError(`an event’s format has no line "name:": it begins ${quote(text)}`);
  const id = Number(/^ID: (\d{1,9})$/m.exec(text)?.[1] ?? Number.NaN);
  if (!(id > 0 && id < 1 << 16)) throw new TraceError(`the format of ${name} has no line "ID:" with 1 to 65535`);
  const fields: FormatField[] = [];
  for (const line of text.matchAll(/^\s*field:\s*([^;]*);\s*offset:(\d+);\s*size:(\d+);(?:\s*signed:(\d);)?/gm)) {
    const [, declaration, offsetText, sizeText, signed] = line;
    const declared = /^(.*?)\s*\b([A-Za-z_]\w*)\s*(\[[^\]]*\])?$/.exec(declaration!.trim());
    if (!declared) continue;
    const [, type, field, brackets] = declared;
    const offset = Number(offsetText);
    const size = Number(sizeText);
    if (offset + size > LONGEST_RECORD)
      throw new TraceError(
        `field ${field} of ${name} ends at byte ${offset + size}, behind the ${LONGEST_RECORD} that a record can have`,
      );
    const array = brackets !== undefined || /\[|__data_loc|__rel_loc/.test(type!);
    fields.push({ name: field!, type: type!, offset, size, signed: signed === '1', array });
  }
  const print = /^print fmt: (.*)$/m.exec(text)?.[1] ?? '';
  return { id, system, name, fields, print };
}

/** What is common to all events, at the beginning of each record. */
export const COMMON = { type: 'common_type', pid: 'common_pid' } as const;

/** How a record's field gets into a recording. */
export interface FieldPlan {
  /** Index in the tracepoint. */
  readonly field: number;
  readonly offset: number;
  readonly size: number;
  readonly signed: boolean;
  /** Bits that mean the opposite in the recorded kernel. */
  readonly invert: number;
  /** The field is 1 where the record has this value, else 0. */
  readonly equals: number | undefined;
}

/** How to read an event that is understood. */
export interface EventPlan {
  readonly kind: number;
  /** In the order of the tracepoint's fields. */
  readonly fields: readonly FieldPlan[];
  /** Bytes that a record must have for all of them. */
  readonly bytes: number;
  /** A bit for each field. */
  readonly known: number;
  readonly wide: number;
}

/** How to read a format's events; undefined when they are not understood. */
export function eventPlan(format: EventFormat): EventPlan | undefined {
  const found = tracepoint(format.name);
  if (!found || (format.system !== undefined && format.system !== found.system)) return undefined;
  const plans: FieldPlan[] = [];
  const add = (field: number, from: FormatField, more: Partial<FieldPlan> = {}): void => {
    plans.push({
      field,
      offset: from.offset,
      size: from.size,
      signed: found.fields[field]!.signed && from.signed,
      invert: 0,
      equals: undefined,
      ...more,
    });
  };
  for (const from of format.fields) {
    const field = fieldIndex(found.kind, from.name);
    if (field < 0 || from.array || ![1, 2, 4, 8].includes(from.size) || plans.some((plan) => plan.field === field))
      continue;
    add(field, from, { invert: from.name === 'role' && roleIsOld(format.print) ? ROLE_BIT_4 : 0 });
    if (found.name !== 'fast_page_fault' || TRACEPOINTS[found.kind]!.fields[field]!.name !== 'ret') continue;
    // The numbers of RET_PF_* differ between kernels; each prints which one it calls what.
    for (const result of ['spurious', 'fixed']) {
      const equals = resultNumber(format.print, result);
      if (equals !== undefined) add(fieldIndex(found.kind, result), from, { equals });
    }
  }
  plans.sort((left, right) => left.field - right.field);
  return {
    kind: found.kind,
    fields: plans,
    bytes: Math.max(0, ...plans.map((plan) => plan.offset + plan.size)),
    known: plans.reduce((bits, plan) => bits | (1 << plan.field), 0),
    wide: plans.reduce(
      (bits, plan) => (plan.size === 8 && plan.equals === undefined ? bits | (1 << plan.field) : bits),
      0,
    ),
  };
}

const ROLE_BIT_4 = 1 << 4;

/**
 * Up to Linux 5.17 bit 4 of a role said that entries have 8 bytes (`gpte_is_8_bytes`, before 5.2 `cr4_pae`), since then that
 * they have 4.
 */
function roleIsOld(print: string): boolean {
  return /\brole\.(gpte_is_8_bytes|cr4_pae)\b/.test(print);
}

/** The number that `ret` has when the event's text says `spurious 1`, or `fixed 1`. */
function resultNumber(print: string, result: string): number | undefined {
  const placeholders = print.slice(0, print.indexOf('",')).match(/\bspurious %d|\bfixed %d/g) ?? [];
  const compared = [...print.matchAll(/REC->ret == (\d+)\b/g)];
  const place = placeholders.findIndex((each) => each.startsWith(result));
  return placeholders.length === compared.length && place >= 0 ? Number(compared[place]![1]) : undefined;
}

function quote(text: string): string {
  return JSON.stringify(text.length > 40 ? `${text.slice(0, 37)}…` : text);
}
