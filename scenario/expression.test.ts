import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type BinaryOperator, type Expression, evaluate, type Value } from '../engine/expression.ts';
import { parseExpression } from './index.ts';

/** With all parentheses written. */
function full(expression: Expression): string {
  switch (expression.kind) {
    case 'number':
      return `${expression.value}`;
    case 'name':
      return expression.path
        .map((part, index) => (typeof part === 'string' ? (index === 0 ? part : `.${part}`) : `[${full(part)}]`))
        .join('');
    case 'unary':
      return `(${expression.operator}${full(expression.operand)})`;
    case 'binary':
      return `(${full(expression.left)} ${expression.operator} ${full(expression.right)})`;
    case 'in':
      return `(${full(expression.value)} in ${full(expression.from)}..${full(expression.to)})`;
    case 'call':
      return `${expression.name}(${expression.arguments.map(full).join(', ')})`;
  }
}

function read(text: string): Expression {
  const { expression, error } = parseExpression(text);
  assert.equal(error, undefined, text);
  return expression!;
}

const PRECEDENCE: readonly (readonly [string, string])[] = [
  ['x & 1 == 0', '((x & 1) == 0)'],
  ['a | b ^ c & d', '(a | (b ^ (c & d)))'],
  ['a == b & c', '(a == (b & c))'],
  ['1 + 2 * 3 - 4', '((1 + (2 * 3)) - 4)'],
  ['1 - 2 - 3', '((1 - 2) - 3)'],
  ['1 << 2 + 3', '(1 << (2 + 3))'],
  ['1 << 2 & 3', '((1 << 2) & 3)'],
  ['a < b == c', '((a < b) == c)'],
  ['a || b && c', '(a || (b && c))'],
  ['!a && b', '((!a) && b)'],
  ['-a * b', '((-a) * b)'],
  ['~-!1', '(~(-(!1)))'],
  ['100 % 7 / 2', '((100 % 7) / 2)'],
  ['(1 + 2) * 3', '((1 + 2) * 3)'],
  ['gpa in 0x1000..0x2000 && write', '((gpa in 4096..8192) && write)'],
  ['gpa in a..a + 4K', '(gpa in a..(a + 4096))'],
  ['x in 1..2 == true', '((x in 1..2) == true)'],
  ['vcpu[0].cr0.wp', 'vcpu[0].cr0.wp'],
  ['vcpu[i + 1].cr3 & ~0xfff', '(vcpu[(i + 1)].cr3 & (~4095))'],
  ['u64(gpa(0x400000) + 8)', 'u64((gpa(4194304) + 8))'],
  ['f()', 'f()'],
  ['f(1, 2)', 'f(1, 2)'],
  ['level == 1 && hits >= 3', '((level == 1) && (hits >= 3))'],
  ['read && fetch || user', '((read && fetch) || user)'],
  ['1_000', '1000'],
  ['0xffff_8880_0000_0000', '18446612682070032384'],
  ['4K + 2M + 1G + 1T', '(((4096 + 2097152) + 1073741824) + 1099511627776)'],
  ['0x10K', '16384'],
];
for (const [text, expected] of PRECEDENCE) test(text, () => assert.equal(full(read(text)), expected));

const ERRORS: readonly (readonly [string, string])[] = [
  ['', 'column 1: an expression is missing'],
  ['  ', 'column 1: an expression is missing'],
  ['1 +', 'column 4: a number, a name or ‘(’ is missing: the text ends'],
  ['(1', 'column 3: ‘)’ is missing: the text ends'],
  ['a b', 'column 3: ‘b’ is too much: the expression ends before it'],
  ['a = 1', 'column 3: ‘=’ is too much: the expression ends before it'],
  ['a in b', 'column 6: ‘in’ needs a range: gpa in 0x1000..0x2000, whose end is not part of it'],
  ['1..2', 'column 1: ‘..’ stands behind ‘in’ only: gpa in 0x1000..0x2000'],
  ['0x', 'column 1: ‘0x’ is no number: write 4096, 0x1000, 0x1_0000 or 4K (suffixes K, M, G, T)'],
  ['12ab', 'column 1: ‘12ab’ is no number: write 4096, 0x1000, 0x1_0000 or 4K (suffixes K, M, G, T)'],
  ['1__0', 'column 1: ‘1__0’ is no number: write 4096, 0x1000, 0x1_0000 or 4K (suffixes K, M, G, T)'],
  ['16777216T', 'column 1: 16777216T does not fit into 64 bits'],
  ['a $ b', 'column 3: ‘$’ means nothing here'],
];
for (const [text, expected] of ERRORS)
  test(`‘${text}’ is refused`, () => assert.deepEqual(parseExpression(text), { error: expected }));

const operators: BinaryOperator[] = [
  ...(['+', '-', '*', '/', '%', '<<', '>>', '&', '|', '^'] as const),
  ...(['==', '!=', '<', '<=', '>', '>=', '&&', '||'] as const),
];
const { tree } = fc.letrec<{ tree: Expression }>((tie) => ({
  tree: fc.oneof(
    { depthSize: 'small' },
    fc.bigInt(0n, (1n << 64n) - 1n).map((value) => ({ kind: 'number' as const, value })),
    fc.record({ kind: fc.constant('unary' as const), operator: fc.constantFrom('!', '-', '~'), operand: tie('tree') }),
    fc.record({
      kind: fc.constant('binary' as const),
      operator: fc.constantFrom(...operators),
      left: tie('tree'),
      right: tie('tree'),
    }),
    fc.record({ kind: fc.constant('in' as const), value: tie('tree'), from: tie('tree'), to: tie('tree') }),
  ),
}));

test('what is written with all parentheses reads back as the same tree', () => {
  fc.assert(fc.property(tree, (expression) => assert.equal(full(read(full(expression))), full(expression))));
});

test('a sum of numbers is what JavaScript makes of it', () => {
  const value = (text: string): Value => evaluate(read(text), { name: () => undefined });
  const term = fc.integer({ min: 0, max: 1000 }).map(String);
  const sum = fc.tuple(term, fc.array(fc.tuple(fc.constantFrom('+', '*', '&', '|', '^'), term), { maxLength: 8 }));
  fc.assert(
    fc.property(sum, ([first, rest]) => {
      const text = first + rest.map(([operator, operand]) => ` ${operator} ${operand}`).join('');
      const bigints = text.replace(/\d+/g, '$&n');
      assert.equal(value(text), BigInt.asUintN(64, new Function(`return ${bigints}`)() as bigint), text);
    }),
  );
});
