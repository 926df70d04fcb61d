import type { DebugProtocol } from '@vscode/debugprotocol';
import { FILTERS, type Filter } from '../breakpoints.ts';

/** What a real machine can be stopped at, and the stops of the helper that this needs. */
export const KVM_FILTERS: readonly (Filter & { readonly stops: readonly string[] })[] = [
  {
    filter: 'guest',
    label: 'Guest #PF',
    description: 'A page fault, before the guest’s own handler runs',
    default: true,
    stops: ['guest-pf'],
  },
  {
    filter: 'second-stage',
    label: 'First touch or write of a page (userfaultfd)',
    description: 'A second-stage fault for which the host has to provide the page; “gpa in A..B” says where',
    // Every page is touched for the first time once.
    default: false,
    stops: ['second-stage'],
  },
  {
    filter: 'mmio',
    label: 'MMIO exit, write to read-only memory',
    description: 'An access that no memslot holds, or a write to a read-only one',
    default: false,
    stops: ['mmio', 'read-only'],
  },
  {
    filter: 'violations',
    label: 'Violations after the fact (tracepoints)',
    description:
      'Second-stage faults whose page the host has, which nothing can stop at: they are printed after the access, at the next stop',
    default: false,
    stops: [],
  },
];

/** What a recording can be stopped at. */
export const RECORDED_FILTERS: readonly Filter[] = [
  {
    filter: 'second-stage',
    label: 'Faults that came to KVM (kvm_page_fault)',
    description: 'EPT violations, NPT faults, and faults on shadow tables',
    default: true,
  },
  { filter: 'fast', label: 'Fast faults', description: 'Looked at without a lock (fast_page_fault)', default: false },
  {
    filter: 'guest',
    label: 'Exceptions given to the guest',
    description: 'kvm_inj_exception, #PF among them',
    default: false,
  },
  { filter: 'mmio', label: 'MMIO', description: 'kvm_mmio and handle_mmio_page_fault', default: false },
];

/** Filters of a session: those of a real machine, and what a scenario can be stopped at besides; else the emulator's. */
function filtersOf(onKvm: 'guest' | 'scenario' | 'recording' | undefined): readonly Filter[] {
  if (onKvm === undefined) return FILTERS;
  if (onKvm === 'recording') return RECORDED_FILTERS;
  const ofScenarios = FILTERS.filter(({ filter }) => ['memory-fault', 'warning', 'expect'].includes(filter));
  if (onKvm === 'guest') return KVM_FILTERS;
  return [...KVM_FILTERS.filter(({ stops }) => stops.length > 0), ...ofScenarios];
}

/** The same, as a client is told of them. */
export function announcedFilters(onKvm: Parameters<typeof filtersOf>[0]): DebugProtocol.ExceptionBreakpointsFilter[] {
  return filtersOf(onKvm).map(({ filter, label, description, default: isDefault }) => ({
    filter,
    label,
    description,
    default: isDefault,
    supportsCondition: true,
    conditionDescription: 'e.g. gpa in 0x100000..0x200000 && write && level == 1 && hits >= 3',
  }));
}
