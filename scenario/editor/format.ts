import type { IToken } from 'chevrotain';
import type { LangiumDocument } from 'langium';
import type { Formatter, LangiumServices } from 'langium/lsp';
import type { DocumentRangeFormattingParams } from 'vscode-languageserver-protocol';
import type { TextEdit } from 'vscode-languageserver-types';
import { endOf, isComment, tokensOf } from './tokens.ts';

/** Words that begin something, and so decide what `+` and `-` mean behind them. */
const BEGINNINGS = new Set(
  (
    'machine memory second-stage cpu policy guest nested vcpu host expect map unmap protect zap migrate add read write fetch ' +
    'invlpg invpcid invept enter smm repeat loop wait entry inject cpuid poke delete move log tables maxphyaddr vm private launch ' +
    'convert punch pvalidate accept rmpadjust rmpupdate vmpl never'
  ).split(' '),
);
/** In these a `+` outside parentheses announces a size. */
const SIZED = new Set([
  'memory',
  'map',
  'unmap',
  'protect',
  'zap',
  'migrate',
  'add',
  'private',
  'launch',
  'convert',
  'punch',
]);
/** In these a `-` joins the parts of a word: 4-level. */
const DASHED = new Set(['machine', 'second-stage', 'cpu', 'policy', 'guest', 'nested', 'vm', 'inject', 'never']);
/** Keywords after which an operand begins, so that a `-` is its sign. */
const BEFORE_OPERAND = new Set(
  'read write fetch invlpg repeat expect until in huge slot at to key memory maxphyaddr level vcpu'.split(' '),
);
/** Operators and signs after which a line goes on. */
const CONTINUES = new Set('( [ , -> = * / % + - << >> & ^ | .. < <= > >= == != && || ! ~'.split(' '));

interface Line {
  code: string;
  comment?: string;
  indent: number;
}

/**
 * Lays out a text that has no syntax errors: two spaces for each block, one between words, comments in a column, at
 * most one empty line. Where lines end is the writer's choice.
 */
export function formatText(text: string, tokens: readonly IToken[]): string {
  const byLine = new Map<number, IToken[]>();
  for (const token of tokens) {
    const line = byLine.get(token.startLine!);
    if (line) line.push(token);
    else byLine.set(token.startLine!, [token]);
  }
  const lines: Line[] = [];
  let depth = 0;
  let parentheses = 0;
  let statement = '';
  let previous: IToken | undefined;
  let unary = false;
  const last = tokens.at(-1)?.startLine ?? 0;
  for (let number = 1; number <= last; number++) {
    const here = byLine.get(number) ?? [];
    const code = here.filter((token) => !isComment(token));
    const comment = here.find(isComment)?.image.trimEnd();
    const closing = code.findIndex(({ image }) => image !== '}');
    const closers = closing < 0 ? code.length : closing;
    const continued =
      previous !== undefined &&
      code[0] !== undefined &&
      (parentheses > 0 ||
        CONTINUES.has(previous.image) ||
        (CONTINUES.has(code[0].image) && !/^[(!~]$/.test(code[0].image)));
    const indent = Math.max(0, depth - closers) + (continued ? 1 : 0);
    let output = '';
    for (const token of code) {
      const { image } = token;
      const name = token.tokenType.name;
      const operand = previous !== undefined && isOperandEnd(previous);
      const sized = image === '+' && parentheses === 0 && SIZED.has(statement);
      const sign = image === '!' || image === '~' || (image === '-' && !operand) || sized;
      const dash = DASHED.has(statement) && (image === '-' || previous?.image === '-');
      if (output !== '' && previous && !dash && !unary && spaceBetween(previous, token)) output += ' ';
      output += image;
      unary = sign;
      if (image === '(' || image === '[') parentheses++;
      else if (image === ')' || image === ']') parentheses = Math.max(0, parentheses - 1);
      else if (image === '{') depth++;
      else if (image === '}') depth = Math.max(0, depth - 1);
      if (image === '{' || image === '}' || image === '=') statement = '';
      else if (parentheses === 0 && BEGINNINGS.has(name) && previous?.image !== '.') statement = name;
      previous = token;
    }
    lines.push({ code: output, indent, ...(comment === undefined ? {} : { comment }) });
  }
  return layOut(lines, /\r\n/.test(text) ? '\r\n' : '\n');
}

function isOperandEnd(token: IToken): boolean {
  const { name } = token.tokenType;
  if (name === ')' || name === ']') return true;
  return /^\w/.test(token.image) && !BEFORE_OPERAND.has(name);
}

function spaceBetween(previous: IToken, token: IToken): boolean {
  const before = previous.image;
  const { image } = token;
  if (before === '(' || before === '[' || before === '.' || before === '..') return false;
  if (image === ')' || image === ']' || image === '[' || image === ',' || image === '.' || image === '..') return false;
  if (image === '(' && previous.tokenType.name === 'ID') return false;
  // level(x) is a call, level (x) is not.
  if (image === '(' && /^\w/.test(before)) return token.startOffset > endOf(previous);
  return true;
}

const isEmpty = (line: Line | undefined): boolean => line?.code === '' && line.comment === undefined;

function layOut(all: readonly Line[], newline: string): string {
  const lines: Line[] = [];
  for (const line of all) {
    const before = lines.at(-1);
    if (isEmpty(line) && (before === undefined || isEmpty(before) || before.code.endsWith('{'))) continue;
    if (isEmpty(before) && line.code.startsWith('}')) lines.pop();
    lines.push(line);
  }
  if (isEmpty(lines.at(-1))) lines.pop();
  const columns = commentColumns(lines);
  return lines
    .map(({ code, comment, indent }, at) => {
      const start = code === '' ? '' : '  '.repeat(indent) + code;
      if (comment === undefined) return start + newline;
      return `${code === '' ? '  '.repeat(indent) : `${start.padEnd(columns[at]!)} `}${comment}${newline}`;
    })
    .join('');
}

/** Where comments begin: behind the longest line that has one, among neighbours of the same depth. */
function commentColumns(lines: readonly Line[]): number[] {
  const columns = new Array<number>(lines.length).fill(0);
  for (let from = 0; from < lines.length; ) {
    let end = from;
    let width = 0;
    for (; lines[end] && lines[end]!.code !== '' && lines[end]!.indent === lines[from]!.indent; end++) {
      const { code, indent, comment } = lines[end]!;
      if (comment !== undefined) width = Math.max(width, 2 * indent + code.length);
    }
    columns.fill(width, from, end);
    from = Math.max(end, from + 1);
  }
  return columns;
}

export class MmuFormatter implements Formatter {
  readonly formatOnTypeOptions = undefined;
  readonly #services: LangiumServices;

  constructor(services: LangiumServices) {
    this.#services = services;
  }

  formatDocument(document: LangiumDocument): TextEdit[] {
    const { lexerErrors, parserErrors } = document.parseResult;
    // What is broken is better left as it is.
    if (lexerErrors.length > 0 || parserErrors.length > 0) return [];
    const { textDocument } = document;
    const text = textDocument.getText();
    const newText = formatText(text, tokensOf(this.#services, document));
    if (newText === text) return [];
    return [{ range: { start: { line: 0, character: 0 }, end: textDocument.positionAt(text.length) }, newText }];
  }

  /** Lines are laid out by what is around them, so a part is laid out with the whole. */
  formatDocumentRange(document: LangiumDocument, _params: DocumentRangeFormattingParams): TextEdit[] {
    return this.formatDocument(document);
  }

  formatDocumentOnType(): TextEdit[] {
    return [];
  }
}
