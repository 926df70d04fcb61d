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

/** A time of a recording, in the unit that suits its length: `12.345 ms`. */
export function timeWords(nanoseconds: number): string {
  const units: readonly (readonly [number, string])[] = [
    [1e9, 's'],
    [1e6, 'ms'],
    [1e3, 'µs'],
  ];
  const found = units.find(([size]) => Math.abs(nanoseconds) >= size);
  return found ? `${(nanoseconds / found[0]).toFixed(3)} ${found[1]}` : `${Math.round(nanoseconds)} ns`;
}

/** Heights of bars, 0 … 1. Few events beside many are still seen: the scale is that of the square root. */
export function barHeights(counts: readonly number[]): number[] {
  const most = Math.max(1, ...counts);
  return counts.map((count) => (count === 0 ? 0 : Math.max(0.06, Math.sqrt(count / most))));
}
