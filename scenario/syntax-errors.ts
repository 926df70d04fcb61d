import type { ILexingError, IRecognitionException, IToken, TokenType } from 'chevrotain';
import { AbstractParserErrorMessageProvider } from 'langium';
import { REGISTERS } from '../engine/guest/registers.ts';
import type { Span } from '../engine/program.ts';
import { type Diagnostic, didYouMean } from './diagnostics.ts';
import { isRegister } from './names.ts';
import { clip } from './number.ts';

/** Words that begin something, by the rule in whose block they stand. */
export const BLOCK_WORDS: Readonly<Record<'Scenario' | 'Machine' | 'Guest' | 'Vcpu' | 'Host', readonly string[]>> = {
  Scenario: ['machine', 'guest', 'nested', 'vcpu', 'host', 'expect'],
  Machine: ['memory', 'second-stage', 'maxphyaddr', 'cpu', 'policy', 'vm', 'private', 'launch', 'memory-fault'],
  Guest: ['map', 'entry', 'tables'],
  Vcpu: [
    ...[
      'read',
      'write',
      'fetch',
      'user',
      'supervisor',
      'implicit',
      'invlpg',
      'invpcid',
      'invept',
      'async-pf',
      'enter',
      'smm',
      'repeat',
      'loop',
      'map',
      'unmap',
    ],
    ...[
      'protect',
      'entry',
      'expect',
      'wait',
      'private',
      'shared',
      'convert',
      'pvalidate',
      'accept',
      'rmpadjust',
      'vmpl',
    ],
  ],
  Host: [
    'wait',
    'add',
    'delete',
    'move',
    'log',
    'zap',
    'unmap',
    'migrate',
    'swap-out',
    'recover-nx-huge-pages',
    'poke',
    'convert',
    'punch',
    'rmpupdate',
    'inject',
    'repeat',
    'loop',
    'expect',
  ],
};
const STATEMENTS = [...new Set([...BLOCK_WORDS.Vcpu, ...BLOCK_WORDS.Host])];
const WORDS_BY_RULE: Readonly<Record<string, readonly string[]>> = {
  Machine: BLOCK_WORDS.Machine,
  Guest: BLOCK_WORDS.Guest,
  // Of a vCPU, a host task or a loop.
  Block: [...STATEMENTS, ...REGISTERS],
};

/** What a rule begins with, where the list of its tokens would be long. */
const BEGINNINGS: Readonly<Record<string, string>> = {
  Binary: 'a number, a name or ‘(’',
  Expression: 'a number, a name or ‘(’',
  Operand: 'a number, a name or ‘(’',
  Atom: 'a number, or a calculation in parentheses',
  Word: 'a name',
  AnyWord: 'a name',
  Dashed: 'a word',
  Access: 'read, write or fetch',
  Zap: 'all, or a start and a size such as 0 +2M',
  LogDirty: 'on or off',
  Rmpadjust: 'rights such as r--, rw-, r-x or rwx, or off,',
  Repeat: 'repeat or loop',
};

const WRONG_PERMISSIONS = 'permissions are written r--, rw-, r-x or rwx';

const found = (token: IToken | undefined): string =>
  token === undefined || token.tokenType.name === 'EOF' ? 'the text ends' : `there is ‘${clip(token.image)}’`;

function tokenWords(type: TokenType): string {
  switch (type.name) {
    case 'ID':
      return 'a name';
    case 'NUMBER':
      return 'a number';
    case 'PERMISSION':
      return 'permissions';
    default:
      return `‘${type.name}’`;
  }
}

/** Rule names end in an invisible character, with which Langium marks its own. */
const plain = (ruleName: string): string => ruleName.replace('\u200B', '');

