import { ownerWords, type RmpEntry } from '../attributes/state.ts';
import type { AttributeRun } from '../attributes/store.ts';
import { Kind, type LogEntry } from '../history/log.ts';
import type { IndexChange } from '../logged-map.ts';
import type { InvalidationState, Machine } from '../machine.ts';
import { formatSize, frameToAddress, type Gfn, hex } from '../memory/words.ts';
import { functionSpec, type OperationFrame, type Task } from '../operation.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import type { AttributeMapAnswer, AttributeMoment, ConversionAnswer, RangeAnswer } from './answers.ts';
import { needPrivateMemory } from './attributes.ts';
import { guestRanges } from './memory-changes.ts';
import { knowsFrames, stageNames } from './memory-stages.ts';
import { MemoryState } from './memory-state.ts';

/** Moments that an answer lists at most. */
const MOMENTS_MOST = 400;

const range = (start: Gfn, end: Gfn): RangeAnswer => ({ gpa: hex(frameToAddress(start)), size: (end - start) * 4096 });
const rangeWords = (start: Gfn, end: Gfn): string =>
  `${hex(frameToAddress(start))} +${formatSize((end - start) * 4096)}`;

/** A number among a function's locals; undefined where it has none of that name. */
function local({ locals }: OperationFrame, name: string): number | undefined {
  const value: unknown = Object.entries(locals).find(([key]) => key === name)?.[1];
  return typeof value === 'number' ? value : undefined;
}

/** Where a task is that converts memory: the function on top of its stack, its next step, and the page that is next. */
export function conversionProgress(
  task: Task | undefined,
  start: Gfn,
  end: Gfn,
): Pick<ConversionAnswer, 'fn' | 'step' | 'text' | 'page'> {
  const top = task?.stack.at(-1);
  if (!task || !top) return {};
  const { name, steps } = functionSpec(top.fn);
  const step = steps[top.step];
  // The innermost function that goes from page to page.
  const pages = task.stack.map((frame) => local(frame, 'next')).filter((next) => next !== undefined);
  const page = pages.findLast((next) => next >= start && next < end);
  return {
    fn: name,
    ...(step ? { step: step.name, text: step.text } : {}),
    ...(page === undefined ? {} : { page: hex(frameToAddress(page)) }),
  };
}

/** What is told of a step: words, and the guest frames that they are about. */
class Told {
  readonly words: string[] = [];
  begins = false;
  #start = Number.POSITIVE_INFINITY;
  #end = 0;
  /** Single pages of an index, by what happened to them, in the order of the log. */
  readonly #pages = new Map<string, { start: Gfn; end: Gfn; count: number }>();

  say(words: string, start: Gfn, end: Gfn): void {
    this.words.push(words);
    this.cover(start, end);
  }

  cover(start: Gfn, end: Gfn): void {
    this.#start = Math.min(this.#start, start);
    this.#end = Math.max(this.#end, end);
  }

  /** @param words with `%` for the pages */
  page(words: string, start: Gfn, end: Gfn): void {
    const known = this.#pages.get(words);
    this.#pages.set(words, {
      start: Math.min(start, known?.start ?? start),
      end: Math.max(end, known?.end ?? end),
      count: (known?.count ?? 0) + (end - start),
    });
    this.cover(start, end);
  }

  get sentence(): string {
    const pages = [...this.#pages].map(([words, { start, end, count }]) =>
      words.replace('%', count < end - start ? `${count} pages of ${rangeWords(start, end)}` : rangeWords(start, end)),
    );
    return [...this.words, ...pages].join('; ');
  }

  get range(): { readonly range?: RangeAnswer } {
    return this.#start < this.#end ? { range: range(this.#start, this.#end) } : {};
  }
}

