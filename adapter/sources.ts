import type { DebugProtocol } from '@vscode/debugprotocol';
import type { Machine } from '../engine/machine.ts';
import { functionSpec } from '../engine/operation.ts';
import { listings } from '../engine/queries/listing.ts';

const LISTING_SUFFIX = '.kvmfn';

/** Lines on which a statement begins, ascending. */
export function breakableLines(machine: Machine): number[] {
  const lines = new Set<number>();
  for (const code of machine.code)
    for (const instruction of code) if (instruction.kind !== 'end-loop') lines.add(instruction.statement.span.line);
  return [...lines].sort((a, b) => a - b);
}

export function listingSource(fn: string): DebugProtocol.Source {
  return {
    name: `${fn}${LISTING_SUFFIX}`,
    path: `${fn}${LISTING_SUFFIX}`,
    sourceReference: listings().indexOf(fn) + 1,
    origin: functionSpec(fn).where,
  };
}

/** The function that a source lists, if it is a listing. */
export function listingName(source: DebugProtocol.Source): string | undefined {
  const named = (source.path ?? source.name)?.replace(/^.*[/\\]/, '');
  if (named?.endsWith(LISTING_SUFFIX)) {
    const fn = named.slice(0, -LISTING_SUFFIX.length);
    return listings().includes(fn) ? fn : undefined;
  }
  return source.sourceReference ? listings()[source.sourceReference - 1] : undefined;
}
