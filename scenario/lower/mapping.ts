import type { PagingName } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
import type { GuestTables, MachineConfig, Mapping } from '../../engine/program.ts';
import { type Problems, spanOf } from '../diagnostics.ts';
import type * as Ast from '../generated/ast.ts';
import { sizeWords } from '../number.ts';
import { constant } from './expression.ts';
import { aligned, type Coverage, canonical, lowerRange } from './ranges.ts';

/** What a mapping is checked against. */
export interface Surroundings {
  readonly machine: MachineConfig;
  readonly coverage: Coverage;
  /** Paging of the guest whose tables are meant. */
  readonly paging: PagingName;
  /** Whether they are L1's second-stage tables for guests of its own. */
  readonly nested?: GuestTables['nested'];
}

/** One `map` makes at most this many entries: 16 GiB in pages of 4K. */
const MAX_ENTRIES = 1n << 22n;

/** Sizes of pages by the level that maps them, from 1. */
const PAGE_SIZES: Readonly<Record<PagingName, readonly bigint[]>> = {
  '32-bit': [1n << 12n, 1n << 22n],
  pae: [1n << 12n, 1n << 21n],
  '4-level': [1n << 12n, 1n << 21n, 1n << 30n],
  '5-level': [1n << 12n, 1n << 21n, 1n << 30n],
};

export function lowerMap(node: Ast.MapRange, around: Surroundings, problems: Problems): Mapping | undefined {
  const lengths = lowerLengths(node, around, problems);
  const attributes = lowerAttributes(node, node.attributes, problems);
  const gva = constant(node.gva, 'gva', problems);
  const gpa = constant(node.gpa, 'gpa', problems);
  if (!lengths || !attributes || gva === undefined || gpa === undefined) return undefined;
  const { size, pageLevel } = lengths;
  if (!aligned(node.gva, 'gva', gva, problems) || !aligned(node.gpa, 'gpa', gpa, problems)) return undefined;
  if (!canonical(node.gva, { base: gva, size }, around.paging, problems)) return undefined;
  if (!node.length) {
    // One page: of the size that was asked for, or not at all.
    for (const [name, value, place] of [
      ['gva', gva, node.gva],
      ['gpa', gpa, node.gpa],
    ] as const) {
      if (value % size === 0n) continue;
      const words = sizeWords(size);
      return problems.error(
        place,
        `${name} ${hex(value)} is not a multiple of ${words}, so that no ${words} page fits; for smaller pages write +${words}`,
      );
    }
  }
  const { maxPhyAddr } = around.machine;
  if (gpa + size > 1n << BigInt(maxPhyAddr))
    return problems.error(
      node.gpa,
      `gpa ${hex(gpa)} +${sizeWords(size)} ends beyond MAXPHYADDR ${maxPhyAddr}; a malformed entry is written as entry … level 1 = …`,
    );
  const outside = around.coverage.firstOutside({ base: gpa, size });
  if (outside !== undefined)
    problems.warning(node.gpa, `gpa ${hex(outside)} is in no memory slot: accesses to it will be MMIO`);
  const { rights, isShared, saysKind } = attributes;
  const { vm } = around.machine;
  const isTold = (vm === 'snp' || vm === 'tdx') && !around.nested && /level$/.test(around.paging);
  if (saysKind && !isTold)
    return problems.error(node, 'private and shared are for the 4- and 5-level tables of guests of vm snp and vm tdx');
  const kind: Record<string, number> = !isTold
    ? {}
    : vm === 'snp'
      ? isShared
        ? {}
        : { C: 1 }
      : isShared
        ? { S: 1 }
        : {};
  const fields = { ...attributes.fields, ...kind };
  const own = around.nested ? nestedAttributes(around.machine, rights, fields) : { ...rights, fields };
  return { gva, size, gpa, pageLevel, ...own, span: spanOf(node) };
}

/** Of EPT memory is write-back unless told; NPT is walked as the user. */
function nestedAttributes({ second }: MachineConfig, rights: Rights, fields: Readonly<Record<string, number>>) {
  return second === 'ept' ? { ...rights, fields: { 'memory type': 6, ...fields } } : { ...rights, user: true, fields };
}

