const DIGITS = Array.from({ length: 4096 }, (_, value) => value.toString(16).padStart(3, '0'));

let lastHigh = -1;
let lastDigits = '';

/** The address of a frame in 16 hexadecimal digits. Neighbours, which share the upper ten, cost little. */
export function hexFrame(frame: number): string {
  const high = Math.floor(frame / 4096);
  if (high !== lastHigh) {
    lastHigh = high;
    lastDigits = high.toString(16).padStart(10, '0');
  }
  return `${lastDigits}${DIGITS[frame % 4096]}000`;
}
