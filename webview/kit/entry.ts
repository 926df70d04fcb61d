import type { DecodedEntry, DecodedField } from '../../engine/formats/decode.ts';
import { copyable } from './copy.ts';
import { h } from './element.ts';
import { formatAddress, formatBits, formatIndices, formatSize } from './format.ts';
import { rightsWords } from './permissions.ts';

/** Who writes a field; software is the rule and is not said. */
const SET_BY: Readonly<Record<DecodedField['setBy'], string>> = { software: '', hardware: 'hardware', kvm: 'KVM' };

export interface EntryWords {
  readonly entry: DecodedEntry;
  readonly index: number;
  /** Entries that are alike from there on; 1 unless given. */
  readonly count?: number;
  /** Names of the fields that decided, see `decidingFields`. */
  readonly deciding?: ReadonlySet<string>;
  /** The decision is the stop's, not an asked walk's. */
  readonly here?: boolean;
  readonly note?: string | undefined;
  /** Value before, when it changed since the last stop. */
  readonly was?: string | undefined;
  /** More rows of name and value, above the fields. */
  readonly facts?: readonly (readonly [name: string, value: Node | string])[];
}

/** `PDE 2`, `PTE 4–511`. */
export function entryTitle({ entry, index, count = 1 }: Pick<EntryWords, 'entry' | 'index' | 'count'>): string {
  return `${entry.name} ${formatIndices(index, count)}`;
}

/** In one line: `rwx user, table`, `absent`, `malformed: reserved bits 51 set`. */
export function entryState(entry: DecodedEntry): string {
  const size = entry.size === undefined ? '' : ` of ${formatSize(entry.size)}`;
  switch (entry.state) {
    case 'absent':
      return 'not present';
    case 'malformed':
      return `malformed: ${entry.problems.join('; ')}`;
    case 'table':
      return [rightsWords(entry), 'points to a table', ...entry.problems].join(', ');
    case 'leaf':
      return `${rightsWords(entry)}, maps a page${size}`;
  }
}

function fieldRows(words: EntryWords, every: boolean): HTMLElement {
  const { entry, deciding } = words;
  // Of an absent entry nothing but its set bits can be of interest.
  const all = every && entry.state !== 'absent';
  const fields = entry.fields.filter((field) => all || field.value !== '0x0' || deciding?.has(field.name));
  const body = h(
    'tbody',
    {},
    ...fields.map((field) => {
      const decides = deciding?.has(field.name) ?? false;
      const marks = decides ? (words.here ? 'decides here' : 'decides') : undefined;
      return h(
        'tr',
        { class: [marks, field.value === '0x0' ? 'zero' : ''].filter(Boolean).join(' ') || undefined },
        h('th', { scope: 'row' }, field.name),
        h('td', { class: 'mono bits' }, formatBits(field.bits)),
        h('td', { class: 'mono' }, field.words.startsWith('0x') ? formatAddress(field.words) : field.words),
        h(
          'td',
          { class: 'meaning' },
          field.meaning,
          SET_BY[field.setBy] !== '' &&
            h('span', { class: 'set-by', title: `Set by ${SET_BY[field.setBy]}` }, SET_BY[field.setBy]),
        ),
      );
    }),
  );
  return h('table', { class: 'fields' }, body);
}

function facts(rows: readonly (readonly [string, Node | string])[]): HTMLElement {
  return h('dl', { class: 'facts' }, ...rows.flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

/** Decoded bits for a tooltip: those that are set or that decided. */
export function entrySummary(words: EntryWords): HTMLElement {
  const { entry, was, note } = words;
  return h(
    'div',
    {},
    h('div', { class: 'tooltip-title' }, h('b', {}, entryTitle(words)), ` level ${entry.number}: ${entryState(entry)}`),
    note !== undefined && h('div', { class: 'note' }, note),
    facts([
      ['value', h('span', { class: 'mono' }, formatAddress(entry.value))],
      ...(was === undefined ? [] : [['before', h('span', { class: 'mono' }, formatAddress(was))] as const]),
      ...(words.facts ?? []),
    ]),
    fieldRows(words, false),
  );
}

/** Everything about an entry, for a details pane. */
export function entryDetails(words: EntryWords): HTMLElement {
  const { entry, was, note } = words;
  return h(
    'div',
    { class: 'entry-details' },
    h('h2', {}, entryTitle(words), h('span', { class: 'quiet' }, ` level ${entry.number}, ${entry.format}`)),
    h('p', {}, entryState(entry)),
    note !== undefined && h('p', { class: 'note' }, note),
    facts([
      ['value', copyable(formatAddress(entry.value), entry.value, 'value')],
      ...(was === undefined ? [] : [['before', copyable(formatAddress(was), was, 'the value before')] as const]),
      ...(words.facts ?? []),
    ]),
    fieldRows(words, true),
  );
}