/** Syntax errors in the language's words rather than in the parser's. */
export class MmuSyntaxErrors extends AbstractParserErrorMessageProvider {
  override buildMismatchTokenMessage(options: {
    expected: TokenType;
    actual: IToken;
    previous: IToken;
    ruleName: string;
  }): string {
    const { expected, actual, previous } = options;
    const rule = plain(options.ruleName);
    if (expected.name === 'EOF') return this.buildNotAllInputParsedMessage({ firstRedundant: actual, ruleName: rule });
    const block = WORDS_BY_RULE[rule];
    if (expected.name === '}' && block) {
      if (actual.tokenType.name === 'EOF') return 'a block is not closed: ‘}’ is missing';
      return `‘${clip(actual.image)}’ begins nothing here${didYouMean(actual.image, block)}; ${blockWords(rule)}`;
    }
    if (
      rule === 'Assignment' &&
      expected.name === '=' &&
      previous.tokenType.name === 'ID' &&
      !isRegister(previous.image)
    ) {
      if (/^[rwx]{2,3}$/.test(previous.image)) return WRONG_PERMISSIONS;
      return `‘${clip(previous.image)}’ begins no statement${didYouMean(previous.image, [...STATEMENTS, ...REGISTERS])}`;
    }
    const words = /^\w/.test(expected.name) ? BEGINNINGS[rule] : undefined;
    return `${words ?? tokenWords(expected)} is missing: ${found(actual)}`;
  }

  override buildNotAllInputParsedMessage({
    firstRedundant,
    ruleName,
  }: {
    firstRedundant: IToken;
    ruleName: string;
  }): string {
    const image = clip(firstRedundant.image);
    if (plain(ruleName) !== 'Scenario') return `‘${image}’ is too much: the expression ends before it`;
    if (image === '}') return '‘}’ closes nothing: no block is open';
    const belongs = (Object.keys(BLOCK_WORDS) as (keyof typeof BLOCK_WORDS)[]).find((name) =>
      BLOCK_WORDS[name].includes(firstRedundant.image),
    );
    if (belongs || isRegister(firstRedundant.image))
      return `‘${image}’ belongs in a ${(belongs ?? 'vcpu').toLowerCase()} block`;
    return `‘${image}’ begins nothing${didYouMean(image, BLOCK_WORDS.Scenario)}; ${blockWords('Scenario')}`;
  }

  override buildNoViableAltMessage(options: {
    expectedPathsPerAlt: TokenType[][][];
    actual: IToken[];
    previous: IToken;
    ruleName: string;
  }): string {
    const rule = plain(options.ruleName);
    if (BEGINNINGS[rule]) return `${BEGINNINGS[rule]} is missing: ${found(options.actual[0])}`;
    const words = new Set(options.expectedPathsPerAlt.flat().flatMap((path) => (path[0] ? [tokenWords(path[0])] : [])));
    return `${[...words].slice(0, 12).join(', ')} is missing: ${found(options.actual[0])}`;
  }

  override buildEarlyExitMessage(options: { actual: IToken[]; ruleName: string }): string {
    return `${BEGINNINGS[plain(options.ruleName)] ?? 'a word'} is missing: ${found(options.actual[0])}`;
  }
}

function blockWords(rule: string): string {
  if (rule === 'Scenario') return `there are ${BLOCK_WORDS.Scenario.join(', ')}`;
  if (rule === 'Machine' || rule === 'Guest')
    return `a ${rule.toLowerCase()} block has ${BLOCK_WORDS[rule].join(', ')}`;
  return `here stand ${STATEMENTS.join(', ')}, and registers`;
}

const pointSpan = (line: number, column: number, length = 1): Span => ({
  line,
  column,
  endLine: line,
  endColumn: column + length,
});

export function lexingDiagnostic(error: ILexingError): Diagnostic {
  return {
    severity: 'error',
    message: error.message,
    span: pointSpan(error.line ?? 1, error.column ?? 1, error.length),
  };
}

export function parsingDiagnostic(error: IRecognitionException): Diagnostic {
  return { severity: 'error', message: error.message, span: errorSpan(error) };
}

/** The offending token's place; behind the previous one when the text ends too early. */
function errorSpan(error: IRecognitionException & { readonly previousToken?: IToken }): Span {
  const { message, previousToken } = error;
  // A word that begins no statement is found out at the word behind it.
  const isPrevious =
    previousToken && (message === WRONG_PERMISSIONS || message.startsWith(`‘${previousToken.image}’ begins`));
  const token = isPrevious ? previousToken : error.token;
  if (token.startLine && token.startLine > 0 && token.startColumn)
    return pointSpan(token.startLine, token.startColumn, token.image.length);
  if (previousToken?.endLine && previousToken.endLine > 0 && previousToken.endColumn)
    return pointSpan(previousToken.endLine, previousToken.endColumn + 1, 0);
  return pointSpan(1, 1, 0);
}
