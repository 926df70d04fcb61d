/** Bytes as DAP's memory requests carry them. */
export function toBase64(bytes: readonly number[]): string {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @returns undefined for text that is not base64. */
export function fromBase64(data: string): number[] | undefined {
  try {
    return [...atob(data)].map((char) => char.charCodeAt(0));
  } catch {
    return undefined;
  }
}
