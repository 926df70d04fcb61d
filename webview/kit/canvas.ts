import { h } from './element.ts';
import { type Line, type Look, PATTERNS, TILE } from './permissions.ts';

/** A colour and a pattern to fill with. */
export interface Paint {
  /** The same for the same colour and lines. */
  readonly name: string;
  /** CSS variable of the theme. */
  readonly colour: string;
  /** Lines of the pattern's tile. */
  readonly lines: readonly Line[];
  /** How opaque the colour and the lines are, 0 … 1. */
  readonly tint: number;
  readonly ink: number;
}

/** A canvas that fills its box at the screen's resolution and is drawn again when its size or the theme changes. */
export class Canvas {
  readonly element: HTMLCanvasElement;
  readonly context: CanvasRenderingContext2D;
  width = 0;
  height = 0;
  readonly #draw: () => void;
  readonly #patterns = new Map<string, CanvasPattern>();
  #tokens = new Map<string, string>();
  #scheduled = false;

  constructor(draw: () => void, attributes: Readonly<Record<string, string>>) {
    this.#draw = draw;
    this.element = h('canvas', attributes);
    this.context = this.element.getContext('2d')!;
    new ResizeObserver(() => this.#resize()).observe(this.element);
    const themed = new MutationObserver(() => {
      this.#tokens.clear();
      this.#patterns.clear();
      this.redraw();
    });
    themed.observe(document.body, { attributes: true, attributeFilter: ['class', 'data-vscode-theme-id'] });
    themed.observe(document.documentElement, { attributes: true, attributeFilter: ['style'] });
  }

  /** Draws before the next frame, once. */
  redraw(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#drawNow();
    });
  }

  #drawNow(): void {
    if (this.width === 0) return;
    const ratio = devicePixelRatio;
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    this.#draw();
  }

  /** Value of a CSS variable of the theme. */
  token(name: string): string {
    let value = this.#tokens.get(name);
    if (value === undefined) {
      value = getComputedStyle(document.body).getPropertyValue(name).trim() || '#888';
      this.#tokens.set(name, value);
    }
    return value;
  }

  /** Fills a rectangle with a look's tint and pattern. */
  fillLook(look: Look, x: number, y: number, width: number, height: number): void {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    const tint = look.kind === 'absent' ? 0 : look.table ? 0.07 : 0.22;
    const paint = {
      name: look.kind,
      colour: look.colour,
      lines: PATTERNS[look.kind],
      tint,
      ink: look.table ? 0.35 : 0.75,
    };
    this.fill(paint, x, y, width, height);
    context.fillStyle = this.token(look.colour);
    if (look.user) context.fillRect(x, y + height - 3, width, 3);
    context.restore();
  }

  /** Fills a rectangle with a colour and a pattern, a tile of which starts at `origin`: at the rectangle's corner unless told. */
  fill(paint: Paint, x: number, y: number, width: number, height: number, origin = x): void {
    const { context } = this;
    if (paint.tint > 0) {
      context.fillStyle = this.token(paint.colour);
      context.globalAlpha = paint.tint;
      context.fillRect(x, y, width, height);
    }
    const pattern = this.#pattern(paint);
    if (pattern) {
      context.globalAlpha = paint.ink;
      // The tile starts at the field's corner, or at another's, so that it moves with it.
      context.translate(origin, y);
      context.fillStyle = pattern;
      context.fillRect(x - origin, 0, width, height);
      context.translate(-origin, -y);
    }
    context.globalAlpha = 1;
  }

  #pattern({ name, colour, lines }: Paint): CanvasPattern | undefined {
    if (lines.length === 0) return undefined;
    const ratio = devicePixelRatio;
    const key = `${name} ${ratio}`;
    const known = this.#patterns.get(key);
    if (known) return known;
    const tile = h('canvas', { width: Math.round(TILE * ratio), height: Math.round(TILE * ratio) });
    const context = tile.getContext('2d')!;
    context.scale(tile.width / TILE, tile.height / TILE);
    context.strokeStyle = this.token(colour);
    for (const [x1, y1, x2, y2] of lines) {
      context.beginPath();
      context.moveTo(x1, y1);
      context.lineTo(x2, y2);
      context.stroke();
    }
    const pattern = this.context.createPattern(tile, 'repeat')!;
    pattern.setTransform(new DOMMatrix().scale(TILE / tile.width, TILE / tile.height));
    this.#patterns.set(key, pattern);
    return pattern;
  }

  #resize(): void {
    const { width, height } = this.element.getBoundingClientRect();
    this.width = width;
    this.height = height;
    this.element.width = Math.round(width * devicePixelRatio);
    this.element.height = Math.round(height * devicePixelRatio);
    // A new size empties the canvas: drawn in the same frame, it is never seen empty.
    this.#drawNow();
  }
}
