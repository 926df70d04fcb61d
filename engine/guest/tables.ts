import type { Format } from '../formats/compile.ts';
import { TABLE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, frameToAddress, type Gfn, hex, highWord, lowWord } from '../memory/words.ts';
import { map, type Pgtable, protect, split, unmap } from '../pgtable/operations.ts';
import { entryHi, entryLo, PgtableError, storeEntry, type TableStore } from '../pgtable/tables.ts';
import type { Mapping } from '../program.ts';
import { guestStoresEntry } from '../shadow/guest-write.ts';
import type { Vcpu } from '../vcpu.ts';
import { l1Frame, nestedStage } from './nested.ts';
import type { PagingMode } from './registers.ts';

/** Input frame by which tables know an address: the sign extension is dropped. */
function tableFrame(format: Format, gva: bigint): number {
  return addressToFrame(gva) % format.inputFrames;
}

/** Tables, and where they begin. */
type Root = Pick<PagingMode, 'format' | 'rootGfn' | 'rootEntry'>;

/**
 * A guest's own tables as the guest's kernel sees them: frames are guest frames, stores go to guest memory and so into
 * the log.
 */
export function guestTables(machine: Machine, pool: number, { format, rootGfn, rootEntry }: Root): Pgtable {
  return { store: guestTableStore(machine, pool), format, root: rootGfn, rootEntry };
}

/**
 * The same, where the guest runs and what it stores may be shadowed.
 * @param root of the guest's own tables, unless it is a hypervisor that edits those of its guests
 */
export function runningGuestTables(machine: Machine, pool: number, vcpu: Vcpu, root: Root = vcpu.mode): Pgtable {
  const tables = guestTables(machine, pool, root);
  if (machine.mirror) return tables;
  const { store } = tables;
  return {
    ...tables,
    store: {
      ...store,
      store: (gfn, index, lo, hi, half) =>
        guestStoresEntry(machine, vcpu, { gfn: l1Gfn(machine, pool, gfn), index, half }, () =>
          store.store(gfn, index, lo, hi, half),
        ),
    },
  };
}

/** The frame of the machine's that a guest takes for one of its own: where it is nested, what L1's tables lead to. */
function l1Gfn(machine: Machine, pool: number, gfn: Gfn): Gfn {
  const within = machine.program.guests[pool]?.within;
  return within === undefined ? gfn : l1Frame(machine, nestedStage(machine, within).mode, gfn);
}

export function guestTableStore(machine: Machine, pool: number): TableStore {
  const resolve = (own: Gfn): number => {
    const gfn = l1Gfn(machine, pool, own);
    const pfn = gfn < 0 ? -1 : machine.resolve(gfn);
    if (pfn < 0) throw new PgtableError(`a guest table at gpa ${hex(frameToAddress(own))} lies outside memory`);
    return pfn;
  };
  const state = machine.small.tablePools[pool]!;
  return {
    page: (gfn) => machine.memory.page(resolve(gfn)),
    store: (gfn, index, lo, hi, half) => machine.storeData(resolve(gfn), index, lo, hi, half),
    allocate() {
      const gfn = state.free.pop() ?? state.next;
      if (gfn === state.next) {
        state.next += state.step;
        if (gfn < 0 || machine.resolve(l1Gfn(machine, pool, gfn)) < 0)
          throw new PgtableError('there is no guest memory left for page tables');
      }
      const pfn = resolve(gfn);
      for (let index = 0; index < 512; index++) {
        if (machine.readEntry(pfn, index) !== 0n) machine.storeData(pfn, index, 0, 0);
      }
      return gfn;
    },
    release: (gfn) => {
      state.free.push(gfn);
    },
  };
}

export function applyMapping(tables: Pgtable, mapping: Mapping): void {
  const frame = tableFrame(tables.format, mapping.gva);
  if (mapping.raw) {
    storeRaw(tables, frame, mapping.raw.level, mapping.raw.value);
    return;
  }
  const attributes = {
    rights: { write: mapping.write, execute: mapping.execute, user: mapping.user },
    fields: mapping.fields,
  };
  map(tables, frame, Number(mapping.size >> 12n), Number(mapping.gpa >> 12n), attributes, mapping.pageLevel);
}

/** Overwrites one entry as it is; tables above it are made where there are none. */
function storeRaw(tables: Pgtable, frame: number, wanted: number, value: bigint): void {
  const { store, format, rootEntry = 0 } = tables;
  const placeOf = (level: number): number =>
    format.indexOf(frame, level) + (level === format.rootLevel ? rootEntry : 0);
  let table = tables.root;
  for (let level = format.rootLevel; level > wanted; level--) {
    const lo = entryLo(store, format, table, placeOf(level));
    if (format.classify(level, lo) !== TABLE) {
      // Mapping and unmapping one page leaves the tables that lead to it.
      const span = format.span[wanted]!;
      const start = frame - (frame % span);
      if (format.classify(level, lo) !== 0) split(tables, start, span, wanted);
      else map(tables, start, 1, 0, { rights: { write: false, execute: true, user: false } }, 1);
    }
    const place = placeOf(level);
    table = format.frame(level, entryLo(store, format, table, place), entryHi(store, format, table, place));
  }
  storeEntry(store, format, table, placeOf(wanted), lowWord(value), highWord(value));
}

export function unmapRange(tables: Pgtable, gva: bigint, size: bigint): void {
  unmap(tables, tableFrame(tables.format, gva), Number(size >> 12n));
}

export function protectRange(
  tables: Pgtable,
  gva: bigint,
  size: bigint,
  rights: { write: boolean; execute: boolean; user: boolean },
): void {
  protect(tables, tableFrame(tables.format, gva), Number(size >> 12n), rights);
}
