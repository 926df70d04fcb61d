// The door to the scenario language: text in, plain data of the engine out. Runs in Node and in a browser's Worker.
import type { LangiumParser, ParseResult } from 'langium';
import type { Expression } from '../engine/expression.ts';
import type { Program } from '../engine/program.ts';
import { type Diagnostic, Problems } from './diagnostics.ts';
import type { Expression as ExpressionNode, Scenario } from './generated/ast.ts';
import { lowerExpression } from './lower/expression.ts';
import { lowerScenario } from './lower/scenario.ts';
import { createParserServices } from './module.ts';
import { lexingDiagnostic, parsingDiagnostic } from './syntax-errors.ts';

export type { Diagnostic } from './diagnostics.ts';

export interface ParsedScenario {
  /** Absent when there is any error. */
  readonly program?: Program;
  /** In the order of the text. */
  readonly diagnostics: readonly Diagnostic[];
}

let made: LangiumParser | undefined;

/** Made at the first use: it takes a while, and a session that reads no scenario need not wait. */
function parser(): LangiumParser {
  made ??= createParserServices().parser.LangiumParser;
  return made;
}

/** Reads a scenario. Any text gives an answer: nothing is thrown. */
export function parseScenario(text: string): ParsedScenario {
  return analyse(parser().parse<Scenario>(text));
}

/** What a parsed scenario means, and all that is wrong with it. */
export function analyse(result: ParseResult<Scenario>): ParsedScenario {
  const problems = new Problems();
  problems.list.push(...syntaxDiagnostics(result));
  if (problems.list.length > 0) return { diagnostics: problems.list };
  const program = lowerScenario(result.value, problems);
  const diagnostics = problems.list.sort(byPlace);
  return diagnostics.some(({ severity }) => severity === 'error') ? { diagnostics } : { program, diagnostics };
}

export interface ParsedExpression {
  readonly expression?: Expression;
  /** One sentence that begins with the column. */
  readonly error?: string;
}

/** Reads a lone expression: a condition, a hit count, something to watch. What its names mean is the asker's matter. */
export function parseExpression(text: string): ParsedExpression {
  if (text.trim() === '') return { error: 'column 1: an expression is missing' };
  const result = parser().parse<ExpressionNode>(text, { rule: 'Expression' });
  const problems = new Problems();
  problems.list.push(...syntaxDiagnostics(result));
  const expression = problems.list.length > 0 ? undefined : lowerExpression(result.value, problems);
  const [problem] = problems.list;
  if (problem) return { error: `${place(problem)}: ${problem.message}` };
  return expression ? { expression } : { error: 'column 1: an expression is missing' };
}

const byPlace = (a: Diagnostic, b: Diagnostic): number => a.span.line - b.span.line || a.span.column - b.span.column;

const place = ({ span }: Diagnostic): string =>
  span.line === 1 ? `column ${span.column}` : `line ${span.line}, column ${span.column}`;

function syntaxDiagnostics(result: ParseResult): Diagnostic[] {
  const found = [...result.lexerErrors.map(lexingDiagnostic), ...result.parserErrors.map(parsingDiagnostic)];
  found.sort(byPlace);
  // What follows on the same line is mostly the parser finding its way back.
  return found.filter(({ span }, index) => span.line !== found[index - 1]?.span.line);
}
