// Names the TypeScript lines in a stack trace of the bundled tests. Node would do so itself, but VS Code installs its
// own Error.prepareStackTrace.
import { readFileSync } from 'node:fs';
import { SourceMap } from 'node:module';
import { basename, join, relative, resolve } from 'node:path';

const bundled = /[^\s()]*?([\w-]+(?:\.test)?\.js):(\d+):(\d+)/g;

/** Replaces each `NAME.js:LINE:COLUMN` of a file bundled beside this one by the place it came from. */
export function originalLines(text: string): string {
  return text.replace(bundled, (place, file: string, line: string, column: string) => {
    try {
      const map = new SourceMap(JSON.parse(readFileSync(join(__dirname, `${basename(file)}.map`), 'utf8')));
      const entry = map.findEntry(Number(line) - 1, Number(column) - 1);
      if (!('originalSource' in entry)) return place;
      const source = relative(resolve(__dirname, '../../..'), resolve(__dirname, entry.originalSource));
      return `${source}:${entry.originalLine + 1}:${entry.originalColumn + 1}`;
    } catch {
      return place; // not one of ours
    }
  });
}
