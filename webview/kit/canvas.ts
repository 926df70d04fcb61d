import { h } from './element.ts';
import { type Look, PATTERNS, TILE } from './permissions.ts';

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
    const colour = this.token(look.colour);
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.fillStyle = colour;
    if (look.kind !== 'absent') {
      context.globalAlpha = look.table ? 0.07 : 0.22;
      context.fillRect(x, y, width, height);
    }
    const pattern = this.#pattern(look);
    if (pattern) {
      context.globalAlpha = look.table ? 0.35 : 0.75;
      // The tile starts at the field's corner, so that it moves with it.
      context.translate(x, y);
      context.fillStyle = pattern;
      context.fillRect(0, 0, width, height);
      context.translate(-x, -y);
    }
    context.globalAlpha = 1;
    context.fillStyle = colour;
    if (look.user) context.fillRect(x, y + height - 3, width, 3);
    context.restore();
  }

  #pattern(look: Look): CanvasPattern | undefined {
    const lines = PATTERNS[look.kind];
    if (lines.length === 0) return undefined;
    const ratio = devicePixelRatio;
    const key = `${look.kind} ${ratio}`;
    const known = this.#patterns.get(key);
    if (known) return known;
    const tile = h('canvas', { width: Math.round(TILE * ratio), height: Math.round(TILE * ratio) });
    const context = tile.getContext('2d')!;
    context.scale(tile.width / TILE, tile.height / TILE);
    context.strokeStyle = this.token(look.colour);
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
