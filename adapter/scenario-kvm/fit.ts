import type { Expression } from '../../engine/expression.ts';
import { COUNTERS } from '../../engine/machine.ts';
import { hex } from '../../engine/memory/words.ts';
import { DEFAULT_POLICIES } from '../../engine/policies.ts';
import type { Program, Span, Statement } from '../../engine/program.ts';

/** Something about a scenario that KVM cannot be told: an error stops the run, a warning is said before it. */
export interface Unfit {
  readonly severity: 'error' | 'warning';
  readonly message: string;
  readonly span: Span;
}

/** What can be counted on a real machine. */
export const COUNTED: ReadonlySet<string> = new Set([
  'accesses',
  'faults.guest',
  'faults.read_only',
  'emulated',
  'expects.passed',
  'expects.failed',
  'warnings',
]);
const COUNTER_NAMES: ReadonlySet<string> = new Set(COUNTERS);
/** Functions that ask for KVM's own tables, or for the host's frames. */
const OF_KVM = new Set(['spte', 'level', 'hpa']);
/** Guest memory that the stubs map for themselves, in bytes: 511 times 1G. */
export const MOST_MEMORY = 511n << 30n;

const NOWHERE: Span = { line: 1, column: 1, endLine: 1, endColumn: 1 };

/** What an expression asks that KVM does not tell. */
export function untold(expression: Expression): string[] {
  switch (expression.kind) {
    case 'number':
      return [];
    case 'name': {
      const name = expression.path.map((part) => (typeof part === 'string' ? part : '[]')).join('.');
      const isUntold =
        (COUNTER_NAMES.has(name) && !COUNTED.has(name)) || name === 'mmu_invalidate_seq' || name === 'tlb.entries';
      return isUntold ? [name] : [];
    }
    case 'unary':
      return untold(expression.operand);
    case 'binary':
      return [...untold(expression.left), ...untold(expression.right)];
    case 'in':
      return [expression.value, expression.from, expression.to].flatMap(untold);
    case 'call':
      return [
        ...(OF_KVM.has(expression.name) ? [`${expression.name}()`] : []),
        ...expression.arguments.flatMap(untold),
      ];
  }
}

/** Says what of a scenario cannot be done on KVM, before anything runs. */
export function unfit(program: Program): Unfit[] {
  const found: Unfit[] = [];
  const error = (span: Span, message: string): void => void found.push({ severity: 'error', message, span });
  const warning = (span: Span, message: string): void => void found.push({ severity: 'warning', message, span });
  const { machine } = program;
  for (const guest of program.guests) {
    if (guest.nested)
      error(guest.span, `nested ${guest.name}: the code that makes the accesses on KVM is no hypervisor`);
    if (guest.paging !== undefined && guest.paging !== '4-level')
      error(
        guest.span,
        `guest ${guest.name} has ${guest.paging} paging: the code that makes the accesses on KVM is 64-bit with 4 levels`,
      );
  }
  for (const task of program.tasks) {
    if (task.kind === 'vcpu' && task.guest === undefined)
      error(task.span, `vcpu ${task.name} runs without paging: on KVM a scenario’s vCPU needs a guest with tables`);
    visit(task.body, error);
  }
  for (const { base, size, id } of machine.slots) {
    if (base + size > MOST_MEMORY)
      error(NOWHERE, `slot ${id} goes up to ${hex(base + size)}: on KVM ${hex(MOST_MEMORY)} is the limit`);
  }
  if (machine.slots.some(({ pageLevel }) => pageLevel > 1))
    warning(NOWHERE, 'memory is backed as the host does it: “huge” is not asked for');
  const policies = Object.entries(machine.policies ?? DEFAULT_POLICIES);
  for (const [name, value] of policies)
    if (DEFAULT_POLICIES[name as keyof typeof DEFAULT_POLICIES] !== value)
      warning(NOWHERE, `policy ${name} = ${value}: this machine’s KVM does as it does`);
  const checks = [...program.expects, ...program.tasks.flatMap(({ body }) => expectations(body))];
  for (const { condition, text, span } of checks) {
    const names = untold(condition);
    if (names.length > 0) warning(span, `expect ${text} is not checked: KVM does not tell ${names.join(', ')}`);
  }
  return found;
}

function expectations(body: readonly Statement[]): Extract<Statement, { kind: 'expect' }>['expectation'][] {
  return body.flatMap((statement) =>
    statement.kind === 'expect'
      ? [statement.expectation]
      : statement.kind === 'repeat' || statement.kind === 'enter' || statement.kind === 'smm'
        ? expectations(statement.body)
        : [],
  );
}

function visit(body: readonly Statement[], error: (span: Span, message: string) => void): void {
  for (const statement of body) {
    const { span } = statement;
    switch (statement.kind) {
      case 'repeat':
        visit(statement.body, error);
        break;
      case 'access':
        if (statement.implicit)
          error(span, 'an implicit access cannot be made on KVM: the processor makes them by itself');
        break;
      case 'register':
        if (statement.register === 'cr0' && statement.bit === 'pg')
          error(span, 'cr0.pg: the code that makes the accesses on KVM needs paging');
        break;
      case 'wait': {
        const names = untold(statement.condition);
        if (names.length > 0) error(span, `this wait would never end: KVM does not tell ${names.join(', ')}`);
        break;
      }
      case 'zap':
        if (statement.range)
          error(
            span,
            'KVM zaps a range only for itself; “zap all” (slots deleted and added) and “unmap” can be asked for',
          );
        break;
      case 'cpuid':
        error(span, 'cpuid: KVM takes no other CPUID once a vCPU has run');
        break;
      case 'enter':
        error(span, `enter ${statement.guest}: the code that makes the accesses on KVM runs no guests of its own`);
        break;
      case 'smm':
        error(span, 'smm: the code that makes the accesses on KVM has no handler in SMRAM');
        break;
      case 'invept':
        error(span, 'invept: the code that makes the accesses on KVM is no hypervisor');
        break;
      case 'invpcid':
        error(span, 'invpcid: the code that makes the accesses on KVM cannot');
        break;
      case 'inject':
        error(span, `inject ${statement.name}: a real KVM makes no mistakes on demand`);
        break;
      case 'poke':
        error(span, 'KVM’s own tables cannot be written to');
        break;
      default:
        break;
    }
  }
}

/** Why a scenario cannot run on KVM, in one message. */
export function unfitWords(problems: readonly Unfit[]): string {
  const [first] = problems;
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : '';
  return `this scenario cannot run on KVM: line ${first!.span.line}: ${first!.message}${more}`;
}
