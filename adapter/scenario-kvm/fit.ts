import { COUNTERS } from '../../engine/counters.ts';
import type { Expression } from '../../engine/expression.ts';
import type { PagingName } from '../../engine/guest/registers.ts';
import { DEFAULT_POLICIES } from '../../engine/policies.ts';
import type { Program, Span, Statement } from '../../engine/program.ts';
import { isNarrow, isStubPaging } from './layout.ts';
import { pagingOf, unmappable } from './stubs.ts';

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
  'nested.entries',
  'nested.exits',
  'conversions',
  'exits.memory_fault',
]);
const COUNTER_NAMES: ReadonlySet<string> = new Set(COUNTERS);
/** Functions that ask for KVM's own tables, or for the host's frames. */
const OF_KVM = new Set(['spte', 'level', 'hpa']);
/** What a task's own accesses have found, which the engine knows of its own machine alone. */
const OF_ACCESSES = new Set(['error_code']);
/** Bits that select a paging mode. */
const MODE_BITS = new Set(['cr0.pe', 'cr0.pg', 'cr4.pae', 'cr4.la57', 'efer.lme', 'efer.lma']);

const NOWHERE: Span = { line: 1, column: 1, endLine: 1, endColumn: 1 };

/** What an expression asks that KVM does not tell. */
export function untold(expression: Expression): string[] {
  switch (expression.kind) {
    case 'number':
      return [];
    case 'name': {
      const name = expression.path.map((part) => (typeof part === 'string' ? part : '[]')).join('.');
      const isUntold =
        (COUNTER_NAMES.has(name) && !COUNTED.has(name)) ||
        OF_ACCESSES.has(name) ||
        name === 'mmu_invalidate_seq' ||
        name === 'tlb.entries';
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
  const entered = new Set(program.tasks.flatMap(({ body }) => enteredIn(body)));
  for (const guest of program.guests) {
    const paging = guest.paging ?? '4-level';
    if (guest.nested && machine.second !== 'npt')
      error(
        guest.span,
        `nested ${guest.name}: the code that makes the accesses on KVM runs its guests by SVM’s VMRUN: “second-stage tdp npt 4-level” is possible`,
      );
    else if ((guest.nested || guest.within !== undefined || entered.has(guest.name)) && paging !== '4-level')
      error(
        guest.span,
        `${guest.nested ? 'nested' : 'guest'} ${guest.name} has ${paging} paging: the code that makes the accesses on KVM nests guests of 4-level paging alone`,
      );
    else if (guest.paging !== undefined && !isStubPaging(guest.paging))
      error(
        guest.span,
        `guest ${guest.name} has ${guest.paging} paging: the code that makes the accesses on KVM has 32-bit, pae and 4-level`,
      );
  }
  for (const task of program.tasks) {
    if (task.kind === 'vcpu' && task.guest === undefined)
      error(task.span, `vcpu ${task.name} runs without paging: on KVM a scenario’s vCPU needs a guest with tables`);
    visit(task.body, { program, owner: task.kind, vcpu: task.name, paging: pagingOf(program, task.guest), error });
  }
  for (const guest of program.guests) {
    const problem = unmappable(program, guest.paging ?? '4-level');
    if (problem !== undefined) error(guest.span, `guest ${guest.name}: ${problem}`);
  }
  if (machine.vm === 'snp' || machine.vm === 'tdx')
    error(
      NOWHERE,
      `vm ${machine.vm}: the code that makes the accesses on KVM has no encrypted guests; “vm software-protected” is possible`,
    );
  if (machine.privateRanges?.some(({ launched }) => launched))
    error(NOWHERE, 'launch: KVM puts nothing into the private memory of a software-protected VM; say private');
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

/** Guests that statements enter. */
function enteredIn(body: readonly Statement[]): string[] {
  return body.flatMap((statement) =>
    statement.kind === 'enter'
      ? [statement.guest, ...enteredIn(statement.body)]
      : statement.kind === 'repeat' || statement.kind === 'smm'
        ? enteredIn(statement.body)
        : [],
  );
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

/** Whose statements are looked at. */
interface Around {
  readonly program: Program;
  readonly owner: 'vcpu' | 'host';
  readonly vcpu: string;
  readonly paging: PagingName;
  error(span: Span, message: string): void;
}

function visit(body: readonly Statement[], around: Around): void {
  const { owner, paging, error } = around;
  for (const statement of body) {
    const { span } = statement;
    switch (statement.kind) {
      case 'repeat':
        visit(statement.body, around);
        break;
      case 'access': {
        const { access, size } = statement;
        if (owner === 'host' && statement.isPrivate)
          error(span, `private ${access}: the host has no mapping of private memory (guest_memfd)`);
        if (statement.implicit)
          error(span, 'an implicit access cannot be made on KVM: the processor makes them by itself');
        if (isNarrow(paging) && size === 8 && access !== 'fetch')
          error(
            span,
            `${access}.8: with ${paging} paging the code that makes the accesses is 32-bit, and one instruction has 1, 2 or 4 bytes`,
          );
        const names = [statement.address, ...(statement.value ? [statement.value] : [])].flatMap(untold);
        if (names.length > 0) error(span, `this ${access} cannot be made: KVM does not tell ${names.join(', ')}`);
        break;
      }
      case 'register':
        visitRegister(statement, around);
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
        if (paging !== '4-level')
          error(
            span,
            `enter ${statement.guest}: with ${paging} paging the code that makes the accesses on KVM runs no guests of its own`,
          );
        visit(statement.body, around);
        break;
      case 'smm':
        error(span, 'smm: the code that makes the accesses on KVM has no handler in SMRAM');
        break;
      case 'invept':
        error(span, 'invept: the code that makes the accesses on KVM runs its guests by VMRUN, and SVM has no INVEPT');
        break;
      case 'invpcid':
        error(span, 'invpcid: the code that makes the accesses on KVM cannot');
        break;
      case 'notifier':
        if (statement.how === 'swap-out')
          error(span, 'swap-out: on a real machine the host decides which memory goes to the disk');
        break;
      case 'convert':
        if (owner === 'vcpu' && isNarrow(paging))
          error(span, `convert: with ${paging} paging the code that makes the accesses on KVM has no such hypercall`);
        break;
      case 'async-pf':
        error(span, 'async-pf: the code that makes the accesses on KVM has no handler for such faults');
        break;
      case 'recover-nx-huge-pages':
        error(span, 'recover-nx-huge-pages: KVM’s own worker decides when (nx_huge_pages_recovery_period_ms)');
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

function visitRegister(
  { register, bit, value, span }: Extract<Statement, { kind: 'register' }>,
  { program, vcpu, paging, error }: Around,
): void {
  if (bit !== undefined && MODE_BITS.has(`${register}.${bit}`))
    error(span, `${register}.${bit}: the code that makes the accesses on KVM stays with ${paging} paging`);
  if (register === 'pkru' && isNarrow(paging)) error(span, `pkru: with ${paging} paging there are no protection keys`);
  if (register !== 'cr3') return;
  for (const name of namesIn(value)) {
    const guest = program.guests.find((each) => each.name === name);
    const other = guest?.paging ?? '4-level';
    if (guest && other !== paging)
      error(
        span,
        `cr3 = ${name}: guest ${name} has ${other} paging, and vcpu ${vcpu} stays with ${paging}: the code that makes the accesses on KVM does not switch`,
      );
  }
}

/** Names that an expression consists of. */
function namesIn(expression: Expression): string[] {
  switch (expression.kind) {
    case 'number':
      return [];
    case 'name':
      return expression.path.length === 1 && typeof expression.path[0] === 'string' ? [expression.path[0]] : [];
    case 'unary':
      return namesIn(expression.operand);
    case 'binary':
      return [...namesIn(expression.left), ...namesIn(expression.right)];
    case 'in':
      return [expression.value, expression.from, expression.to].flatMap(namesIn);
    case 'call':
      return expression.arguments.flatMap(namesIn);
  }
}

/** Why a scenario cannot run on KVM, in one message. */
export function unfitWords(problems: readonly Unfit[]): string {
  const [first] = problems;
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : '';
  return `this scenario cannot run on KVM: line ${first!.span.line}: ${first!.message}${more}`;
}
