// Walks made up for tests.
import type { DecodedEntry, DecodedField } from '../../engine/formats/decode.ts';
import type { ReferenceAnswer, WalkAnswer } from '../../engine/queries/answers.ts';

const NAMES = ['', 'PTE', 'PDE', 'PDPTE', 'PML4E'];

export function entry(
  format: 'x86-64' | 'ept',
  level: number,
  state: DecodedEntry['state'],
  rights: string,
  problems: readonly string[] = [],
): DecodedEntry {
  const bit = (name: string, at: number, set: boolean): DecodedField => ({
    name,
    bits: [at, at],
    value: set ? '0x1' : '0x0',
    words: set ? '1' : '0',
    meaning: '',
    setBy: 'software',
  });
  const has = (right: string) => rights.includes(right);
  return {
    format,
    level,
    number: level,
    name: NAMES[level]!,
    value: '0x0',
    state,
    rights,
    ...(state === 'absent' ? {} : { address: `0x${level}000` }),
    ...(state === 'leaf' ? { size: 2 ** (12 + 9 * (level - 1)) } : {}),
    fields:
      format === 'ept'
        ? [bit('X', 2, has('x')), bit('W', 1, has('w')), bit('R', 0, has('r'))]
        : [
            bit('NX', 63, !has('x')),
            { ...bit('available', 58, false), bits: [58, 52] },
            bit('U', 2, has('u')),
            bit('W', 1, has('w')),
            bit('P', 0, state !== 'absent'),
          ],
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
