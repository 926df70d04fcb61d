// Walks made up for tests.
import { Format } from '../../engine/formats/compile.ts';
import { type DecodedEntry, decodeEntry } from '../../engine/formats/decode.ts';
import { EPT } from '../../engine/formats/ept.ts';
import { X86_64 } from '../../engine/formats/x86-64.ts';
import type { ReferenceAnswer, WalkAnswer } from '../../engine/queries/answers.ts';

const options = { maxPhyAddr: 52, features: new Set(['nx', '1g-pages'] as const) };
const FORMATS = { ept: new Format(EPT, options), 'x86-64': new Format(X86_64, options) };
const NAMES = ['', 'PTE', 'PDE', 'PDPTE', 'PML4E'];

export function entry(
  format: 'x86-64' | 'ept',
  level: number,
  state: DecodedEntry['state'],
  rights: string,
  problems: readonly string[] = [],
): DecodedEntry {
  const has = (right: string) => rights.includes(right);
  const ept = format === 'ept';
  const bits = ept
    ? (has('r') ? 1 : 0) | (has('w') ? 2 : 0) | (has('x') ? 4 : 0)
    : (state === 'absent' ? 0 : 1) | (has('w') ? 2 : 0) | (has('u') ? 4 : 0);
  const decoded = decodeEntry(FORMATS[format], level, bits, !ept && !has('x') ? 0x8000_0000 : 0);
  return {
    ...decoded,
    name: NAMES[level]!,
    state,
    rights,
    ...(state === 'absent' ? {} : { address: `0x${level}000` }),
    ...(state === 'leaf' ? { size: 2 ** (12 + 9 * (level - 1)) } : {}),
    problems,
  };
}

type Made = readonly [stage: 'guest' | 'second', level: number, forLevel: number, entry: DecodedEntry];

/** A walk of 4 levels that makes these references. */
export function walk(references: readonly Made[], rest: Partial<WalkAnswer> = {}): WalkAnswer {
  return {
    kind: 'walk',
    certainty: 'exact',
    vcpu: 0,
    space: 'gva',
    address: '0x400000',
    access: 'read',
    cpl: 0,
    implicit: false,
    paging: true,
    second: 'ept',
    secondName: 'EPT',
    secondLevels: [4, 3, 2, 1].map((level) => ({
      level,
      number: level,
      entry: `EPT ${NAMES[level]}`,
      span: 4096 * 512 ** (level - 1),
      entries: 512,
    })),
    fields: [4, 3, 2, 1, 0].map((level) => ({
      name: NAMES[level] || 'offset',
      level,
      number: level,
      bits: level > 0 ? ([20 + 9 * (level - 1), 12 + 9 * (level - 1)] as const) : ([11, 0] as const),
      value: 0,
    })),
    registers: [{ name: 'CR3', value: '0x7018' }],
    references: references.map(
      ([stage, level, forLevel, decoded], index): ReferenceAnswer => ({
        number: index + 1,
        stage,
        level,
        purpose: '',
        forLevel,
        table: '0x7000',
        index: 0,
        address: '0x7000',
        entry: decoded,
        decides: index === references.length - 1,
      }),
    ),
    outcome: { status: 'done', gpa: '0x200000', hpa: '0x100200000', reason: 'the translation succeeds' },
    sentence: '',
    ...rest,
  };
}
