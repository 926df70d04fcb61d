import { timer } from 'd3';
import type { Canvas } from './canvas.ts';
import { duration } from './motion.ts';
import { pan, type Viewport, zoomAround, zoomPath } from './viewport.ts';

/** Duration of a movement to somewhere, ms. */
const MOVE = 260;

/** What an eye looks at, and who hears of it. */
export interface Seen {
  /** All of the space that can be gone to. */
  total(): number;
  /** It looks elsewhere; after the wheel or a drag at once, as a person's hand does. */
  moved(byHand: boolean): void;
  /** The pointer rests, or clicks, at a place. */
  point(event: PointerEvent): void;
  click(event: PointerEvent): void;
}

/** A part of a space, as wide as a canvas: it follows wheel and drag, and goes to places on paths that can be followed. */
export class Eye {
  readonly #canvas: Canvas;
  readonly #seen: Seen;
  #view: Viewport;
  #moving: { stop(): void } | undefined;

  constructor(view: Viewport, canvas: Canvas, seen: Seen) {
    this.#view = view;
    this.#canvas = canvas;
    this.#seen = seen;
    this.#listen();
  }

  get view(): Viewport {
    return this.#view;
  }

  /** Looks there at once, and tells nobody. */
  set view(view: Viewport) {
    this.#moving?.stop();
    this.#view = view;
  }

  /** Looks there at once. */
  jump(view: Viewport, byHand = false): void {
    this.#moving?.stop();
    this.#go(view, byHand);
  }

  /** Goes there on a path on which it does not lose its place; at once, where nothing is to move. */
  moveTo(target: Viewport): void {
    const time = duration(MOVE);
    if (time === 0) {
      this.jump(target);
      return;
    }
    this.#moving?.stop();
    const path = zoomPath(this.#view, target);
    const moving = timer((elapsed) => {
      const t = elapsed < time ? elapsed / time : 1;
      if (t === 1) moving.stop();
      this.#go(path(t * t * (3 - 2 * t)), false);
    });
    this.#moving = moving;
  }

  zoom(factor: number, fraction = 0.5): void {
    this.moveTo(zoomAround(this.#view, factor, fraction, this.#seen.total()));
  }

  #go(view: Viewport, byHand: boolean): void {
    this.#view = view;
    this.#canvas.redraw();
    this.#seen.moved(byHand);
  }

  #listen(): void {
    const { element } = this.#canvas;
    const { total } = this.#seen;
    element.addEventListener(
      'wheel',
      (event) => {
        event.preventDefault();
        const sideways = event.shiftKey ? event.deltaY : event.deltaX;
        const { width } = this.#canvas;
        if (Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY))
          this.jump(pan(this.#view, sideways / width, total()), true);
        else this.jump(zoomAround(this.#view, 2 ** (-event.deltaY / 150), event.offsetX / width, total()), true);
      },
      { passive: false },
    );
    let drag: { readonly x: number; readonly view: Viewport; moved: boolean } | undefined;
    element.addEventListener('pointerdown', (event) => {
      drag = { x: event.offsetX, view: this.#view, moved: false };
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener('pointermove', (event) => {
      if (!drag) {
        this.#seen.point(event);
        return;
      }
      if (!drag.moved && Math.abs(event.offsetX - drag.x) < 4) return;
      drag.moved = true;
      this.jump(pan(drag.view, (drag.x - event.offsetX) / this.#canvas.width, total()), true);
    });
    element.addEventListener('pointerup', (event) => {
      const clicked = drag && !drag.moved;
      drag = undefined;
      if (clicked) this.#seen.click(event);
    });
  }
}
