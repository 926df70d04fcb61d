/**
 * The tracepoints of KVM that are understood, and their fields. Names are the kernel's (mmutrace.h and trace.h of
 * arch/x86/kvm, include/trace/events/kvm.h); fields are the union of what kernels 5.10 to 7.1 have.
 */

/** A field of a tracepoint. */
export interface TraceField {
  readonly name: string;
  /** It needs two words; others fit 32 bits. A recording whose kernel says otherwise is stored as that kernel says. */
  readonly wide: boolean;
  /** Two's complement: the sign counts. */
  readonly signed: boolean;
  /** What other kernels call it. */
  readonly aliases: readonly string[];
}

/** A tracepoint that is understood. */
export interface Tracepoint {
  /** Its index in {@link TRACEPOINTS}. */
  readonly kind: number;
  readonly system: 'kvm' | 'kvmmmu';
  readonly name: string;
  readonly fields: readonly TraceField[];
}

/**
 * `NAME` is a field of up to 32 bits, `NAME:` one of 64, `-NAME` one with a sign; `/OTHER` is another kernel's name of it.
 * `spurious` and `fixed` of fast_page_fault are what the kernel prints of `ret`, whose numbers differ between kernels.
 */
const page = 'mmu_valid_gen gfn: role root_count unsync';
const written: readonly (readonly [system: 'kvm' | 'kvmmmu', name: string, fields: string])[] = [
  ['kvmmmu', 'kvm_mmu_get_page', `${page} created`],
  ['kvmmmu', 'kvm_mmu_sync_page', page],
  ['kvmmmu', 'kvm_mmu_unsync_page', page],
  ['kvmmmu', 'kvm_mmu_prepare_zap_page', page],
  ['kvmmmu', 'kvm_mmu_zap_all_fast', 'mmu_valid_gen mmu_used_pages'],
  ['kvmmmu', 'kvm_mmu_set_spte', 'gfn: spte: sptep: level r x -u'],
  ['kvmmmu', 'kvm_mmu_spte_requested', 'gfn: pfn: level'],
  ['kvmmmu', 'kvm_tdp_mmu_spte_changed', 'gfn: old_spte: new_spte: level as_id'],
  ['kvmmmu', 'kvm_mmu_split_huge_page', 'gfn: spte: -level -errno'],
  [
    'kvmmmu',
    'fast_page_fault',
    '-vcpu_id cr2_or_gpa:/gva error_code: sptep: old_spte: new_spte: -ret/retry spurious fixed',
  ],
  ['kvmmmu', 'mark_mmio_spte', 'sptep: gfn: access gen'],
  ['kvmmmu', 'check_mmio_spte', 'kvm_gen spte_gen spte:'],
  ['kvmmmu', 'handle_mmio_page_fault', 'addr: gfn: access'],
  ['kvmmmu', 'kvm_mmu_pagetable_walk', 'addr: pferr'],
  ['kvmmmu', 'kvm_mmu_paging_element', 'pte: level'],
  ['kvmmmu', 'kvm_mmu_set_accessed_bit', 'gpa:'],
  ['kvmmmu', 'kvm_mmu_set_dirty_bit', 'gpa:'],
  ['kvmmmu', 'kvm_mmu_walker_error', 'pferr'],
  ['kvm', 'kvm_page_fault', 'vcpu_id guest_rip: fault_address: error_code:'],
  ['kvm', 'kvm_entry', 'vcpu_id rip: immediate_exit intr_info error_code'],
  ['kvm', 'kvm_exit', 'exit_reason guest_rip: isa info1: info2: intr_info error_code vcpu_id requests:'],
  ['kvm', 'kvm_inj_exception', 'exception has_error error_code reinjected'],
  ['kvm', 'kvm_mmio', 'type len gpa: val:'],
  ['kvm', 'kvm_rmp_fault', 'vcpu_id gpa: pfn: error_code: -rmp_level -psmash_ret'],
  ['kvm', 'kvm_vm_set_mem_attributes', 'start: end: attr:'],
  ['kvm', 'kvm_unmap_hva_range', 'start: end:'],
  ['kvm', 'kvm_age_hva', 'start: end:'],
  ['kvm', 'kvm_set_spte_hva', 'hva:'],
];

export const TRACEPOINTS: readonly Tracepoint[] = written.map(([system, name, fields], kind) => ({
  kind,
  system,
  name,
  fields: fields.split(' ').map((text) => {
    const [first, ...aliases] = text.split('/');
    return {
      name: first!.replace(/[-:]/g, ''),
      wide: first!.endsWith(':'),
      signed: first!.startsWith('-'),
      aliases,
    };
  }),
}));

const byName = new Map(TRACEPOINTS.map((tracepoint) => [tracepoint.name, tracepoint]));

/** The tracepoint of a name; undefined when it is not understood. */
export function tracepoint(name: string): Tracepoint | undefined {
  return byName.get(name);
}

/**
 * The kind of a tracepoint that is understood.
 * @throws RangeError when it is not
 */
export function traceKind(name: string): number {
  const found = byName.get(name);
  if (found === undefined) throw new RangeError(`${name} is not a tracepoint that is understood`);
  return found.kind;
}

/**
 * The index of a tracepoint's field, for what reads a recording.
 * @throws RangeError when it has no such field
 */
export function traceField(kind: number, name: string): number {
  const found = fieldIndex(kind, name);
  if (found < 0) throw new RangeError(`${TRACEPOINTS[kind]?.name ?? `kind ${kind}`} has no field ${name}`);
  return found;
}

/** The same, also by what other kernels call it; −1 when there is none. */
export function fieldIndex(kind: number, name: string): number {
  return TRACEPOINTS[kind]?.fields.findIndex((field) => field.name === name || field.aliases.includes(name)) ?? -1;
}
