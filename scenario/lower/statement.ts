import { type PagingName, REGISTERS } from '../../engine/guest/registers.ts';
import { INJECTIONS, isInjection } from '../../engine/injections.ts';
import { hex } from '../../engine/memory/words.ts';
import { STATEMENT_OWNER, type Statement } from '../../engine/program.ts';
import { didYouMean, headerSpan, type Problems, spanOf } from '../diagnostics.ts';
import type * as Ast from '../generated/ast.ts';
import { isRegister, registerBits } from '../names.ts';
import { constant, lowerExpression, type Names, unknownBit } from './expression.ts';
import { lowerSlot, slotId } from './machine.ts';
import { lowerAttributes, lowerEntry, lowerLevel, lowerMap, type Surroundings } from './mapping.ts';
import { lowerPrivateMemory, privateMemoryProblem } from './private.ts';
import { aligned, canonical, lowerRange } from './ranges.ts';

export interface StatementContext extends Surroundings {
  readonly owner: 'vcpu' | 'host';
  readonly names: Names;
  /** Slots that the machine has or that some host task adds. */
  readonly slots: ReadonlySet<number>;
  /** By guest, what statements are checked against that its vCPUs run. */
  readonly spaces: ReadonlyMap<string, Surroundings>;
  /** The nested guest whose code it is. */
  readonly within?: string;
  /** Whether it is the handler's in system-management mode. */
  readonly inSmm?: true;
}

/** KVM's module parameter nx_huge_pages_recovery_ratio, unless the kernel is a real-time one. */
const RECOVERY_RATIO = 60n;

/** How a statement begins, for messages. */
export const STATEMENT_WORDS: Readonly<Record<Ast.Statement['$type'], string>> = {
  Access: 'read, write and fetch',
  Assignment: 'setting a register',
  Invlpg: 'invlpg',
  Repeat: 'repeat',
  MapRange: 'map',
  RawEntry: 'entry',
  Unmap: 'unmap',
  Protect: 'protect',
  Expect: 'expect',
  Wait: 'wait until',
  AddSlot: 'add slot',
  DeleteSlot: 'delete slot',
  MoveSlot: 'move slot',
  LogDirty: 'log dirty',
  Zap: 'zap',
  Migrate: 'migrate',
  SwapOut: 'swap-out',
  AsyncPf: 'async-pf',
  RecoverNx: 'recover-nx-huge-pages',
  Poke: 'poke',
  Cpuid: 'cpuid',
  Inject: 'inject',
  Convert: 'convert',
  Pvalidate: 'pvalidate',
  Accept: 'accept',
  Rmpadjust: 'rmpadjust',
  RunVmpl: 'vmpl',
  Rmpupdate: 'rmpupdate',
  Punch: 'punch',
  Invpcid: 'invpcid',
  Enter: 'enter',
  Smm: 'smm',
  Invept: 'invept',
};

export function lowerStatements(
  body: readonly Ast.Statement[],
  context: StatementContext,
  problems: Problems,
): Statement[] {
  const statements: Statement[] = [];
  for (const node of body) {
    const statement = lowerStatement(node, context, problems);
    if (!statement) continue;
    const owner = STATEMENT_OWNER[statement.kind];
    if (owner === undefined || owner === context.owner) statements.push(statement);
    else {
      const [who, where] = owner === 'vcpu' ? ['a vCPU', 'a vcpu block'] : ['the host', 'a host block'];
      problems.error(node, `${STATEMENT_WORDS[node.$type]}: only ${who} can do this; it belongs in ${where}`);
    }
  }
  return statements;
}

