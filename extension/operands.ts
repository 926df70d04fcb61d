/** A piece of a line, with the text that stands for it in a question to the debugger. */
export interface Piece {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

const ADDRESS = /(?:g[vp]a:(?:\d+:)?|hpa:)?0x[0-9a-f][0-9a-f_]*/gi;
const NAME = /[a-z_][\w]*(?:\[\d+\])?(?:\.[a-z_]\w*)*/gi;

function pieceAt(line: string, column: number, pattern: RegExp): Piece | undefined {
  for (const match of line.matchAll(pattern)) {
    if (match.index <= column && column <= match.index + match[0].length)
      return { start: match.index, end: match.index + match[0].length, text: match[0] };
  }
  return undefined;
}

/** Statements of a scenario whose first address is guest-virtual. */
const VIRTUAL = /^\s*(?:(?:user|supervisor|implicit)\s+)*(?:read|write|fetch|invlpg|map|unmap|protect|entry)\b[^=>]*$/i;

/**
 * The address under the cursor. In a scenario an operand that is virtual by nature is asked for as such; elsewhere a
 * plain number is guest-physical.
 */
export function addressAt(line: string, column: number, language: string): Piece | undefined {
  const piece = pieceAt(line, column, ADDRESS);
  if (!piece || piece.text.includes(':')) return piece;
  const plain = piece.text.replaceAll('_', '');
  const virtual = language === 'mmu' && VIRTUAL.test(line.slice(0, piece.start).replace(/^.*[{;]/, ''));
  return { ...piece, text: virtual ? `gva:${plain}` : plain };
}

/** What to evaluate under the cursor in a file that is being debugged: an address, else a dotted name. */
export function expressionAt(line: string, column: number, language: string): Piece | undefined {
  const comment = line.indexOf('#');
  if (language === 'mmu' && comment >= 0 && column > comment) return undefined;
  return addressAt(line, column, language) ?? (language === 'mmu' ? pieceAt(line, column, NAME) : undefined);
}
