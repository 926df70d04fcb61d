import type { IToken } from 'chevrotain';
import type { LangiumDocument } from 'langium';
import type { LangiumServices } from 'langium/lsp';
import { MmuLexer } from '../lexer.ts';

/** A document's tokens with its comments among them, in order. For what has to work on broken text. */
export function tokensOf(services: LangiumServices, document: LangiumDocument): readonly IToken[] {
  const lexer = services.parser.Lexer;
  if (!(lexer instanceof MmuLexer)) return [];
  const { tokens, hidden } = lexer.tokenizeWithComments(document.textDocument.getText());
  return [...tokens, ...hidden].sort((a, b) => a.startOffset - b.startOffset);
}

export const isComment = (token: IToken): boolean => token.tokenType.name === 'COMMENT';
export const endOf = (token: IToken): number => token.startOffset + token.image.length;

/** The dotted name that ends in token `index`: `cr0.wp` at `wp`, `vcpu[0].cr0` at `cr0` gives `cr0`. */
export function dottedName(tokens: readonly IToken[], index: number): string {
  let name = tokens[index]!.image;
  for (let at = index; at >= 2 && tokens[at - 1]!.image === '.'; at -= 2) {
    const before = tokens[at - 2]!;
    if (!/^[A-Za-z_]/.test(before.image)) break;
    name = `${before.image}.${name}`;
  }
  return name;
}
