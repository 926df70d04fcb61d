import type { Conversion, RmpEntry } from '../attributes/state.ts';
import { type AttributeRun, AttributeStore } from '../attributes/store.ts';
import { Kind } from '../history/log.ts';
import type { IndexChange, LoggedMap } from '../logged-map.ts';
import type { InvalidationState, Machine } from '../machine.ts';
import type { Memslots } from '../memory/memslots.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import type { Tables } from '../pgtable/tables.ts';
import type { MmuPage } from '../tdp/mmu-page.ts';
import { change, countsOf, type Frames, PageCounts } from './page-counts.ts';

// Private and shared memory as it is, or as it was at a position of the log: what has changed since lies over what is.

const PAGES_2M = 512;
const PAGES_1G = 512 * 512;

/** Whether frames are private: bits of what there is among them. */
export const SHARED = 1;
export const PRIVATE = 2;

/** Which kinds there are among the frames [start, end): SHARED, PRIVATE, both. */
export function kindsOf(store: AttributeStore, start: Gfn, end: Gfn): number {
  let kinds = 0;
  for (let gfn = start; gfn < end && kinds < 3; ) {
    const rest = end - gfn;
    // A 1G or 2M block tells at once what it is, and where it is all alike so is any part of it.
    const inGigabyte = PAGES_1G - (gfn % PAGES_1G);
    const gigabyte = store.mix(gfn, 3);
    if (gigabyte !== 'mixed' || (inGigabyte === PAGES_1G && rest >= PAGES_1G)) {
      kinds |= bitsOf(gigabyte);
      gfn += inGigabyte;
      continue;
    }
    const inBlock = PAGES_2M - (gfn % PAGES_2M);
    const block = store.mix(gfn, 2);
    if (block !== 'mixed' || (inBlock === PAGES_2M && rest >= PAGES_2M)) {
      kinds |= bitsOf(block);
      gfn += inBlock;
      continue;
    }
    const stop = gfn + Math.min(inBlock, rest);
    const { value: run } = store.runs(gfn, stop).next() as { value: AttributeRun };
    kinds |= run.end < stop ? 3 : run.isPrivate ? PRIVATE : SHARED;
    gfn = stop;
  }
  return kinds;
}

const bitsOf = (mix: 'shared' | 'private' | 'mixed'): number =>
  mix === 'mixed' ? SHARED | PRIVATE : mix === 'private' ? PRIVATE : SHARED;

const single = (pfn: Pfn): readonly [Pfn, number] => [pfn, 1];
const assigned: Frames<RmpEntry> = (pfn, { level }) => [pfn, level === 2 ? PAGES_2M : 1];
const large: Frames<RmpEntry> = (pfn, { level }) => (level === 2 ? [pfn, PAGES_2M] : undefined);
const validated: Frames<RmpEntry> = (pfn, entry) => (entry.validated ? assigned(pfn, entry) : undefined);
const block: Frames<true> = (number) => [number * PAGES_2M, PAGES_2M];

/** A map of the machine's as it was: keys that have changed since, with the values that they had. */
class PastMap<V> {
  readonly #map: LoggedMap<V>;
  readonly overlay = new Map<number, V | undefined>();

  constructor(map: LoggedMap<V>) {
    this.#map = map;
  }

  get(key: number): V | undefined {
    return this.overlay.has(key) ? this.overlay.get(key) : this.#map.get(key);
  }