/** `2M`: one page; `+8M`: a range in the largest pages that fit; `+8M 4K`: in pages of at most 4K; nothing: one of 4K. */
function lowerLengths(
  node: Ast.MapRange,
  { machine: { features }, paging }: Surroundings,
  problems: Problems,
): { size: bigint; pageLevel: number } | undefined {
  const sizes = PAGE_SIZES[paging];
  let pageLevel = sizes.length > 2 && features.includes('1g-pages') ? 3 : 2;
  let page = 4096n;
  if (node.page) {
    const value = constant(node.page, 'a page size', problems);
    if (value === undefined) return undefined;
    const level = sizes.indexOf(value) + 1;
    if (level === 0)
      return problems.error(
        node.page,
        `there are no pages of ${sizeWords(value)}: ${sizes.map(sizeWords).join(', ')}; for a range write +${sizeWords(value)}`,
      );
    if (level === 3 && !features.includes('1g-pages'))
      return problems.error(node.page, 'pages of 1G need cpu 1g-pages');
    page = value;
    pageLevel = level;
  } else if (!node.length) pageLevel = 1;
  if (!node.length) return { size: page, pageLevel };
  const range = lowerRange(node.gva, node.length, 'gva', problems);
  if (!range) return undefined;
  const largest = sizes[pageLevel - 1]!;
  const entries = range.size / largest;
  if (entries > MAX_ENTRIES)
    return problems.error(
      node.length,
      `${sizeWords(range.size)} in pages of ${sizeWords(largest)} are ${entries} entries; at most ${MAX_ENTRIES} for one map`,
    );
  return { size: range.size, pageLevel };
}

export interface Rights {
  readonly write: boolean;
  readonly execute: boolean;
  readonly user: boolean;
}

/** Permissions, `rwx` when left out; `user` or `supervisor`, which is the default; and further fields of the leaves. */
export function lowerAttributes(
  node: Ast.MapRange | Ast.Protect,
  attributes: readonly Ast.Attribute[],
  problems: Problems,
): { rights: Rights; fields: Record<string, number>; isShared: boolean; saysKind: boolean } | undefined {
  const rights = { write: true, execute: true, user: false };
  const fields: Record<string, number> = {};
  const seen = new Set<string>();
  let valid = true;
  let isShared = false;
  for (const attribute of attributes) {
    const value = attribute.$type === 'KeyAttribute' ? 'key' : attribute.value;
    const subject =
      attribute.$type === 'PermissionAttribute'
        ? 'permissions'
        : value === 'user' || value === 'supervisor'
          ? 'user or supervisor'
          : value === 'private' || value === 'shared'
            ? 'private or shared'
            : value;
    if (seen.has(subject)) {
      problems.error(attribute, `${subject} given twice`);
      valid = false;
    }
    seen.add(subject);
    if (attribute.$type === 'PermissionAttribute') {
      rights.write = attribute.value[1] === 'w';
      rights.execute = attribute.value[2] === 'x';
    } else if (attribute.$type === 'KeyAttribute') {
      const key = constant(attribute.value, 'a protection key', problems);
      if (key === undefined) valid = false;
      else if (key > 15n) {
        problems.error(attribute, `protection key ${key} is out of range: 0 … 15`);
        valid = false;
      } else fields.PK = Number(key);
    } else if (attribute.value === 'user') rights.user = true;
    else if (attribute.value === 'global') fields.G = 1;
    else if (attribute.value === 'accessed') fields.A = 1;
    else if (attribute.value === 'dirty') fields.D = 1;
    else isShared = attribute.value === 'shared';
  }
  if (node.$type === 'Protect') {
    if (!seen.has('permissions')) {
      problems.error(node, 'protect needs the new permissions: r--, rw-, r-x or rwx');
      valid = false;
    }
    for (const name of ['global', 'accessed', 'dirty', 'key', 'private or shared']) {
      if (!seen.has(name)) continue;
      problems.error(node, `protect changes permissions, and user or supervisor; ${name} stays as it was mapped`);
      valid = false;
    }
  }
  return valid ? { rights, fields, isShared, saysKind: seen.has('private or shared') } : undefined;
}

/** An entry as it is, whatever it means. */
export function lowerEntry(node: Ast.RawEntry, { paging }: Surroundings, problems: Problems): Mapping | undefined {
  const gva = constant(node.gva, 'gva', problems);
  const level = lowerLevel(node.level, LEVELS[paging], problems);
  const value = constant(node.value, 'the value of an entry', problems);
  if (gva === undefined || level === undefined || value === undefined) return undefined;
  if (!aligned(node.gva, 'gva', gva, problems)) return undefined;
  if (!canonical(node.gva, { base: gva, size: 4096n }, paging, problems)) return undefined;
  if (paging === '32-bit' && value > 0xffff_ffffn)
    return problems.error(node.value, `${hex(value)} has more than the 32 bits of an entry of 32-bit paging`);
  return {
    gva,
    size: 4096n,
    gpa: 0n,
    pageLevel: 1,
    write: false,
    execute: false,
    user: false,
    fields: {},
    raw: { level, value },
    span: spanOf(node),
  };
}

const LEVELS: Readonly<Record<PagingName, number>> = { '32-bit': 2, pae: 3, '4-level': 4, '5-level': 5 };
const LEVEL_NAMES = ['', 'PTE', 'PDE', 'PDPTE', 'PML4E', 'PML5E'];

export function lowerLevel(node: Ast.Expression, most: number, problems: Problems): number | undefined {
  const level = constant(node, 'a level', problems);
  if (level === undefined) return undefined;
  if (level < 1n || level > BigInt(most))
    return problems.error(node, `level ${level} is out of range: 1 (PTE) … ${most} (${LEVEL_NAMES[most]})`);
  return Number(level);
}