function tellRmp(told: Told, before: RmpEntry | undefined, after: RmpEntry | undefined): void {
  const { gfn, level } = (after ?? before)!;
  const end = gfn + (level === 2 ? 512 : 1);
  if (!after) told.page('RMP: % is the hypervisor’s', gfn, end);
  else if (!before) told.page(`RMP: % is ${ownerWords(after)}, as ${level === 2 ? '2M' : '4K'}`, gfn, end);
  else if (before.asid !== after.asid || (before.gfn !== after.gfn && before.level === level))
    told.page(
      `RMP: the frame of % is ${ownerWords(after)} now, as ${rangeWords(gfn, end)}`,
      before.gfn,
      before.gfn + end - gfn,
    );
  else if (before.level !== level) told.page('PSMASH: the RMP has % in 4K', gfn, end);
  else if (after.validated !== before.validated)
    told.page(`PVALIDATE: % is ${after.validated ? 'accepted' : 'not accepted any more'}`, gfn, end);
  else if (after.rights !== before.rights) told.page('RMPADJUST: other VMPLs’ rights to % change', gfn, end);
  else told.page('RMP: the entry of % changes', gfn, end);
}

function tellIndex(machine: Machine, told: Told, { map, key, before, after }: IndexChange): void {
  const { rmp, folios, split, holes, mixed, pending, poisoned } = machine.attributes;
  const of = (words: string, pfn: number, pages: number): void => {
    for (const { start, end } of guestRanges(machine, pfn, pages)) told.page(words, start, end);
  };
  // The maps hold what their types say.
  if (map === rmp) tellRmp(told, before as RmpEntry | undefined, after as RmpEntry | undefined);
  else if (map === folios) of(after === undefined ? 'guest_memfd frees %' : 'guest_memfd has %', key, 1);
  else if (map === split) of('the direct map is split to 4K behind %', key * 512, 512);
  else if (map === holes) of(after === undefined ? '% is back in the direct map' : '% leaves the direct map', key, 1);
  else if (map === pending)
    of(
      after === undefined ? '% is not pending any more' : '% waits for the guest to accept it (TDH.MEM.PAGE.AUG)',
      key,
      1,
    );
  else if (map === poisoned)
    of(after === undefined ? '% is whole again' : 'the host has written to % of the guest’s', key, 1);
  else if (map === mixed) {
    const level = Math.floor(key / 2 ** 44);
    const gfn = key % 2 ** 44;
    told.page(
      `% is noted as ${after === undefined ? 'all alike' : 'mixed'} (${level === 2 ? '2M' : '1G'})`,
      gfn,
      gfn + 512 ** (level - 1),
    );
  }
}

function tellInvalidation(told: Told, before: InvalidationState, after: InvalidationState): void {
  if (after.start < 0) told.words.push('an invalidation without a range');
  else {
    const what =
      after.inProgress > before.inProgress ? 'begins' : after.inProgress < before.inProgress ? 'ends' : 'is widened';
    told.say(`the invalidation of ${rangeWords(after.start, after.end)} ${what}`, after.start, after.end);
  }
}

const TELLING = new Set<Kind>([
  Kind.ATTRIBUTES,
  Kind.INDEX,
  Kind.INVALIDATE,
  Kind.TRACE,
  Kind.HAZARD,
  Kind.MEMORY_FAULT,
]);

