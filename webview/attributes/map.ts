import type { AttributeMapAnswer, RangeAnswer } from '../../engine/queries/answers.ts';
import { Canvas } from '../kit/canvas.ts';
import { h } from '../kit/element.ts';
import { Eye } from '../kit/eye.ts';
import { formatAddress, formatSize } from '../kit/format.ts';
import { TILE } from '../kit/permissions.ts';
import { clampViewport, fit, pan, ticks, type Viewport } from '../kit/viewport.ts';
import {
  cellSize,
  coverView,
  factsAt,
  firstSpan,
  type Piece,
  type Span,
  type Tile,
  type TileKey,
  tilesFor,
} from './layout.ts';
import type { Band, CellLook } from './looks.ts';

const AXIS = 24;
const SLOTS = 23;
const INVALIDATION = 8;
const GAP = 5;
const TOP = AXIS + SLOTS + INVALIDATION;
/** What is better is asked for so long after the last movement, ms. */
const SETTLED = 90;
const PAGE = 4096;
/** Rectangles of single pages are drawn once they are so wide, CSS pixels, and what is in them once they are so wide. */
const BOX_WIDTH = 6;
const SYMBOL_WIDTH = 20;

/** A place in memory: bytes. */
export interface Place {
  readonly start: number;
  readonly size: number;
}

/** What the map is drawn of beside its tiles. */
export interface Shown {
  readonly map: AttributeMapAnswer;
  readonly bands: readonly Band[];
  /** gpa of the stop's fault. */
  readonly fault: number | undefined;
}

type MapTile = Tile<CellLook>;

const placeOf = ({ gpa, size }: RangeAnswer): Place => ({ start: Number(gpa), size });

/** Guest-physical memory as bands: position on screen is position in the address space. */
export class MemoryMap {
  readonly element: HTMLElement;
  readonly #canvas: Canvas;
  readonly #names = h('div', { class: 'band-names', 'aria-hidden': 'true' });
  readonly #tiles: () => Iterable<MapTile>;
  readonly #need: (keys: readonly TileKey[]) => void;
  #shown: Shown | undefined;
  readonly #eye: Eye;
  #settling: ReturnType<typeof setTimeout> | undefined;
  #cursor: Place | undefined;
  #isPinned = false;
  /** What has been written into the band: once is enough, and a run that is parted says nothing new. */
  readonly #written = new Set<string>();
  /** Milliseconds that the last drawing took. */
  drawTime = 0;
  /** Hears of the place that is pointed at, or gone to by keyboard; pinned: it is to stay. */
  onPlace: (place: Place | undefined, pinned: boolean) => void = () => {};

