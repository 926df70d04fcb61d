import type { Machine } from '../machine.ts';
import type { Memslot } from '../memory/memslots.ts';
import { addressToFrame, frameToAddress, type Gfn, hex } from '../memory/words.ts';
import type { Amount, AttributesAnswer, AttributesQuery, CellFacts, CellMapping, Change } from './answers.ts';
import { type ChangedRange, changedRanges } from './memory-changes.ts';
import { eachLeaf, frameKinds, knowsFrames, type StageRoot, stageRoots } from './memory-stages.ts';
import { MemoryState, PRIVATE, SHARED } from './memory-state.ts';

/** As they are told, and the bit of each in a cell's mask. */
const CHANGES: readonly Change[] = ['attribute', 'private-page', 'direct-map', 'second-stage', 'mirror'];
/** Guest-physical frames that there can be. */
const FRAMES = 2 ** 40;

/** A window of guest-physical memory in cells of a power of two of pages. */
class Cells {
  readonly start: Gfn;
  readonly pages: number;
  readonly count: number;

  constructor(start: Gfn, end: Gfn, most: number) {
    this.pages = 1;
    const cells = (): number => Math.ceil(end / this.pages) - Math.floor(start / this.pages);
    while (cells() > most) this.pages *= 2;
    this.count = cells();
    this.start = Math.floor(start / this.pages) * this.pages;
  }

  get end(): Gfn {
    return this.start + this.count * this.pages;
  }

  /** Visits the parts of [start, end) that lie in cells. */
  each(start: Gfn, end: Gfn, visit: (cell: number, start: Gfn, end: Gfn) => void): void {
    const stop = Math.min(end, this.end);
    for (let gfn = Math.max(start, this.start); gfn < stop; ) {
      const cell = Math.floor((gfn - this.start) / this.pages);
      const next = Math.min(stop, this.start + (cell + 1) * this.pages);
      visit(cell, gfn, next);
      gfn = next;
    }
  }
}

/** What is gathered of cells: numbers of pages, or bits of what there is. */
class Gathered {
  readonly slot: Float64Array;
  readonly gmem: Float64Array;
  readonly kinds: Uint8Array;
  readonly converting: Uint8Array;
  readonly invalidating: Uint8Array;
  readonly folios: Float64Array;
  readonly assigned: Float64Array;
  readonly large: Float64Array;
  readonly validated: Float64Array;
  readonly split: Float64Array;
  readonly holes: Float64Array;
  readonly changed: Uint8Array;

  constructor(count: number) {
    const numbers = (): Float64Array => new Float64Array(count);
    const bits = (): Uint8Array => new Uint8Array(count);
    this.slot = numbers();
    this.gmem = numbers();
    this.kinds = bits();
    this.converting = bits();
    this.invalidating = bits();
    this.folios = numbers();
    this.assigned = numbers();
    this.large = numbers();
    this.validated = numbers();
    this.split = numbers();
    this.holes = numbers();
    this.changed = bits();
  }
}

/** The same of a second stage. */
interface GatheredStage {
  readonly mapped: Float64Array;
  /** Bits 0 … 2: the levels of leaves. */
  readonly levels: Uint8Array;
  /** SHARED, PRIVATE. */
  readonly frames: Uint8Array;
  /** Bits: 1 there are such as are not, 2 such as are. */
  readonly stale: Uint8Array;
  readonly dirty: Uint8Array;
}

function gatherSlot(state: MemoryState, cells: Cells, into: Gathered, slot: Memslot, counts: Counts): void {
  cells.each(slot.base, slot.base + slot.pages, (cell, start, end) => {
    into.slot[cell]! += end - start;
    into.kinds[cell]! |= state.kinds(start, end);
    if (!slot.gmem) return;
    into.gmem[cell]! += end - start;
    const first = slot.gmem.pfn + (start - slot.base);
    const last = first + (end - start);
    into.folios[cell]! += counts.folios.count(first, last);
    into.split[cell]! += counts.split.count(first, last);
    into.holes[cell]! += counts.holes.count(first, last);
    const assigned = counts.assigned.count(first, last);
    if (assigned === 0) return;
    into.assigned[cell]! += assigned;
    into.large[cell]! += counts.large.count(first, last);
    into.validated[cell]! += counts.validated.count(first, last);
  });
}

type Counts = ReturnType<MemoryState['counts']>;