function lowerStatement(node: Ast.Statement, context: StatementContext, problems: Problems): Statement | undefined {
  const { names } = context;
  const span = spanOf(node);
  switch (node.$type) {
    case 'Access':
      return lowerAccess(node, context, problems);
    case 'Assignment':
      return lowerAssignment(node, names, problems);
    case 'Invlpg': {
      const address = lowerExpression(node.address, problems, names);
      return address && { kind: 'invlpg', address, span };
    }
    case 'Repeat':
      return lowerRepeat(node, context, problems);
    case 'MapRange': {
      const edited = lowerEdited(node, context, problems);
      const mapping = edited && lowerMap(node, edited.space, problems);
      return mapping && { kind: 'map', mapping, ...edited.nested, span };
    }
    case 'RawEntry': {
      const edited = lowerEdited(node, context, problems);
      const mapping = edited && lowerEntry(node, edited.space, problems);
      return mapping && { kind: 'map', mapping, ...edited.nested, span };
    }
    case 'Unmap': {
      const range = lowerRange(node.base, node.size, context.owner === 'host' ? 'gpa' : 'gva', problems);
      if (!range) return undefined;
      // For the host, `unmap` is what an MMU notifier announces.
      if (context.owner === 'host') return { kind: 'notifier', ...range, how: 'unmap', span };
      const edited = lowerEdited(node, context, problems);
      return edited && canonical(node.base, range, edited.space.paging, problems)
        ? { kind: 'unmap', gva: range.base, size: range.size, ...edited.nested, span }
        : undefined;
    }
    case 'Protect': {
      const attributes = lowerAttributes(node, node.attributes, problems);
      const range = lowerRange(node.base, node.size, 'gva', problems);
      const edited = lowerEdited(node, context, problems);
      if (!attributes || !range || !edited || !canonical(node.base, range, edited.space.paging, problems))
        return undefined;
      const user = edited.space.nested ? { user: true } : {};
      return {
        kind: 'protect',
        gva: range.base,
        size: range.size,
        ...attributes.rights,
        ...user,
        ...edited.nested,
        span,
      };
    }
    case 'Enter':
      return lowerEnter(node, context, problems);
    case 'Smm': {
      if (hidesRegisters(context))
        return problems.error(node, 'smm: guests of SNP and TDX have no system-management mode (has_emulated_smm)');
      if (context.within !== undefined)
        return problems.error(
          node,
          `smm: an interrupt of ${context.within} would be L1’s first, which is not modelled yet`,
        );
      const body = lowerStatements(node.body, { ...context, inSmm: true }, problems);
      return { kind: 'smm', body, span: headerSpan(node, 'smm') };
    }
    case 'Invept': {
      if (context.machine.second !== 'ept')
        return problems.error(
          node,
          context.machine.second === 'npt'
            ? 'invept: only VMX has it; with NPT KVM synchronizes at every VMRUN'
            : 'invept: only VMX has it, with EPT; there is none behind shadow paging',
        );
      if (node.all) return { kind: 'invept', span };
      const nested = nestedName(node.nested, context, problems);
      return nested === undefined ? undefined : { kind: 'invept', nested, span };
    }
    case 'Convert':
    case 'Punch':
    case 'Pvalidate':
    case 'Accept':
    case 'Rmpadjust':
    case 'RunVmpl':
    case 'Rmpupdate': {
      const word = STATEMENT_WORDS[node.$type];
      const problem = privateMemoryProblem(node, word, context.machine.vm);
      return problem === undefined ? lowerPrivateMemory(node, names, problems) : problems.error(node, problem);
    }
    case 'Expect': {
      if (!node.condition)
        return problems.error(node, 'expect never: it holds for the whole scenario; it belongs outside of every block');
      const condition = lowerExpression(node.condition, problems, names);
      const text = expressionText(node.condition);
      return condition && { kind: 'expect', expectation: { condition, text, span }, span };
    }
    case 'Wait': {
      const condition = lowerExpression(node.condition, problems, names);
      return condition && { kind: 'wait', condition, span };
    }
    case 'AddSlot': {
      const slot = lowerSlot(node, 0, problems);
      if (!slot || !lowerRange(node.base, node.size, 'gpa', problems)) return undefined;
      return { kind: 'slot-add', slot, span };
    }
    case 'DeleteSlot': {
      const id = knownSlot(node.id, context, problems);
      return id === undefined ? undefined : { kind: 'slot-delete', id, span };
    }
    case 'MoveSlot': {
      const id = knownSlot(node.id, context, problems);
      const base = constant(node.base, 'gpa', problems);
      if (id === undefined || base === undefined || !aligned(node.base, 'gpa', base, problems)) return undefined;
      return { kind: 'slot-move', id, base, span };
    }
    case 'LogDirty': {
      const id = knownSlot(node.id, context, problems);
      return id === undefined ? undefined : { kind: 'slot-log', id, enable: node.state === 'on', span };
    }
    case 'Zap': {
      if (!node.base || !node.size) return { kind: 'zap', span };
      const range = lowerRange(node.base, node.size, 'gpa', problems);
      return range && { kind: 'zap', range, span };
    }
    case 'Migrate': {
      const range = lowerRange(node.base, node.size, 'gpa', problems);
      return range && { kind: 'notifier', ...range, how: 'migrate', span };
    }
    case 'SwapOut': {
      const range = lowerRange(node.base, node.size, 'gpa', problems);
      return range && { kind: 'notifier', ...range, how: 'swap-out', span };
    }
    case 'AsyncPf': {
      if (node.off || !node.gpa) return { kind: 'async-pf', sendAlways: false, span };
      const gpa = constant(node.gpa, 'gpa', problems);
      if (gpa === undefined) return undefined;
      if (gpa % 64n !== 0n)
        return problems.error(node.gpa, `async-pf ${hex(gpa)}: the area is aligned to 64 bytes (KVM_ASYNC_PF_EN)`);
      if (context.coverage.firstOutside({ base: gpa, size: 64n }) !== undefined)
        return problems.error(node.gpa, `async-pf ${hex(gpa)}: there is no memory slot`);
      return { kind: 'async-pf', gpa, sendAlways: node.sendAlways, span };
    }
    case 'RecoverNx': {
      const ratio = node.ratio ? constant(node.ratio, 'a ratio', problems) : RECOVERY_RATIO;
      if (ratio === undefined) return undefined;
      if (ratio < 1n || ratio > 0xffff_ffffn)
        return problems.error(node.ratio, `recover-nx-huge-pages ${ratio}: 1 of so many goes, 1 … 0xffffffff`);
      return { kind: 'recover-nx-huge-pages', ratio: Number(ratio), span };
    }
    case 'Invpcid': {
      const type = constant(node.type, 'type', problems);
      if (type === undefined) return undefined;
      if (type > 3n) return problems.error(node.type, `invpcid type ${type} is out of range: 0 … 3`);
      const needs = type === 0n ? 2 : type === 1n ? 1 : 0;
      const given = (node.pcid ? 1 : 0) + (node.address ? 1 : 0);
      if (given !== needs)
        return problems.error(
          node,
          `invpcid ${type} takes ${['its type alone', 'a PCID', 'a PCID and an address'][needs]}`,
        );
      const pcid = node.pcid && lowerExpression(node.pcid, problems, names);
      const address = node.address && lowerExpression(node.address, problems, names);
      if ((node.pcid && !pcid) || (node.address && !address)) return undefined;
      return {
        kind: 'invpcid',
        type: Number(type) as 0 | 1 | 2 | 3,
        ...(pcid ? { pcid } : {}),
        ...(address ? { address } : {}),
        span,
      };
    }
    case 'Cpuid': {
      const bits = constant(node.bits, 'maxphyaddr', problems);
      if (bits === undefined) return undefined;
      if (bits < 32n || bits > 52n) return problems.error(node.bits, `maxphyaddr ${bits} is out of range: 32 … 52`);
      return { kind: 'cpuid', maxPhyAddr: Number(bits), span };
    }
    case 'Inject': {
      if (isInjection(node.name)) return { kind: 'inject', name: node.name, span };
      return problems.error(node, `unknown mistake ${node.name}; there are: ${Object.keys(INJECTIONS).join(', ')}`);
    }
    case 'Poke': {
      if (context.machine.second === 'shadow')
        return problems.error(
          node,
          'poke: shadow tables are not for guest-physical addresses; it is for second-stage tdp',
        );
      const gpa = constant(node.gpa, 'gpa', problems);
      const level = lowerLevel(node.level, context.machine.secondLevels ?? 4, problems);
      const value = lowerExpression(node.value, problems, names);
      if (gpa === undefined || level === undefined || value === undefined) return undefined;
      const levels = context.machine.secondLevels ?? 4;
      const bits = 12 + 9 * levels;
      if (gpa >> BigInt(bits) !== 0n)
        return problems.error(node.gpa, `gpa ${hex(gpa)} is beyond the ${bits} bits of ${levels}-level tables`);
      return { kind: 'poke', gpa, level, value, span };
    }
  }
}

