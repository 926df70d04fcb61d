export interface Box {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
}

/**
 * Where a tooltip goes: below its anchor, else above, else where there is more room; never past an edge. CSS pixels.
 */
export function placeTooltip(
  anchor: Box,
  size: { readonly width: number; readonly height: number },
  page: { readonly width: number; readonly height: number },
  margin = 6,
): { readonly left: number; readonly top: number } {
  const clamp = (value: number, high: number) => Math.max(margin, Math.min(value, high - margin));
  const below = anchor.top + anchor.height + margin;
  const above = anchor.top - margin - size.height;
  const fitsBelow = below + size.height + margin <= page.height;
  const top = fitsBelow || above < margin ? below : above;
  return { left: clamp(anchor.left, page.width - size.width), top: clamp(top, page.height - size.height) };
}
