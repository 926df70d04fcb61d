import { project } from '../../engine/history/project.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { roleField } from '../../engine/kernel/role.ts';
import type { KvmTables } from '../../engine/kernel/tables.ts';
import { frameToAddress } from '../../engine/memory/words.ts';
import type { Program } from '../../engine/program.ts';
import { EndlessRun, type Outcome } from '../../engine/queries/comparison.ts';
import { emulatorBuilt } from '../../engine/queries/emulator-built.ts';
import { Run } from '../../engine/run.ts';
import type { HelperPlace } from '../kvm/place.ts';
import { parseTables } from '../rsp/tables.ts';
import { type OpenedScenario, openScenario } from '../scenario-kvm/open.ts';
import { planStubs } from '../scenario-kvm/stubs.ts';
import { openRecording } from '../trace/open.ts';

// One scenario in the emulator and on real KVM: what is counted are KVM's own tracepoints, which the emulator projects.

/** Events that all can have: entries and exits are recorded of nobody, for they would drown the rest. */
const COUNTED = [
  'kvm_page_fault',
  'kvm_inj_exception',
  'fast_page_fault',
  'handle_mmio_page_fault',
  'mark_mmio_spte',
  'kvm_mmu_get_page',
  'kvm_mmu_set_spte',
  'kvm_mmu_sync_page',
  'kvm_mmu_unsync_page',
  'kvm_mmu_prepare_zap_page',
  'kvm_mmu_zap_all_fast',
  'kvm_mmu_split_huge_page',
  'kvm_tdp_mmu_spte_changed',
  'kvm_unmap_hva_range',
];

/** A range of addresses, its end not in it. */
type Range = readonly [from: bigint, to: bigint];

/** Where the code lies that makes the accesses on a real KVM: its slot, and where faults tell of it. */
interface Aside {
  readonly memory: readonly Range[];
  readonly faults: readonly Range[];
}

const NOTHING_ASIDE: Aside = { memory: [], faults: [] };
const within = (ranges: readonly Range[], address: bigint): boolean =>
  ranges.some(([from, to]) => address >= from && address < to);

/** KVM's own statistics, which no event tells; they count the code that makes the accesses, too. */
const STATISTICS = ['exits', 'tlb_flush', 'remote_tlb_flush', 'nested_run'] as const;

async function statistics({ client }: OpenedScenario): Promise<Record<string, number>> {
  const told = JSON.parse(await client.vendor('qKvm.Stats')) as Record<'vm', Record<string, number>> &
    Record<'vcpus', Record<string, number>[]>;
  const sum = (name: string): number => [told.vm, ...told.vcpus].reduce((total, each) => total + (each[name] ?? 0), 0);
  return Object.fromEntries(STATISTICS.map((name) => [`KVM: ${name}`, sum(name)]));
}

/** Which guest frame is behind a host frame, as the events say that map it. */
function gfnsOf(recording: Recording): (pfn: number) => number | undefined {
  const gfns = new Map<number, number>();
  for (let at = 0; at < recording.length; at++) {
    const { name, fields } = TRACEPOINTS[recording.kind(at)]!;
    const spte = name === 'kvm_mmu_set_spte' ? 'spte' : name === 'kvm_tdp_mmu_spte_changed' ? 'new_spte' : undefined;
    if (spte === undefined) continue;
    const value = (wanted: string): bigint =>
      recording.value(
        at,
        fields.findIndex((each) => each.name === wanted),
      );
    const entry = value(spte);
    const isLeaf = value('level') === 1n || (entry & LARGE) !== 0n;
    if ((entry & MMU_PRESENT) !== 0n && isLeaf) gfns.set(Number((entry & ADDRESS) >> 12n), Number(value('gfn')));
  }
  return (pfn) => gfns.get(pfn);
}

/** Bits of KVM's entries (arch/x86/kvm/mmu/spte.h). */
const [LARGE, MMU_PRESENT, ADDRESS] = [0x80n, 0x800n, 0xf_ffff_ffff_f000n];

/** How often each event came, from one on; of kvm_mmu_get_page, for pages that were made and for others. */
function countEvents(recording: Recording, aside: Aside, rootLevel: number, from = 0): Record<string, number> {
  const counts: Record<string, number> = { [ROOTS_BUILT]: 0 };
  for (const name of COUNTED) for (const key of keysOf(name)) counts[key] = 0;
  for (let at = from; at < recording.length; at++) {
    const kind = recording.kind(at);
    const { name, fields } = TRACEPOINTS[kind]!;
    if (!COUNTED.includes(name)) continue;
    const field = (wanted: string): bigint | undefined => {
      const index = fields.findIndex((each) => each.name === wanted);
      return index >= 0 && recording.known(at, index) ? recording.value(at, index) : undefined;
    };
    const [gfn, address] = [field('gfn'), field('fault_address')];
    if (gfn !== undefined && within(aside.memory, frameToAddress(Number(gfn)))) continue;
    if (address !== undefined && within(aside.faults, address)) continue;
    const [made, found] = keysOf(name);
    const isFound = found !== undefined && field('created') === 0n;
    counts[isFound ? found : made!]!++;
    const role = name === 'kvm_mmu_get_page' && !isFound ? field('role') : undefined;
    if (role !== undefined && roleField(Number(role), 'level') >= rootLevel) counts[ROOTS_BUILT]!++;
  }
  return counts;
}