/** Whose tables a statement edits: the guest's that runs it, or as `in NAME` says L1's for guests of its own. */
function lowerEdited(
  { nested }: Ast.MapRange | Ast.RawEntry | Ast.Unmap | Ast.Protect,
  context: StatementContext,
  problems: Problems,
): { readonly space: Surroundings; readonly nested: { readonly nested?: string } } | undefined {
  if (!nested) return { space: context, nested: {} };
  const name = nestedName(nested, context, problems);
  if (name === undefined) return undefined;
  if (context.within !== undefined)
    return problems.error({ $cstNode: nested.$refNode }, `in ${name}: ${context.within} does not see L1’s tables`);
  return { space: context.spaces.get(name)!, nested: { nested: name } };
}

/** The name of L1's tables for its guests. */
function nestedName(
  reference: Ast.MapRange['nested'],
  { spaces }: StatementContext,
  problems: Problems,
): string | undefined {
  const name = reference?.$refText ?? '';
  if (spaces.get(name)?.nested) return name;
  const known = [...spaces].flatMap(([each, { nested }]) => (nested ? [each] : [])).join(', ');
  return problems.error(
    { $cstNode: reference?.$refNode },
    `there are no nested tables ${name}; there are: ${known || 'none; write nested NAME { … }'}`,
  );
}

