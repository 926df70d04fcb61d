import { svg } from './element.ts';
import { type Look, PATTERNS, TILE } from './permissions.ts';

/** The patterns that swatches refer to; put once into the page. */
function patterns(): SVGSVGElement {
  return svg(
    'svg',
    { class: 'patterns', width: 0, height: 0, 'aria-hidden': 'true' },
    svg(
      'defs',
      {},
      ...Object.entries(PATTERNS).map(([kind, lines]) =>
        svg(
          'pattern',
          { id: `pattern-${kind}`, width: TILE, height: TILE, patternUnits: 'userSpaceOnUse' },
          ...lines.map(([x1, y1, x2, y2]) => svg('line', { x1, y1, x2, y2, class: `line ${kind}` })),
        ),
      ),
    ),
  );
}

/** A field filled with a look; its place and size are the style sheet's. */
export function swatch(look: Look): SVGSVGElement {
  if (!document.querySelector('svg.patterns')) document.body.append(patterns());
  const size = { width: '100%', height: '100%' };
  return svg(
    'svg',
    { class: `swatch ${look.kind}${look.table ? ' table' : ''}`, 'aria-hidden': 'true' },
    svg('rect', { ...size, class: 'fill' }),
    svg('rect', { ...size, class: 'pattern', fill: `url(#pattern-${look.kind})` }),
    look.user && svg('rect', { x: 0, y: '100%', width: '100%', height: 3, class: 'user' }),
  );
}