function tell(machine: Machine, told: Told, { kind, object }: LogEntry): void {
  // Each object has the shape with which Machine appended it.
  switch (kind) {
    case Kind.ATTRIBUTES: {
      const { start, end, isPrivate } = object as AttributeRun;
      told.say(`${rangeWords(start, end)} becomes ${isPrivate ? 'private' : 'shared'}`, start, end);
      return;
    }
    case Kind.INDEX:
      tellIndex(machine, told, object as IndexChange);
      return;
    case Kind.INVALIDATE: {
      const { before, after } = object as { before: InvalidationState; after: InvalidationState };
      tellInvalidation(told, before, after);
      return;
    }
    case Kind.TRACE: {
      const { event, fields } = object as { event: string; fields: Readonly<Record<string, unknown>> };
      if (event !== 'kvm_vm_set_mem_attributes') return;
      const [start, end] = [Number(fields.start), Number(fields.end)];
      told.begins = true;
      told.say(
        `a conversion of ${rangeWords(start, end)} to ${fields.attr === 0 ? 'shared' : 'private'} begins`,
        start,
        end,
      );
      return;
    }
    case Kind.HAZARD: {
      const { text, gfn } = object as { text: string; gfn: Gfn };
      told.say(text, gfn, gfn + 1);
      return;
    }
    case Kind.MEMORY_FAULT: {
      const { gpa = 0n, isPrivate } = object as FaultInfo;
      const gfn = Number(gpa >> 12n);
      told.say(`KVM_EXIT_MEMORY_FAULT: ${hex(gpa)} was accessed as ${isPrivate ? 'private' : 'shared'}`, gfn, gfn + 1);
    }
  }
}

/** Steps that changed private and shared memory, as far as the log remembers: each with all that it changed. */
function moments(machine: Machine): { readonly list: AttributeMoment[]; readonly more: boolean } {
  const { log } = machine;
  const list: AttributeMoment[] = [];
  let more = log.first > 0;
  // From the end: only the last are told.
  for (let position = log.length - 1; position >= log.first; ) {
    if (!TELLING.has(log.kindAt(position))) {
      position--;
      continue;
    }
    if (list.length === MOMENTS_MOST) {
      more = true;
      break;
    }
    const { step, task } = log.at(position);
    const [first, last] = stepAround(machine, position);
    position = first - 1;
    const told = new Told();
    for (let each = first; each < last; each++) if (TELLING.has(log.kindAt(each))) tell(machine, told, log.at(each));
    if (told.sentence === '') continue;
    list.push({
      since: first,
      at: last,
      step,
      by: machine.tasks[task]?.name ?? 'you',
      words: told.sentence,
      ...told.range,
      ...(told.begins ? { begins: true as const } : {}),
    });
  }
  if (!more) list.push({ since: 0, at: 0, step: 0, by: 'launch', words: 'memory as it was launched' });
  return { list: list.reverse(), more };
}

/** Positions [first, last) of the log that one step of a task wrote. */
function stepAround({ log }: Machine, position: number): readonly [first: number, last: number] {
  const { step, task } = log.at(position);
  const isSame = (at: number): boolean => {
    const entry = log.at(at);
    return entry.step === step && entry.task === task;
  };
  let [first, last] = [position, position + 1];
  while (first > log.first && isSame(first - 1)) first--;
  while (last < log.length && isSame(last)) last++;
  return [first, last];
}

export function attributeMapAnswer(machine: Machine, at: number | undefined): AttributeMapAnswer {
  needPrivateMemory(machine);
  const state = new MemoryState(machine, at);
  const { inProgress, start, end } = state.invalidation;
  const history = moments(machine);
  return {
    kind: 'attribute-map',
    certainty: 'exact',
    vm: machine.vm,
    step: machine.steps,
    stages: stageNames(machine),
    rmp: machine.vm === 'snp',
    frames: knowsFrames(machine),
    policy: machine.policies.conversion,
    slots: state.slots.list.map(({ id, base, pages, readonly, logDirty, invalid, gmem }) => ({
      id,
      ...range(base, base + pages),
      readonly,
      logDirty,
      invalid,
      gmem: gmem !== undefined,
    })),
    conversions: state.conversions.map((conversion) => {
      const task = machine.tasks[conversion.task];
      return {
        ...range(conversion.start, conversion.end),
        task: task?.name ?? `task ${conversion.task}`,
        to: conversion.isPrivate ? 'private' : 'shared',
        ...conversionProgress(task, conversion.start, conversion.end),
      };
    }),
    ...(inProgress > 0 && start >= 0 ? { invalidation: { ...range(start, end), count: inProgress } } : {}),
    moments: history.list,
    moreMoments: history.more,
  };
}
