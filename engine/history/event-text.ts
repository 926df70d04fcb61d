import { roleWords } from '../kernel/role.ts';
import { hex } from '../memory/words.ts';
import type { Recording } from './recording.ts';
import { TRACEPOINTS, traceKind } from './tracepoints.ts';

/** A field of an event; undefined where the recording does not have it. */
export function eventField(recording: Recording, at: number, name: string): bigint | undefined {
  const index = TRACEPOINTS[recording.kind(at)]!.fields.findIndex((field) => field.name === name);
  return index >= 0 && recording.known(at, index) ? recording.value(at, index) : undefined;
}

/** Fields that are counts or small numbers; the others are written in hexadecimal. */
const DECIMAL = new Set(['vcpu_id', 'level', 'as_id', 'errno', 'root_count', 'created', 'unsync', 'fixed', 'spurious']);

/** Name and fields of an event, in one line: `kvm_mmu_set_spte: gfn 0x200, spte 0x…, level 1`. */
export function eventText(recording: Recording, at: number): string {
  const { name, fields } = TRACEPOINTS[recording.kind(at)]!;
  const words = fields.flatMap((field) => {
    const value = eventField(recording, at, field.name);
    if (value === undefined) return [];
    if (field.name === 'role') return [roleWords(Number(value), recording.shape(at).roleKnown)];
    return [`${field.name} ${DECIMAL.has(field.name) ? value : hex(BigInt.asUintN(64, value))}`];
  });
  return `${name}: ${words.join(', ')}`;
}

/** What kind of thing an event tells of, as people stop at it. */
export type EventClass = 'second-stage' | 'fast' | 'guest' | 'mmio' | 'change' | 'other';

const CLASSES: Readonly<Record<string, EventClass>> = {
  kvm_page_fault: 'second-stage',
  kvm_rmp_fault: 'second-stage',
  fast_page_fault: 'fast',
  kvm_inj_exception: 'guest',
  kvm_mmio: 'mmio',
  handle_mmio_page_fault: 'mmio',
  kvm_mmu_get_page: 'change',
  kvm_mmu_prepare_zap_page: 'change',
  kvm_mmu_zap_all_fast: 'change',
  kvm_mmu_set_spte: 'change',
  kvm_tdp_mmu_spte_changed: 'change',
  kvm_mmu_split_huge_page: 'change',
};
const byKind = TRACEPOINTS.map(({ name }) => CLASSES[name] ?? 'other');

const PAGE_FAULT = traceKind('kvm_page_fault');
const REQUESTED = traceKind('kvm_mmu_spte_requested');
/** Recordings in which faults are told by kvm_page_fault. */
const toldOf = new WeakMap<Recording, boolean>();

/** A KVM whose processor has no second stage may tell of a fault only when it maps the page (kvm_mmu_spte_requested). */
function tellsFaults(recording: Recording): boolean {
  let told = toldOf.get(recording);
  if (told === undefined) {
    told = false;
    for (let at = 0; at < recording.length && !told; at++) told = recording.kind(at) === PAGE_FAULT;
    toldOf.set(recording, told);
  }
  return told;
}

export function eventClass(recording: Recording, at: number): EventClass {
  const kind = recording.kind(at);
  if (kind === REQUESTED) return tellsFaults(recording) ? 'other' : 'second-stage';
  return byKind[kind]!;
}

/** Whether an event belongs into a list of faults. */
export function isFault(recording: Recording, at: number): boolean {
  const found = eventClass(recording, at);
  return found === 'second-stage' || found === 'fast' || found === 'guest' || found === 'mmio';
}

/** The address that an event is about: guest-physical unless `shadow` says that faults have virtual ones. */
export function eventAddress(
  recording: Recording,
  at: number,
  shadow: boolean,
): { readonly space: 'gva' | 'gpa'; readonly address: bigint } | undefined {
  const fault = eventField(recording, at, 'fault_address') ?? eventField(recording, at, 'cr2_or_gpa');
  if (fault !== undefined) return { space: shadow ? 'gva' : 'gpa', address: fault };
  const gpa = eventField(recording, at, 'gpa');
  if (gpa !== undefined) return { space: 'gpa', address: gpa };
  const gfn = eventField(recording, at, 'gfn');
  return gfn === undefined ? undefined : { space: 'gpa', address: gfn * 4096n };
}
