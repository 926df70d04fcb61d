import type { LangiumDocument } from 'langium';
import type { HoverProvider, LangiumServices } from 'langium/lsp';
import type { Hover, HoverParams } from 'vscode-languageserver-protocol';
import { REGISTER_BITS } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
import { isScenario } from '../generated/ast.ts';
import { FUNCTIONS, isRegister } from '../names.ts';
import { parseNumber, sizeWords } from '../number.ts';
import { dottedName, endOf, isComment, tokensOf } from './tokens.ts';
import { BIT_WORDS, KEYWORDS, registerWord, VALUE_WORDS } from './words.ts';

/** Explains the word or number under the pointer, in text that need not be right yet. */
export class MmuHoverProvider implements HoverProvider {
  readonly #services: LangiumServices;

  constructor(services: LangiumServices) {
    this.#services = services;
  }

  getHoverContent(document: LangiumDocument, params: HoverParams): Hover | undefined {
    const { textDocument } = document;
    const offset = textDocument.offsetAt(params.position);
    const tokens = tokensOf(this.#services, document).filter((token) => !isComment(token));
    const index = tokens.findIndex((token) => token.startOffset <= offset && offset < endOf(token));
    const token = tokens[index];
    if (!token || isComment(token)) return undefined;
    const { image } = token;
    // `4-level` and `1g-pages` are several tokens and one word.
    const dashed = wordAt(textDocument.getText(), offset);
    const value =
      (KEYWORDS[dashed] !== undefined && dashed.includes('-') ? KEYWORDS[dashed] : undefined) ??
      (token.tokenType.name === 'NUMBER'
        ? numberWords(image)
        : this.#nameWords(document, dottedName(tokens, index), image, tokens[index + 1]?.image === '('));
    if (value === undefined) return undefined;
    const range = { start: textDocument.positionAt(token.startOffset), end: textDocument.positionAt(endOf(token)) };
    return { contents: { kind: 'markdown', value }, range };
  }

  #nameWords(document: LangiumDocument, dotted: string, image: string, called: boolean): string | undefined {
    const path = dotted.split('.');
    // Of vcpu[0].cr0.wp what counts is cr0.wp.
    for (let from = 0; from < path.length; from++) {
      const name = path.slice(from).join('.');
      if (BIT_WORDS[name]) return `**${name}** (bit ${bitNumber(name)}): ${BIT_WORDS[name]}`;
      if (name in VALUE_WORDS) return `**${name}**: ${VALUE_WORDS[name as keyof typeof VALUE_WORDS]}`;
    }
    const register = registerWord(image);
    if (register) return `**${image}**: ${register}`;
    if (called && Object.hasOwn(FUNCTIONS, image)) return `**${image}(…)**: ${FUNCTIONS[image]}.`;
    const { value: root } = document.parseResult;
    const guest = isScenario(root) ? root.guests.find(({ name }) => name === image) : undefined;
    if (guest) {
      const maps = guest.items.filter((item) => item.$type === 'MapRange').length;
      return `**guest ${image}**: page tables with ${maps} ${maps === 1 ? 'mapping' : 'mappings'}. In an expression: the address of their root.`;
    }
    return KEYWORDS[image] === undefined ? undefined : `**${image}**: ${KEYWORDS[image]}`;
  }
}

const wordAt = (text: string, offset: number): string => {
  const before = /[\w-]*$/.exec(text.slice(Math.max(0, offset - 40), offset))![0];
  return before + /^[\w-]*/.exec(text.slice(offset, offset + 40))![0];
};

function bitNumber(name: string): number | undefined {
  const [register, bit] = name.split('.') as [string, string];
  return isRegister(register) ? REGISTER_BITS[register]?.[bit] : undefined;
}

/** A number in the ways it can be written, with digits in groups: `0x20_0000`, decimal, and as a size. */
export function numberWords(text: string): string | undefined {
  const value = parseNumber(text);
  if (typeof value === 'string') return undefined;
  const words = [hex(value).replace(/(?<=[0-9a-f])(?=([0-9a-f]{4})+$)/g, '_'), `${value}`];
  const size = sizeWords(value);
  if (/[KMGT]$/.test(size)) words.push(size);
  return words.map((word) => `\`${word}\``).join(' = ');
}
