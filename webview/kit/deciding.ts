import { EXEC, READ, USER, WRITE } from '../../engine/formats/format.ts';
import type { ReferenceAnswer, WalkAnswer } from '../../engine/queries/answers.ts';

/** Fields that a message about bits names: `reserved bits 51, 7:3 set`. */
function fieldsInWords(reference: ReferenceAnswer, problem: string): string[] {
  const ranges = [...problem.matchAll(/(\d+)(?::(\d+))?/g)].map(
    ([, high, low]) => [Number(high), Number(low ?? high)] as const,
  );
  return reference.entry.fields
    .filter(({ bits }) => ranges.some(([high, low]) => bits[1] <= high && bits[0] >= low))
    .map(({ name }) => name);
}

const ACCESS = { read: READ, write: WRITE, fetch: EXEC } as const;

/** Rights that the walk wanted at this stage: the user's or the supervisor's of the guest's entries, either of others. */
function wanted(walk: WalkAnswer, { stage, forLevel }: ReferenceAnswer): number {
  if (stage === 'second') return forLevel > 0 ? READ | WRITE : ACCESS[walk.access];
  const user = walk.cpl === 3 && !walk.implicit;
  return ACCESS[walk.access] & (user ? USER : ~USER);
}

/**
 * Names of the fields of a reference's entry that made the walk end as it did; empty when the entry had no part in it. A
 * missing right may lie above the entry where the walk ended: rights are what all levels grant together.
 */
export function decidingFields(walk: WalkAnswer, reference: ReferenceAnswer): ReadonlySet<string> {
  const { status, reason } = walk.outcome;
  const last = walk.references.at(-1);
  if (!last || ['done', 'refused', 'no-root', 'untranslatable'].includes(status)) return new Set();
  const { entry } = reference;
  const names = new Set(entry.fields.map(({ name }) => name));
  const known = (found: readonly string[]) => new Set(found.filter((name) => names.has(name)));
  if (reference === last && entry.state === 'absent')
    return known(entry.fields.filter(({ present }) => present).map(({ name }) => name));
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
  const found = entry.fields.filter(({ takes = 0 }) => (takes & wanted(walk, reference)) !== 0).map(({ name }) => name);
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
