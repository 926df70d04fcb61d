import type { RootAnswer, TableQuery } from '../../engine/queries/answers.ts';
import { Canvas } from '../kit/canvas.ts';
import { h } from '../kit/element.ts';
import { entrySummary } from '../kit/entry.ts';
import { Eye } from '../kit/eye.ts';
import { formatAddress, formatIndices, formatSize, saysLevel, shortEntry } from '../kit/format.ts';
import { lookOf, rightsWords } from '../kit/permissions.ts';
import type { Selection } from '../kit/selection.ts';
import { hideTooltip, showTooltipSoon } from '../kit/tooltip.ts';
import { clampViewport, fit, ticks, type Viewport } from '../kit/viewport.ts';
import { type Box, boxAt, layout, wholeSpace } from './layout.ts';
import { addressAt, type EntryPath, type GetTable, totalSize } from './model.ts';
import { runFacts } from './run-words.ts';

const AXIS = 20;
const ROW = 34;
const ROW_GAP = 4;

/** The address space as a partition: a row for each level, position on screen is position in the space. */
export class Partition {
  readonly element: HTMLElement;
  readonly #canvas: Canvas;
  readonly #levels = h('div', { class: 'partition-levels', 'aria-hidden': 'true' });
  readonly #get: GetTable;
  readonly #selection: Selection<EntryPath>;
  /** Where the fault ended: the axis says in which direction when it is out of sight. */
  fault: number | undefined;
  #root: RootAnswer | undefined;
  readonly #eye: Eye;
  #boxes: Box[] = [];
  /** Hears that other tables may be needed. */
  readonly #moved: () => void;

