import { functionNames, functionSpec } from '../operation.ts';

/** A function's steps as text to read: not the kernel's source, but what happens, in our own words. */
export interface Listing {
  readonly name: string;
  readonly text: string;
  /** 1-based line of each step. */
  readonly stepLines: readonly number[];
}

const WIDTH = 100;

function wrap(text: string, prefix: string): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && prefix.length + line.length + 1 + word.length > WIDTH) {
      lines.push(prefix + line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, prefix + line];
}

export function listing(name: string): Listing {
  const spec = functionSpec(name);
  const lines = [...wrap(spec.about, '// '), `// ${spec.where}`, '', `${spec.name}:`];
  const stepLines = spec.steps.map((step) => {
    lines.push(`  ${step.name.padEnd(Math.max(...spec.steps.map((other) => other.name.length)))}  ${step.text}`);
    return lines.length;
  });
  return { name, text: `${lines.join('\n')}\n`, stepLines };
}

/** Every function there is a listing of, in alphabetical order. */
export function listings(): readonly string[] {
  return functionNames().sort();
}
