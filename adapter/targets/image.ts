import type { Machine } from '../../engine/machine.ts';
import { makeMirror, mirrorMachine } from '../../engine/mirror.ts';
import { readMapping } from '../commands/image-options.ts';
import { type MemoryImage, openImage } from '../image/image.ts';
import { imageRegimes, MACHINE_WORDS } from '../image/machine.ts';
import type { ImageLaunch } from '../launch.ts';
import type { Halt, Target, TargetCapabilities } from './target.ts';

const STILL = 'an image is one moment of a machine: it does not run';
const READ_ONLY = 'an image is read-only';

/** The memory of a machine in a file: tables, walks and hovers, and nothing that moves. */
export class ImageTarget implements Target {
  readonly name = 'image';
  readonly about: string;
  readonly machine: Machine;
  readonly capabilities: TargetCapabilities = {
    run: false,
    stepBack: false,
    writeMemory: false,
    setRegisters: false,
    why: { run: STILL, stepBack: STILL, writeMemory: READ_ONLY, setRegisters: READ_ONLY },
  };
  readonly #image: MemoryImage;

  /** @throws ImageError, RegimeError naming what cannot be used */
  constructor(launch: ImageLaunch) {
    this.#image = openImage(
      launch.path,
      launch.map.map((each) => readMapping(each, '"map"')),
    );
    try {
      const regimes = imageRegimes(this.#image, launch);
      this.machine = mirrorMachine(makeMirror(this.#image, regimes, 'ranges'), this.#image.ranges);
      this.about = aboutWords(this.#image, regimes);
    } catch (error) {
      this.#image.close();
      throw error;
    }
  }

  move(): Promise<Halt> {
    return Promise.reject(new Error(STILL));
  }

  pause(): void {}

  edit(): void {
    throw new Error(READ_ONLY);
  }

  async dispose(): Promise<void> {
    this.#image.close();
  }
}

/** A size with one digit behind the point: memory with holes is seldom round. */
function sizeWords(bytes: number): string {
  const unit = Math.min(5, Math.floor(Math.log2(bytes) / 10));
  return `${Math.round((bytes / 1024 ** unit) * 10) / 10}${['', 'K', 'M', 'G', 'T', 'P'][unit]}`;
}

function aboutWords(image: MemoryImage, regimes: ReturnType<typeof imageRegimes>): string {
  const [first] = regimes;
  const { arch, stages, second } = first!;
  const formats = [...stages, ...(second ? [second] : [])].map(({ tree }) => tree.format.spec.title);
  const cpus = regimes.length === 1 ? '' : `, ${regimes.length} CPUs`;
  const size = sizeWords(Number(image.size));
  const name = image.path.replace(/^.*[/\\]/, '');
  return `${name}: ${size} of memory of ${MACHINE_WORDS[arch]} machine${cpus}, ${[...new Set(formats)].join(' on ') || 'paging off'}. It does not run.`;
}