/** Of the pages that were made those at a root's level. */
const ROOTS_BUILT = 'roots built';

/** The level of pages that can only be roots; those of PAE tables stand behind four entries. */
function rootLevelOf({ roots }: KvmTables): number {
  const least = Math.min(...roots.map(({ levels }) => levels));
  return least === 3 ? 2 : least;
}

const keysOf = (name: string): readonly string[] =>
  name === 'kvm_mmu_get_page' ? [`${name}, new`, `${name}, existing`] : [name];

/** @throws EndlessRun */
export function runEmulated(program: Program, limit: number): Outcome {
  const run = new Run(program);
  if (!run.runToEnd(limit)) throw new EndlessRun(`emulator: still running after ${limit} steps`);
  const { machine } = run;
  const built = emulatorBuilt(machine);
  const lines = [...project(machine)].map(
    ({ step, event, text }, at) => `  task-1  [000] ..... ${step}.${`${at}`.padStart(6, '0')}: ${event}: ${text}\n`,
  );
  const recording = openRecording(new TextEncoder().encode(`# tracer: nop\n#\n${lines.join('')}`));
  return {
    name: 'emulator',
    ...verdict(machine.small.failures, run.stuck()),
    counts: {
      'modes.changed': machine.counter('modes.changed'),
      ...countEvents(recording, NOTHING_ASIDE, rootLevelOf(built)),
    },
    built,
    gfnOf: (pfn) => machine.gfnOf(pfn),
  };
}

function verdict(
  failures: readonly { readonly line: number; readonly text: string; readonly actual: string }[],
  stuck: string | undefined,
): { ok: boolean; notes: string[] } {
  const notes = failures.map(({ line, text, actual }) => `line ${line}: ${text}: ${actual}`);
  if (stuck !== undefined) notes.push(`nothing can run: ${stuck}`);
  return { ok: notes.length === 0, notes };
}

/** Where a machine's slots are there: what the vCPUs made since then they use. */
function behindSetup(recording: Recording): number {
  let from = 0;
  for (let at = 0; at < recording.length; at++)
    if (TRACEPOINTS[recording.kind(at)]!.name === 'kvm_mmu_zap_all_fast') from = at + 1;
  return from;
}

/** Runs a scenario on a KVM, and closes the place. @throws EndlessRun; Error in words for people */
export async function runRecorded(program: Program, name: string, place: HelperPlace, limit: number): Promise<Outcome> {
  const opened = await openScenario(program, (text) => process.stderr.write(text), place, { tables: 'events' });
  try {
    const { run, built } = opened;
    await built.pull();
    const from = behindSetup(built.events!.recording);
    const before = await statistics(opened);
    for (let task = await run.pick(); task; task = await run.pick()) {
      if (run.machine.steps >= limit) throw new EndlessRun(`${name}: still running after ${limit} steps`);
      await run.step(task);
    }
    const stuck = run.stuck;
    const after = await statistics(opened);
    await run.finish();
    const lost = await built.pull();
    const { ok, notes } = verdict(run.machine.small.failures, stuck);
    if (lost > 0) notes.push(`${lost} events were lost: the counts are too low`);
    const aside = asideOf(program, opened);
    const tables = await tablesOf(opened);
    return {
      name,
      ok,
      notes,
      counts: {
        'modes.changed': run.machine.counter('modes.changed'),
        ...countEvents(built.events!.recording, aside, rootLevelOf(tables), from),
        ...Object.fromEntries(Object.entries(after).map(([key, value]) => [key, value - before[key]!])),
      },
      built: tables,
      gfnOf: gfnsOf(built.events!.recording),
      isAside: (frame) => within(aside.faults, frameToAddress(frame)),
    };
  } finally {
    await opened.close();
  }
}

/** What KVM has built: as the kernel says, or else as follows from its events. */
async function tablesOf({ client, info, built }: OpenedScenario): Promise<Outcome['built']> {
  if (info.has.tables === '') return parseTables(await client.vendor('qKvm.Tables'), info.secondStage).tables;
  await built.fetch();
  const found = built.now();
  if (!found) throw new Error('KVM’s tables cannot be had');
  return found.tables;
}

/** Faults, and tables, tell guest-physical addresses, or with shadow paging virtual ones. */
function asideOf(program: Program, { info, run }: OpenedScenario): Aside {
  const stubs = [...planStubs(program, run.machine.vcpus.length).values()];
  const memory = stubs.map(({ gpa, size }): Range => [gpa, gpa + size]);
  return { memory, faults: info.secondStage === 'shadow' ? stubs.map(({ base, end }): Range => [base, end]) : memory };
}
