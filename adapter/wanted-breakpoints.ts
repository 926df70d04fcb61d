import type { DebugProtocol } from '@vscode/debugprotocol';
import { listing, stepOfLine } from '../engine/queries/listing.ts';
import { type Breakpoints, Condition, ConditionError, FILTERS, hitCondition } from './breakpoints.ts';
import { KVM_FILTERS } from './kvm/filters.ts';

/** Of sessions of every kind: which this one has, its target knows. */
const ALL_FILTERS = [...new Set([...FILTERS, ...KVM_FILTERS].map(({ filter }) => filter))];

/** Breakpoints as a client asks for them: conditions compiled, places found, and an answer to each. */
export class WantedBreakpoints {
  readonly #breakpoints: Breakpoints;
  #next = 1;

  constructor(breakpoints: Breakpoints) {
    this.#breakpoints = breakpoints;
  }

  /** Those of a scenario: a line without a statement means the next that has one. */
  setLines(lines: readonly number[], wanted: readonly DebugProtocol.SourceBreakpoint[]): DebugProtocol.Breakpoint[] {
    const compiled = wanted.map((point) => {
      const id = this.#next++;
      const line = lines.find((candidate) => candidate >= point.line);
      const condition = compileCondition(point);
      if (line === undefined) return { answer: { id, verified: false, message: 'no statement stands here or below' } };
      if (typeof condition === 'string')
        return { answer: { id, verified: false, line: point.line, message: condition } };
      return { answer: { id, verified: true, line }, point: { id, line, condition, logMessage: point.logMessage } };
    });
    this.#breakpoints.lines = compiled.flatMap(({ point }) => (point ? [point] : []));
    return compiled.map((entry) => entry.answer);
  }

  /** Those of a function's listing. A line above the first step means the first. */
  setSteps(fn: string, wanted: readonly DebugProtocol.SourceBreakpoint[]): DebugProtocol.Breakpoint[] {
    const text = listing(fn);
    const compiled = wanted.map((point) => {
      const id = this.#next++;
      const step = Math.max(0, stepOfLine(text, point.line));
      const condition = compileCondition(point);
      if (typeof condition === 'string')
        return { answer: { id, verified: false, line: point.line, message: condition } };
      return {
        answer: { id, verified: true, line: text.stepLines[step]! },
        point: { id, fn, step, condition, logMessage: point.logMessage },
      };
    });
    this.#breakpoints.steps = [
      ...this.#breakpoints.steps.filter((point) => point.fn !== fn),
      ...compiled.flatMap(({ point }) => (point ? [point] : [])),
    ];
    return compiled.map((entry) => entry.answer);
  }

  setFilters(options: readonly DebugProtocol.ExceptionFilterOptions[]): DebugProtocol.Breakpoint[] {
    this.#breakpoints.filters.clear();
    return options.map((option): DebugProtocol.Breakpoint => {
      const known = ALL_FILTERS.find((candidate) => candidate === option.filterId);
      if (!known) {
        const names = ALL_FILTERS.join(', ');
        return { verified: false, message: `unknown filter ${option.filterId}; there are ${names}` };
      }
      try {
        this.#breakpoints.filters.set(known, conditionOf(option.condition, undefined));
        return { verified: true };
      } catch (error) {
        return { verified: false, message: (error as Error).message };
      }
    });
  }

  /** Those on memory: a place is the number of 8 bytes in host memory. */
  setData(wanted: readonly DebugProtocol.DataBreakpoint[]): DebugProtocol.Breakpoint[] {
    const compiled = wanted.map((point) => {
      const id = this.#next++;
      if (!/^\d{1,16}$/.test(point.dataId))
        return { answer: { id, verified: false, message: `unknown place ${point.dataId}` } };
      try {
        const from = Number(point.dataId);
        return {
          answer: { id, verified: true },
          point: { id, from, to: from + 1, condition: conditionOf(point.condition, point.hitCondition) },
        };
      } catch (error) {
        return { answer: { id, verified: false, message: (error as Error).message } };
      }
    });
    this.#breakpoints.data = compiled.flatMap(({ point }) => (point ? [point] : []));
    return compiled.map((entry) => entry.answer);
  }
}

/** The condition and the hit count together. @throws ConditionError */
function conditionOf(condition: string | undefined, hits: string | undefined): Condition | undefined {
  const parts = [condition?.trim(), hits?.trim() ? hitCondition(hits) : undefined].filter(
    (part) => part !== undefined && part !== '',
  );
  return parts.length === 0
    ? undefined
    : new Condition(parts.length === 1 ? parts[0]! : parts.map((part) => `(${part})`).join(' && '));
}

/** A breakpoint's condition, or what is wrong with it. */
export function compileCondition(
  wanted: Pick<DebugProtocol.SourceBreakpoint, 'condition' | 'hitCondition'>,
): Condition | undefined | string {
  try {
    return conditionOf(wanted.condition, wanted.hitCondition);
  } catch (error) {
    if (error instanceof ConditionError) return error.message;
    throw error;
  }
}
