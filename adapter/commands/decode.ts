import { FORMATS } from '../../engine/formats/all.ts';
import { Format } from '../../engine/formats/compile.ts';
import { type DecodedEntry, decodeEntry } from '../../engine/formats/decode.ts';
import type { Feature } from '../../engine/formats/format.ts';
import { formatSize, highWord, lowWord } from '../../engine/memory/words.ts';
import { spteFormat, spteNote } from '../../engine/tdp/spte.ts';
import { readNumber, readOptions, UsageError } from './usage.ts';

/** What a machine may have: nothing is reserved for the lack of a feature. */
export const ALL_FEATURES: ReadonlySet<Feature> = new Set(['nx', '1g-pages', 'execute-only', 'pse', 'svpbmt']);

/** `kvm-mmu decode`: what a table entry means. The exit status. */
export function decode(args: string[]): number {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: {
      format: { type: 'string', default: 'x86-64' },
      level: { type: 'string' },
      maxphyaddr: { type: 'string' },
      json: { type: 'boolean' },
    },
  });
  if (values.format === 'help') {
    for (const [name, spec] of FORMATS) console.log(`${name.padEnd(16)} ${spec.title}`);
    return 0;
  }
  const [written] = positionals;
  if (written === undefined || positionals.length > 1)
    throw new UsageError(
      `decode takes one number, such as 0x8000000000200163${written === undefined ? '' : `, not ${positionals.join(' ')}`}`,
    );
  const value = readNumber(written, 'the entry');
  const spec = FORMATS.get(values.format);
  if (!spec) throw new UsageError(`unknown format ${values.format}; there are ${[...FORMATS.keys()].join(', ')}`);
  const [least, most] = spec.physicalBits ?? [32, 52];
  const width = values.maxphyaddr === undefined ? most : Number(values.maxphyaddr);
  if (!Number.isInteger(width) || width < least || width > most)
    throw new UsageError(`--maxphyaddr must be a whole number from ${least} to ${most}, not ${values.maxphyaddr}`);
  const format = new Format(spec, { maxPhyAddr: width, features: ALL_FEATURES });
  if (format.entryBytes === 4 && value > 0xffff_ffffn)
    throw new UsageError(`${written} has more than the 32 bits of ${spec.title} entries`);
  // Levels are given as the manual counts them, and shown from that of pages up.
  const known = spec.levels.map(({ level }) => level).sort((a, b) => a - b);
  const levels =
    values.level === undefined ? known : known.filter((level) => format.number(level) === Number(values.level));
  if (levels.length === 0)
    throw new UsageError(
      `--level must be one of ${known.map((level) => format.number(level)).join(', ')}, not ${values.level}`,
    );
  for (const level of levels) {
    const entry = decodeEntry(format, level, lowWord(value), highWord(value));
    const note = !/^(ept|npt)/.test(spec.name)
      ? undefined
      : spteNote(spteFormat(format), lowWord(value), highWord(value));
    if (values.json) console.log(JSON.stringify({ ...entry, ...(note === undefined ? {} : { note }) }));
    else console.log(`${entryText(entry, note)}\n`);
  }
  return 0;
}

function entryText(entry: DecodedEntry, note: string | undefined): string {
  const where =
    entry.address === undefined
      ? ''
      : ` ${entry.state === 'table' ? 'table at' : 'page at'} ${entry.address}${entry.size ? ` (${formatSize(entry.size)})` : ''}`;
  const lines = [
    `${entry.name} (level ${entry.number}) ${entry.value}: ${entry.state} ${entry.state === 'absent' ? '' : entry.rights}${where}`.trimEnd(),
  ];
  if (note !== undefined) lines.push(`  ${note}`);
  for (const problem of entry.problems) lines.push(`  ${entry.state === 'malformed' ? 'refused: ' : ''}${problem}`);
  for (const field of entry.fields) {
    const [high, low] = field.bits;
    lines.push(
      `  ${(high === low ? `${high}` : `${high}:${low}`).padEnd(6)} ${field.name.padEnd(14)} ${field.words.padEnd(14)} ${field.meaning}`,
    );
  }
  return lines.join('\n');
}
