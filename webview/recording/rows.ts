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
