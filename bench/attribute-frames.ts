// The map of memory at a million ranges, in a browser, beside a plain SVG of them: main-thread time of a frame.
import { answer } from '../engine/queries/answer.ts';
import { Run } from '../engine/run.ts';
import { makeTile, type Tile, type TileKey, tileEnd, tileStart } from '../webview/attributes/layout.ts';
import { bandsOf, type CellLook } from '../webview/attributes/looks.ts';
import { MemoryMap } from '../webview/attributes/map.ts';
import { programOfTerabyte, scattered } from './attribute-memory.ts';

const TERABYTE = 2 ** 40;
const PAGE = 4096;

/** From the beginning of a frame to when its main-thread work is done, ms: scripts, style, layout and paint. */
function frame(change: () => void): Promise<number> {
  return new Promise((resolve) => {
    let begin = 0;
    requestAnimationFrame(() => {
      begin = performance.now();
    });
    change();
    requestAnimationFrame(() => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => resolve(performance.now() - begin);
      port2.postMessage(null);
    });
  });
}

export interface Frames {
  /** Milliseconds, one a frame. */
  readonly canvas: readonly number[];
  readonly svg: readonly number[];
  readonly built: number;
}

async function canvasFrames(pages: readonly number[], frames: number): Promise<number[]> {
  const { machine } = new Run(programOfTerabyte(), 1 << 12);
  for (const page of pages) machine.attributes.store.set(page, page + 1, true);
  const ask = (query: Parameters<typeof answer>[1]) => answer(machine, query, { since: 0, fault: undefined }).answer;
  const map = ask({ kind: 'attribute-map' });
  if (map.kind !== 'attribute-map') throw new Error('there is no map');
  const bands = bandsOf(map);
  const tiles = new Map<string, Tile<CellLook>>();
  // Answers are made in another process: here between the frames that are measured.
  let isResting = true;
  const need = (keys: readonly TileKey[]): void => {
    if (!isResting) return;
    for (const key of keys) {
      const id = `${key.cell} ${key.index}`;
      if (tiles.has(id)) continue;
      const start = `0x${tileStart(key).toString(16)}`;
      const told = ask({ kind: 'attributes', start, end: `0x${tileEnd(key).toString(16)}`, cells: 1024 });
      if (told.kind !== 'attributes') throw new Error('there is no tile');
      tiles.set(
        id,
        makeTile(
          key,
          told,
          bands.map(({ look }) => look),
        ),
      );
    }
  };
  const view = new MemoryMap(() => tiles.values(), need);
  document.body.append(view.element);
  view.show({ map, bands, fault: undefined });
  const times: number[] = [];
  // What is on screen has come before the frame, as after a rest of the pointer.
  const rest = () => new Promise((resolve) => setTimeout(resolve, 150));
  const steps = Math.ceil(frames / 2);
  for (const zoom of [0, 4, 8, 12, 16]) {
    const size = TERABYTE / 2 ** zoom;
    view.fit({ start: TERABYTE / 2, size }, 0, false);
    isResting = true;
    await rest();
    isResting = false;
    for (let step = 0; step < steps / 5; step++) {
      times.push(await frame(() => view.fit({ start: TERABYTE / 2 + (step * size) / 400, size }, 0, false)));
      times.push(await frame(() => view.fit({ start: TERABYTE / 2, size: size * (1 + step / 100) }, 0, false)));
    }
  }
  view.element.remove();
  return times;
}

/** A rectangle for each range, and a view box that moves. */
async function svgFrames(pages: readonly number[], frames: number): Promise<{ times: number[]; built: number }> {
  const name = 'http://www.w3.org/2000/svg';
  const picture = document.createElementNS(name, 'svg');
  picture.setAttribute('width', '900');
  picture.setAttribute('height', '220');
  picture.setAttribute('preserveAspectRatio', 'none');
  const place = (start: number, size: number): void =>
    picture.setAttribute('viewBox', `${start / PAGE} 0 ${size / PAGE} 220`);
  for (const page of pages) {
    const rectangle = document.createElementNS(name, 'rect');
    rectangle.setAttribute('x', `${page}`);
    rectangle.setAttribute('width', '1');
    rectangle.setAttribute('height', '44');
    rectangle.setAttribute('fill', 'purple');
    picture.append(rectangle);
  }
  place(0, TERABYTE);
  const built = await frame(() => document.body.append(picture));
  const times: number[] = [];
  for (let step = 0; step < frames; step++) {
    const size = TERABYTE / 2 ** (4 * (step % 5));
    times.push(await frame(() => place(TERABYTE / 2 + (step * size) / 400, size)));
  }
  picture.remove();
  return { times, built };
}

async function run(ranges: number, canvas: number, svg: number): Promise<Frames> {
  const pages = scattered(ranges, 1);
  const ours = await canvasFrames(pages, canvas);
  const { times, built } = await svgFrames(pages, svg);
  return { canvas: ours, svg: times, built };
}

(globalThis as { attributeFrames?: typeof run }).attributeFrames = run;
