import { functionNames, functionSpec } from '../operation.ts';

/** A function's steps as text to read: not the kernel's source, but what happens, in our own words. */
export interface Listing {
  readonly name: string;
  readonly text: string;
  /** 1-based line of each step. */
  readonly stepLines: readonly number[];
}

/** Narrow enough to stand beside a view without scrolling. */
const WIDTH = 60;

function wrap(text: string, first: string, rest: string): string[] {
  const lines: string[] = [];
  let line = first;
  let empty = true;
  // The typographic apostrophe would be marked as an ambiguous character in an editor.
  for (const word of text.replaceAll('’', "'").split(' ')) {
    if (!empty && line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = rest;
      empty = true;
    }
    line += empty ? word : ` ${word}`;
    empty = false;
  }
  return [...lines, line];
}

export function listing(name: string): Listing {
  const spec = functionSpec(name);
  const lines = [...wrap(spec.about, '// ', '// '), ...wrap(spec.where, '// ', '// '), '', `${spec.name}:`];
  const width = Math.max(...spec.steps.map((step) => step.name.length));
  const stepLines = spec.steps.map((step) => {
    const first = lines.length + 1;
    lines.push(...wrap(step.text, `  ${step.name.padEnd(width)}  `, ' '.repeat(width + 4)));
    return first;
  });
  return { name, text: `${lines.join('\n')}\n`, stepLines };
}

/** The step that a line belongs to, its continuation lines included; −1 above the first. */
export function stepOfLine({ stepLines }: Listing, line: number): number {
  return stepLines.findLastIndex((first) => first <= line);
}

/** Every function there is a listing of, in alphabetical order. */
export function listings(): readonly string[] {
  return functionNames().sort();
}
