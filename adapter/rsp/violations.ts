import { jsonAnswer } from './json-answer.ts';

/**
 * A second-stage or shadow fault that a tracepoint of the kernel told of, after the access (native/PROTOCOL.md,
 * "Violations after the fact"). What is absent the event does not tell.
 */
export interface Violation {
  readonly vcpu: number;
  /** The tracepoint's name. */
  readonly event: string;
  readonly gpa?: bigint;
  readonly gva?: bigint;
  /** Number of the guest's page that was accessed, and of the host's page behind it. */
  readonly gfn?: bigint;
  readonly pfn?: bigint;
  readonly level?: number;
  /** An error code: of #PF with shadow tables, of a nested page fault with NPT; with EPT the exit qualification. */
  readonly error?: bigint;
  readonly rip?: bigint;
  /** The SPTE before and after. */
  readonly old?: bigint;
  readonly new?: bigint;
}

/** What was told since the last time, in the order in which it happened. */
export interface Violations {
  /** Of how many more the kernel or the helper kept nothing. */
  readonly lost: number;
  readonly list: readonly Violation[];
}

const NUMBERS = ['gpa', 'gva', 'gfn', 'pfn', 'error', 'rip', 'old', 'new'] as const;
const { parse, record, list, count, words, address } = jsonAnswer('qKvm.Violations');

/** The answer to `qKvm.Violations`. Members that are not known here are a newer helper's, and left alone. @throws RspError */
export function parseViolations(text: string): Violations {
  const answer = parse(text);
  return { lost: count(answer, 'lost'), list: list(answer, 'list').map(parseViolation) };
}

function parseViolation(value: unknown): Violation {
  const violation = record(value, 'a violation');
  const told = NUMBERS.filter((name) => violation[name] !== undefined);
  return {
    vcpu: count(violation, 'vcpu'),
    event: words(violation, 'event'),
    ...Object.fromEntries(told.map((name) => [name, address(violation, name)])),
    ...(violation.level === undefined ? {} : { level: count(violation, 'level') }),
  };
}
