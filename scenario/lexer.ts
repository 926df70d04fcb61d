import type { CustomPatternMatcherFunc, IToken, TokenType } from 'chevrotain';
import {
  DefaultLexer,
  DefaultLexerErrorMessageProvider,
  DefaultTokenBuilder,
  type GrammarAST,
  type LexerResult,
} from 'langium';
import { clip } from './number.ts';

type TerminalRule = GrammarAST.TerminalRule;

/**
 * Brackets, blocks and prefix operators within each other. The parser and all that reads its trees recurse; a
 * default stack takes more than twice as much as this, and a person's patience less.
 */
export const MAX_NESTING = 32;
/** Operators in one expression: the tree of a sum is as deep as the sum is long. */
export const MAX_OPERATORS = 500;

/** What may stand before the permissions of a mapping, and before no name in an expression. */
const BEFORE_PERMISSION = new Set(['NUMBER', ')', 'user', 'supervisor', 'global', 'accessed', 'dirty', 'PERMISSION']);

const permission = /r[w-][x-](?=[\s#}]|$)/y;
const matchPermission: CustomPatternMatcherFunc = (text, offset, matched) => {
  const previous = matched.at(-1);
  if (!previous || !BEFORE_PERMISSION.has(previous.tokenType.name)) return null;
  permission.lastIndex = offset;
  return permission.exec(text);
};

export class MmuTokenBuilder extends DefaultTokenBuilder {
  override buildTokens(...parameters: Parameters<DefaultTokenBuilder['buildTokens']>): TokenType[] {
    const tokens = super.buildTokens(...parameters) as TokenType[];
    // The first that matches wins, so these must come before the keywords and names that they look like.
    const first = (token: TokenType): number => Number(token.name !== 'MODIFIER' && token.name !== 'PERMISSION');
    return tokens.sort((a, b) => first(a) - first(b));
  }

  protected override buildTerminalToken(terminal: TerminalRule): TokenType {
    const token = super.buildTerminalToken(terminal);
    if (terminal.name === 'PERMISSION')
      Object.assign(token, { PATTERN: matchPermission, LINE_BREAKS: false, START_CHARS_HINT: ['r'] });
    return token;
  }
}

export class MmuLexerErrors extends DefaultLexerErrorMessageProvider {
  override buildUnexpectedCharactersMessage(text: string, start: number, length: number): string {
    return `‘${clip(text.slice(start, start + length))}’ means nothing here`;
  }
}

export class MmuLexer extends DefaultLexer {
  override tokenize(text: string): LexerResult {
    const result = this.tokenizeWithComments(text);
    const problem = tooDeep(result.tokens);
    // Comments mean nothing to the parser, and take it long to carry along.
    if (!problem) return { ...result, hidden: [] };
    const { token, message } = problem;
    return {
      tokens: [],
      hidden: [],
      errors: [
        {
          message,
          offset: token.startOffset,
          line: token.startLine,
          column: token.startColumn,
          length: token.image.length,
        },
      ],
    };
  }

  /** Without a limit, and with comments as hidden tokens. */
  tokenizeWithComments(text: string): LexerResult {
    return super.tokenize(text);
  }
}

const OPENING = new Set(['(', '[', '{']);
const CLOSING = new Set([')', ']', '}']);
const PREFIX = new Set(['!', '-', '~']);
const INFIX = new Set('* / % + - << >> & ^ | .. < <= > >= in == != && ||'.split(' '));

/** The token at which a text is nested too deeply, or an expression too long. */
function tooDeep(tokens: readonly IToken[]): { token: IToken; message: string } | undefined {
  const enclosing: number[] = [];
  let prefixes = 0;
  let depth = 0;
  let operators = 0;
  let afterOperand = false;
  for (const token of tokens) {
    const { name } = token.tokenType;
    const word = name !== 'in' && /^\w/.test(name);
    if (OPENING.has(name)) {
      enclosing.push(prefixes);
      prefixes = 0;
      depth++;
    } else if (CLOSING.has(name)) {
      depth -= prefixes;
      prefixes = enclosing.pop() ?? 0;
      if (depth > 0) depth--;
    } else if (PREFIX.has(name) && !afterOperand) {
      prefixes++;
      depth++;
    } else {
      depth -= prefixes;
      prefixes = 0;
    }
    // A word behind a word begins something new.
    if (name === '{' || name === '}' || (word && afterOperand)) operators = 0;
    else if (INFIX.has(name)) operators++;
    afterOperand = word || name === ')' || name === ']';
    if (depth > MAX_NESTING) return { token, message: `nested deeper than ${MAX_NESTING} levels` };
    if (operators > MAX_OPERATORS)
      return { token, message: `an expression with more than ${MAX_OPERATORS} operators: split it up` };
  }
  return undefined;
}
