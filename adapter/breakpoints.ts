import { type Expression, ExpressionError, evaluate, type Scope, truthy } from '../engine/expression.ts';
import { isMemoryKind, Kind } from '../engine/history/log.ts';
import type { Machine } from '../engine/machine.ts';
import { hex } from '../engine/memory/words.ts';
import { MissingFrames } from '../engine/mirror.ts';
import type { Task } from '../engine/operation.ts';
import { programScope } from '../engine/queries/scope.ts';
import { type FaultInfo, RET_PF } from '../engine/tdp/fault.ts';
import { parseExpression } from '../scenario/index.ts';
import type { Match, Watcher } from './targets/target.ts';

/** The kinds of event that a person can stop at. Conditions see the fault's fields and all that programs see. */
export const FILTERS = [
  {
    filter: 'second-stage',
    label: 'EPT violation / NPT fault',
    description: 'A translation that the second-stage tables refuse',
    default: true,
  },
  {
    filter: 'misconfiguration',
    label: 'EPT misconfiguration / reserved bits',
    description: 'An entry that the processor refuses, KVM’s MMIO markers among them',
    default: true,
  },
  { filter: 'guest', label: 'Guest #PF', description: 'A page fault that the guest’s own handler gets', default: true },
  {
    filter: 'nested',
    label: 'Nested VM exit for a fault',
    description: 'A translation of a nested guest’s that L1’s own tables refuse, which L1 has to handle',
    default: true,
  },
  {
    filter: 'rmp',
    label: 'RMP fault',
    description: 'An access of an SNP guest that the tables allow and the RMP does not',
    default: true,
  },
  {
    filter: 'memory-fault',
    label: 'Private/shared mismatch (KVM_EXIT_MEMORY_FAULT)',
    description: 'An access to memory of the other kind, which userspace has to convert',
    default: true,
  },
  {
    filter: 'hazard',
    label: 'Hazard of a conversion',
    description: 'What must not happen when memory becomes private or shared: a stale translation, for example',
    default: true,
  },
  {
    filter: 'mmio',
    label: 'MMIO exit to userspace',
    description: 'An access that no memslot holds, or a write to a read-only one',
    default: false,
  },
  {
    filter: 'spurious',
    label: 'Spurious fault',
    description: 'The entry allowed the access by the time it was looked at',
    default: false,
  },
  { filter: 'fast', label: 'Fast fault', description: 'Fixed without a lock, by giving W back', default: false },
  { filter: 'warning', label: 'Kernel warning', description: 'What the kernel would complain about', default: true },
  {
    filter: 'expect',
    label: 'Failed expectation',
    description: 'An expect statement that does not hold',
    default: true,
  },
] as const;
/** Those of the emulator, and one that only real machines have (`kvm/filters.ts`). */
export type FilterName = (typeof FILTERS)[number]['filter'] | 'violations';

/** A filter as clients are told of it. */
export interface Filter {
  readonly filter: FilterName;
  readonly label: string;
  readonly description: string;
  readonly default: boolean;
}

export class ConditionError extends Error {}

/** A condition as parsed; with `hits`, the part that does not ask for hits is what is counted. */
export class Condition {
  readonly #counted: readonly Expression[];
  readonly #hits: readonly Expression[];
  #count = 0;

  /** @throws ConditionError with the parser's message. */
  constructor(text: string) {
    const { expression, error } = parseExpression(text);
    if (!expression) throw new ConditionError(error ?? `cannot read the condition ${text}`);
    const parts = conjuncts(expression);
    this.#counted = parts.filter((part) => !mentions(part, 'hits'));
    this.#hits = parts.filter((part) => mentions(part, 'hits'));
  }

  reset(): void {
    this.#count = 0;
  }

  /** The numbers between which a name must lie for the condition to hold, if it says so in itself. */
  range(name: string): { readonly from: bigint; readonly to: bigint } | undefined {
    for (const part of this.#counted) {
      if (part.kind !== 'in' || part.value.kind !== 'name' || part.value.path.join('.') !== name) continue;
      if (part.from.kind === 'number' && part.to.kind === 'number') return { from: part.from.value, to: part.to.value };
    }
    return undefined;
  }

