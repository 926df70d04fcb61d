/** The part of an address space that is on screen, in bytes from its start. Exact for addresses of up to 57 bits. */
export interface Viewport {
  readonly start: number;
  readonly size: number;
}

/** No closer than one page across the screen. */
export const MIN_SIZE = 4096;

export function clampViewport({ start, size }: Viewport, total: number): Viewport {
  const fitted = Math.max(Math.min(size, total), Math.min(MIN_SIZE, total));
  return { start: Math.max(0, Math.min(start, total - fitted)), size: fitted };
}

/** Zooms by a factor (above 1: closer); what lies at `fraction` of the width stays where it is. */
export function zoomAround(view: Viewport, factor: number, fraction: number, total: number): Viewport {
  const size = Math.max(MIN_SIZE, Math.min(view.size / factor, total));
  return clampViewport({ start: view.start + (view.size - size) * fraction, size }, total);
}

export function pan(view: Viewport, fraction: number, total: number): Viewport {
  return clampViewport({ start: view.start + view.size * fraction, size: view.size }, total);
}

/** A range with a margin at both sides. */
export function fit(start: number, size: number, total: number, margin = 0.04): Viewport {
  return clampViewport({ start: start - size * margin, size: size * (1 + 2 * margin) }, total);
}

/** Round addresses for an axis: multiples of a power of two, at most `count` of them. */
export function ticks(view: Viewport, count: number): number[] {
  const step = 2 ** Math.max(8, Math.ceil(Math.log2(view.size / Math.max(1, count))));
  const found: number[] = [];
  for (let at = Math.ceil(view.start / step) * step; at <= view.start + view.size; at += step) found.push(at);
  return found;
}
