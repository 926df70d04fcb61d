/** Which rows of a long list are on screen, with some on both sides so that scrolling finds them there. */
export function visibleRows(
  scrollTop: number,
  height: number,
  rowHeight: number,
  total: number,
): { readonly first: number; readonly count: number } {
  const margin = 20;
  const first = Math.max(0, Math.floor(scrollTop / rowHeight) - margin);
  const last = Math.min(total, Math.ceil((scrollTop + height) / rowHeight) + margin);
  return { first, count: Math.max(0, last - first) };
}
