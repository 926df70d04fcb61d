import type { ReferenceAnswer, WalkAnswer } from '../../engine/queries/answers.ts';

const PRESENT: Readonly<Record<string, readonly string[]>> = { ept: ['R', 'W', 'X'] };

/** Fields that a message about bits names: `reserved bits 51, 7:3 set`. */
function fieldsInWords(reference: ReferenceAnswer, problem: string): string[] {
  const ranges = [...problem.matchAll(/(\d+)(?::(\d+))?/g)].map(
    ([, high, low]) => [Number(high), Number(low ?? high)] as const,
  );
  return reference.entry.fields
    .filter(({ bits }) => ranges.some(([high, low]) => bits[1] <= high && bits[0] >= low))
    .map(({ name }) => name);
}

/** Rights that the walk wanted and did not get at this stage, as letters of `rwxu`. */
function wanted(walk: WalkAnswer, stage: ReferenceAnswer['stage'], forLevel: number): string {
  if (stage === 'second') {
    if (forLevel > 0) return 'rw';
    return walk.access === 'write' ? 'w' : walk.access === 'fetch' ? 'x' : 'r';
  }
  const right = walk.access === 'write' ? 'w' : walk.access === 'fetch' ? 'x' : '';
  return `${right}${walk.cpl === 3 && !walk.implicit ? 'u' : ''}`;
}

/** The field that grants a right in a format, and its value when it denies. */
function denying(format: string, right: string): string {
  if (format.startsWith('ept') || format.startsWith('sv')) return right.toUpperCase();
  return right === 'x' ? 'NX' : right === 'r' ? 'P' : right.toUpperCase();
}

/**
 * Names of the fields of a reference's entry that made the walk end as it did; empty when the entry had no part in it. A
 * missing right may lie above the entry where the walk ended: rights are what all levels grant together.
 */
export function decidingFields(walk: WalkAnswer, reference: ReferenceAnswer): ReadonlySet<string> {
  const { status, reason } = walk.outcome;
  const last = walk.references.at(-1);
  if (!last || status === 'done' || status === 'no-root' || status === 'untranslatable') return new Set();
  const { entry } = reference;
  const names = new Set(entry.fields.map(({ name }) => name));
  const known = (found: readonly string[]) => new Set(found.filter((name) => names.has(name)));
  if (reference === last && entry.state === 'absent')
    return known(PRESENT[entry.format.replace(/-5$/, '')] ?? ['P', 'valid', 'V']);
  if (reference === last && entry.state === 'malformed') {
    const written = entry.problems.flatMap((problem) => {
      if (problem.includes('beyond MAXPHYADDR')) return ['address'];
      if (/bits? \d/.test(problem)) return fieldsInWords(reference, problem);
      return problem.includes('memory type') ? ['memory type'] : ['R', 'W', 'X'];
    });
    return known(written);
  }
  if (last.entry.state === 'absent' || last.entry.state === 'malformed') return new Set();
  if (reference.stage !== last.stage || (last.stage === 'second' && reference.forLevel !== last.forLevel))
    return new Set();
  const found = [...wanted(walk, reference.stage, reference.forLevel)]
    .filter((right) => !entry.rights.includes(right))
    .map((right) => denying(entry.format, right));
  if (/\bSM[AE]P\b/.test(reason) && entry.rights.endsWith('u')) found.push('U');
  if (/key/.test(reason) && reference === last) found.push('PK');
  return known(found);
}

/** `P=0`, `W=0`, `NX=1`: the deciding fields as they stand; what is no single bit only by name. */
export function decidingWords(reference: ReferenceAnswer, fields: ReadonlySet<string>): string {
  const written = reference.entry.fields
    .filter(({ name }) => fields.has(name))
    .map(({ name, bits, value }) => (bits[0] === bits[1] ? `${name}=${Number(value)}` : name));
  return written.length === 3 && written.every((word) => /^[RWX]=0$/.test(word))
    ? 'RWX=0'
    : [...new Set(written)].join(' ');
}
