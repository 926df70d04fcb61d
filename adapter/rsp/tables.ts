import { ROLE_FIELDS, roleField, roleFrom } from '../../engine/kernel/role.ts';
import type { KvmRoles, KvmRoot, KvmTable, KvmTables, SecondStageKind } from '../../engine/kernel/tables.ts';
import { addressToFrame } from '../../engine/memory/words.ts';
import { jsonAnswer } from './json-answer.ts';
import { RspError } from './packet.ts';

/** What the kernel's memory says beside the tables. */
export interface KernelState {
  readonly tables: KvmTables;
  readonly invalidateSeq: number;
  readonly invalidateInProgress: number;
  /** Shadow pages of this machine, by the kernel's own count. */
  readonly usedPages: number;
  readonly slots: readonly KernelSlot[];
}

export interface KernelSlot {
  readonly id: number;
  readonly asId: number;
  readonly flags: number;
  readonly gfn: number;
  readonly pages: number;
  /** Where the host has its memory, in the helper's address space. */
  readonly userspace: bigint;
}

const ENTRIES = 512;
const INVALID_PAGE = 2n ** 64n - 1n;
/** All bits of a role that today's layout has. */
const ROLE_KNOWN =
  Object.values(ROLE_FIELDS).reduce((bits, [low, width]) => bits | (((1 << width) - 1) << low), 0) >>> 0;
const { parse, record, list, count, words, address } = jsonAnswer('qKvm.Tables');

/** The answer to `qKvm.Tables` (native/PROTOCOL.md). @throws RspError */
export function parseTables(text: string, kind: SecondStageKind): KernelState {
  const answer = parse(text);
  const vm = record(answer.vm, 'vm');
  const layout = parseLayout(record(answer.role, 'role'));
  const tables = new Map<number, KvmTable>();
  for (const value of list(answer, 'pages')) {
    const table = parsePage(record(value, 'a page'), layout);
    tables.set(table.frame, table);
  }
  const roots = list(answer, 'vcpus').flatMap((value, vcpu) =>
    parseVcpu(record(value, 'a vCPU'), vcpu, layout, tables),
  );
  const roles = list(answer, 'vcpus').flatMap((value, vcpu) => parseRoles(record(value, 'a vCPU'), vcpu, layout));
  const steady = answer.steady === true;
  const cut = answer.cut === true;
  const why = cut
    ? 'KVM has more tables than are read'
    : steady
      ? ''
      : 'the tables changed while they were read: vCPUs ran, or the host took memory back';
  return {
    tables: { kind, source: 'kernel', certainty: why === '' ? 'exact' : 'stale', why, tables, roots, roles },
    invalidateSeq: count(vm, 'invalidateSeq'),
    invalidateInProgress: count(vm, 'invalidateInProgress'),
    usedPages: count(vm, 'usedPages') + count(vm, 'tdpPages'),
    slots: list(answer, 'slots').map((value) => {
      const slot = record(value, 'a slot');
      return {
        id: count(slot, 'id'),
        asId: count(slot, 'asId'),
        flags: count(slot, 'flags'),
        gfn: Number(address(slot, 'gfn')),
        pages: Number(address(slot, 'pages')),
        userspace: address(slot, 'userspace'),
      };
    }),
  };
}

type Layout = Readonly<Record<string, readonly [low: number, width: number]>>;

function parseLayout(fields: Record<string, unknown>): Layout {
  const layout: Record<string, readonly [number, number]> = {};
  for (const [name, value] of Object.entries(fields)) {
    if (
      !Array.isArray(value) ||
      value.length !== 2 ||
      !value.every((each) => Number.isInteger(each) && each >= 0 && each <= 32)
    )
      throw new RspError(`role.${name} in the answer to qKvm.Tables is not a bit and a width`);
    layout[name] = [value[0], value[1]];
  }
  // Kernels without BTF of their own have today's.
  return Object.keys(layout).length > 0 ? layout : ROLE_FIELDS;
}

function parsePage(page: Record<string, unknown>, layout: Layout): KvmTable {
  const frame = addressToFrame(address(page, 'hpa'));
  return {
    frame,
    gfn: Number(address(page, 'gfn')),
    role: roleFrom(count(page, 'role'), layout),
    roleKnown: ROLE_KNOWN,
    entries: parseEntries(words(page, 'entries'), frame),
    certainty: 'exact',
    ...(page.rootCount === undefined
      ? {}
      : {
          counts: {
            roots: count(page, 'rootCount'),
            unsync: page.unsync === true,
            unsyncChildren: count(page, 'unsyncChildren'),
            writeFlooding: count(page, 'writeFlooding'),
            nxDisallowed: page.nxDisallowed === true,
            validGen: count(page, 'validGen'),
          },
        }),
  };
}

