import type { Regime } from './guest/regime.ts';
import type { KvmTables } from './kernel/tables.ts';
import { Machine } from './machine.ts';
import { type Memslot, newBacking } from './memory/memslots.ts';
import { addressToFrame } from './memory/words.ts';
import type { Tables } from './pgtable/tables.ts';
import { NestedMemory } from './queries/leaves.ts';
import type { RecordingView } from './queries/recording-answers.ts';

/** A machine that is not the emulator's: its memory, and what its processors' registers make of it. */
export interface Mirror {
  /** Physical memory: the host's where there is a second stage. */
  readonly memory: Required<Tables>;
  readonly regimes: readonly Regime[];
  /** Memory as the guest sees it. */
  readonly guestMemory: Required<Tables>;
  /** The frame behind a guest frame; −1 where there is none. */
  resolve(gfn: number): number;
  /** What its stretches of memory are: those of an image, or a virtual machine's memslots. */
  readonly places: 'ranges' | 'memslots' | 'recording';
  /**
   * What KVM has built for the machine; undefined where nobody tells. The host's physical bits say how entries are read.
   * @throws MissingFrames while it is not here yet
   */
  built?(): { readonly tables: KvmTables; readonly maxPhyAddr: number } | undefined;
  /** The recording that the machine is shown from. */
  recording?(): RecordingView;
  /** Counters that can be told of the machine; without it none. */
  readonly counted?: ReadonlySet<string>;
}

export interface MirrorRange {
  readonly gpa: bigint;
  readonly size: bigint;
  /** Of memslots; ranges of an image have neither. */
  readonly id?: number;
  readonly flags?: readonly string[];
}

/** What is not here yet of a machine far away: it is to be fetched, and the question asked again. */
export class MissingFrames extends Error {
  readonly frames: readonly number[];
  /** KVM's own tables are missing too. */
  readonly built: boolean;

  constructor(frames: readonly number[], built = false) {
    super(built ? 'what KVM has built is not here yet' : `frames ${frames.join(', ')} are not here yet`);
    this.frames = frames;
    this.built = built;
  }
}

export function makeMirror(memory: Required<Tables>, regimes: readonly Regime[], places: Mirror['places']): Mirror {
  const second = regimes[0]?.second;
  if (!second) return { memory, regimes, places, guestMemory: memory, resolve: (gfn) => (memory.has(gfn) ? gfn : -1) };
  const nested = new NestedMemory(memory, second.tree);
  return { memory, regimes, places, guestMemory: nested, resolve: (gfn) => nested.resolve(gfn) };
}

/** What an address means behind which there is no memory. */
export function nowhereWords(mirror: Mirror): string {
  return mirror.places === 'memslots' ? 'no memslot holds it: an access is MMIO' : 'the image has no memory there';
}

/** A machine that shows a mirror: nothing runs in it, and its memory is read where it is. */
export function mirrorMachine(mirror: Mirror, ranges: readonly MirrorRange[]): Machine {
  const machine = new Machine(
    {
      machine: { slots: [], second: 'ept', maxPhyAddr: 52, features: ['1g-pages'] },
      guests: [],
      expects: [],
      tasks: mirror.regimes.map((_, cpu) => ({
        kind: 'vcpu',
        name: `${cpu}`,
        span: { line: 1, column: 1, endLine: 1, endColumn: 1 },
        body: [],
      })),
    },
    1 << 16,
    mirror,
  );
  ranges.forEach(({ gpa, size, id: given, flags }, number) => {
    const base = addressToFrame(gpa);
    const slot: Memslot = {
      id: given ?? number,
      base,
      pages: addressToFrame(size),
      readonly: flags === undefined || flags.includes('ro'),
      logDirty: flags?.includes('log') ?? false,
      invalid: false,
      backing: newBacking(base, addressToFrame(size), 1),
    };
    machine.slots = machine.slots.with(slot);
  });
  return machine;
}