  constructor(get: GetTable, selection: Selection<EntryPath>, moved: () => void) {
    this.#get = get;
    this.#selection = selection;
    this.#moved = moved;
    this.#canvas = new Canvas(() => this.#draw(), {
      class: 'partition-canvas',
      tabindex: '0',
      role: 'application',
      'aria-label':
        'Address space, a row for each level of tables. Arrows select, Enter zooms in, plus and minus zoom, Home shows what is mapped. The tree below lists the same.',
    });
    this.element = h('div', { class: 'partition' }, this.#levels, this.#canvas.element);
    this.#eye = new Eye({ start: 0, size: 1 }, this.#canvas, {
      total: () => (this.#root ? totalSize(this.#root) : 1),
      moved: (byHand) => {
        if (byHand) hideTooltip();
        this.#moved();
      },
      point: (event) => this.#hover(event),
      click: (event) => {
        const box = this.#hit(event);
        if (box) this.#select(box, event.offsetX);
      },
    });
    this.#listen();
    selection.onChange(() => this.#canvas.redraw());
  }

  get viewport(): Viewport {
    return this.#eye.view;
  }

  show(root: RootAnswer | undefined, view?: Viewport): void {
    if (root && root.format !== this.#root?.format) {
      this.#levels.replaceChildren(
        ...root.levels.map(({ entry, number }) =>
          h(
            'div',
            { class: 'partition-level', title: `${entry}, level ${number}` },
            shortEntry(entry),
            !saysLevel(entry) && h('span', { class: 'level' }, `level ${number}`),
          ),
        ),
      );
      this.#canvas.element.style.height = `${AXIS + root.table.level * (ROW + ROW_GAP)}px`;
    }
    this.#root = root;
    if (view) {
      this.#eye.view = view;
    }
    this.#canvas.redraw();
  }

  redraw(): void {
    this.#canvas.redraw();
  }

  /** Tables that are on screen. */
  need(need: (query: TableQuery) => void): void {
    if (this.#root) layout(this.#root, this.#get, this.#eye.view, Math.max(1, this.#canvas.width), need);
  }

  moveTo(target: Viewport): void {
    this.#eye.moveTo(target);
  }

  zoom(factor: number, fraction = 0.5): void {
    if (this.#root) this.#eye.zoom(factor, fraction);
  }

  whole(): void {
    if (this.#root) this.moveTo(wholeSpace(this.#root));
  }

  /** Shows an entry with some of its neighbours. */
  reveal(start: number, size: number): void {
    if (!this.#root) return;
    const total = totalSize(this.#root);
    const { start: from, size: across } = this.#eye.view;
    // What can be seen well already stays where it is.
    if (start >= from && start + size <= from + across && size >= across / 60) return;
    this.moveTo(clampViewport({ start: start + size / 2 - size * 8, size: size * 16 }, total));
  }

  #zoomTo(box: Box): void {
    if (this.#root) this.moveTo(fit(box.start, box.size, totalSize(this.#root)));
  }

  #draw(): void {
    if (!this.#root) return;
    const { context, width } = this.#canvas;
    this.#boxes = layout(this.#root, this.#get, this.#eye.view, width, () => {});
    const shown = formatAddress(addressAt(Math.max(0, Math.floor(this.#eye.view.start)), this.#root));
    this.#canvas.element.setAttribute(
      'aria-description',
      `${formatSize(Math.round(this.#eye.view.size))} from ${shown}`,
    );
    const font = getComputedStyle(document.body);
    context.font = `12px ${font.getPropertyValue('--mono')}`;
    context.textBaseline = 'middle';
    this.#drawAxis();
    this.#drawFault();
    context.fillStyle = this.#canvas.token('--faint');
    context.globalAlpha = 0.5;
    for (let row = 0; row < this.#root.table.level; row++) context.fillRect(0, rowTop(row) + ROW - 1, width, 1);
    context.globalAlpha = 1;
    for (const box of this.#boxes) this.#drawBox(box);
    // What is marked lies on top of its neighbours.
    for (const box of this.#boxes) if (box.run.faulting) this.#outline(box, '--accent');
    const selected = this.#selected();
    if (selected) this.#outline(selected, '--text', selected.run.faulting ? 3 : 0);
  }

  #drawAxis(): void {
    const { context, width } = this.#canvas;
    context.fillStyle = this.#canvas.token('--quiet');
    let free = 0;
    for (const at of ticks(this.#eye.view, Math.max(2, Math.floor(width / 130)))) {
      const x = Math.round(((at - this.#eye.view.start) / this.#eye.view.size) * width);
      const words = formatAddress(addressAt(Math.min(at, totalSize(this.#root!) - 1), this.#root!));
      const across = context.measureText(words).width;
      if (at >= totalSize(this.#root!)) continue;
      context.fillRect(x, AXIS - 5, 1, 4);
      if (x < free || x + across + 4 > width) continue;
      context.fillText(words, x + 3, AXIS - 10);
      free = x + across + 16;
    }
  }

  #drawFault(): void {
    if (this.fault === undefined) return;
    const { context, width } = this.#canvas;
    const x = ((this.fault - this.#eye.view.start) / this.#eye.view.size) * width;
    const way = x < 0 ? -1 : x > width ? 1 : 0;
    const at = Math.max(6, Math.min(x, width - 6));
    const y = AXIS - 5;
    context.fillStyle = this.#canvas.token('--accent');
    context.beginPath();
    context.moveTo(way === 0 ? at : at + 5 * way, way === 0 ? y + 4 : y);
    context.lineTo(way === 0 ? at - 4 : at - 3 * way, y - 4);
    context.lineTo(way === 0 ? at + 4 : at - 3 * way, way === 0 ? y - 4 : y + 4);
    context.fill();
  }

  #drawBox({ run, row, x, width }: Box): void {
    const { context, width: edge } = this.#canvas;
    const left = Math.max(-4, x);
    const right = Math.min(edge + 4, x + width);
    const across = right - left;
    const top = rowTop(row);
    const look = lookOf(run.entry);
    if (look.kind === 'absent') {
      if (!run.faulting && run.was === undefined) return;
      context.fillStyle = this.#canvas.token('--quiet');
      for (let dot = left; dot < right; dot += 4) context.fillRect(dot, top + ROW / 2, 1, 1);
    } else {
      this.#canvas.fillLook(look, left, top, across, ROW);
      if (across > 5) {
        context.strokeStyle = this.#canvas.token(look.colour);
        context.globalAlpha = look.table ? 0.45 : 0.8;
        if (look.kind === 'malformed') context.setLineDash([4, 2]);
        context.strokeRect(left + 0.5, top + 0.5, across - 1, ROW - 1);
        context.setLineDash([]);
        context.globalAlpha = 1;
      }
    }
    if (run.was !== undefined) {
      context.fillStyle = this.#canvas.token('--changed');
      context.fillRect(left, top, Math.min(4, Math.max(2, across)), ROW);
    }
    this.#label(run, Math.max(0, left), Math.min(edge, right), top);
  }

  /** Index and rights, where they fit. */
  #label(run: Box['run'], left: number, right: number, top: number): void {
    const { context } = this.#canvas;
    const room = right - left - 14;
    const index = formatIndices(run.index, run.count);
    const size = run.entry.size === undefined ? '' : ` ${formatSize(run.size * run.count)}`;
    const choices = [`${index}  ${rightsWords(run.entry)}${size}`, `${index} ${run.entry.rights.slice(0, 3)}`, index];
    const words = choices.find((choice) => context.measureText(choice).width <= room);
    if (words === undefined) return;
    const across = context.measureText(words).width;
    context.fillStyle = this.#canvas.token('--surface');
    context.globalAlpha = 0.82;
    context.fillRect(left + 6, top + ROW / 2 - 9, across + 6, 18);
    context.globalAlpha = 1;
    context.fillStyle = this.#canvas.token('--text');
    context.fillText(words, left + 9, top + ROW / 2 + 1);
  }

  #outline({ x, width, row }: Box, token: string, inset = 0): void {
    const { context, width: edge } = this.#canvas;
    const across = Math.max(width, 6);
    const left = Math.max(1, x - (across - width) / 2);
    const right = Math.min(edge - 1, x + width + (across - width) / 2);
    context.strokeStyle = this.#canvas.token(token);
    context.lineWidth = inset > 0 ? 1 : 2;
    context.strokeRect(
      left + inset,
      rowTop(row) + 1 + inset,
      Math.max(4, right - left - 2 * inset),
      ROW - 2 - 2 * inset,
    );
    context.lineWidth = 1;
  }

  #selected(): Box | undefined {
    const path = this.#selection.value;
    if (!path) return undefined;
    return this.#boxes.find((box) => {
      const index = path.at(-1)!;
      return (
        box.path.length === path.length &&
        box.path.slice(0, -1).every((each, depth) => each === path[depth]) &&
        index >= box.run.index &&
        index < box.run.index + box.run.count
      );
    });
  }

  #hit(event: MouseEvent): Box | undefined {
    const row = Math.floor((event.offsetY - AXIS) / (ROW + ROW_GAP));
    return row < 0 ? undefined : boxAt(this.#boxes, row, event.offsetX);
  }

  #select(box: Box, x?: number): void {
    // Of a run, the entry that was pointed at.
    const inside = x === undefined ? 0 : Math.floor(((x - box.x) / box.width) * box.run.count);
    const index = box.run.index + Math.max(0, Math.min(inside, box.run.count - 1));
    this.#selection.set([...box.path.slice(0, -1), index], this);
  }

  #listen(): void {
    const { element } = this.#canvas;
    element.addEventListener('pointerdown', hideTooltip);
    element.addEventListener('pointerleave', hideTooltip);
    element.addEventListener('dblclick', (event) => {
      const box = this.#hit(event);
      if (box && box.run.entry.state !== 'absent') this.#zoomTo(box);
    });
    element.addEventListener('keydown', (event) => this.#key(event));
  }

  #hover(event: PointerEvent): void {
    const box = this.#hit(event);
    if (!box) {
      hideTooltip();
      return;
    }
    const { left, top } = this.#canvas.element.getBoundingClientRect();
    const anchor = { left: event.clientX, top: top + rowTop(box.row), width: 0, height: ROW };
    anchor.left = Math.max(left, anchor.left);
    const { run } = box;
    showTooltipSoon(
      () =>
        entrySummary({
          entry: run.entry,
          index: run.index,
          count: run.count,
          was: run.was,
          note: run.note,
          here: run.faulting,
          facts: runFacts(run),
        }),
      anchor,
    );
  }

  #key(event: KeyboardEvent): void {
    const move = {
      '+': () => this.zoom(2),
      '=': () => this.zoom(2),
      '-': () => this.zoom(0.5),
      Home: () => this.onHome(),
      End: () => this.whole(),
    }[event.key];
    const selected = this.#selected();
    const present = this.#boxes.filter(({ run }) => run.entry.state !== 'absent' || run.faulting);
    const same = present.filter(({ row }) => row === (selected?.row ?? 0));
    const at = selected ? same.findIndex((box) => box.path.join() === selected.path.join()) : -1;
    const choose = {
      ArrowRight: () => same[at + 1] ?? (selected ? undefined : same[0]),
      ArrowLeft: () => same[at - 1],
      ArrowDown: () =>
        present.find(
          (box) =>
            selected &&
            box.row === selected.row + 1 &&
            box.start >= selected.start &&
            box.start < selected.start + selected.size,
        ) ?? (selected ? undefined : same[0]),
      ArrowUp: () =>
        present.find(
          (box) =>
            selected &&
            box.row === selected.row - 1 &&
            box.start <= selected.start &&
            selected.start < box.start + box.size,
        ),
    }[event.key];
    if (event.key === 'Enter' && selected) this.#zoomTo(selected);
    else if (move) move();
    else if (choose) {
      const box = choose();
      if (box) this.#select(box);
    } else return;
    event.preventDefault();
  }

  /** What Home does: the view knows what is mapped. */
  onHome: () => void = () => {};
}

function rowTop(row: number): number {
  return AXIS + row * (ROW + ROW_GAP);
}
