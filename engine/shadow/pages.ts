import { TABLE } from '../formats/compile.ts';
import { Kind } from '../history/log.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { withRole } from '../roots/role.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import type { MmuPage } from '../tdp/mmu-page.ts';
import { isPresent, makeTable, spteFormat } from '../tdp/spte.ts';
import type { Vcpu } from '../vcpu.ts';
import { dropLargeSpte, writeProtectGfn } from './rmap.ts';
import { rmapKey, type ShadowState, type SpteAddress } from './state.ts';
import { syncPage } from './sync.ts';
import { commitZap, prepareZap } from './zap.ts';

export interface ShadowPage extends MmuPage {
  readonly shadow: ShadowState;
}

export function shadowPage(machine: Machine, pfn: Pfn): ShadowPage {
  const page = machine.page(pfn);
  if (!page.shadow) throw new Error(`frame 0x${pfn.toString(16)} holds no shadow page`);
  return page as ShadowPage;
}

export const tableOf = (spte: SpteAddress): Pfn => Math.floor(spte / 512);
export const indexOf = (spte: SpteAddress): number => spte % 512;

/** sp_has_gptes: whether a table of the guest's stands behind it. */
export function hasGptes({ role }: MmuPage): boolean {
  return roleField(role, 'direct') === 0 && roleField(role, 'passthrough') === 0;
}

export function updateShadow(machine: Machine, pfn: Pfn, change: Partial<ShadowState>): void {
  const page = shadowPage(machine, pfn);
  machine.replacePage({ ...page, shadow: { ...page.shadow, ...change } });
}

/** is_obsolete_sp: a table that is being taken down, or a shadow page of the generation before. */
export function isObsolete(machine: Machine, { invalid, shadow }: MmuPage): boolean {
  return invalid || (shadow !== undefined && shadow.validGen !== machine.small.mmuValidGen);
}

/** Shadow pages of a guest's table that count: neither direct, invalid nor obsolete (for_each_gfn_valid_sp_with_gptes). */
export function pagesOf(machine: Machine, gfn: Gfn): ShadowPage[] {
  return validPages(machine, gfn).filter(hasGptes);
}

function validPages(machine: Machine, gfn: Gfn): ShadowPage[] {
  const found = machine.shadow.hash.get(gfn) ?? [];
  return found.map((pfn) => shadowPage(machine, pfn)).filter((page) => !isObsolete(machine, page));
}

/** kvm_mmu_page_get_gfn */
export function gfnOfEntry(machine: Machine, page: ShadowPage, index: number): Gfn {
  if (page.shadow.translations < 0) return page.gfn + index * 512 ** (page.level - 1);
  const words = machine.memory.page(page.shadow.translations);
  return words[2 * index + 1]! * 2 ** 20 + (words[2 * index]! >>> 12);
}

/** kvm_mmu_page_get_access */
export function accessOfEntry(machine: Machine, page: ShadowPage, index: number): number {
  if (page.shadow.translations < 0) return roleField(page.role, 'access');
  return machine.memory.page(page.shadow.translations)[2 * index]! & 7;
}

/** kvm_mmu_page_set_translation */
export function setTranslation(machine: Machine, page: ShadowPage, index: number, gfn: Gfn, access: number): void {
  const { translations } = page.shadow;
  if (translations < 0) return;
  const lo = (((gfn % 2 ** 20) << 12) | access) >>> 0;
  machine.storeEntry(Kind.TRANSLATION, translations, index, lo, Math.floor(gfn / 2 ** 20));
}

export function tracePage(machine: Machine, event: string, page: ShadowPage, more: object = {}): void {
  machine.trace(event, {
    mmu_valid_gen: page.shadow.validGen,
    gfn: page.gfn,
    role: page.role,
    root_count: page.rootCount,
    unsync: page.shadow.unsync,
    ...more,
  });
}

export function clearWriteFlooding(machine: Machine, pfn: Pfn): void {
  if (shadowPage(machine, pfn).shadow.writeFlooding !== 0) updateShadow(machine, pfn, { writeFlooding: 0 });
}

/** kvm_mmu_get_shadow_page: one that shadows this table in this role, or a new one. */
export function getShadowPage(machine: Machine, vcpu: Vcpu, gfn: Gfn, role: number): ShadowPage {
  const found = findShadowPage(machine, vcpu, gfn, role);
  const page = found ?? allocateShadowPage(machine, gfn, role);
  tracePage(machine, 'kvm_mmu_get_page', page, { created: found === undefined });
  machine.count(found ? 'tables.reused' : 'tables.built');
  return page;
}

function findShadowPage(machine: Machine, vcpu: Vcpu, gfn: Gfn, role: number): ShadowPage | undefined {
  const invalid: Pfn[] = [];
  let found: ShadowPage | undefined;
  for (const page of validPages(machine, gfn)) {
    if (page.role !== role) {
      // An upper-level table must not be written unseen, as one that is unsync may be.
      if (roleField(role, 'level') > 1 && page.shadow.unsync) prepareZap(machine, page.pfn, invalid);
      continue;
    }
    if (page.shadow.unsync) {
      // It shows what the guest's table says now, and stays unsync.
      const result = syncPage(machine, vcpu, page.pfn);
      if (result < 0) {
        prepareZap(machine, page.pfn, invalid);
        break;
      }
      if (result > 0) flushRemoteTlbs(machine);
    }
    clearWriteFlooding(machine, page.pfn);
    found = shadowPage(machine, page.pfn);
    break;
  }
  commitZap(machine, invalid);
  return found;
}