  counted(frames: Frames<V>): PageCounts {
    const now = countsOf(this.#map, frames);
    const counts = this.overlay.size === 0 ? now : new PageCounts(now);
    for (const [key, before] of this.overlay) change(counts, frames, key, this.#map.get(key), before);
    return counts;
  }
}

/** Private and shared memory at a moment, to be read only. */
export class MemoryState {
  readonly machine: Machine;
  /** Position of the log; undefined: now. */
  readonly at: number | undefined;
  slots: Memslots;
  invalidation: InvalidationState;
  readonly rmp: PastMap<RmpEntry>;
  readonly folios: PastMap<Gfn>;
  readonly split: PastMap<true>;
  readonly holes: PastMap<true>;
  readonly mixed: PastMap<true>;
  /** Frames whose attribute has changed since, and what they were then. */
  readonly #touched = new AttributeStore();
  readonly #then = new AttributeStore();
  readonly #tables = new Map<Pfn, Uint32Array>();
  readonly #pages = new Map<Pfn, MmuPage | undefined>();
  #isPast = false;

  /** @throws Error where the log does not reach */
  constructor(machine: Machine, at?: number) {
    const { attributes, log } = machine;
    this.machine = machine;
    this.at = at;
    this.slots = machine.slots;
    this.invalidation = machine.invalidation;
    this.rmp = new PastMap(attributes.rmp);
    this.folios = new PastMap(attributes.folios);
    this.split = new PastMap(attributes.split);
    this.holes = new PastMap(attributes.holes);
    this.mixed = new PastMap(attributes.mixed);
    if (at === undefined) return;
    if (at < log.first || at > log.length)
      throw new Error(`log position ${at} is not in the history, which reaches from ${log.first} to ${log.length}`);
    const maps = [this.rmp, this.folios, this.split, this.holes, this.mixed] as readonly PastMap<unknown>[];
    const of = [attributes.rmp, attributes.folios, attributes.split, attributes.holes, attributes.mixed];
    const overlays = new Map<unknown, Map<number, unknown>>(of.map((map, index) => [map, maps[index]!.overlay]));
    for (let position = log.length - 1; position >= at; position--) this.#takeBack(position, overlays);
  }

  #takeBack(position: number, overlays: ReadonlyMap<unknown, Map<number, unknown>>): void {
    const { log } = this.machine;
    switch (log.kindAt(position)) {
      case Kind.SPTE:
      case Kind.SPTE_UNTRACED:
      case Kind.ENTRY_BITS: {
        const { address, oldLo, oldHi } = log.at(position);
        const frame = Math.floor(address / 512);
        if (!this.#page(frame)) return;
        let page = this.#tables.get(frame);
        if (!page) {
          page = this.machine.memory.page(frame).slice();
          this.#tables.set(frame, page);
        }
        page[2 * (address % 512)] = oldLo;
        page[2 * (address % 512) + 1] = oldHi;
        return;
      }
      // Each object has the shape with which Machine appended it.
      case Kind.TABLE_ALLOC:
        this.#pages.set(log.at(position).address, undefined);
        return;
      case Kind.TABLE_FREE: {
        const { address, object } = log.at(position);
        const { page, content } = object as { page: MmuPage; content: Uint32Array };
        this.#pages.set(address, page);
        this.#tables.set(address, content.slice());
        return;
      }
      case Kind.TABLE_STATE: {
        const { address, object } = log.at(position);
        this.#pages.set(address, (object as { before: MmuPage }).before);
        return;
      }
      case Kind.INDEX: {
        const { map, key, before } = log.at(position).object as IndexChange;
        overlays.get(map)?.set(key, before);
        return;
      }
      case Kind.ATTRIBUTES: {
        const { before } = log.at(position).object as { before: readonly AttributeRun[] };
        this.#isPast = true;
        for (const { start, end, isPrivate } of before) {
          this.#touched.set(start, end, true);
          this.#then.set(start, end, isPrivate);
        }
        return;
      }
      case Kind.INVALIDATE:
        this.invalidation = (log.at(position).object as { before: InvalidationState }).before;
        return;
      case Kind.SLOTS:
        this.slots = (log.at(position).object as { before: Memslots }).before;
    }
  }

  #page(pfn: Pfn): MmuPage | undefined {
    return this.#pages.has(pfn) ? this.#pages.get(pfn) : this.machine.pages.get(pfn);
  }

  /** Roots of tables that translate guest-physical addresses and are not being taken down, each kind once. */
  roots(): MmuPage[] {
    const all = new Map<Pfn, MmuPage | undefined>([...this.machine.pages, ...this.#pages]);
    return [...all.values()].filter(
      (page): page is MmuPage => page !== undefined && !page.invalid && this.machine.isDirectRoot(page),
    );
  }

  readonly tables: Tables = { page: (frame) => this.#tables.get(frame) ?? this.machine.memory.page(frame) };

  isPrivate(gfn: Gfn): boolean {
    const { store } = this.machine.attributes;
    return this.#isPast && this.#touched.isPrivate(gfn) ? this.#then.isPrivate(gfn) : store.isPrivate(gfn);
  }

  /** Which kinds there are among [start, end): SHARED, PRIVATE, both. */
  kinds(start: Gfn, end: Gfn): number {
    const { store } = this.machine.attributes;
    if (!this.#isPast) return kindsOf(store, start, end);
    const touched = kindsOf(this.#touched, start, end);
    if (touched !== 3) return kindsOf(touched === PRIVATE ? this.#then : store, start, end);
    let kinds = 0;
    for (const run of this.#touched.runs(start, end)) {
      kinds |= kindsOf(run.isPrivate ? this.#then : store, run.start, run.end);
      if (kinds === 3) break;
    }
    return kinds;
  }

  /** Conversions that have not returned; of the past nobody remembers them. */
  get conversions(): readonly Conversion[] {
    return this.at === undefined ? this.machine.small.conversions : [];
  }

  counts() {
    return {
      assigned: this.rmp.counted(assigned),
      large: this.rmp.counted(large),
      validated: this.rmp.counted(validated),
      folios: this.folios.counted(single),
      holes: this.holes.counted(single),
      split: this.split.counted(block),
    };
  }
}
