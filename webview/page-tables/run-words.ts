import type { EntryRun } from '../../engine/queries/answers.ts';
import { copyable } from '../kit/copy.ts';
import { h } from '../kit/element.ts';
import { formatAddress, formatSize } from '../kit/format.ts';

/** What a run covers and where it leads, besides its bits. */
export function runFacts(run: EntryRun): (readonly [name: string, value: Node | string])[] {
  const size = run.size * run.count;
  const last = BigInt.asUintN(64, BigInt(run.input) + BigInt(size) - 1n);
  return [
    [
      'covers',
      h('span', { class: 'mono' }, `${formatAddress(run.input)} – ${formatAddress(last)} (${formatSize(size)})`),
    ],
    ...(run.entry.address === undefined
      ? []
      : [['leads to', copyable(formatAddress(run.entry.address), run.entry.address, 'target')] as const]),
    ...(run.recursive ? [['recursive', 'the table contains itself'] as const] : []),
    ...(run.faulting ? [['fault', 'the stop’s fault ended here'] as const] : []),
  ];
}

/** The last column of the tree: what is not in the others. */
export function runNote(run: EntryRun): string {
  const parts = [
    run.recursive && 'recursive: the table contains itself',
    run.entry.problems.join('; '),
    run.note,
    run.was !== undefined && `was ${formatAddress(run.was)}`,
  ];
  return parts.filter(Boolean).join('; ');
}
