import { hex, hexWords, toBigint } from '../memory/words.ts';
import { ABSENT, type Format, LEAF } from './compile.ts';
import { type EntryKind, fieldMask } from './format.ts';

export interface DecodedField {
  readonly name: string;
  readonly bits: readonly [high: number, low: number];
  /** Raw value; the address field's is the address itself. */
  readonly value: string;
  readonly words: string;
  readonly meaning: string;
  readonly setBy: 'software' | 'hardware' | 'kvm';
  /** Rights (SUPER_*, USER_*) that this value takes, if it takes any. */
  readonly takes?: number;
  /** An entry without any such field set is absent. */
  readonly present?: true;
}

/** An entry in words: what hovers, the Variables view, `decode` and the page-table view show. */
export interface DecodedEntry {
  readonly format: string;
  readonly level: number;
  readonly name: string;
  readonly value: string;
  readonly state: 'absent' | 'table' | 'leaf' | 'malformed';
  /** The level as the manual counts it. */
  readonly number: number;
  /**
   * `rwx`-like rights of this entry alone. Where the format tells users from the supervisor: `u` or `s`, and the user's own
   * rights where they differ: `rw-u, user r--`.
   */
  readonly rights: string;
  /** Physical address of the next table or page; absent for an entry that is not present. */
  readonly address?: string;
  /** Bytes a leaf maps. */
  readonly size?: number;
  readonly fields: readonly DecodedField[];
  /** Why the walk refuses the entry; where CR3 loads it, why a load does, and the walk goes on. */
  readonly problems: readonly string[];
}

export function rightsWords(format: Format, rights: number): string {
  const supervisor = rwx(rights);
  const user = rwx(rights >>> 3);
  if (!format.tellsUsers) return supervisor;
  if (user === '---') return `${supervisor}s`;
  if (supervisor === '---') return `${user}u`;
  return user === supervisor ? `${supervisor}u` : `${supervisor}u, user ${user}`;
}

/** `rwx` of the supervisor's rights; shift by 3 for the user's. */
export function rwx(rights: number): string {
  return `${rights & 1 ? 'r' : '-'}${rights & 2 ? 'w' : '-'}${rights & 4 ? 'x' : '-'}`;
}

function bitsWords(mask: bigint): string {
  const ranges: string[] = [];
  for (let bit = 63; bit >= 0; bit--) {
    if (!((mask >> BigInt(bit)) & 1n)) continue;
    let low = bit;
    while (low > 0 && (mask >> BigInt(low - 1)) & 1n) low--;
    ranges.push(low === bit ? `${bit}` : `${bit}:${low}`);
    bit = low;
  }
  return `${ranges.length === 1 && !ranges[0]!.includes(':') ? 'bit' : 'bits'} ${ranges.join(', ')}`;
}

/** Why a present entry is refused, most telling first; empty when it is well-formed. */
export function entryProblems(format: Format, level: number, lo: number, hi: number): string[] {
  const state = format.classify(level, lo);
  if (state === ABSENT) return [];
  const kind: EntryKind = state === LEAF ? 'leaf' : 'table';
  const set = toBigint(lo, hi) & format.reservedMask(level, kind);
  const problems: string[] = [];
  const { roles } = format.spec;
  if (set !== 0n) {
    const address = format
      .fields(level, kind)
      .filter(({ name }) => name === roles.address || name === roles.addressHigh?.name);
    const beyond = set & address.reduce((mask, field) => mask | fieldMask(field), 0n);
    const other = set & ~beyond;
    if (other !== 0n) problems.push(`reserved ${bitsWords(other)} set`);
    if (beyond !== 0n) problems.push(`address ${bitsWords(beyond)} beyond ${widthWords(format)}`);
  }
  const illegal = format.illegalWords(level, lo);
  if (illegal) problems.push(illegal);
  if (level !== format.spec.loadedLevel) return problems;
  return problems.map((problem) => `${problem}, which only a load of CR3 refuses`);
}

function widthWords({ spec, options }: Format): string {
  return spec.unused === 'ignored'
    ? `the ${options.maxPhyAddr} bits of an output address`
    : `MAXPHYADDR ${options.maxPhyAddr}`;
}

export function decodeEntry(format: Format, level: number, lo: number, hi: number): DecodedEntry {
  const { spec } = format;
  const raw = toBigint(lo, hi);
  const state = format.classify(level, lo);
  const kind: EntryKind = state === LEAF ? 'leaf' : 'table';
  const problems = entryProblems(format, level, lo, hi);
  const rights = format.rights(level, lo, hi);
  const fields = format.fields(level, kind).map((field): DecodedField => {
    const isAddress = field.name === spec.roles.address;
    const masked = raw & (isAddress ? format.addressMask(level, kind) : fieldMask(field));
    const value = isAddress ? masked : masked >> BigInt(field.bits[1]);
    const words =
      field.values?.[Number(value)] ?? (isAddress || field.bits[0] !== field.bits[1] ? hex(value) : `${value}`);
    const takes = field.withholds?.[Number(value)] ?? 0;
    return {
      name: field.name,
      bits: field.bits,
      value: hex(value),
      words,
      meaning: field.meaning,
      setBy: field.setBy,
      ...(takes === 0 ? {} : { takes }),
      ...(spec.roles.present.includes(field.name) ? { present: true as const } : {}),
    };
  });
  return {
    format: spec.name,
    level,
    number: format.number(level),
    name: format.level(level).entry,
    value: hexWords(lo, hi),
    state: state === ABSENT ? 'absent' : problems.length > 0 && level !== spec.loadedLevel ? 'malformed' : kind,
    rights: rightsWords(format, state === LEAF ? format.effective(rights) : rights),
    ...(state === ABSENT ? {} : { address: hex(BigInt(format.frame(level, lo, hi)) << 12n) }),
    ...(state === LEAF ? { size: format.span[level]! * 4096 } : {}),
    fields,
    problems,
  };
}
