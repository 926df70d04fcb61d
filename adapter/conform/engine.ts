import type { Feature } from '../../engine/formats/format.ts';
import { accessBits, untranslatable } from '../../engine/guest/access.ts';
import { LONG_MODE, type PagingMode, pagingMode } from '../../engine/guest/registers.ts';
import { finishWalk, startWalk, type Walk, type WalkMemory } from '../../engine/guest/walk.ts';
import {
  addressToFrame,
  formatSize,
  frameToAddress,
  hex,
  highWord,
  lowWord,
  PAGE_SIZE,
  pageOffset,
  toBigint,
} from '../../engine/memory/words.ts';
import type { PendingAccess } from '../../engine/operation.ts';
import { describeWalkFault } from '../../engine/tdp/explain-fault.ts';
import { type ConformCase, type Host, indexAt, LEVELS } from './cases.ts';
import { registersOf } from './encode.ts';
import { dataAt, MEMORY_SIZE, TABLE_FRAMES } from './layout.ts';

/** What comes of a case. */
export interface Outcome {
  /** `stray`: something that no case can lead to. */
  readonly kind: 'ok' | '#PF' | '#GP' | 'stray';
  /** Error code of #PF; 0 otherwise. */
  readonly error: number;
  /** 0 unless there was a #PF: it is cleared before. */
  readonly cr2: bigint;
  /** What a read has read; 0 otherwise. */
  readonly value: bigint;
  /** The four entries afterwards. */
  readonly entries: readonly bigint[];
  /** What a stray result was. */
  readonly words?: string;
}

const NO_PAGE = new Uint32Array(1024);

/** What the engine says comes of cases on a machine. */
export class EngineVerdict {
  readonly #cpu: { readonly maxPhyAddr: number; readonly features: ReadonlySet<Feature> };
  /** By the control bits of a case. */
  readonly #modes = new Map<string, PagingMode>();
  readonly #tables = new Map(LEVELS.map((level) => [TABLE_FRAMES[level]!, new Uint32Array(1024)]));
  readonly #memory: WalkMemory = {
    page: (pfn) => this.#tables.get(pfn) ?? NO_PAGE,
    setBits: (pfn, index, lo, hi) => {
      const page = this.#tables.get(pfn)!;
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
    },
    resolve: (gfn) => (gfn < MEMORY_SIZE / PAGE_SIZE ? Number(gfn) : -1),
    mayUpdate: () => true,
  };

  constructor(host: Host) {
    const features = new Set<Feature>();
    if (host.oneGigPages) features.add('1g-pages');
    if (host.amd) features.add('amd');
    this.#cpu = { maxPhyAddr: host.maxPhyAddr, features };
  }

  mode(of: ConformCase): PagingMode {
    const key = [of.wp, of.nxe, of.smep, of.smap, of.ac].join();
    let mode = this.#modes.get(key);
    if (!mode) {
      const cr3 = frameToAddress(TABLE_FRAMES[4]!);
      mode = pagingMode({ ...LONG_MODE, ...registersOf(of), cr3 }, this.#cpu);
      this.#modes.set(key, mode);
    }
    return mode;
  }

  outcome(of: ConformCase): Outcome {
    const mode = this.mode(of);
    if (untranslatable(mode, of.gva) !== undefined)
      return { kind: '#GP', error: 0, cr2: 0n, value: 0n, entries: of.entries };
    return this.#withTables(of, () => {
      const walk = this.#walk(of, mode);
      const entries = LEVELS.map((level) => {
        const page = this.#tables.get(TABLE_FRAMES[level]!)!;
        const index = indexAt(of.gva, level);
        return toBigint(page[2 * index]!, page[2 * index + 1]!);
      });
      if (walk.status !== 'done') return { kind: '#PF', error: walk.error, cr2: of.gva, value: 0n, entries };
      const value = of.kind === 'read' ? dataAt(walk.pfn, pageOffset(of.gva), of.size) : 0n;
      return { kind: 'ok', error: 0, cr2: 0n, value, entries };
    });
  }

  /** Why, in the engine's words. */
  explain(of: ConformCase): string {
    const mode = this.mode(of);
    const why = untranslatable(mode, of.gva);
    if (why !== undefined) return why;
    return this.#withTables(of, () => {
      const walk = this.#walk(of, mode);
      if (walk.status === 'done') {
        const size = mode.format.span[walk.leafLevel]! * PAGE_SIZE;
        return `its data is at ${hex(frameToAddress(walk.pfn, pageOffset(of.gva)))}, in a page of ${formatSize(size)}`;
      }
      const { reason } = describeWalkFault(0, walk, mode, undefined, pendingAccess(of));
      return reason === '' ? 'the engine has no words for why' : reason;
    });
  }

  #walk(of: ConformCase, mode: PagingMode): Walk {
    const kind = { bits: accessBits(pendingAccess(of)), implicit: false };
    return finishWalk(startWalk(mode, undefined, addressToFrame(of.gva), kind), mode, undefined, this.#memory);
  }

  /** Runs something while the entries of a case, and nothing else, are in the tables. */
  #withTables<T>(of: ConformCase, action: () => T): T {
    const put = (value: (at: number) => bigint): void =>
      LEVELS.forEach((level, at) => {
        const page = this.#tables.get(TABLE_FRAMES[level]!)!;
        const index = indexAt(of.gva, level);
        page[2 * index] = lowWord(value(at));
        page[2 * index + 1] = highWord(value(at));
      });
    put((at) => of.entries[at]!);
    try {
      return action();
    } finally {
      put(() => 0n);
    }
  }
}

function pendingAccess({ kind, gva, size, user }: ConformCase): PendingAccess {
  return { kind, address: gva, size, value: 0n, cpl: user ? 3 : 0, implicit: false };
}