/** Whether a guest's registers are hidden from KVM, so that it can neither interrupt nor nest it. */
const hidesRegisters = ({ machine }: StatementContext): boolean => machine.vm === 'snp' || machine.vm === 'tdx';

function lowerEnter(node: Ast.Enter, context: StatementContext, problems: Problems): Statement | undefined {
  const guest = node.guest.$refText;
  const place = { $cstNode: node.guest.$refNode };
  if (context.within !== undefined) return problems.error(node, `enter: ${context.within} runs no guests of its own`);
  if (hidesRegisters(context))
    return problems.error(node, 'enter: in guests of SNP and TDX KVM runs no guests of their own');
  if (context.inSmm) return problems.error(node, 'enter: in system-management mode VMRUN and VMLAUNCH are #UD');
  const space = context.spaces.get(guest);
  if (!space || space.nested) {
    const known = [...context.spaces].flatMap(([name, { nested }]) => (nested ? [] : [name])).join(', ');
    return problems.error(place, `there is no guest ${guest} to enter; guests: ${known || 'none'}`);
  }
  const body = lowerStatements(node.body, { ...context, ...space, within: guest }, problems);
  return { kind: 'enter', guest, body, span: headerSpan(node, `enter ${guest}`) };
}

export function expressionText(node: Ast.Expression): string {
  // As written, on one line.
  return (node.$cstNode?.text ?? '').replace(/\s*(#[^\n]*)?\n\s*/g, ' ');
}

const SIZES: ReadonlyMap<string, 1 | 2 | 4 | 8> = new Map([
  ['1', 1],
  ['2', 2],
  ['4', 4],
  ['8', 8],
]);

/** Bytes of a register, and of an access that tells no size: as wide as the code that the guest's paging is for. */
const WORD: Readonly<Record<PagingName, 4 | 8>> = { '32-bit': 4, pae: 4, '4-level': 8, '5-level': 8 };

function lowerAccess(node: Ast.Access, context: StatementContext, problems: Problems): Statement | undefined {
  const { names, paging, owner } = context;
  const kind = node.modifier === 'private' || node.modifier === 'shared' ? node.modifier : undefined;
  const problem = kind && privateMemoryProblem(node, STATEMENT_WORDS.Access, context.machine.vm);
  if (problem !== undefined) return problems.error(node, problem);
  if (kind !== undefined && owner === 'vcpu' && context.machine.vm === 'software-protected')
    return problems.error(
      node,
      `${kind} ${node.access}: a software-protected guest’s accesses are of no kind; the attribute alone tells`,
    );
  if (owner === 'host' && (node.access === 'fetch' || (node.modifier !== undefined && kind === undefined)))
    return problems.error(
      node,
      `${node.modifier ?? ''} ${node.access}: the host reads and writes memory, private or shared, and no more`.trim(),
    );
  const size = node.size === undefined ? WORD[paging] : SIZES.get(node.size);
  if (size === undefined) problems.error(node, `${node.access}.${node.size}: an access has 1, 2, 4 or 8 bytes`);
  const address = lowerExpression(node.address, problems, names);
  const value = node.value && lowerExpression(node.value, problems, names);
  if (node.value && node.access !== 'write')
    return problems.error(node.value, `a ${node.access} stores nothing: only write takes = VALUE`);
  if (!size || !address || (node.value && !value)) return undefined;
  return {
    kind: 'access',
    access: node.access,
    address,
    size,
    ...(value ? { value } : {}),
    // An implicit access, as to a descriptor table, is the supervisor's at any CPL.
    ...(node.modifier === 'user' ? { cpl: 3 } : node.modifier === 'supervisor' ? { cpl: 0 } : {}),
    ...(kind === undefined ? {} : { isPrivate: kind === 'private' }),
    implicit: node.modifier === 'implicit',
    span: spanOf(node),
  };
}

function lowerAssignment(node: Ast.Assignment, names: Names, problems: Problems): Statement | undefined {
  const { register, bit } = node;
  const value = lowerExpression(node.value, problems, names);
  if (!isRegister(register))
    return problems.error(
      node,
      `unknown register ${register}${didYouMean(register, REGISTERS)}: ${REGISTERS.join(', ')}`,
    );
  if (bit !== undefined) {
    const bits = registerBits(register);
    if (!bits.includes(bit)) return problems.error(node, unknownBit(register, bit, bits));
    if (value?.kind === 'number' && value.value > 1n)
      return problems.error(node.value, `${register}.${bit} is one bit: 0 or 1`);
  }
  return value && { kind: 'register', register, ...(bit === undefined ? {} : { bit }), value, span: spanOf(node) };
}

function lowerRepeat(node: Ast.Repeat, context: StatementContext, problems: Problems): Statement | undefined {
  const { names } = context;
  const variable = node.variable?.name;
  if (variable !== undefined && (isRegister(variable) || variable === 'vcpu'))
    problems.error(node.variable, `${variable} is a register’s name: call the loop variable something else`);
  const inner = variable === undefined ? names : { ...names, variables: [variable, ...names.variables] };
  const body = lowerStatements(node.body, { ...context, names: inner }, problems);
  const count = node.count && lowerExpression(node.count, problems, names);
  if (node.count && !count) return undefined;
  if (count?.kind === 'unary' && count.operator === '-')
    return problems.error(node.count, `repeat ${expressionText(node.count!)}: a count is 0 or more`);
  if (!count && body.length === 0 && node.body.length === 0)
    problems.warning(node, 'a loop without statements never ends and does nothing');
  const span = headerSpan(node, node.endless ? 'loop' : 'repeat', node.count, node.variable);
  return { kind: 'repeat', ...(count ? { count } : {}), ...(variable === undefined ? {} : { variable }), body, span };
}

function knownSlot(node: Ast.Expression, { slots }: StatementContext, problems: Problems): number | undefined {
  const id = slotId(node, problems);
  if (id === undefined || slots.has(id)) return id;
  const known = [...slots].sort((a, b) => a - b);
  const words = known.length > 16 ? `${known.slice(0, 16).join(', ')}, …` : known.join(', ');
  return problems.error(node, `there is no slot ${id}; slots: ${words || 'none'}`);
}
