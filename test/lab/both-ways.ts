import assert from 'node:assert/strict';
import type { HelperPlace } from '../../adapter/kvm/place.ts';
import { roleWords } from '../../engine/kernel/role.ts';
import type { KvmTable, KvmTables } from '../../engine/kernel/tables.ts';
import type { Certainty } from '../../engine/queries/answers.ts';
import { builtTables, onKvm } from './run-both.ts';

/** Accessed and dirty: the processor sets them without an event. */
const SILENT = { ept: 0x300, npt: 0x60, shadow: 0x60 };
const PRESENT = 0x800;
const W = 0x2;
const MMU_WRITABLE = 0x400;

/**
 * What events do not tell, each with the function of KVM's that does it in silence. A table that events tell of has exactly the entries
 * that the kernel has, but for these.
 */
const UNTOLD: readonly (readonly [name: string, holds: (of: Difference) => boolean])[] = [
  // A shadow page's own links: only leaf entries are told (__link_shadow_page).
  ['link_shadow_page', ({ built, inferred, level }) => built.kind === 'shadow' && level > 1 && inferred === 0],
  // What the guest's table no longer grants is dropped when its page is synchronized, or written to (sync_spte, drop_spte).
  ['drop_spte', ({ built, kernel }) => built.kind === 'shadow' && kernel === 0],
  // A page that becomes a guest's table is write-protected wherever it is mapped, and may not be made writable without a lock.
  [
    'spte_write_protect',
    ({ built, kernel, inferred }) =>
      built.kind === 'shadow' && ((kernel ^ (inferred & ~(W | MMU_WRITABLE))) & ~SILENT.shadow) === 0,
  ],
  // What is invalidated in an unsync page, and what is synchronized, is made anew of the guest's entry, of the same frame
  // (kvm_sync_spte); such an entry is told to be doubtful.
  [
    'sync_spte',
    ({ doubt, level, kernel, inferred }) => doubt === 'stale' && level === 1 && kernel >>> 12 === inferred >>> 12,
  ],
];

interface Difference {
  readonly built: KvmTables;
  readonly level: number;
  /** Low words; 0 where nothing is present. */
  readonly kernel: number;
  readonly inferred: number;
  /** What the events say of their entry, where it is less than of the table. */
  readonly doubt: Certainty | undefined;
}

/** What became of a comparison: entries that are alike, and those that are not, by who is silent about them. */
export interface BothWays {
  readonly same: number;
  readonly silent: ReadonlyMap<string, number>;
  readonly wrong: readonly string[];
  readonly certainty: string;
  readonly why: string;
}

/** Runs a program with its events recorded, and compares the tables that follow from them with those of the kernel. */
export function bothWays(text: string, place: HelperPlace): Promise<BothWays> {
  return onKvm(
    text,
    place,
    async (opened) => {
      const kernel = await builtTables(opened);
      assert.equal(kernel.certainty, 'exact', kernel.why);
      await opened.built.fetch();
      return compare(kernel, opened.built.now()!.tables);
    },
    'events',
  );
}

const levelOf = ({ role }: KvmTable): number => role & 15;

function compare(kernel: KvmTables, events: KvmTables): BothWays {
  const wrong: string[] = [];
  const silent = new Map<string, number>();
  let same = 0;
  const told = [...events.tables.values()].filter(({ untold }) => !untold);
  const silentBits = SILENT[kernel.kind];
  for (const table of told) {
    const name = `table 0x${table.frame.toString(16)} (${roleWords(table.role)})`;
    const real = kernel.tables.get(table.frame);
    if (!real) {
      wrong.push(`${name}: the kernel has none there`);
      continue;
    }
    const roles = (real.role ^ table.role) & table.roleKnown;
    if (roles !== 0 || real.gfn !== table.gfn)
      wrong.push(`${name}: the kernel says gfn 0x${real.gfn.toString(16)}, ${roleWords(real.role)}`);
    for (let index = 0; index < 512; index++) {
      const [lo, realLo] = [table.entries[2 * index]!, real.entries[2 * index]!];
      const [hi, realHi] = [table.entries[2 * index + 1]!, real.entries[2 * index + 1]!];
      const inferred = lo & PRESENT ? lo : 0;
      const there = realLo & PRESENT ? realLo : 0;
      const alike = ((inferred ^ there) & ~silentBits) === 0 && (inferred === 0 || hi === realHi);
      if (alike) {
        if (there !== 0) same++;
        continue;
      }
      const difference = {
        built: kernel,
        level: levelOf(real),
        kernel: there,
        inferred,
        doubt: table.doubtful?.get(index),
      };
      const row = UNTOLD.find(([, holds]) => holds(difference));
      if (row) silent.set(row[0], (silent.get(row[0]) ?? 0) + 1);
      else
        wrong.push(
          `${name}, entry ${index}: events tell of 0x${lo.toString(16)}, the kernel has 0x${realLo.toString(16)}`,
        );
    }
  }
  // Tables of the TDP MMU are all told; a shadow page without a leaf entry has no address in any event.
  for (const [frame, table] of kernel.tables)
    if (kernel.kind !== 'shadow' && !told.some((each) => each.frame === frame) && levelOf(table) < rootLevel(kernel))
      wrong.push(`table 0x${frame.toString(16)} (${roleWords(table.role)}): events tell of none`);
  return { same, silent, wrong, certainty: events.certainty, why: events.why };
}

const rootLevel = (built: KvmTables): number => Math.max(...built.roots.map(({ levels }) => levels));