function gatherStage(state: MemoryState, cells: Cells, stage: StageRoot): GatheredStage {
  const bits = (): Uint8Array => new Uint8Array(cells.count);
  const into: GatheredStage = {
    mapped: new Float64Array(cells.count),
    levels: bits(),
    frames: bits(),
    stale: bits(),
    dirty: bits(),
  };
  const { dirtyLo, span } = stage.format;
  const isKnown = knowsFrames(state.machine);
  let slot: Memslot | undefined;
  eachLeaf(stage, cells.start, cells.end, (level, gfn, pfn, lo) => {
    if (!slot || gfn < slot.base || gfn >= slot.base + slot.pages) slot = state.slots.find(gfn);
    const of = slot;
    const kinds = of ? frameKinds(of, gfn, pfn) : 0;
    cells.each(gfn, gfn + span[level]!, (cell, start, end) => {
      into.mapped[cell]! += end - start;
      into.levels[cell]! |= 1 << (level - 1);
      into.dirty[cell]! |= (lo & dirtyLo) !== 0 ? 2 : 1;
      if (!isKnown) return;
      // Where pages are converted in place a frame is of the kind that its page is.
      const pages =
        kinds === 0 ? 0 : level === 1 ? (state.isPrivate(start) ? PRIVATE : SHARED) : state.kinds(start, end);
      into.frames[cell]! |= kinds === 3 ? pages : kinds;
      into.stale[cell]! |= ((pages & ~kinds) !== 0 || kinds === 0 ? 2 : 0) | ((pages & kinds) !== 0 ? 1 : 0);
    });
  });
  return into;
}

const amountOf = (bits: number): Amount => (bits === 3 ? 'some' : bits === 2 ? 'all' : 'none');
const part = (found: number, of: number): Amount => (found === 0 ? 'none' : found >= of ? 'all' : 'some');
const within = <K extends string>(name: K, found: number, of: number): { readonly [key in K]?: 'some' | 'all' } =>
  (found === 0 ? {} : { [name]: found >= of ? 'all' : 'some' }) as { readonly [key in K]?: 'some' | 'all' };

const FRAMES_TOLD: readonly CellMapping['frames'][] = ['untold', 'shared', 'private', 'both'];

function mapping(
  { mapped, levels, frames, stale, dirty }: GatheredStage,
  cell: number,
  of: number,
): CellMapping | null {
  if (mapped[cell] === 0) return null;
  return {
    mapped: mapped[cell]! >= of ? 'all' : 'some',
    levels: [1, 2, 3].filter((level) => (levels[cell]! & (1 << (level - 1))) !== 0),
    frames: FRAMES_TOLD[frames[cell]!]!,
    stale: amountOf(stale[cell]!),
    dirty: amountOf(dirty[cell]!),
  };
}

function factsOf(cells: Cells, of: Gathered, stages: readonly GatheredStage[], cell: number): CellFacts {
  const slot = of.slot[cell]!;
  const gmem = of.gmem[cell]!;
  const assigned = of.assigned[cell]!;
  const converting = of.converting[cell]!;
  return {
    slot: part(slot, cells.pages),
    gmem: part(gmem, slot),
    private: amountOf(of.kinds[cell]!),
    ...(converting === 0
      ? {}
      : { converting: converting === 3 ? 'both' : converting === PRIVATE ? 'private' : 'shared' }),
    ...(of.invalidating[cell] === 0 ? {} : { invalidating: true as const }),
    ...within('folios', of.folios[cell]!, gmem),
    ...(assigned === 0
      ? {}
      : {
          rmp: {
            assigned: assigned >= gmem ? 'all' : 'some',
            large: part(of.large[cell]!, assigned),
            validated: part(of.validated[cell]!, assigned),
          },
        }),
    ...within('split', of.split[cell]!, gmem),
    ...within('holes', of.holes[cell]!, gmem),
    stages: stages.map((stage) => mapping(stage, cell, slot)),
    ...(of.changed[cell] === 0 ? {} : { changed: CHANGES.filter((_, bit) => (of.changed[cell]! & (1 << bit)) !== 0) }),
  };
}

