import type { Format } from '../../engine/formats/compile.ts';
import { decodeEntry } from '../../engine/formats/decode.ts';
import { formatSize } from '../../engine/memory/words.ts';

/** An entry and where it stands. */
export interface TableEntry {
  readonly format: Format;
  readonly level: number;
  readonly index: number;
  readonly lo: number;
  readonly hi: number;
}

/** An entry in a line: `PDE 3`, what it says, and its value. */
export function entryWords({ format, level, index, lo, hi }: TableEntry): {
  name: string;
  says: string;
  value: string;
} {
  const entry = decodeEntry(format, level, lo, hi);
  // That it is present, and a table or a page, is said in words.
  const marks = [...format.spec.roles.present, ...format.spec.leaf.fields, 'ignored'];
  const flags = entry.fields
    .filter(({ name, bits: [high, low], value }) => high === low && value !== '0x0' && !marks.includes(name))
    .map(({ name }) => name)
    .reverse();
  const to =
    entry.state === 'absent'
      ? 'nothing'
      : entry.state === 'malformed'
        ? `malformed: ${entry.problems.join(', ')}`
        : entry.state === 'table'
          ? [`table at ${entry.address}`, ...entry.problems].join(', ')
          : `${formatSize(entry.size!)} page at ${entry.address}`;
  const rights = entry.state === 'absent' ? '' : `${entry.rights} `;
  const bits = entry.state === 'absent' ? '' : `  [${flags.join(' ')}]`;
  return { name: `${entry.name} ${index}`, value: entry.value, says: `${rights}${to}${bits}` };
}
