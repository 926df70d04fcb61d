import type { Amount, AttributeMapAnswer, CellFacts, CellMapping } from '../../engine/queries/answers.ts';
import { formatAddress, formatSize } from '../kit/format.ts';

const LEVELS = ['', '4K', '2M', '1G'];

const share = (amount: Amount, what: string): string =>
  amount === 'none' ? `no page ${what}` : amount === 'all' ? `all pages ${what}` : `some pages ${what}`;

function mappingWords(mapping: CellMapping | null): string {
  if (!mapping) return 'maps nothing of it';
  const { mapped, levels, frames, stale, dirty } = mapping;
  return [
    `maps ${mapped === 'all' ? 'it all' : 'a part'} as ${levels.map((level) => LEVELS[level]).join(' and ')}`,
    ...(frames === 'untold' ? [] : [frames === 'both' ? 'private and shared frames' : `${frames} frames`]),
    ...(dirty === 'none' ? [] : [dirty === 'all' ? 'dirty' : 'partly dirty']),
    ...(stale === 'none' ? [] : [stale === 'all' ? 'stale' : 'partly stale']),
  ].join(', ');
}

/** What is known of several pages together, as names and words. */
export function cellRows(
  facts: CellFacts,
  { stages, frames }: Pick<AttributeMapAnswer, 'stages' | 'frames'>,
): [name: string, words: string][] {
  if (facts.slot === 'none') return [['memory', 'no slot holds any of it']];
  const { rmp } = facts;
  return [
    ['memory', share(facts.slot, 'in a slot') + (facts.gmem === 'none' ? ', without guest_memfd' : '')],
    ['attribute', share(facts.private, 'private')],
    ...(facts.converting
      ? [
          [
            'conversion',
            `some pages are being made ${facts.converting === 'both' ? 'private, some shared' : facts.converting}`,
          ] as [string, string],
        ]
      : []),
    ...(facts.invalidating ? [['invalidation', 'some pages are being invalidated'] as [string, string]] : []),
    ...(facts.gmem === 'none' || !frames
      ? []
      : [['guest_memfd', `has ${share(facts.folios ?? 'none', '').trim()}`] as [string, string]]),
    ...(rmp
      ? [
          [
            'RMP',
            `${share(rmp.assigned, 'the guest’s')}: ${rmp.large === 'all' ? 'as 2M' : rmp.large === 'none' ? 'as 4K' : 'as 4K and 2M'}, ${rmp.validated} of them validated`,
          ] as [string, string],
        ]
      : []),
    ...(facts.split
      ? [
          ['direct map', share(facts.split, 'in 4K') + (facts.holes ? `, ${share(facts.holes, 'left out')}` : '')] as [
            string,
            string,
          ],
        ]
      : []),
    ...stages.map((name, stage): [string, string] => [name, mappingWords(facts.stages[stage] ?? null)]),
  ];
}

/** `20_0000 +2M` */
export function rangeWords(start: number | string, size: number): string {
  return `${formatAddress(BigInt(start))} +${formatSize(size)}`;
}

/** Addresses in a sentence of the engine's, grouped as everywhere in the views. */
export function grouped(words: string): string {
  return words.replaceAll(/0x[0-9a-f]+/gi, (value) => formatAddress(value));
}