function allocateShadowPage(machine: Machine, gfn: Gfn, role: number): ShadowPage {
  const isDirect = roleField(role, 'direct') === 1;
  const translations = isDirect ? -1 : machine.allocateFrameForTables();
  const page = machine.allocateShadowTable({
    gfn,
    level: roleField(role, 'level'),
    role,
    shadow: {
      unsync: false,
      unsyncChildren: [],
      writeFlooding: 0,
      wasRoot: false,
      validGen: machine.small.mmuValidGen,
      translations,
      parents: [],
      age: machine.small.nextAge++,
    },
  }) as ShadowPage;
  machine.shadow.hash.set(machine, gfn, [page.pfn, ...(machine.shadow.hash.get(gfn) ?? [])]);
  if (hasGptes(page)) accountShadowed(machine, page);
  return page;
}

/** account_shadowed: the guest's table is write-protected, and no large page may cover it. */
function accountShadowed(machine: Machine, page: ShadowPage): void {
  const { gfn, level } = page;
  if (!machine.slots.find(gfn)) return;
  if (level > 1) {
    const { writeTracked } = machine.shadow;
    writeTracked.set(machine, gfn, (writeTracked.get(gfn) ?? 0) + 1);
  }
  countDisallowLpage(machine, gfn, 1);
  if (machine.injects('unprotected-table') || !writeProtectGfn(machine, gfn)) return;
  if (!machine.injects('unflushed-protection')) flushRemoteTlbs(machine);
}

/** unaccount_shadowed */
export function unaccountShadowed(machine: Machine, page: ShadowPage): void {
  const { gfn, level } = page;
  if (!machine.slots.find(gfn)) return;
  if (level > 1) {
    const { writeTracked } = machine.shadow;
    writeTracked.set(machine, gfn, (writeTracked.get(gfn) ?? 1) - 1 || undefined);
  }
  countDisallowLpage(machine, gfn, -1);
}

/** update_gfn_disallow_lpage_count, at 2M and 1G. */
function countDisallowLpage(machine: Machine, gfn: Gfn, by: number): void {
  const { disallowLpage } = machine.shadow;
  for (let level = 2; level <= 3; level++) {
    const key = rmapKey(level, gfn - (gfn % 512 ** (level - 1)));
    disallowLpage.set(machine, key, (disallowLpage.get(key) ?? 0) + by || undefined);
  }
}

/** How a child's role follows from its parent's (kvm_mmu_child_role), by policy. @param address the faulting one, if there is */
export function childRole(
  machine: Machine,
  parent: MmuPage,
  index: number,
  direct: boolean,
  access: number,
  address?: bigint,
): number {
  const { role } = parent;
  const level = roleField(role, 'level') - 1;
  const child = withRole(role, { level, access, direct, passthrough: 0 });
  if (roleField(role, 'has_4_byte_gpte') === 0) return child;
  if (machine.injects('quadrant-copied')) return child;
  if (machine.injects('quadrant-wrong-bit')) return withRole(child, { quadrant: (index >> 1) & 1 });
  switch (machine.policies.quadrant) {
    case 'copied':
      return child;
    case 'skip':
    case 'address': {
      if (address === undefined) return withRole(child, { quadrant: 0 });
      const quadrant = (address >> BigInt(12 + 9 * level)) & BigInt((1 << level) - 1);
      return withRole(child, { quadrant: Number(quadrant) });
    }
    default:
      if (level !== 1) machine.warn(`kvm_mmu_child_role: a table of 4-byte entries at level ${level}, below another`);
      return withRole(child, { quadrant: index & 1 });
  }
}

/** __link_shadow_page: the entry leads to the page from now on. @param flush whether a large page that stood there may be cached */
export function linkShadowPage(machine: Machine, spte: SpteAddress, child: Pfn, flush = true): void {
  const [table, index] = [tableOf(spte), indexOf(spte)];
  const format = machine.tableFormat(table);
  const level = machine.tableLevel(table);
  const [lo] = machine.entryWords(table, index);
  if (isPresent(lo)) dropLargeSpte(machine, spte, lo, flush);
  const isWithoutBits = roleField(shadowPage(machine, table).role, 'ad_disabled') === 1;
  const entry = makeTable(spteFormat(format), level, child, isWithoutBits);
  machine.setSpte(table, index, entry.lo, entry.hi, false);
  const page = shadowPage(machine, child);
  updateShadow(machine, child, { parents: [...page.shadow.parents, spte] });
  if (page.shadow.unsync || page.shadow.unsyncChildren.length > 0) markUnsync(machine, spte);
}

/** drop_parent_pte */
export function dropParentPte(machine: Machine, child: Pfn, spte: SpteAddress): void {
  const { shadow } = shadowPage(machine, child);
  updateShadow(machine, child, { parents: shadow.parents.filter((parent) => parent !== spte) });
  machine.clearSpte(tableOf(spte), indexOf(spte));
}

/** The page that a present entry leads to; −1 for a leaf. */
export function childOf(machine: Machine, spte: SpteAddress): Pfn {
  const [table, index] = [tableOf(spte), indexOf(spte)];
  const [lo, hi] = machine.entryWords(table, index);
  const level = machine.tableLevel(table);
  const format = machine.tableFormat(table);
  return level > 1 && format.classify(level, lo) === TABLE ? format.frame(level, lo, hi) : -1;
}

/** mark_unsync, and on to the parents' parents until one knows already (kvm_mmu_mark_parents_unsync). */
export function markUnsync(machine: Machine, spte: SpteAddress): void {
  const page = machine.pages.get(tableOf(spte));
  if (!page?.shadow) return;
  const { unsyncChildren } = page.shadow;
  const index = indexOf(spte);
  if (unsyncChildren.includes(index)) return;
  updateShadow(machine, page.pfn, { unsyncChildren: [...unsyncChildren, index].sort((a, b) => a - b) });
  if (unsyncChildren.length > 0) return;
  for (const parent of page.shadow.parents) markUnsync(machine, parent);
}