  /**
   * Whether it holds, and what counts that as a hit: apart, so that all can be asked again before anything is counted.
   * @throws ExpressionError for a name that the scope does not know.
   */
  ask(scope: Scope): { readonly holds: boolean; count(): void } {
    if (!this.#counted.every((part) => truthy(evaluate(part, scope)))) return { holds: false, count() {} };
    const next = this.#count + 1;
    const counting: Scope = {
      ...scope,
      name: (path) => (path.length === 1 && path[0] === 'hits' ? BigInt(next) : scope.name(path)),
    };
    const holds = this.#hits.every((part) => truthy(evaluate(part, counting)));
    return { holds, count: () => (this.#count = next) };
  }
}

function conjuncts(expression: Expression): Expression[] {
  if (expression.kind === 'binary' && expression.operator === '&&')
    return [...conjuncts(expression.left), ...conjuncts(expression.right)];
  return [expression];
}

function mentions(expression: Expression, name: string): boolean {
  switch (expression.kind) {
    case 'number':
      return false;
    case 'name':
      return expression.path.length === 1 && expression.path[0] === name;
    case 'unary':
      return mentions(expression.operand, name);
    case 'binary':
      return mentions(expression.left, name) || mentions(expression.right, name);
    case 'in':
      return [expression.value, expression.from, expression.to].some((part) => mentions(part, name));
    case 'call':
      return expression.arguments.some((part) => mentions(part, name));
  }
}

/** `hits` may be asked as a hit count: `5` and `== 5`, `>= 5`, `% 5`. */
export function hitCondition(text: string): string {
  const trimmed = text.trim();
  if (/^\d+$/.test(trimmed)) return `hits == ${trimmed}`;
  if (/^%\s*\d+$/.test(trimmed)) return `hits ${trimmed} == 0`;
  if (/^(==|>=|<=|>|<)\s*\d+$/.test(trimmed)) return `hits ${trimmed}`;
  return trimmed;
}

/** Where it stands is known to whoever keeps it. */
export interface PlacedBreakpoint {
  readonly id: number;
  readonly condition: Condition | undefined;
  readonly logMessage: string | undefined;
}

export interface LineBreakpoint extends PlacedBreakpoint {
  readonly line: number;
}

export interface StepBreakpoint extends PlacedBreakpoint {
  readonly fn: string;
  readonly step: number;
}

/** A place in host-physical memory whose change stops the machine. */
export interface DataBreakpoint {
  readonly id: number;
  /** hpa / 8 of the first and beyond the last 8-byte word. */
  readonly from: number;
  readonly to: number;
  readonly condition: Condition | undefined;
}

/** Everything that stops a session, compiled; matched against new log entries and against where tasks stand. */
export class Breakpoints implements Watcher {
  lines: readonly LineBreakpoint[] = [];
  steps: readonly StepBreakpoint[] = [];
  data: readonly DataBreakpoint[] = [];
  readonly filters = new Map<FilterName, Condition | undefined>();
  #position = 0;
  readonly #say: (text: string) => void;

  constructor(say: (text: string) => void) {
    this.#say = say;
  }

  begin(machine: Machine): void {
    this.#position = machine.log.length;
  }

  check(machine: Machine, taskId: number): Match | undefined {
    const { log } = machine;
    let found: Match | undefined;
    for (let position = this.#position; position < log.length; position++) {
      found ??= this.#checkEntry(machine, taskId, position);
    }
    this.#position = log.length;
    if (found) return found;
    const task = machine.task(taskId);
    return task.stack.length === 0 ? this.#checkLine(machine, task) : this.#checkStep(machine, task);
  }

  #checkEntry(machine: Machine, task: number, position: number): Match | undefined {
    const kind = machine.log.kindAt(position);
    if (isMemoryKind(kind)) {
      if (this.data.length === 0) return undefined;
      const entry = machine.log.at(position);
      const hit = this.data.filter(
        (point) =>
          entry.address >= point.from &&
          entry.address < point.to &&
          (entry.oldLo !== entry.newLo || entry.oldHi !== entry.newHi),
      );
      const holding = hit.filter((point) => this.#holds(point.condition, programScope(machine, machine.task(task))));
      return holding.length === 0
        ? undefined
        : { kind: 'data', task, ids: holding.map((point) => point.id), object: entry };
    }
    const filter = filterOf(machine, position);
    if (filter === undefined || !this.filters.has(filter)) return undefined;
    const { object } = machine.log.at(position);
    const fault = isFault(object) ? object : undefined;
    if (!this.#holds(this.filters.get(filter), faultScope(machine, machine.task(task), fault))) return undefined;
    return { kind: 'exception', task, ids: [], filter, object };
  }

  #checkLine(machine: Machine, task: Task): Match | undefined {
    if (this.lines.length === 0 || task.state === 'done' || task.access !== null) return undefined;
    const instruction = machine.code[task.id]![task.pc];
    // The end of a loop is no place of its own: the loop's line is met once, when it is entered.
    if (!instruction || instruction.kind === 'end-loop') return undefined;
    const { line } = instruction.statement.span;
    return this.#matchPoints(
      machine,
      task,
      this.lines.filter((point) => point.line === line),
    );
  }

  #checkStep(machine: Machine, task: Task): Match | undefined {
    if (this.steps.length === 0) return undefined;
    const frame = task.stack.at(-1)!;
    return this.#matchPoints(
      machine,
      task,
      this.steps.filter((point) => point.step === frame.step && point.fn === frame.fn),
    );
  }

