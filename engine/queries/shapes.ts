import { ABSENT, type Format } from '../formats/compile.ts';
import { entryLo, type Tables } from '../pgtable/tables.ts';
import type { AddressField, LevelShape } from './answers.ts';

/** Levels of a format as views need them, the root's first. */
export function levelShapes(format: Format): LevelShape[] {
  return [...format.spec.levels]
    .sort((a, b) => b.level - a.level)
    .map(({ level, entry }) => ({
      level,
      number: format.number(level),
      entry,
      span: format.span[level]! * 4096,
      entries: format.entries[level]!,
    }));
}

/** Which bits of an address index which table. */
export function addressFields(format: Format, address: bigint): AddressField[] {
  const fields = levelShapes(format).map(({ level, number, entry, span, entries }) => {
    const low = Math.log2(span);
    const width = Math.log2(entries);
    return {
      name: entry,
      level,
      number,
      bits: [low + width - 1, low] as const,
      value: Number((address >> BigInt(low)) & BigInt(entries - 1)),
    };
  });
  const within = BigInt(format.pageSize - 1);
  const offset = Number(address & within);
  return [...fields, { name: 'offset', level: 0, number: 0, bits: [Math.log2(format.pageSize) - 1, 0], value: offset }];
}

/** `page directory (level 2)`; a name that has its level in it stands alone. */
export function tableName(format: Format, level: number): string {
  const { table } = format.level(level);
  const number = format.number(level);
  return table.includes(`level ${number}`) ? table : `${table} (level ${number})`;
}

/** Entries of a root table that are present. */
export function countPresent(tables: Tables, format: Format, root: number, rootEntry: number): number {
  let present = 0;
  for (let index = 0; index < format.entries[format.rootLevel]!; index++)
    if (format.classify(format.rootLevel, entryLo(tables, format, root, rootEntry + index)) !== ABSENT) present++;
  return present;
}