/** Why there is nothing to show of a machine. @throws Error */
export function needPrivateMemory(machine: Machine): void {
  if (machine.mirror && !machine.mirror.counted)
    throw new Error(
      'only scenarios have private memory: an image, a recording or a guest under KVM does not tell which pages are private',
    );
  if (machine.vm === 'ordinary')
    throw new Error(
      'this is an ordinary VM: all of its memory is shared with the host, and nothing can be converted; a scenario’s machine has private memory with vm snp, for example, and guest-memfd behind its slots',
    );
}

/** Guest-physical memory between two addresses. @param since position of the log from which on changes are marked */
export function attributesAnswer(machine: Machine, query: AttributesQuery, since: number): AttributesAnswer {
  needPrivateMemory(machine);
  const state = new MemoryState(machine, query.at);
  const end = Math.min(FRAMES, Number((BigInt(query.end) + 4095n) >> 12n));
  const cells = new Cells(Math.min(addressToFrame(BigInt(query.start)), end - 1), end, query.cells);
  const gathered = new Gathered(cells.count);
  const counts = state.counts();
  for (const slot of state.slots.overlapping(cells.start, cells.end)) gatherSlot(state, cells, gathered, slot, counts);
  for (const { start, end, isPrivate } of state.conversions)
    cells.each(start, end, (cell) => {
      gathered.converting[cell]! |= isPrivate ? PRIVATE : SHARED;
    });
  const { inProgress, start: first, end: last } = state.invalidation;
  if (inProgress > 0 && first >= 0)
    cells.each(first, last, (cell) => {
      gathered.invalidating[cell] = 1;
    });
  const roots = stageRoots(state);
  const stages = roots.map((stage) => gatherStage(state, cells, stage));
  const mark = ({ change, start, end }: ChangedRange): void =>
    cells.each(start, end, (cell) => {
      gathered.changed[cell]! |= 1 << CHANGES.indexOf(change);
    });
  for (const range of changedRanges(state, query.since ?? since)) mark(range);
  return {
    kind: 'attributes',
    certainty: roots[0]?.certainty ?? 'exact',
    start: hex(frameToAddress(cells.start)),
    cellSize: cells.pages * 4096,
    cells: cells.count,
    ...encode(cells, gathered, stages),
  };
}

/** Neighbours that are alike, joined, and each kind of cell told once. */
function encode(
  cells: Cells,
  gathered: Gathered,
  stages: readonly GatheredStage[],
): Pick<AttributesAnswer, 'facts' | 'runs'> {
  const facts: CellFacts[] = [];
  const numbers = new Map<string, number>();
  const runs: number[] = [];
  const signatures = new Map<string, number>();
  let last = -1;
  for (let cell = 0; cell < cells.count; cell++) {
    const signature = signatureOf(cells, gathered, stages, cell);
    let number = signatures.get(signature);
    if (number === undefined) {
      const told = factsOf(cells, gathered, stages, cell);
      const key = JSON.stringify(told);
      number = numbers.get(key) ?? facts.push(told) - 1;
      numbers.set(key, number);
      signatures.set(signature, number);
    }
    if (number === last) runs[runs.length - 2]!++;
    else runs.push(1, number);
    last = number;
  }
  return { facts, runs };
}

/** All that `factsOf` reads of a cell: shorter to compare than what it makes. */
function signatureOf(cells: Cells, of: Gathered, stages: readonly GatheredStage[], cell: number): string {
  const gmem = of.gmem[cell]!;
  const slot = of.slot[cell]!;
  const assigned = of.assigned[cell]!;
  const grade = (found: number, all: number): number => (found === 0 ? 0 : found >= all ? 2 : 1);
  let bits = grade(slot, cells.pages) * 3 + grade(gmem, slot);
  for (const found of [of.folios[cell]!, assigned, of.split[cell]!, of.holes[cell]!])
    bits = bits * 3 + grade(found, gmem);
  for (const found of [of.large[cell]!, of.validated[cell]!]) bits = bits * 3 + grade(found, assigned);
  bits = ((bits * 4 + of.kinds[cell]!) * 4 + of.converting[cell]!) * 2 + of.invalidating[cell]!;
  bits = bits * 32 + of.changed[cell]!;
  let signature = `${bits}`;
  for (const { mapped, levels, frames, stale, dirty } of stages)
    signature += `,${grade(mapped[cell]!, slot) * 2048 + levels[cell]! * 256 + frames[cell]! * 64 + stale[cell]! * 8 + dirty[cell]!}`;
  return signature;
}