  constructor(tiles: () => Iterable<MapTile>, need: (keys: readonly TileKey[]) => void) {
    this.#tiles = tiles;
    this.#need = need;
    this.#canvas = new Canvas(() => this.#draw(), {
      class: 'map-canvas',
      tabindex: '0',
      role: 'application',
      'aria-label':
        'Guest-physical memory. Left and right go to the next page or cell, with Ctrl to the next that differs, plus and minus zoom, Home shows all slots, End what happens now, Enter keeps the details, Escape lets them go.',
    });
    this.element = h('div', { class: 'map' }, this.#names, this.#canvas.element);
    this.#eye = new Eye({ start: 0, size: 2 ** 20 }, this.#canvas, {
      total: () => this.#total,
      moved: () => this.#ask(),
      point: (event) => {
        if (!this.#isPinned) this.onPlace(this.#cellAt(event.offsetX), false);
      },
      click: (event) => this.onPlace(this.#cellAt(event.offsetX), true),
    });
    this.#listen();
  }

  get viewport(): Viewport {
    return this.#eye.view;
  }

  show(shown: Shown): void {
    const before = this.#shown;
    this.#shown = shown;
    const { bands } = shown;
    if (before?.bands !== bands) {
      this.#names.replaceChildren(
        h('div', { class: 'band-name slots' }, 'Slots'),
        ...bands.map(({ id, name, height }) =>
          h('div', { class: 'band-name', 'data-band': id, 'data-height': height }, name),
        ),
      );
      for (const name of this.#names.querySelectorAll<HTMLElement>('[data-height]'))
        name.style.height = `${name.dataset.height}px`;
      this.#canvas.element.style.height = `${this.#height}px`;
    }
    this.#canvas.redraw();
    this.#ask();
  }

  get #height(): number {
    return TOP + (this.#shown?.bands ?? []).reduce((sum, { height }) => sum + height + GAP, 2);
  }

  redraw(): void {
    this.#canvas.redraw();
  }

  /** Marks a place. */
  set cursor(place: Place | undefined) {
    this.#cursor = place;
    this.#canvas.redraw();
  }

  set pinned(pinned: boolean) {
    this.#isPinned = pinned;
    this.#canvas.redraw();
  }

  /** All of the space that can be gone to, bytes. */
  get #total(): number {
    return Math.max(PAGE, ...(this.#shown?.map.slots ?? []).map(({ gpa, size }) => (Number(gpa) + size) * 1.02));
  }

  moveTo(target: Viewport): void {
    this.#eye.moveTo(target);
  }

  /** Asks for what is on screen once nothing moves. */
  #ask(): void {
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => {
      if (this.#shown && this.#canvas.width > 0) this.#need(tilesFor(this.#eye.view, this.#canvas.width));
    }, SETTLED);
  }

  zoom(factor: number): void {
    const at = this.#cursor;
    const middle = at ? (at.start + at.size / 2 - this.#eye.view.start) / this.#eye.view.size : 0.5;
    const isSeen = middle >= 0 && middle <= 1;
    this.#eye.zoom(factor, isSeen ? middle : 0.5);
  }

  whole(): void {
    const slots = (this.#shown?.map.slots ?? []).map(placeOf);
    if (slots.length === 0) return;
    const start = Math.min(...slots.map((slot) => slot.start));
    const end = Math.max(...slots.map((slot) => slot.start + slot.size));
    this.moveTo(fit(start, end - start, this.#total, 0.01));
  }

  /** Shows a place with a margin, at once where `moves` is false. */
  fit({ start, size }: Place, margin = 0.04, moves = true): void {
    const view = fit(start, size, this.#total, margin);
    if (moves) this.moveTo(view);
    else this.#eye.jump(view);
  }

  /** Brings a place into view with some of its neighbours; what is seen well stays where it is. */
  reveal({ start, size }: Place): void {
    const { start: from, size: across } = this.#eye.view;
    const isWithin = start >= from && start + size <= from + across;
    if (isWithin && (size / across) * this.#canvas.width >= SYMBOL_WIDTH / 2) return;
    this.moveTo(clampViewport({ start: start + size / 2 - size * 12, size: size * 24 }, this.#total));
  }

  // ---- drawing

  #x(at: number): number {
    return ((at - this.#eye.view.start) / this.#eye.view.size) * this.#canvas.width;
  }

  #draw(): void {
    const shown = this.#shown;
    if (!shown) return;
    const begin = performance.now();
    const { context, width } = this.#canvas;
    const { start, size } = this.#eye.view;
    this.#canvas.element.setAttribute(
      'aria-description',
      `${formatSize(Math.round(size))} from ${formatAddress(BigInt(Math.max(0, Math.floor(start))))}`,
    );
    context.font = `12px ${getComputedStyle(document.body).getPropertyValue('--mono')}`;
    context.textBaseline = 'middle';
    context.lineWidth = 1;
    this.#drawAxis();
    this.#drawSlots(shown);
    const pieces = coverView(this.#eye.view, width, this.#tiles());
    let top = TOP;
    shown.bands.forEach((band, number) => {
      this.#drawGround(shown, top, band.height);
      this.#written.clear();
      for (const piece of pieces) this.#drawPiece(piece, number, top, band.height);
      for (const piece of pieces) this.#drawChanges(piece, number, top, band.height);
      top += band.height + GAP;
    });
    this.#drawInvalidation(shown);
    this.#drawHere(shown, top - GAP);
    this.#drawCursor(top - GAP);
    this.drawTime = performance.now() - begin;
  }

  #drawAxis(): void {
    const { context, width } = this.#canvas;
    context.fillStyle = this.#canvas.token('--quiet');
    let free = 0;
    for (const at of ticks(this.#eye.view, Math.max(2, Math.floor(width / 110)))) {
      if (at < 0 || at % PAGE !== 0) continue;
      const x = Math.round(this.#x(at));
      const words = formatAddress(BigInt(at));
      const across = context.measureText(words).width;
      context.fillRect(x, AXIS - 5, 1, 4);
      if (x < free || x + across + 4 > width) continue;
      context.fillText(words, x + 3, AXIS - 15);
      free = x + across + 16;
    }
  }

  /** What there is of a place, as far as it is on screen; never narrower than so many pixels. */
  #clip({ start, size }: Place, least: number): { left: number; right: number } | undefined {
    const edge = this.#canvas.width;
    const [left, right] = [this.#x(start), this.#x(start + size)];
    const across = Math.max(least, right - left);
    if (left + across < 0 || left > edge) return undefined;
    return { left: Math.max(-4, left), right: Math.min(edge + 4, left + across) };
  }

  #drawSlots({ map }: Shown): void {
    const { context } = this.#canvas;
    for (const slot of map.slots) {
      const at = this.#clip(placeOf(slot), 3);
      if (!at) continue;
      context.fillStyle = this.#canvas.token('--text');
      context.globalAlpha = slot.gmem ? 0.2 : 0.1;
      context.fillRect(at.left, AXIS, at.right - at.left, SLOTS - 3);
      context.globalAlpha = 1;
      context.strokeStyle = this.#canvas.token('--quiet');
      if (slot.invalid) context.setLineDash([3, 2]);
      if (at.right - at.left > 3) context.strokeRect(at.left + 0.5, AXIS + 0.5, at.right - at.left - 1, SLOTS - 4);
      context.setLineDash([]);
      const flags = [
        ...(slot.gmem ? ['guest_memfd'] : []),
        ...(slot.readonly ? ['read-only'] : []),
        ...(slot.logDirty ? ['dirty logging'] : []),
        ...(slot.invalid ? ['invalid'] : []),
      ];
      this.#write(
        [[`slot ${slot.id}`, formatSize(slot.size), ...flags].join(', '), `slot ${slot.id}`, `${slot.id}`],
        at,
        AXIS + (SLOTS - 3) / 2,
        '--text',
      );
    }
  }

  /** Where there is memory of which a band says nothing: a line of dots. */
  #drawGround({ map }: Shown, top: number, height: number): void {
    const { context } = this.#canvas;
    context.fillStyle = this.#canvas.token('--quiet');
    context.globalAlpha = 0.7;
    for (const slot of map.slots) {
      const at = this.#clip(placeOf(slot), 1);
      if (!at) continue;
      for (let dot = Math.max(0, at.left); dot < at.right; dot += 5) context.fillRect(dot, top + height - 1, 1, 1);
    }
    context.globalAlpha = 1;
  }

  #visible(piece: Piece<MapTile>, band: number): Span<CellLook>[] {
    const spans = piece.tile.bands[band] ?? [];
    const found: Span<CellLook>[] = [];
    for (let at = firstSpan(spans, piece.start); at < spans.length && spans[at]!.start < piece.end; at++)
      found.push(spans[at]!);
    return found;
  }

  /** Names what a run is, where nothing else in the band has been named so. */
  #name(look: CellLook, at: { left: number; right: number }, y: number, token: string, isOver: boolean): boolean {
    const [name = ''] = look.words;
    if (this.#written.has(name) || !this.#write(look.words, at, y, token, isOver)) return false;
    this.#written.add(name);
    return true;
  }

  #drawPiece(piece: Piece<MapTile>, band: number, top: number, height: number): void {
    const { context } = this.#canvas;
    for (const { start, end, look } of this.#visible(piece, band)) {
      const [from, to] = [Math.max(start, piece.start), Math.min(end, piece.end)];
      const [left, right] = [this.#x(from), this.#x(to)];
      const across = Math.max(1, right - left);
      if (!look.paint) {
        this.#name(look, { left, right }, top + height / 2, '--quiet', false);
        continue;
      }
      const lowered = look.isPart ? Math.round(height * 0.4) : 0;
      if (across < 4) {
        // No room for a pattern: the colour alone, and stronger.
        context.fillStyle = this.#canvas.token(look.paint.colour);
        context.globalAlpha = 0.75;
        context.fillRect(left, top + lowered, across, height - lowered);
        context.globalAlpha = 1;
        continue;
      }
      // Patterns hang on memory, and not on a run: where one is parted, what stays alike looks as before.
      this.#canvas.fill(look.paint, left, top + lowered, across, height - lowered, this.#x(0) % TILE);
      context.strokeStyle = this.#canvas.token(look.paint.colour);
      context.globalAlpha = 0.8;
      if (look.isPart) context.setLineDash([3, 3]);
      context.strokeRect(left + 0.5, top + lowered + 0.5, across - 1, height - lowered - 1);
      context.setLineDash([]);
      context.globalAlpha = 1;
      if (look.bar !== 'none') {
        context.fillStyle = this.#canvas.token(look.paint.colour);
        context.globalAlpha = look.bar === 'all' ? 1 : 0.5;
        context.fillRect(left, top + height - 3, across, 3);
        context.globalAlpha = 1;
      }
      const isWritten = this.#name(
        look,
        { left, right },
        top + lowered + (height - lowered > 30 ? 12 : (height - lowered) / 2),
        '--text',
        true,
      );
      // Of a single rectangle the words say what its symbol would.
      const isSingle = Math.floor(from / look.box) === Math.floor((to - 1) / look.box);
      this.#drawBoxes(look, from, to, top + lowered, height - lowered, !(isWritten && isSingle));
    }
  }

  /** The rectangles of a run: single pages, or the large ones that it is mapped or assigned with. */
  #drawBoxes(look: CellLook, start: number, end: number, top: number, height: number, hasSymbols: boolean): void {
    const { context, width } = this.#canvas;
    const across = (look.box / this.#eye.view.size) * width;
    if (look.box === 0 || across < BOX_WIDTH) return;
    const first = Math.floor(Math.max(start, this.#eye.view.start) / look.box) * look.box;
    const last = Math.min(end, this.#eye.view.start + this.#eye.view.size);
    context.fillStyle = this.#canvas.token(look.paint!.colour);
    const isWritten = hasSymbols && look.symbol !== '' && across >= SYMBOL_WIDTH && height > 30;
    const half = isWritten ? context.measureText(look.symbol).width / 2 : 0;
    for (let at = first; at < last; at += look.box) {
      context.fillStyle = this.#canvas.token(look.paint!.colour);
      context.globalAlpha = 0.6;
      if (at > start) context.fillRect(Math.round(this.#x(at)), top + 1, 1, height - 2);
      context.globalAlpha = 1;
      // In the middle of what is seen of it.
      const from = Math.max(start, at, this.#eye.view.start);
      const to = Math.min(end, at + look.box, this.#eye.view.start + this.#eye.view.size);
      const middle = this.#x((from + to) / 2);
      if (!isWritten || this.#x(to) - this.#x(from) < SYMBOL_WIDTH) continue;
      context.fillStyle = this.#canvas.token('--surface');
      context.globalAlpha = 0.8;
      context.fillRect(middle - half - 2, top + height - 19, 2 * half + 4, 14);
      context.globalAlpha = 1;
      context.fillStyle = this.#canvas.token('--text');
      context.fillText(look.symbol, middle - half, top + height - 11);
    }
  }

  /** What has changed: an outline, that nothing can be mistaken for. */
  #drawChanges(piece: Piece<MapTile>, band: number, top: number, height: number): void {
    const { context } = this.#canvas;
    context.strokeStyle = this.#canvas.token('--changed');
    context.fillStyle = this.#canvas.token('--changed');
    for (const { start, end, look } of this.#visible(piece, band)) {
      if (!look.isChanged) continue;
      const left = this.#x(Math.max(start, piece.start));
      const across = Math.max(3, this.#x(Math.min(end, piece.end)) - left);
      if (across < 8) {
        context.fillRect(left - (across === 3 ? 1 : 0), top, across, 4);
        context.fillRect(left - (across === 3 ? 1 : 0), top + height - 4, across, 4);
        continue;
      }
      // Apart from what is within, which may be of the same colour.
      context.strokeStyle = this.#canvas.token('--surface');
      context.lineWidth = 4;
      context.strokeRect(left + 2, top + 2, across - 4, height - 4);
      context.strokeStyle = this.#canvas.token('--changed');
      context.lineWidth = 2;
      context.strokeRect(left + 1, top + 1, across - 2, height - 2);
      context.lineWidth = 1;
      // A corner, which no other outline has.
      context.fillStyle = this.#canvas.token('--text');
      context.beginPath();
      context.moveTo(left + across, top);
      context.lineTo(left + across - 9, top);
      context.lineTo(left + across, top + 9);
      context.fill();
      context.fillStyle = this.#canvas.token('--changed');
    }
  }

  /** Writes the longest of some words that fit. @returns whether any did. @param isOver over what is drawn */
  #write(
    choices: readonly string[],
    { left, right }: { left: number; right: number },
    y: number,
    token: string,
    isOver = false,
  ): boolean {
    const { context, width } = this.#canvas;
    const from = Math.max(0, left);
    const room = Math.min(width, right) - from - 10;
    if (room < 8) return false;
    const words = choices.find((choice) => context.measureText(choice).width <= room);
    if (words === undefined) return false;
    if (isOver) {
      context.fillStyle = this.#canvas.token('--surface');
      context.globalAlpha = 0.82;
      context.fillRect(from + 3, y - 8, context.measureText(words).width + 6, 16);
      context.globalAlpha = 1;
    }
    context.fillStyle = this.#canvas.token(token);
    context.fillText(words, from + 6, y + 1);
    return true;
  }

  #drawInvalidation({ map }: Shown): void {
    if (!map.invalidation) return;
    const at = this.#clip(placeOf(map.invalidation), 4);
    if (!at) return;
    const { context } = this.#canvas;
    context.fillStyle = this.#canvas.token('--vscode-charts-yellow');
    const y = AXIS + SLOTS;
    context.fillRect(at.left, y - 1, at.right - at.left, 2);
    context.fillRect(at.left, y - 1, 2, INVALIDATION - 1);
    context.fillRect(at.right - 2, y - 1, 2, INVALIDATION - 1);
    for (let x = Math.max(2, at.left + 5); x < at.right - 3; x += 5) context.fillRect(x, y + 2, 2, 2);
  }

  /** What happens here and now: the fault, and conversions with the page that is next. */
  #drawHere({ map, fault }: Shown, bottom: number): void {
    const { context } = this.#canvas;
    context.strokeStyle = this.#canvas.token('--accent');
    for (const { gpa, size, page } of map.conversions) {
      const at = this.#clip({ start: Number(gpa), size }, 6);
      if (at) {
        context.lineWidth = 2;
        context.strokeRect(at.left - 1, TOP - 3, at.right - at.left + 2, bottom - TOP + 4);
        context.lineWidth = 1;
      }
      this.#pointAt(page === undefined ? Number(gpa) : Number(page) + PAGE / 2, at === undefined);
    }
    if (fault !== undefined) this.#pointAt(fault, true);
  }

  /** A mark on the axis; at its end where the place is out of sight. */
  #pointAt(place: number, fromAfar: boolean): void {
    const { context, width } = this.#canvas;
    const x = this.#x(place);
    const way = x < 0 ? -1 : x > width ? 1 : 0;
    if (way !== 0 && !fromAfar) return;
    const at = Math.max(6, Math.min(x, width - 6));
    const y = AXIS - 5;
    context.fillStyle = this.#canvas.token('--accent');
    context.beginPath();
    context.moveTo(way === 0 ? at : at + 5 * way, way === 0 ? y + 4 : y);
    context.lineTo(way === 0 ? at - 4 : at - 3 * way, y - 4);
    context.lineTo(way === 0 ? at + 4 : at - 3 * way, way === 0 ? y - 4 : y + 4);
    context.fill();
  }

  #drawCursor(bottom: number): void {
    if (!this.#cursor) return;
    const at = this.#clip(this.#cursor, 5);
    if (!at) return;
    const { context } = this.#canvas;
    context.fillStyle = this.#canvas.token('--text');
    // Brackets above and below, so that what is marked within stays to be seen.
    const [thick, across] = [this.#isPinned ? 3 : 1, Math.max(5, at.right - at.left)];
    for (const y of [TOP - 2 - thick, bottom + 2]) context.fillRect(at.left, y, across, thick);
    for (const x of [at.left, at.left + across - thick]) {
      context.fillRect(x, TOP - 2, thick, 5);
      context.fillRect(x, bottom - 3, thick, 5);
    }
  }

  // ---- pointer and keyboard

  /** The cell at a place on the canvas: as it is drawn, or wider where a page is wider than a pixel. */
  #cellAt(x: number): Place | undefined {
    const at = this.#eye.view.start + (x / this.#canvas.width) * this.#eye.view.size;
    if (!this.#shown || at < 0) return undefined;
    const size = cellSize(this.#eye.view, this.#canvas.width);
    return { start: Math.floor(at / size) * size, size };
  }

  #listen(): void {
    const { element } = this.#canvas;
    element.addEventListener('dblclick', (event) => {
      const cell = this.#cellAt(event.offsetX);
      if (cell) this.fit({ start: cell.start - 8 * cell.size, size: 16 * cell.size }, 0);
    });
    element.addEventListener('keydown', (event) => this.#key(event));
  }

  #key(event: KeyboardEvent): void {
    const action = {
      '+': () => this.zoom(2),
      '=': () => this.zoom(2),
      '-': () => this.zoom(0.5),
      Home: () => this.whole(),
      End: () => this.onHere(),
      ArrowRight: () => this.#step(1, event.ctrlKey || event.metaKey),
      ArrowLeft: () => this.#step(-1, event.ctrlKey || event.metaKey),
      PageDown: () => this.#eye.jump(pan(this.#eye.view, 0.8, this.#total)),
      PageUp: () => this.#eye.jump(pan(this.#eye.view, -0.8, this.#total)),
      Enter: () => this.onPlace(this.#cursor ?? this.#middle(), true),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  #middle(): Place | undefined {
    return this.#cellAt(this.#canvas.width / 2);
  }

  /** Goes to the next cell, or to the next that differs. */
  #step(way: 1 | -1, far: boolean): void {
    const size = cellSize(this.#eye.view, this.#canvas.width);
    const from = this.#cursor;
    const isSeen =
      from && from.start + from.size > this.#eye.view.start && from.start < this.#eye.view.start + this.#eye.view.size;
    let place = isSeen ? { start: Math.floor(from.start / size) * size + way * size, size } : this.#middle();
    if (isSeen && far) place = this.#nextDifferent(from.start, way, size) ?? place;
    if (!place || place.start < 0 || place.start >= this.#total) return;
    const { start, size: across } = this.#eye.view;
    if (place.start < start || place.start + place.size > start + across)
      this.#eye.jump(clampViewport({ start: place.start - across / 2, size: across }, this.#total));
    this.onPlace(place, this.#isPinned);
  }

  #nextDifferent(from: number, way: 1 | -1, size: number): Place | undefined {
    const of = (at: number): string => JSON.stringify(factsAt(this.#tiles(), at)?.facts);
    const first = of(from);
    const { start, size: across } = this.#eye.view;
    for (let at = from + way * size; at >= start && at < start + across; at += way * size)
      if (of(at) !== first) return { start: Math.floor(at / size) * size, size };
    return undefined;
  }

  /** What End does: the view knows what happens now. */
  onHere: () => void = () => {};
}
