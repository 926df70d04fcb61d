import type { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';

/** An event as it can be compared between machines whose memory lies elsewhere: what it is about, and what it says. */
interface Told {
  /** `kvm_page_fault 0x200`: event and page. */
  readonly about: string;
  readonly gfn: number;
  readonly says: string;
}

const ADDRESS = 0xf_ffff_ffff_f000n;
const A_AND_D = 0x60n;
const PRESENT = 0x800n;
/** Of an MMIO marker: bits 10:3 are a generation's, which counts every slot that ever changed. */
const MARKER = 0x7n;
const FROZEN = 0x5a0n;

/** An entry without what differs from run to run: `table`, `none`, `frozen`, `marker`, or its bits. */
function entryWords(value: bigint): string {
  if ((value & PRESENT) !== 0n) return (value & ~ADDRESS & ~A_AND_D).toString(16);
  const low = value & 0xfffn;
  return low === 0n ? 'none' : low === FROZEN ? 'frozen' : `marker ${(low & MARKER).toString(16)}`;
}

/** What is compared of an event; undefined for those that only one of two machines can have. */
function told(recording: Recording, at: number): Told | undefined {
  const { name, fields } = TRACEPOINTS[recording.kind(at)]!;
  const field = (wanted: string): bigint =>
    recording.value(
      at,
      fields.findIndex((each) => each.name === wanted),
    );
  const event = (gfn: bigint, says: string, place = ''): Told => ({
    about: `${name} 0x${gfn.toString(16)}${place}`,
    gfn: Number(gfn),
    says,
  });
  switch (name) {
    case 'kvm_page_fault':
      return event(field('fault_address') >> 12n, `0x${field('error_code').toString(16)}`);
    case 'kvm_mmu_spte_requested':
      return event(field('gfn'), `level ${field('level')}`);
    case 'kvm_mmu_get_page':
      return event(field('gfn'), `level ${field('role') & 15n}`);
    case 'kvm_tdp_mmu_spte_changed': {
      const change = `${entryWords(field('old_spte'))} → ${entryWords(field('new_spte'))}`;
      return event(field('gfn'), change, ` level ${field('level')}`);
    }
    case 'kvm_mmu_set_spte':
      return event(field('gfn'), `level ${field('level')} ${entryWords(field('spte'))}`);
    case 'fast_page_fault': {
      const outcome = `fixed ${field('fixed')} spurious ${field('spurious')}`;
      return event(
        field('cr2_or_gpa') >> 12n,
        `0x${field('error_code').toString(16)} ${entryWords(field('old_spte'))} ${outcome}`,
      );
    }
    case 'kvm_vm_set_mem_attributes':
      return event(field('start'), `up to 0x${field('end').toString(16)}: ${field('attr')}`);
    case 'handle_mmio_page_fault':
    case 'mark_mmio_spte':
      return event(field('gfn'), `access ${field('access')}`);
    default:
      return undefined;
  }
}

/** Everything told of pages that `wanted` wants, by what it is about, each in its order. */
export function byPage(recording: Recording, wanted: (gfn: number) => boolean): Map<string, string[]> {
  const found = new Map<string, string[]>();
  // One host thread changes slots and memory: what it zaps goes with the root or by the notifier, whichever it told last.
  let rootGoes = false;
  for (let at = 0; at < recording.length; at++) {
    const { name } = TRACEPOINTS[recording.kind(at)]!;
    if (name === 'kvm_mmu_zap_all_fast') rootGoes = true;
    else if (name === 'kvm_unmap_hva_range') rootGoes = false;
    const event = told(recording, at);
    if (!event || !wanted(event.gfn)) continue;
    const says = rootGoes && event.says.endsWith(ZAPPED) ? `${event.says}${WITH_ROOT}` : event.says;
    found.set(event.about, [...(found.get(event.about) ?? []), says]);
  }
  return found;
}

const ZAPPED = ' → none';
const WITH_ROOT = ', with its root';

/**
 * In what KVM may differ from the engine, which is today's: what does so, and how what the engine tells becomes what that kernel
 * tells. All else is a mistake.
 */
interface Row {
  readonly name: string;
  /** Kernels before this release. */
  readonly before?: readonly [major: number, minor: number];
  readonly event: string;
  readonly becomes: (says: readonly string[]) => readonly string[];
}

const ROWS: readonly Row[] = [
  {
    // Passes at 4K and 2M came with Linux 6.9: before, what hangs below 1G entries goes with its table.
    name: 'tdp_mmu_zap_root',
    before: [6, 9],
    event: 'kvm_tdp_mmu_spte_changed',
    becomes: (says) =>
      says.flatMap((each, index) => {
        if (each.endsWith(WITH_ROOT) && says[index + 1] === 'none → frozen')
          return [each.replace(`none${WITH_ROOT}`, 'frozen')];
        return each === 'none → frozen' && says[index - 1]?.endsWith(WITH_ROOT) ? [] : [each];
      }),
  },
  {
    // TP_STRUCT__entry has 32 bits for the error code.
    name: 'trace_fast_page_fault',
    before: [6, 11],
    event: 'fast_page_fault',
    becomes: (says) =>
      says.map((each) => each.replace(/^0x\w+/, (code) => `0x${BigInt.asUintN(32, BigInt(code)).toString(16)}`)),
  },
  {
    // The tracepoint is newer than Linux 6.12.
    name: 'kvm_vm_set_mem_attributes',
    before: [6, 13],
    event: 'kvm_vm_set_mem_attributes',
    becomes: () => [],
  },
  {
    // No function of KVM's: the lab's processor, QEMU's, forgets P when a reserved bit faults (mmu_translate).
    name: 'QEMU',
    event: 'kvm_page_fault',
    becomes: (says) =>
      says.map((code) => ((BigInt(code) & 9n) === 9n ? `0x${(BigInt(code) & ~1n).toString(16)}` : code)),
  },
];

/** Rows that a comparison needed, and differences that none explains. */
export interface Compared {
  readonly rows: ReadonlySet<string>;
  readonly wrong: readonly string[];
  /** Events that were alike. */
  readonly same: number;
}

export function compareEvents(
  engine: ReadonlyMap<string, readonly string[]>,
  kvm: ReadonlyMap<string, readonly string[]>,
  release: string,
): Compared {
  const [major = 0, minor = 0] = release.split('.').map(Number);
  const rows = new Set<string>();
  const wrong: string[] = [];
  let same = 0;
  for (const about of new Set([...engine.keys(), ...kvm.keys()])) {
    const real = kvm.get(about) ?? [];
    let says = engine.get(about) ?? [];
    for (const { name, before, event, becomes } of ROWS) {
      const isOlder = before === undefined || major < before[0] || (major === before[0] && minor < before[1]);
      if (says.join() === real.join() || !isOlder || !about.startsWith(`${event} `)) continue;
      const then = becomes(says);
      if (then.join() !== says.join()) rows.add(name);
      says = then;
    }
    if (says.join() === real.join()) same += real.length;
    else wrong.push(`${about}\n    engine: ${(engine.get(about) ?? []).join(', ')}\n    KVM:    ${real.join(', ')}`);
  }
  return { rows, wrong, same };
}
