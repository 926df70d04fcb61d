import type { AttributeMapAnswer } from '../../engine/queries/answers.ts';
import { h, svg } from '../kit/element.ts';
import { legendMark } from '../kit/legend.ts';
import { TILE } from '../kit/permissions.ts';
import { PAINT_NAMES, PAINT_WORDS, PAINTS, type PaintName } from './looks.ts';

function patterns(): SVGSVGElement {
  return svg(
    'svg',
    { class: 'patterns', width: 0, height: 0, 'aria-hidden': 'true' },
    svg(
      'defs',
      {},
      ...PAINT_NAMES.map((name) =>
        svg(
          'pattern',
          { id: `memory-${name}`, width: TILE, height: TILE, patternUnits: 'userSpaceOnUse' },
          ...PAINTS[name].lines.map(([x1, y1, x2, y2]) =>
            svg('line', { x1, y1, x2, y2, class: `line memory-${name}` }),
          ),
        ),
      ),
    ),
  );
}

function swatch(name: PaintName): SVGSVGElement {
  const size = { width: '100%', height: '100%' };
  return svg(
    'svg',
    { class: `swatch memory-${name}`, 'aria-hidden': 'true' },
    svg('rect', { ...size, class: 'fill' }),
    svg('rect', { ...size, fill: `url(#memory-${name})` }),
  );
}

const OF_RMP: readonly PaintName[] = ['assigned', 'validated'];
const OF_FRAMES: readonly PaintName[] = ['file', 'whole', 'split', 'hole', 'stale'];

/** What colours and patterns mean where these things are known. */
export function memoryLegend({ rmp, frames }: Pick<AttributeMapAnswer, 'rmp' | 'frames'>): HTMLElement {
  const names = PAINT_NAMES.filter(
    (name) =>
      (rmp || !OF_RMP.includes(name)) && (frames || !OF_FRAMES.includes(name)) && (!frames || name !== 'mapped'),
  );
  return h(
    'div',
    { class: 'legend', role: 'list', 'aria-label': 'Legend' },
    patterns(),
    ...names.map((name) => h('span', { class: 'legend-item', role: 'listitem' }, swatch(name), PAINT_WORDS[name])),
    legendMark('mark-part', 'some of its pages'),
    legendMark('mark-dirty', 'dirty'),
    ...(frames
      ? [legendMark('mark-invalidation', 'being invalidated'), legendMark('mark-here', 'conversion under way')]
      : []),
    legendMark('mark-outline', 'changed since the last stop'),
  );
}
