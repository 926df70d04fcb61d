/** Hexadecimal digits of a `0x…` string in groups of four, from the right. */
function grouped(digits: string): string {
  return digits.replace(/\B(?=(?:[0-9a-f]{4})+$)/gi, '_');
}

/**
 * An address as people read it: `ffff_8880_0000_0000`, `20_0000`. One of up to four digits keeps its `0x`, for nothing
 * else tells it from a decimal number.
 */
export function formatAddress(value: string | bigint): string {
  const digits = typeof value === 'bigint' ? value.toString(16) : value.replace(/^0x0*(?=.)/i, '').toLowerCase();
  return digits.length > 4 ? grouped(digits) : `0x${digits}`;
}

/** `4K`, `2M`, `1G`, `512G`, `255.5T`: always exact, in the largest unit that needs no more than one decimal. */
export function formatSize(bytes: number): string {
  for (const [power, unit] of [...['', 'K', 'M', 'G', 'T', 'P'].entries()].reverse()) {
    const value = bytes / 1024 ** power;
    // There is no larger unit: 127.75P is shorter than what it is in T.
    if (value >= 1 && Number.isInteger(value * (unit === 'P' ? 100 : 10))) return `${value}${unit}`;
  }
  return `${bytes}`;
}

/** An entry's name where room is short: `PDE`, `L2`, `level-1`. The stage is said elsewhere. */
export function shortEntry(name: string): string {
  return name.replace(/^(EPT|NPT) /, '').replace(/ (descriptor|PTE)$/, '');
}

/** Whether a name says its level itself: `L2 table`, `level-0`. */
export function saysLevel(name: string): boolean {
  return /^(L-?\d|level)/.test(name);
}

/** Both names of a level: `PDE, level 2`. */
export function formatLevel(name: string, level: number): string {
  return `${name}, level ${level}`;
}

/** `2`, `0–511`. */
export function formatIndices(first: number, count: number): string {
  return count === 1 ? `${first}` : `${first}–${first + count - 1}`;
}

/** Bits as the manuals write them: `7`, `51:12`. */
export function formatBits([high, low]: readonly [number, number]): string {
  return high === low ? `${high}` : `${high}:${low}`;
}

/** What a person typed as an address: `0x1000`, `ffff_8880_0000_0000`, `4000`: hexadecimal, with or without `0x` and `_`. */
export function parseAddress(text: string): { readonly address: string } | { readonly error: string } {
  const digits = text
    .trim()
    .replace(/^(?:gva|gpa|hpa):/i, '')
    .replace(/^0x/i, '')
    .replaceAll(/[_`]/g, '');
  if (digits === '') return { error: 'Type an address: hexadecimal, such as 0x40_0000.' };
  if (!/^[0-9a-f]+$/i.test(digits))
    return { error: `“${text.trim()}” is not an address: hexadecimal digits, such as 0x40_0000.` };
  const value = BigInt(`0x${digits}`);
  if (value >= 1n << 64n) return { error: `“${text.trim()}” has more than 64 bits.` };
  return { address: `0x${value.toString(16)}` };
}
