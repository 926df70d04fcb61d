import { unwatch, watch } from '../kit/host.ts';
import { makeTile, type Tile, type TileKey, tileEnd, tileStart } from './layout.ts';
import type { Band, CellLook } from './looks.ts';

/** Tiles that stay watched although nothing needs them now: who zooms back finds them, and they are what is seen meanwhile. */
const SPARE = 10;
/** Guest-physical addresses end here. */
const LIMIT = 2 ** 52;

/** A moment of the past: positions of the log. */
export interface Moment {
  readonly at: number;
  readonly since: number;
}

const idOf = ({ cell, index }: TileKey): string => `tile ${cell} ${index}`;

/** The parts of memory that the view has asked for, at the scales at which it did. */
export class Tiles {
  readonly #tiles = new Map<string, Tile<CellLook>>();
  /** In the order of last use. */
  readonly #watched = new Map<string, TileKey>();
  readonly #changed: () => void;
  #bands: readonly Band[] = [];
  #moment: Moment | undefined;

  constructor(changed: () => void) {
    this.#changed = changed;
  }

  all(): Iterable<Tile<CellLook>> {
    return this.#tiles.values();
  }

  has(key: TileKey): boolean {
    return this.#tiles.has(idOf(key));
  }

  /** Asks for what is not watched, and gives up what has been needless for longest. */
  need(keys: readonly TileKey[]): void {
    for (const key of keys) {
      const id = idOf(key);
      const known = this.#watched.delete(id);
      this.#watched.set(id, key);
      if (!known) this.#watch(id, key);
    }
    let surplus = this.#watched.size - keys.length - SPARE;
    const needed = new Set(keys.map(idOf));
    for (const id of [...this.#watched.keys()]) {
      if (surplus-- <= 0) break;
      if (!needed.has(id)) this.#drop(id);
    }
  }

  /** Shows another moment: what was seen stays until it comes. */
  show(bands: readonly Band[], moment: Moment | undefined): void {
    const same = bands === this.#bands && moment?.at === this.#moment?.at && moment?.since === this.#moment?.since;
    this.#bands = bands;
    this.#moment = moment;
    if (same) return;
    for (const [id, key] of this.#watched) this.#watch(id, key);
  }

  clear(): void {
    for (const id of [...this.#watched.keys()]) this.#drop(id);
  }

  #watch(id: string, key: TileKey): void {
    const start = `0x${tileStart(key).toString(16)}`;
    const end = `0x${Math.min(LIMIT, tileEnd(key)).toString(16)}`;
    const cells = (Math.min(LIMIT, tileEnd(key)) - tileStart(key)) / key.cell;
    watch(id, { kind: 'attributes', start, end, cells, ...this.#moment }, (answer) => {
      // Where the moment is gone from the history what was seen stays until the view shows another.
      if (answer.kind !== 'attributes' || answer.cellSize !== key.cell) return;
      this.#tiles.set(
        id,
        makeTile(
          key,
          answer,
          this.#bands.map(({ look }) => look),
        ),
      );
      this.#changed();
    });
  }

  #drop(id: string): void {
    unwatch(id);
    this.#watched.delete(id);
    this.#tiles.delete(id);
  }
}
