import { type BinaryOperator, type Expression, ExpressionError, evaluateInteger } from '../../engine/expression.ts';
import { REGISTERS } from '../../engine/guest/registers.ts';
import { didYouMean, type Problems } from '../diagnostics.ts';
import * as Ast from '../generated/ast.ts';
import { FAMILIES, FUNCTIONS, isRegister, registerBits, VALUES } from '../names.ts';
import { parseNumber } from '../number.ts';

/** What names mean where an expression stands. Absent: anything may be a name, as in a breakpoint's condition. */
export interface Names {
  readonly guests: readonly string[];
  readonly variables: readonly string[];
  readonly vcpus: number;
}

/** Lowers an expression; undefined when it is wrong, which `problems` then says. */
export function lowerExpression(node: Ast.Expression, problems: Problems, names?: Names): Expression | undefined {
  switch (node.$type) {
    case 'NumberLiteral': {
      const value = parseNumber(node.text);
      if (typeof value === 'string') return problems.error(node, value);
      return { kind: 'number', value };
    }
    case 'Unary': {
      const operand = lowerExpression(node.operand, problems, names);
      return operand && { kind: 'unary', operator: node.operator, operand };
    }
    case 'Binary':
      return lowerBinary(node, problems, names);
    case 'NameExpression':
      return node.call ? lowerCall(node, problems, names) : lowerName(node, problems, names);
  }
}

function lowerBinary(node: Ast.Binary, problems: Problems, names?: Names): Expression | undefined {
  const left = lowerExpression(node.left, problems, names);
  if (node.operator === '..') return problems.error(node, '‘..’ stands behind ‘in’ only: gpa in 0x1000..0x2000');
  if (node.operator === 'in') {
    const range = node.right;
    if (!Ast.isBinary(range) || range.operator !== '..')
      return problems.error(range, '‘in’ needs a range: gpa in 0x1000..0x2000, whose end is not part of it');
    const from = lowerExpression(range.left, problems, names);
    const to = lowerExpression(range.right, problems, names);
    return left && from && to && { kind: 'in', value: left, from, to };
  }
  const right = lowerExpression(node.right, problems, names);
  return left && right && { kind: 'binary', operator: node.operator satisfies BinaryOperator, left, right };
}

function lowerCall(node: Ast.NameExpression, problems: Problems, names?: Names): Expression | undefined {
  const name = node.head.$refText;
  if (names && !Object.hasOwn(FUNCTIONS, name)) {
    const known = Object.keys(FUNCTIONS);
    problems.warning(node, `unknown function ${name}()${didYouMean(name, known)}; functions: ${known.join(', ')}`);
  } else if (names && node.arguments.length !== 1)
    problems.warning(node, `${name}() takes 1 argument, not ${node.arguments.length}`);
  const parts = node.arguments.map((argument) => lowerExpression(argument, problems, names));
  if (!parts.every((part) => part !== undefined)) return undefined;
  return { kind: 'call', name, arguments: parts };
}

function lowerName(node: Ast.NameExpression, problems: Problems, names?: Names): Expression | undefined {
  const path: (string | Expression)[] = [node.head.$refText];
  for (const part of node.parts) {
    const lowered = part.word ?? (part.index && lowerExpression(part.index, problems, names));
    if (lowered === undefined) return undefined;
    path.push(lowered);
  }
  if (names) checkName(node, path, problems, names);
  return { kind: 'name', path };
}

/** Warns of a name that will not be known when the scenario runs. */
function checkName(
  node: Ast.NameExpression,
  path: readonly (string | Expression)[],
  problems: Problems,
  names: Names,
): void {
  const [first, second] = path as [string, ...(string | Expression)[]];
  if (path.length === 1 && (names.variables.includes(first) || names.guests.includes(first))) return;
  if (first === 'vcpu') {
    if (typeof second !== 'object') problems.warning(node, 'vcpu needs a number and a register: vcpu[0].cr3');
    else if (second.kind === 'number' && second.value >= BigInt(names.vcpus))
      problems.warning(node, `there is no vcpu ${second.value}: ${countWords(names.vcpus)}`);
    else if (path[2] === 'vmpl' && path.length === 3) return;
    else if (typeof path[2] !== 'string')
      problems.warning(node, `vcpu[…] needs a register: ${REGISTERS.map((name) => `.${name}`).join(', ')}`);
    else checkRegister(node, path.slice(2), problems);
    return;
  }
  if (isRegister(first)) {
    checkRegister(node, path, problems);
    return;
  }
  const dotted = path.map((part) => (typeof part === 'string' ? part : '[…]')).join('.');
  if (VALUES.includes(dotted)) return;
  if (FAMILIES.has(first)) {
    const family = VALUES.filter((name) => name.startsWith(`${first}.`));
    problems.warning(node, `unknown counter ${dotted}${didYouMean(dotted, family)}; there are: ${family.join(', ')}`);
    return;
  }
  const known = [...names.variables, ...names.guests, ...VALUES, ...REGISTERS];
  problems.warning(
    node,
    `unknown name ${dotted}${didYouMean(dotted, known)}: neither a counter, a register, a guest nor a loop variable`,
  );
}

const countWords = (vcpus: number): string =>
  vcpus === 0 ? 'there are none' : vcpus === 1 ? 'there is only vcpu 0' : `they are 0 … ${vcpus - 1}`;

function checkRegister(node: Ast.NameExpression, path: readonly (string | Expression)[], problems: Problems): void {
  const [register, bit] = path;
  if (typeof register !== 'string' || !isRegister(register)) {
    const word = typeof register === 'string' ? register : '[…]';
    problems.warning(node, `unknown register ${word}${didYouMean(word, REGISTERS)}: ${REGISTERS.join(', ')}`);
    return;
  }
  if (bit === undefined) return;
  const bits = registerBits(register);
  if (typeof bit !== 'string' || !bits.includes(bit) || path.length > 2)
    problems.warning(node, unknownBit(register, typeof bit === 'string' ? bit : '[…]', bits));
}

export function unknownBit(register: string, bit: string, bits: readonly string[]): string {
  if (bits.length === 0) return `${register} has no named bits: set it as a whole`;
  return `${register} has no bit ${bit}${didYouMean(bit, bits)}: ${bits.join(', ')}`;
}

/** Whether it has no names, and so is the same wherever it stands. */
export function isConstant(expression: Expression): boolean {
  switch (expression.kind) {
    case 'number':
      return true;
    case 'name':
    case 'call':
      return false;
    case 'unary':
      return isConstant(expression.operand);
    case 'binary':
      return isConstant(expression.left) && isConstant(expression.right);
    case 'in':
      return [expression.value, expression.from, expression.to].every(isConstant);
  }
}

/** The value of an expression without names; undefined when it is none, which `problems` then says. */
export function constant(node: Ast.Expression, what: string, problems: Problems): bigint | undefined {
  const expression = lowerExpression(node, problems);
  if (!expression) return undefined;
  try {
    return evaluateInteger(expression, { name: () => undefined }, what);
  } catch (error) {
    if (!(error instanceof ExpressionError)) throw error;
    return problems.error(node, `${what} must be a constant: ${error.message}`);
  }
}