/** `VALUE*COUNT,VALUE`, in hexadecimal and decimal. */
function parseEntries(text: string, frame: number): Uint32Array {
  const entries = new Uint32Array(2 * ENTRIES);
  let index = 0;
  for (const part of text.split(',')) {
    const [, value, times] = /^([0-9a-f]{1,16})(?:\*(\d{1,3}))?$/.exec(part) ?? [];
    const repeated = times === undefined ? 1 : Number(times);
    if (value === undefined || index + repeated > ENTRIES)
      throw new RspError(
        `the table at frame ${frame} in the answer to qKvm.Tables has entries that make no sense: ${part}`,
      );
    const padded = value.padStart(16, '0');
    const hi = Number.parseInt(padded.slice(0, 8), 16);
    const lo = Number.parseInt(padded.slice(8), 16);
    for (let each = 0; each < repeated; each++, index++) {
      entries[2 * index] = lo;
      entries[2 * index + 1] = hi;
    }
  }
  if (index !== ENTRIES)
    throw new RspError(`the table at frame ${frame} in the answer to qKvm.Tables has ${index} entries, not ${ENTRIES}`);
  return entries;
}

function parseVcpu(
  vcpu: Record<string, unknown>,
  number: number,
  layout: Layout,
  tables: Map<number, KvmTable>,
): KvmRoot[] {
  const active = words(vcpu, 'active');
  return (['root', 'guest'] as const).flatMap((name) =>
    parseMmu(record(vcpu[name], `${name}_mmu`), number, layout, tables, {
      ...(name === 'guest' ? { mmu: name } : {}),
      ...(name === active ? {} : { inactive: true }),
    }),
  );
}

function parseRoles(vcpu: Record<string, unknown>, number: number, layout: Layout): KvmRoles[] {
  return (['root', 'guest', 'nested'] as const).map((name) => {
    const mmu = record(vcpu[name], `${name}_mmu`);
    const [base, ext] = list(mmu, 'cpuRole');
    if (typeof base !== 'number' || typeof ext !== 'number')
      throw new RspError(`cpuRole of ${name}_mmu in the answer to qKvm.Tables is not two words`);
    const cpuRole = { base: roleFrom(base, layout), ext };
    return { vcpu: number, mmu: name, rootRole: roleFrom(count(mmu, 'rootRole'), layout), cpuRole };
  });
}

function parseMmu(
  mmu: Record<string, unknown>,
  number: number,
  layout: Layout,
  tables: Map<number, KvmTable>,
  of: Pick<KvmRoot, 'mmu' | 'inactive'>,
): KvmRoot[] {
  const role = roleFrom(count(mmu, 'rootRole'), layout);
  const found: KvmRoot[] = [];
  const add = (value: unknown, which: KvmRoot['which'], pae: unknown): void => {
    const root = record(value, 'a root');
    const hpa = address(root, 'hpa');
    if (hpa === INVALID_PAGE || hpa === 0n) return;
    const frame = addressToFrame(hpa);
    // The four roots of a PAE root are a table that no kvm_mmu_page is for.
    if (Array.isArray(pae)) {
      const entries = new Uint32Array(2 * ENTRIES);
      pae.forEach((_, index) => {
        const entry = address(pae as unknown as Record<string, unknown>, `${index}`);
        entries[2 * index] = Number(entry & 0xffff_ffffn);
        entries[2 * index + 1] = Number(entry >> 32n);
      });
      tables.set(frame, { frame, gfn: 0, role: (role & ~15) | 3, roleKnown: 0, entries, certainty: 'exact' });
    }
    const table = tables.get(frame);
    found.push({
      vcpu: number,
      ...of,
      which,
      frame,
      pgd: address(root, 'pgd'),
      levels: table ? roleField(table.role, 'level') : roleField(role, 'level'),
      invalid: table !== undefined && roleField(table.role, 'invalid') !== 0,
    });
  };
  add(mmu.root, 'current', mmu.pae);
  list(mmu, 'previous').forEach((value, index) => {
    if (index < 3) add(value, index as 0 | 1 | 2, undefined);
  });
  return found;
}
