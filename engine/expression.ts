/**
 * The one expression language of conditions, watch, hovers and `expect`: parsed by the scenario language, evaluated
 * here over names that the asker resolves.
 */
export type Expression =
  | { readonly kind: 'number'; readonly value: bigint }
  | { readonly kind: 'name'; readonly path: readonly PathPart[] }
  | { readonly kind: 'unary'; readonly operator: UnaryOperator; readonly operand: Expression }
  | {
      readonly kind: 'binary';
      readonly operator: BinaryOperator;
      readonly left: Expression;
      readonly right: Expression;
    }
  /** `value in from..to`: half-open. */
  | { readonly kind: 'in'; readonly value: Expression; readonly from: Expression; readonly to: Expression }
  | { readonly kind: 'call'; readonly name: string; readonly arguments: readonly Expression[] };

/** A part of a dotted name: a word, or an index in brackets. */
export type PathPart = string | Expression;
export type UnaryOperator = '!' | '-' | '~';
export type BinaryOperator =
  | '+'
  | '-'
  | '*'
  | '/'
  | '%'
  | '<<'
  | '>>'
  | '&'
  | '|'
  | '^'
  | '=='
  | '!='
  | '<'
  | '<='
  | '>'
  | '>='
  | '&&'
  | '||';

/** Integers are 64 bits, unsigned; `undefined` is something that the machine does not know. */
export type Value = bigint | boolean | string;

/** What names and functions mean. Both return undefined for what they do not know. */
export interface Scope {
  name(path: readonly (string | bigint)[]): Value | undefined;
  call?(name: string, values: readonly Value[]): Value | undefined;
  /** What would be accepted, for messages. */
  readonly known?: string;
  readonly knownFunctions?: string;
}

export class ExpressionError extends Error {}

const asInteger = (value: Value, what: string): bigint => {
  if (typeof value === 'bigint') return value;
  if (typeof value === 'boolean') return value ? 1n : 0n;
  throw new ExpressionError(`${what} needs a number, not ‘${value}’`);
};

export function truthy(value: Value): boolean {
  return typeof value === 'string' ? value !== '' : value !== false && value !== 0n;
}

const wrap = (value: bigint): bigint => BigInt.asUintN(64, value);

/** @throws ExpressionError for an unknown name, a division by zero, or a word where a number is needed. */
export function evaluate(expression: Expression, scope: Scope): Value {
  switch (expression.kind) {
    case 'number':
      return expression.value;
    case 'name': {
      const path = expression.path.map((part) =>
        typeof part === 'string' ? part : asInteger(evaluate(part, scope), 'an index'),
      );
      const value = scope.name(path);
      if (value === undefined)
        throw new ExpressionError(
          `unknown name ${pathWords(path)}${scope.known === undefined ? '' : `; there are ${scope.known}`}`,
        );
      return value;
    }
    case 'call': {
      const values = expression.arguments.map((argument) => evaluate(argument, scope));
      const value = scope.call?.(expression.name, values);
      if (value === undefined)
        throw new ExpressionError(
          `unknown function ${expression.name}() of ${values.length} arguments${scope.knownFunctions === undefined ? '' : `; there are ${scope.knownFunctions}`}`,
        );
      return value;
    }
    case 'unary': {
      const operand = evaluate(expression.operand, scope);
      if (expression.operator === '!') return !truthy(operand);
      const integer = asInteger(operand, expression.operator);
      return wrap(expression.operator === '-' ? -integer : ~integer);
    }
    case 'in': {
      const value = asInteger(evaluate(expression.value, scope), 'in');
      return (
        value >= asInteger(evaluate(expression.from, scope), '..') &&
        value < asInteger(evaluate(expression.to, scope), '..')
      );
    }
    case 'binary':
      return evaluateBinary(expression.operator, expression.left, expression.right, scope);
  }
}

function evaluateBinary(
  operator: BinaryOperator,
  leftExpression: Expression,
  rightExpression: Expression,
  scope: Scope,
): Value {
  const left = evaluate(leftExpression, scope);
  if (operator === '&&') return truthy(left) && truthy(evaluate(rightExpression, scope));
  if (operator === '||') return truthy(left) || truthy(evaluate(rightExpression, scope));
  const right = evaluate(rightExpression, scope);
  if (operator === '==' || operator === '!=') {
    const equal =
      typeof left === 'string' || typeof right === 'string'
        ? left === right
        : asInteger(left, '==') === asInteger(right, '==');
    return (operator === '==') === equal;
  }
  const a = asInteger(left, operator);
  const b = asInteger(right, operator);
  switch (operator) {
    case '+':
      return wrap(a + b);
    case '-':
      return wrap(a - b);
    case '*':
      return wrap(a * b);
    case '/':
    case '%':
      if (b === 0n) throw new ExpressionError(`division by zero in ${operator}`);
      return operator === '/' ? a / b : a % b;
    case '<<':
      return b > 63n ? 0n : wrap(a << b);
    case '>>':
      return b > 63n ? 0n : a >> b;
    case '&':
      return a & b;
    case '|':
      return a | b;
    case '^':
      return a ^ b;
    case '<':
      return a < b;
    case '<=':
      return a <= b;
    case '>':
      return a > b;
    case '>=':
      return a >= b;
  }
}

export function pathWords(path: readonly (string | bigint)[]): string {
  return path.map((part, index) => (typeof part === 'bigint' ? `[${part}]` : index === 0 ? part : `.${part}`)).join('');
}

/** An expression that must be a number. @throws ExpressionError when it is not. */
export function evaluateInteger(expression: Expression, scope: Scope, what: string): bigint {
  return asInteger(evaluate(expression, scope), what);
}
