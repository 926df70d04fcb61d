import { errorCodeWords } from '../../engine/guest/permission.ts';
import { hex } from '../../engine/memory/words.ts';
import { type ConformCase, LEVELS } from './cases.ts';
import type { RawResult } from './encode.ts';
import type { Outcome } from './engine.ts';
import { NO_EXCEPTION, snippet, USER_DONE } from './layout.ts';

export const ENTRY_NAMES: Readonly<Record<number, string>> = { 4: 'PML4E', 3: 'PDPTE', 2: 'PDE', 1: 'PTE' };

const UD = 6;
const GP = 13;
const PF = 14;

/** What the guest wrote down, as an outcome of the case. */
export function observed(of: ConformCase, { vector, error, cr2, rip, value, entries }: RawResult): Outcome {
  const seen = { error, cr2, value, entries };
  const action = snippet(of.kind, of.size, of.user);
  if (of.user ? vector === UD && rip === USER_DONE : vector === NO_EXCEPTION) return { kind: 'ok', ...seen };
  // A fetch faults at its target.
  if (vector === PF && rip === (of.kind === 'fetch' ? of.gva : action)) return { kind: '#PF', ...seen };
  // Intel's processors refuse a branch to an address that is not canonical, AMD's the fetch at its target.
  if (vector === GP && (rip === action || (of.kind === 'fetch' && rip === of.gva))) return { kind: '#GP', ...seen };
  const what = vector === NO_EXCEPTION ? 'no exception' : `vector ${vector}, error code ${hex(error)}`;
  return { kind: 'stray', ...seen, words: `${what}, at RIP ${hex(rip)}` };
}

export function isSame(a: Outcome, b: Outcome): boolean {
  return (
    a.kind === b.kind &&
    a.error === b.error &&
    a.cr2 === b.cr2 &&
    a.value === b.value &&
    a.entries.every((entry, at) => entry === b.entries[at])
  );
}

/** What two outcomes do not share, in words. */
export function differenceWords(a: Outcome, b: Outcome): string {
  if (a.kind !== b.kind) return 'whether it succeeds, or how it fails';
  const entries = LEVELS.flatMap((level, at) => (a.entries[at] === b.entries[at] ? [] : [ENTRY_NAMES[level]]));
  return [
    ...(a.error === b.error ? [] : ['the error code']),
    ...(a.cr2 === b.cr2 ? [] : ['CR2']),
    ...(a.value === b.value ? [] : ['what is read']),
    ...(entries.length === 0 ? [] : [`what becomes of the ${entries.join(', ')}`]),
  ].join('; ');
}

/** An outcome in a line: `#PF, error code 0x7 P|W|U, CR2 0x…`. */
export function outcomeWords(outcome: Outcome): string {
  switch (outcome.kind) {
    case 'ok':
      return `the access succeeds, RAX ${hex(outcome.value)}, CR2 ${hex(outcome.cr2)}`;
    case '#PF':
      return `#PF, error code ${errorCodeWords(outcome.error)}, CR2 ${hex(outcome.cr2)}`;
    case '#GP':
      return `#GP, error code ${hex(outcome.error)}, CR2 ${hex(outcome.cr2)}`;
    case 'stray':
      return `something that no access leads to: ${outcome.words}`;
  }
}
