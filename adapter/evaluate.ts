import type { DebugProtocol } from '@vscode/debugprotocol';
import { ExpressionError, evaluate, type Scope } from '../engine/expression.ts';
import { hex } from '../engine/memory/words.ts';
import { parseExpression } from '../scenario/index.ts';
import { describeAddress, parseAddress } from './addresses.ts';
import { RequestError } from './request-error.ts';
import type { Target } from './targets/target.ts';

type Answer = DebugProtocol.EvaluateResponse['body'];

/** What a text means in a hover, the console or the watch list: an address, a register, an expression. @throws RequestError */
export function evaluateText(
  target: Target,
  text: string,
  context: DebugProtocol.EvaluateArguments['context'],
  vcpu: number,
  scope: () => Scope,
): Answer {
  const { machine, about } = target;
  const located = parseAddress(text, 'gpa', vcpu);
  const hasPrefix = /^[a-z]/i.test(text);
  // A number alone is an address in hovers and in the console; elsewhere it needs a prefix to be one.
  if (located && (hasPrefix || context === 'hover' || context === 'repl')) {
    const lines = describeAddress(machine, located);
    const memoryReference = hasPrefix ? text : `gpa:${text}`;
    return { result: context === 'watch' ? lines[0]! : lines.join('\n'), variablesReference: 0, memoryReference };
  }
  if (about !== undefined) {
    const { registers } = machine.mirror!.regimes[vcpu] ?? { registers: [] };
    const register = registers.find(({ name }) => name.toLowerCase() === text.toLowerCase());
    if (!register) throw new RequestError(`${text} is neither an address nor a register of this image`);
    return { result: hex(register.value), variablesReference: 0 };
  }
  const { expression, error } = parseExpression(text);
  if (!expression) throw new RequestError(error ?? `cannot read ${text}`);
  let value: ReturnType<typeof evaluate>;
  try {
    value = evaluate(expression, scope());
  } catch (failure) {
    if (failure instanceof ExpressionError) throw new RequestError(failure.message);
    throw failure;
  }
  const shown = typeof value === 'bigint' ? (value < 10n ? `${value}` : `${hex(value)} (${value})`) : `${value}`;
  return { result: context === 'hover' ? `${text} = ${shown}` : shown, variablesReference: 0, type: typeof value };
}
