import { svg } from '../kit/element.ts';

/** Lines between the cells in the order of the walk, drawn behind them; drawn again when the grid changes its size. */
export function drawPath(grid: HTMLElement): () => void {
  const layer = svg('svg', { class: 'walk-path', 'aria-hidden': 'true' });
  grid.prepend(layer);
  const draw = (): void => {
    const origin = grid.getBoundingClientRect();
    const cells = [...grid.querySelectorAll<HTMLElement>('button.cell, .cell.page')].map((cell) =>
      cell.getBoundingClientRect(),
    );
    const round = (value: number) => Math.round(value) + 0.5;
    const lines = cells.slice(1).map((to, index) => {
      const from = cells[index]!;
      const y = round(from.top + from.height / 2 - origin.top);
      if (Math.abs(from.top - to.top) < 2)
        return arrow(
          `M${from.right - origin.left},${y}H${to.left - origin.left - 1}`,
          to.left - origin.left,
          y,
          'right',
        );
      const middle = round((from.bottom + to.top) / 2 - origin.top);
      const start = round(from.left + from.width / 2 - origin.left);
      const end = round(to.left + to.width / 2 - origin.left);
      return arrow(
        `M${start},${from.bottom - origin.top}V${middle}H${end}V${to.top - origin.top - 1}`,
        end,
        to.top - origin.top,
        'down',
      );
    });
    layer.setAttribute('width', `${grid.scrollWidth}`);
    layer.setAttribute('height', `${grid.scrollHeight}`);
    layer.replaceChildren(...lines.flat());
  };
  const observer = new ResizeObserver(draw);
  observer.observe(grid);
  return () => observer.disconnect();
}

function arrow(path: string, x: number, y: number, way: 'right' | 'down'): SVGElement[] {
  const head = way === 'right' ? `M${x},${y}l-5,-3v6z` : `M${x},${y}l-3,-5h6z`;
  return [svg('path', { d: path, class: 'path-line' }), svg('path', { d: head, class: 'path-head' })];
}
