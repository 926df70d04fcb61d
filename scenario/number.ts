const SUFFIXES: Readonly<Record<string, bigint>> = { '': 0n, K: 10n, M: 20n, G: 30n, T: 40n };

/**
 * A number as people write it: decimal or `0x` hexadecimal, `_` between digits, a suffix K, M, G or T for powers of 1024.
 * Returns the reason when it is none, or needs more than 64 bits.
 */
export function parseNumber(text: string): bigint | string {
  const match = /^(0[xX][0-9a-fA-F](?:_?[0-9a-fA-F])*|[0-9](?:_?[0-9])*)([KMGT]?)$/.exec(text);
  if (!match) return `‘${clip(text)}’ is no number: write 4096, 0x1000, 0x1_0000 or 4K (suffixes K, M, G, T)`;
  const [, digits, suffix] = match as unknown as [string, string, string];
  // BigInt takes quadratic time, and no number that fits is this long.
  const significant = digits.replaceAll('_', '').replace(/^(0[xX])?0*(?=.)/, (_, prefix) => prefix ?? '');
  const value = significant.length > 32 ? undefined : BigInt(significant) << SUFFIXES[suffix]!;
  if (value === undefined || value >> 64n !== 0n) return `${clip(text)} does not fit into 64 bits`;
  return value;
}

/** A piece of source for a message, shortened. */
export function clip(text: string): string {
  return text.length <= 40 ? text : `${text.slice(0, 37)}…`;
}

/** `4K`, `0x1234`: a number of bytes as people write it, hexadecimal when it is no round size. */
export function sizeWords(bytes: bigint): string {
  for (const suffix of ['T', 'G', 'M', 'K']) {
    const unit = SUFFIXES[suffix]!;
    if (bytes !== 0n && bytes % (1n << unit) === 0n) return `${bytes >> unit}${suffix}`;
  }
  return bytes < 1024n ? `${bytes}` : `0x${bytes.toString(16)}`;
}
