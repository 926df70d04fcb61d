import type { KvmRoot, KvmTable, KvmTables } from '../kernel/tables.ts';
import type { Certainty } from '../queries/answers.ts';
import type { Machine } from './infer-machine.ts';
import { type InferredRoot, type InferredTable, isTold, leavesOf } from './infer-pages.ts';
import { type State, WHOSE } from './infer-state.ts';

export function tablesOf(state: State, machine: Machine, number: number, at: number): KvmTables {
  const removed = new Set([...machine.removed.values()].flat().map(({ id }) => id));
  const stale = staleWords(state, machine, number, at);
  const tables = new Map<number, KvmTable>();
  for (const table of machine.tables.values()) {
    if (removed.has(table.id)) continue;
    tables.set(table.frame, {
      frame: table.frame,
      gfn: table.gfn,
      role: table.role,
      roleKnown: table.roleKnown,
      entries: table.entries,
      certainty: stale === '' ? 'inferred' : 'stale',
      doubtful: doubtsOf(table),
      ...(isTold(table) ? {} : { untold: true }),
    });
  }
  const own = [...state.threads].filter(([, each]) => each.machine === number);
  const named = own.filter(([, each]) => each.vcpu !== undefined);
  // Where no event names vCPUs, each thread that builds tables stands for one.
  const vcpus = (named.length > 0 ? named : own).map(([pid, each], index) => [pid, each.vcpu ?? index] as const);
  const rootOf = (root: InferredRoot, vcpu: number, which: KvmRoot['which']): KvmRoot => {
    const table = machine.tables.get(root.table)!;
    return { vcpu, which, frame: table.frame, levels: table.level, invalid: root.invalid };
  };
  const roots = [...machine.roots, ...machine.dying].flatMap((root) => {
    const users = vcpus.filter(([pid]) => isCurrent(state, machine, root, pid));
    return users.length > 0 ? users.map(([, vcpu]) => rootOf(root, vcpu, 'current')) : [rootOf(root, 0, 'untold')];
  });
  return {
    kind: machine.kind ?? 'npt',
    source: 'events',
    certainty: stale === '' ? 'inferred' : 'stale',
    why: stale === '' ? `worked out from tracepoints${looseWords(machine, removed)}${unsyncWords(machine)}` : stale,
    tables,
    roots,
  };
}

/**
 * Of an unsync page every leaf is doubtful: what the vCPU invalidates is dropped, or made anew of the guest's entry, and no event says
 * so (`kvm_mmu_invalidate_addr`, `kvm_sync_spte`).
 */
function doubtsOf(table: InferredTable): ReadonlyMap<number, Certainty> {
  if (!table.unsync) return table.doubtful;
  return new Map([...table.doubtful, ...leavesOf(table).map((index) => [index, 'stale'] as const)]);
}

/**
 * Shadow roots are loaded. Of a second stage's no event tells which is in use: there can be one for SMM and one for a nested guest, and
 * what a thread mapped last says that it was in SMM, not that it has left it.
 */
function isCurrent(state: State, machine: Machine, root: InferredRoot, pid: number): boolean {
  if (machine.kind === 'shadow') return root.threads.has(pid);
  if (root.invalid || root.asId !== 0 || state.threads.get(pid)?.asId) return false;
  return machine.roots.every((each) => each === root || each.asId !== 0);
}

/** Where no fault is told of, nothing says which entries lead to the shadow pages that it needed (link_shadow_page). */
function looseWords({ tables, roots, dying }: Machine, removed: ReadonlySet<number>): string {
  const tops = new Set([...roots, ...dying].map(({ table }) => table));
  const loose = [...tables.values()].filter(({ id, parent }) => !parent && !tops.has(id) && !removed.has(id)).length;
  if (loose === 0) return '';
  return `; they do not tell which entries lead to ${loose} of its ${tables.size} tables`;
}

function unsyncWords({ tables }: Machine): string {
  const changed = [...tables.values()].filter((table) => [...doubtsOf(table).values()].includes('stale')).length;
  if (changed === 0) return '';
  return `; ${changed} ${changed === 1 ? 'table has' : 'tables have'} entries that KVM may have changed since without an event`;
}

function staleWords(state: State, machine: Machine, number: number, at: number): string {
  if (machine.stale !== '') return machine.stale;
  for (const pid of state.waiting) if (state.threads.get(pid)!.candidates.includes(number)) return WHOSE;
  if ([...machine.roots, ...machine.dying].some(({ guessed }) => guessed))
    return 'a thread that is of no virtual machine known gave up all tables (kvm_mmu_zap_all_fast): they may be another’s';
  const lost = state.recording.losses.filter(({ beforeIndex }) => beforeIndex <= at);
  if (lost.length > 0) return 'events were lost';
  const { mismatches } = machine;
  return mismatches === 0 ? '' : `${mismatches} event${mismatches === 1 ? '' : 's'} did not fit what was known before`;
}
