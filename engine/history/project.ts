import { type RoleField, roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import { toBigint } from '../memory/words.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import type { MmuPage } from '../tdp/mmu-page.ts';
import { Kind, type LogEntry } from './log.ts';

/** One line of what KVM's tracepoints would have recorded. */
export interface TraceEvent {
  readonly step: number;
  readonly task: string;
  readonly event: string;
  readonly text: string;
}

const hex = (value: bigint | number): string => value.toString(16);
const wide = (value: bigint): string => `0x${value.toString(16).padStart(16, '0')}`;

/**
 * The log as KVM's tracepoints would tell it (7.1: mmutrace.h, trace.h): less than what happened. Silent are the pieces
 * of a split page, accessed and dirty bits, register writes, locks, and the guest's own page faults.
 * `rip` is always 0: a scenario has no code.
 */
export function* project(machine: Machine, from = machine.log.first): Generator<TraceEvent> {
  const { log } = machine;
  const tables = tableRecords(machine);
  for (let position = from; position < log.length; position++) {
    const entry = log.at(position);
    const words = describe(machine, entry, tables);
    if (words)
      yield { step: entry.step, task: machine.tasks[entry.task]?.name ?? 'user', event: words[0], text: words[1] };
  }
}

/** Every record that a table's frame had while the log lasts, by frame; a frame may be used again. */
function tableRecords(machine: Machine): Map<number, { readonly from: number; readonly page: MmuPage }[]> {
  const records = new Map<number, { from: number; page: MmuPage }[]>();
  const { log } = machine;
  for (let position = log.first; position < log.length; position++) {
    const kind = log.kindAt(position);
    if (kind !== Kind.TABLE_ALLOC && kind !== Kind.TABLE_FREE) continue;
    const { address, object } = log.at(position);
    const known = records.get(address) ?? [];
    // A table that is freed without having been allocated here was there before the log begins.
    if (kind === Kind.TABLE_ALLOC) known.push({ from: position, page: object as MmuPage });
    else if (known.length === 0) known.push({ from: 0, page: (object as { page: MmuPage }).page });
    records.set(address, known);
  }
  for (const page of machine.pages.values()) if (!records.has(page.pfn)) records.set(page.pfn, [{ from: 0, page }]);
  return records;
}

function describe(
  machine: Machine,
  entry: LogEntry,
  tables: ReturnType<typeof tableRecords>,
): [event: string, text: string] | undefined {
  switch (entry.kind) {
    case Kind.EXIT: {
      const fault = entry.object as FaultInfo;
      const { second } = machine.config;
      const code = second === 'ept' ? fault.exitInfo : fault.errorCode;
      // Of a #PF it is CR2.
      const address = second === 'shadow' ? fault.gva : (fault.gpa ?? 0n);
      return ['kvm_page_fault', `vcpu ${fault.vcpu} rip 0x0 address ${wide(address)} error_code 0x${hex(code)}`];
    }
    case Kind.ENTRY:
      return ['kvm_entry', `vcpu ${entry.address}, rip 0x0 intr_info 0x00000000 error_code 0x00000000`];
    case Kind.SPTE: {
      const page = tables
        .get(Math.floor(entry.address / 512))
        ?.findLast((record) => record.from <= entry.position)?.page;
      if (!page) return undefined;
      const gfn = page.gfn + (entry.address % 512) * machine.secondFormat.span[page.level]!;
      return [
        'kvm_tdp_mmu_spte_changed',
        `as id 0 gfn ${hex(gfn)} level ${page.level} old_spte ${hex(toBigint(entry.oldLo, entry.oldHi))} new_spte ${hex(toBigint(entry.newLo, entry.newHi))}`,
      ];
    }
    case Kind.TABLE_ALLOC: {
      const page = entry.object as MmuPage;
      // Shadow pages are told of when they are looked for.
      if (page.shadow) return undefined;
      const told = { mmu_valid_gen: 0, gfn: page.gfn, role: page.role, root_count: 0, unsync: false };
      return ['kvm_mmu_get_page', `${pageText(told)} new`];
    }
    case Kind.GUEST_FAULT:
      // A #PF that the processor delivers inside the guest is not seen by the hypervisor.
      return entry.oldLo === 1
        ? ['kvm_inj_exception', `#PF (0x${hex((entry.object as FaultInfo).errorCode)})`]
        : undefined;
    case Kind.MMIO: {
      const fault = entry.object as FaultInfo;
      return [
        'kvm_mmio',
        `mmio ${fault.access === 'write' ? 'write' : 'unsatisfied-read'} len ${entry.oldLo} gpa 0x${hex(fault.gpa ?? 0n)} val 0x${hex(fault.access === 'write' ? toBigint(entry.newLo, entry.newHi) : 0)}`,
      ];
    }
    case Kind.TRACE: {
      const { event, fields } = entry.object as { event: string; fields: Readonly<Record<string, unknown>> };
      return [event, traceText(machine, event, fields)];
    }
    default:
      return undefined;
  }
}

/** The fields that all events of a shadow page have (KVM_MMU_PAGE_PRINTK). */
interface PageFields {
  readonly mmu_valid_gen: number;
  readonly gfn: number;
  readonly role: number;
  readonly root_count: number;
  readonly unsync: boolean;
}

const ACCESS = ['---', '--x', 'w--', 'w-x', '-u-', '-ux', 'wu-', 'wux'];

function pageText({ mmu_valid_gen, gfn, role, root_count, unsync }: PageFields): string {
  const field = (name: RoleField): number => roleField(role, name);
  const words = [
    `sp gen ${mmu_valid_gen} gfn ${hex(gfn)} l${field('level')} ${field('has_4_byte_gpte') ? 4 : 8}-byte q${field('quadrant')}`,
    ...(field('direct') ? ['direct'] : []),
    `${ACCESS[field('access')]}${field('invalid') ? ' invalid' : ''} ${field('efer_nx') ? '' : '!'}nxe ${field('ad_disabled') ? '!' : ''}ad`,
    `root ${root_count} ${unsync ? 'unsync' : 'sync'}`,
  ];
  return words.join(' ');
}

interface Words {
  readonly lo: number;
  readonly hi: number;
}

/** Each text is the tracepoint's own format; the fields were put in by the step that stands for it. */
function traceText(machine: Machine, event: string, fields: Readonly<Record<string, unknown>>): string {
  const number = (name: string): string => hex(fields[name] as number | bigint);
  const spte = (name: string): string => hex(toBigint((fields[name] as Words).lo, (fields[name] as Words).hi));
  switch (event) {
    case 'kvm_mmu_spte_requested':
      return `gfn ${number('gfn')} pfn ${(fields.pfn as number) < 0 ? '8000000000000000' : number('pfn')} level ${fields.level}`;
    case 'kvm_mmu_get_page':
      return `${pageText(fields as unknown as PageFields)} ${fields.created ? 'new' : 'existing'}`;
    case 'kvm_mmu_prepare_zap_page':
    case 'kvm_mmu_unsync_page':
    case 'kvm_mmu_sync_page':
      return pageText(fields as unknown as PageFields);
    case 'kvm_mmu_set_spte': {
      const { lo, hi } = fields.spte as Words;
      const access = machine.secondFormat.access(1, lo, hi);
      return `gfn ${number('gfn')} spte ${spte('spte')} (r${access & 2 ? 'w' : '-'}${access & 1 ? 'x' : '-'}${access & 4 ? 'u' : '-'}) level ${fields.level} at ${number('sptep')}`;
    }
    case 'mark_mmio_spte':
      return `sptep:${number('sptep').padStart(16, '0')} gfn ${number('gfn')} access ${number('access')} gen ${number('gen')}`;
    case 'check_mmio_spte':
      return `spte ${spte('spte')} kvm_gen ${number('kvm_gen')} spte-gen ${number('spte_gen')} valid ${fields.valid ? 1 : 0}`;
    case 'handle_mmio_page_fault':
      return `addr:${number('addr')} gfn ${number('gfn')} access ${number('access')}`;
    case 'fast_page_fault':
      return `vcpu ${fields.vcpu_id} gva ${number('gpa')} error_code ${number('error_code')} sptep ${number('sptep').padStart(16, '0')} old 0x${spte('old')} new 0x${spte('new')} spurious ${fields.spurious ? 1 : 0} fixed ${fields.fixed ? 1 : 0}`;
    case 'kvm_try_async_get_page':
    case 'kvm_async_pf_repeated_fault':
      return `gva = 0x${number('gva')}, gfn = 0x${number('gfn')}`;
    case 'kvm_async_pf_not_present':
    case 'kvm_async_pf_ready':
      return `token 0x${number('token')} gva 0x${number('gva')}`;
    case 'kvm_async_pf_completed':
      return `gva 0x${number('gva')} address 0x${number('address')}`;
    case 'kvm_mmu_split_huge_page':
      return `gfn ${number('gfn')} spte ${spte('spte')} level ${fields.level} errno ${fields.errno}`;
    case 'kvm_mmu_zap_all_fast':
      return `kvm-mmu-valid-gen ${fields.valid_gen} used_pages ${number('used_pages')}`;
    case 'kvm_vm_set_mem_attributes':
      return `0x${number('start').padStart(14, '0')} -- 0x${number('end').padStart(14, '0')} [0x${number('attr')}]`;
    case 'kvm_rmp_fault':
      return `vcpu ${fields.vcpu_id} gpa ${number('gpa').padStart(16, '0')} pfn 0x${number('pfn')} error_code 0x${number('error_code')} rmp_level ${fields.rmp_level} psmash_ret ${fields.psmash_ret}`;
    case 'kvm_unmap_hva_range':
      return `mmu notifier unmap range: 0x${number('start').padStart(14, '0')} -- 0x${number('end').padStart(14, '0')}`;
    default:
      return '';
  }
}