  #matchPoints(machine: Machine, task: Task, points: readonly PlacedBreakpoint[]): Match | undefined {
    const ids = points.length === 0 ? [] : this.hit(points, taskScope(machine, task));
    return ids.length === 0 ? undefined : { kind: 'breakpoint', task: task.id, ids };
  }

  hit(points: readonly PlacedBreakpoint[], scope: Scope): number[] {
    // Memory may be lacking for any of them, and all are asked again: only then is counted and said.
    const asked = points.map(({ id, condition, logMessage }) => {
      const { holds, count } = this.#ask(condition, scope);
      const said = holds && logMessage !== undefined ? logText(logMessage, scope) : undefined;
      return { id, holds, count, said };
    });
    for (const { count, said } of asked) {
      count();
      if (said !== undefined) this.#say(`${said}\n`);
    }
    return asked.filter(({ holds, said }) => holds && said === undefined).map(({ id }) => id);
  }

  wants(filter: FilterName): boolean {
    return this.filters.has(filter);
  }

  range(filter: FilterName): { readonly from: bigint; readonly to: bigint } | undefined {
    return this.filters.get(filter)?.range('gpa');
  }

  admits(filter: FilterName, scope: Scope): boolean {
    return this.filters.has(filter) && this.#holds(this.filters.get(filter), scope);
  }

  /** A condition that cannot be evaluated stops the machine, so that it is not silently never true. */
  #ask(condition: Condition | undefined, scope: Scope): { readonly holds: boolean; count(): void } {
    if (!condition) return { holds: true, count() {} };
    try {
      return condition.ask(scope);
    } catch (error) {
      if (!(error instanceof ExpressionError)) throw error;
      return { holds: true, count: () => this.#say(`condition: ${error.message}\n`) };
    }
  }

  #holds(condition: Condition | undefined, scope: Scope): boolean {
    const { holds, count } = this.#ask(condition, scope);
    count();
    return holds;
  }
}

function isFault(object: unknown): object is FaultInfo {
  return typeof object === 'object' && object !== null && 'gva' in object && 'errorCode' in object;
}

function filterOf(machine: Machine, position: number): FilterName | undefined {
  switch (machine.log.kindAt(position)) {
    case Kind.EXIT: {
      const fault = machine.log.at(position).object as FaultInfo;
      if (fault.kind === 'rmp') return 'rmp';
      return fault.kind === 'misconfiguration' || (fault.errorCode & 8) !== 0 ? 'misconfiguration' : 'second-stage';
    }
    case Kind.GUEST_FAULT:
      return 'guest';
    case Kind.NESTED_EXIT:
      return isFault(machine.log.at(position).object) ? 'nested' : undefined;
    case Kind.MMIO:
      return 'mmio';
    case Kind.MEMORY_FAULT:
      return 'memory-fault';
    case Kind.HAZARD:
      return 'hazard';
    case Kind.WARNING:
      return 'warning';
    case Kind.EXPECT_FAILED:
      return 'expect';
    case Kind.FAULT_RESULT:
      return machine.log.at(position).newLo === RET_PF.SPURIOUS ? 'spurious' : undefined;
    case Kind.TRACE: {
      const { event, fields } = machine.log.at(position).object as { event: string; fields: { fixed?: boolean } };
      return event === 'fast_page_fault' && fields.fixed ? 'fast' : undefined;
    }
    default:
      return undefined;
  }
}

export function faultScope(machine: Machine, task: Task, fault: FaultInfo | undefined): Scope {
  const outer = programScope(machine, task);
  if (!fault) return outer;
  return {
    ...outer,
    name(path) {
      if (path.length === 1) {
        switch (path[0]) {
          case 'gpa':
            return fault.gpa ?? fault.gva;
          case 'gva':
            return fault.gva;
          case 'gfn':
            return (fault.gpa ?? 0n) >> 12n;
          case 'read':
          case 'write':
          case 'fetch':
            return fault.access === path[0];
          case 'access':
            return fault.access;
          case 'level':
            return BigInt(fault.level);
          case 'guest_level':
            return BigInt(fault.guestLevel);
          case 'cpl':
            return BigInt(fault.cpl);
          case 'user':
            return fault.cpl === 3 && !fault.implicit;
          case 'implicit':
            return fault.implicit;
          case 'vcpu':
            return BigInt(fault.vcpu);
          case 'error_code':
            return BigInt(fault.errorCode);
          case 'table':
            return fault.target === 'table';
          case 'private':
            return fault.isPrivate === true;
          default:
            break;
        }
      }
      return outer.name(path);
    },
  };
}

/** The names of the fault that a task is handling, if it is in the middle of one. */
export function taskScope(machine: Machine, task: Task): Scope {
  return faultScope(machine, task, currentFault(task));
}

/** The fault whose handling is on a task's stack. */
export function currentFault(task: Task): FaultInfo | undefined {
  for (const frame of [...task.stack].reverse()) {
    const locals = frame.locals as Record<string, unknown>;
    for (const candidate of [locals.info, locals.fault]) {
      if (isFault(candidate)) return candidate;
      if (typeof candidate === 'object' && candidate !== null && 'info' in candidate && isFault(candidate.info))
        return candidate.info;
    }
  }
  return undefined;
}

/** Replaces `{expression}` in a log message. */
function logText(message: string, scope: Scope): string {
  return message.replace(/\{([^{}]*)\}/g, (whole, text: string) => {
    const { expression } = parseExpression(text);
    if (!expression) return whole;
    try {
      const value = evaluate(expression, scope);
      return typeof value === 'bigint' ? hex(value) : `${value}`;
    } catch (error) {
      if (error instanceof MissingFrames) throw error;
      return `{${(error as Error).message}}`;
    }
  });
}
