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

/**
 * The path of the eye between two viewports, by a fraction 0 … 1 of it: out, across and in again, as fast as it can be
 * followed (van Wijk and Nuij, "Smooth and efficient zooming and panning", 2003, with their ρ = √2). d3's
 * `interpolateZoom` takes the logarithm of a difference that vanishes on a path from one page across a 48-bit space;
 * an area hyperbolic sine does not.
 */
export function zoomPath(from: Viewport, to: Viewport): (fraction: number) => Viewport {
  const rho = Math.SQRT2;
  const centre = from.start + from.size / 2;
  const across = to.start + to.size / 2 - centre;
  const distance = Math.abs(across);
  const at = (middle: number, size: number): Viewport => ({ start: middle - size / 2, size });
  // So short a way that only the size changes.
  if (distance < Math.min(from.size, to.size) * 1e-6) {
    return (fraction) =>
      fraction >= 1 ? to : at(centre + across * fraction, from.size * (to.size / from.size) ** fraction);
  }
  const bend = (size: number, sign: number) =>
    (to.size ** 2 - from.size ** 2 + sign * rho ** 4 * distance ** 2) / (2 * size * rho ** 2 * distance);
  const begin = -Math.asinh(bend(from.size, 1));
  const length = -Math.asinh(bend(to.size, -1)) - begin;
  return (fraction) => {
    if (fraction >= 1) return to;
    const angle = begin + fraction * length;
    const travelled = (from.size / rho ** 2) * (Math.cosh(begin) * Math.tanh(angle) - Math.sinh(begin));
    return at(centre + Math.sign(across) * travelled, (from.size * Math.cosh(begin)) / Math.cosh(angle));
  };
}
