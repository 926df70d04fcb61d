import type { ShadowPageAnswer } from '../../engine/queries/answers.ts';

/** A page in the list. */
export interface PageRow {
  readonly page: ShadowPageAnswer;
  /** The first page of its gfn, and how many that gfn has in all. */
  readonly isFirst: boolean;
  readonly ofGfn: number;
}

/** Pages by gfn: those of one gfn follow each other, in the order of the answer. */
export function pageRows(pages: readonly ShadowPageAnswer[]): readonly PageRow[] {
  const groups = new Map<string, ShadowPageAnswer[]>();
  for (const page of pages) {
    const group = groups.get(page.gfn);
    if (group) group.push(page);
    else groups.set(page.gfn, [page]);
  }
  return [...groups.values()].flatMap((group) =>
    group.map((page, index) => ({ page, isFirst: index === 0, ofGfn: group.length })),
  );
}

/** Pages whose gfn has these digits, typed as people do: with or without `0x` and `_`. */
export function filterPages(
  pages: readonly ShadowPageAnswer[],
  text: string,
): readonly ShadowPageAnswer[] | { readonly error: string } {
  const digits = text
    .trim()
    .replace(/^gfn:?\s*/i, '')
    .replace(/^0x/i, '')
    .replaceAll('_', '')
    .toLowerCase();
  if (digits === '') return pages;
  if (!/^[0-9a-f]+$/.test(digits))
    return { error: `“${text.trim()}” is not a gfn: hexadecimal digits, such as 0x400.` };
  return pages.filter(({ gfn }) => gfn.slice(2).includes(digits));
}

/** The quadrant of a page that shadows a part of a 32-bit guest's table; other pages have none. */
export function quadrantOf({ fields }: ShadowPageAnswer): number | undefined {
  const value = (name: string): number | undefined => fields.find((each) => each.name === name)?.value;
  return value('has_4_byte_gpte') === 1 ? value('quadrant') : undefined;
}

/** A role's words without its level, where that is said beside them. */
export function withoutLevel(words: string): string {
  return words.replace(/^level \d+(?:, )?/, '');
}

/** What is to be noticed of a page, in words; empty for most. */
export function pageMarks({
  unsync,
  unsyncChildren,
  writeFlooding,
  nxDisallowed,
}: ShadowPageAnswer): readonly string[] {
  return [
    ...(unsync ? ['unsync'] : []),
    ...(unsyncChildren > 0 ? [`${unsyncChildren} unsync below`] : []),
    ...(writeFlooding > 0 ? [`write-flooding ${writeFlooding}`] : []),
    ...(nxDisallowed ? ['NX huge page disallowed'] : []),
  ];
}
