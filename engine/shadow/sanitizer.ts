import { mixedProblems } from '../attributes/mixed.ts';
import { ACC_EXEC, type Format, LEAF, MALFORMED, TABLE } from '../formats/compile.ts';
import { nestedStage } from '../guest/nested.ts';
import { roleField, roleWords } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { hasNxHugePages } from '../tdp/nx-huge-pages.ts';
import { isPresent } from '../tdp/spte.ts';
import { REQ_TLB_FLUSH, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST, type Vcpu } from '../vcpu.ts';
import { gfnOfEntry, hasGptes, isObsolete, type ShadowPage } from './pages.ts';
import { rmapKey } from './state.ts';
import { guestNumber, readGuestEntry } from './sync.ts';

/**
 * What must hold between two steps while nobody holds mmu_lock for writing: of shadow pages, of roots, and of what TLBs keep. Each
 * breach is a sentence that names what is wrong and where; empty when all is well.
 */
export function sanitize(machine: Machine): string[] {
  // In the middle of a change the tables need not agree with each other.
  if (machine.owners('mmu_lock').some((task) => task.holds.some(({ mode }) => mode === 'write'))) return [];
  const found: string[] = [];
  if (machine.shadow.hash.size > 0 || !machine.hasTdpMmu) {
    const mapped = checkPages(machine, found);
    checkReverseMaps(machine, found);
    checkTracking(machine, found);
    // Who logs writes flushes once mmu_lock is dropped, and keeps slots_lock until then.
    if (machine.owners('slots_lock').length === 0)
      for (const vcpu of machine.vcpus) if (machine.hasShadowPages(vcpu)) checkTlb(vcpu, mapped, found);
  }
  if (hasNxHugePages(machine)) checkNxHugePages(machine, found);
  if (machine.vm !== 'ordinary' && machine.small.conversions.length === 0) found.push(...mixedProblems(machine));
  checkRoots(machine, found);
  return found;
}

const hex = (value: number): string => `0x${value.toString(16)}`;
const pageWords = ({ gfn, role }: { readonly gfn: number; readonly role: number }): string =>
  `the shadow page of gfn ${hex(gfn)} (${roleWords(role)})`;

/** What maps a host frame: whether any entry does so writable. */
type Mapped = Map<Pfn, boolean>;

const shadowPagesOf = (machine: Machine): ShadowPage[] =>
  [...machine.pages.values()].filter((page): page is ShadowPage => page.shadow !== undefined && !page.invalid);

/** Entries against the guest's, links against the roles that must be. */
function checkPages(machine: Machine, found: string[]): Mapped {
  const mapped: Mapped = new Map();
  for (const page of shadowPagesOf(machine)) {
    const format = machine.tableFormat(page.pfn);
    const { level } = page;
    for (let index = 0; index < 512; index++) {
      const [lo, hi] = machine.entryWords(page.pfn, index);
      if (!isPresent(lo)) continue;
      const name = `entry ${index} of ${pageWords(page)}`;
      if (format.classify(level, lo) === TABLE && level > 1) {
        checkLink(machine, page, index, format.frame(level, lo, hi), name, found);
        continue;
      }
      const writable = (lo & format.writeLo) !== 0;
      const first = format.frame(level, lo, hi);
      for (let frame = 0; frame < 512 ** (level - 1); frame++)
        mapped.set(first + frame, writable || mapped.get(first + frame) === true);
      checkLeaf(machine, page, index, { lo, hi }, name, found);
      const gfn = gfnOfEntry(machine, page, index);
      if (writable && !isWritableGfn(machine, gfn))
        found.push(`${name} maps gfn ${hex(gfn)} writable, where a table of the guest's is shadowed`);
    }
  }
  return mapped;
}

/** How the tables are read that shadow pages of a role shadow: the guest's own, or L1's for its guests. */
function shadowedFormat(machine: Machine, role: number): Format {
  const vcpu = machine.vcpus[0]!;
  if (!machine.isTdp) return vcpu.mode.format;
  const withBits = roleField(role, 'ad_disabled') === 0;
  const tables = machine.program.guests.find(({ nested }) => nested?.accessedDirty === withBits)!;
  return nestedStage(machine, tables.name, vcpu.guestMode?.l1 ?? vcpu.registers).mode.format;
}

/** Whether a gfn may be mapped writable: no synchronized table of the guest's lies there. */
function isWritableGfn(machine: Machine, gfn: number): boolean {
  if ((machine.shadow.writeTracked.get(gfn) ?? 0) > 0) return false;
  return (machine.shadow.hash.get(gfn) ?? []).every((pfn) => {
    const page = machine.pages.get(pfn) as ShadowPage;
    return !hasGptes(page) || page.invalid || isObsolete(machine, page) || page.shadow.unsync;
  });
}

function checkLink(machine: Machine, page: ShadowPage, index: number, child: Pfn, name: string, found: string[]): void {
  const below = machine.pages.get(child);
  if (!below?.shadow) {
    found.push(`${name} leads to host frame ${hex(child)}, which holds no shadow page any more`);
    return;
  }
  if (!below.shadow.parents.includes(page.pfn * 512 + index))
    found.push(`${name} is not among parent_ptes of ${pageWords(below)}`);
  if (roleField(below.role, 'has_4_byte_gpte') === 1 && roleField(below.role, 'direct') === 0) {
    const quadrant = roleField(below.role, 'quadrant');
    if (quadrant !== (index & 1))
      found.push(
        `${name} leads to quadrant ${quadrant} of the guest's table at gfn ${hex(below.gfn)}, not ${index & 1}`,
      );
  }
  // Of an indirect page the guest's own entry says which table it must be.
  if (!hasGptes(page) || roleField(page.role, 'has_4_byte_gpte') === 1) return;
  const guest = readGuestEntry(machine, page.gfn, index, 8);
  const tables = shadowedFormat(machine, page.role);
  if (!guest || tables.entryBytes !== 8 || tables.rootLevel < page.level) return;
  const isTable = tables.classify(page.level, guest.lo) === TABLE;
  const isDirect = roleField(below.role, 'direct') === 1;
  if (isTable === isDirect)
    found.push(
      `${name} leads to a ${isDirect ? 'direct' : 'indirect'} page, but the guest's entry is ${isTable ? 'a table' : 'none'}`,
    );
  else if (isTable && tables.frame(page.level, guest.lo, guest.hi) !== below.gfn)
    found.push(`${name} shadows gfn ${hex(below.gfn)}, but the guest's entry leads to another table`);
}

/** A leaf of a synchronized page grants no more than the guest's entry and the page's role, and the frame behind it. */
function checkLeaf(
  machine: Machine,
  page: ShadowPage,
  index: number,
  { lo, hi }: { readonly lo: number; readonly hi: number },
  name: string,
  found: string[],
): void {
  const format = machine.tableFormat(page.pfn);
  const gfn = gfnOfEntry(machine, page, index);
  const isUnmapped = machine.resolve(gfn) < 0;
  if (!isUnmapped && machine.resolve(gfn) !== format.frame(page.level, lo, hi))
    found.push(`${name} maps host frame ${hex(format.frame(page.level, lo, hi))}, but gfn ${hex(gfn)} lies elsewhere`);
  if (page.level !== 1 || !hasGptes(page) || page.shadow.unsync || isObsolete(machine, page)) return;
  const tables = shadowedFormat(machine, page.role);
  const bytes = roleField(page.role, 'has_4_byte_gpte') ? 4 : 8;
  if (tables.entryBytes !== bytes) return;
  const guest = readGuestEntry(machine, page.gfn, guestNumber(page.role, index), bytes);
  // What CPUID has made malformed stays where it was shadowed: KVM drops roots alone.
  if (guest && (tables.judge(1, guest.lo, guest.hi) & MALFORMED) !== 0) return;
  if (!guest || tables.classify(1, guest.lo) !== LEAF) {
    found.push(`${name} maps gfn ${hex(gfn)}, but the guest's entry maps nothing`);
    return;
  }
  if (tables.frame(1, guest.lo, guest.hi) !== gfn)
    found.push(
      `${name} maps gfn ${hex(gfn)}, but the guest's entry maps gfn ${hex(tables.frame(1, guest.lo, guest.hi))}`,
    );
  const granted = tables.access(1, guest.lo, guest.hi) & roleField(page.role, 'access');
  const has = format.access(1, lo, hi);
  // Without CR0.WP the supervisor's writes are let through, and the user kept out.
  const lifted = roleField(page.role, 'cr0_wp') === 0 && (has & 4) === 0 ? 2 : 0;
  const more = has & ~(granted | lifted);
  if (more !== 0)
    found.push(
      `${name} grants more than the guest's entry (${more & 2 ? 'W' : ''}${more & 4 ? 'U' : ''}${more & 1 ? 'X' : ''})`,
    );
  if ((has & 2) !== 0 && (lifted & 2) === 0 && (guest.lo & tables.dirtyLo) !== tables.dirtyLo)
    found.push(`${name} is writable, but D is not set in the guest's entry`);
}

/** rmaps have exactly the leaves that there are. */
function checkReverseMaps(machine: Machine, found: string[]): void {
  let leaves = 0;
  for (const page of machine.pages.values()) {
    if (!page.shadow) continue;
    const format = machine.tableFormat(page.pfn);
    for (let index = 0; index < 512; index++) {
      const [lo] = machine.entryWords(page.pfn, index);
      if (!isPresent(lo) || (page.level > 1 && format.classify(page.level, lo) === TABLE)) continue;
      leaves++;
      const gfn = gfnOfEntry(machine, page as ShadowPage, index);
      const key = rmapKey(page.level, gfn - (gfn % 512 ** (page.level - 1)));
      if (!machine.shadow.rmaps.get(key)?.includes(page.pfn * 512 + index))
        found.push(`no reverse map of gfn ${hex(gfn)} has entry ${index} of ${pageWords(page)}`);
    }
  }
  let listed = 0;
  for (const [, sptes] of machine.shadow.rmaps.entries()) listed += sptes.length;
  if (listed !== leaves) found.push(`reverse maps list ${listed} entries, but ${leaves} are mapped`);
}

/** Counts of tracked gfns, and marks on the way to unsync pages. */
function checkTracking(machine: Machine, found: string[]): void {
  const counts = new Map<number, number>();
  for (const page of machine.pages.values()) {
    if (!page.shadow || !hasGptes(page) || page.invalid) continue;
    if (page.level > 1) counts.set(page.gfn, (counts.get(page.gfn) ?? 0) + 1);
    if (!page.shadow.unsync) continue;
    for (const parent of page.shadow.parents) {
      const above = machine.pages.get(Math.floor(parent / 512));
      if (above?.shadow && !above.shadow.unsyncChildren.includes(parent % 512))
        found.push(`${pageWords(page)} is unsync, and ${pageWords(above)} above it does not know`);
    }
  }
  for (const [gfn, count] of machine.shadow.writeTracked.entries())
    if (machine.slots.find(gfn) && count !== (counts.get(gfn) ?? 0))
      found.push(`gfn ${hex(gfn)} is write-tracked ${count} times, for ${counts.get(gfn) ?? 0} shadow pages`);
}

/** What a TLB keeps is mapped, or a flush is asked for. */
function checkTlb(vcpu: Vcpu, mapped: Mapped, found: string[]): void {
  if ((vcpu.requests & (REQ_TLB_FLUSH | REQ_TLB_FLUSH_CURRENT | REQ_TLB_FLUSH_GUEST)) !== 0 || vcpu.root < 0) return;
  for (const { vfn, pfn, level, access, secondAccess, dirty } of vcpu.tlb.list()) {
    const span = 512 ** (level - 1);
    const frame = pfn - (pfn % span);
    const is = mapped.get(frame);
    const name = `vCPU ${vcpu.id} has gva ${hex(vfn * 4096)} in its TLB`;
    if (is === undefined) found.push(`${name}, which no shadow page maps any more, and nobody asks for a flush`);
    else if (!is && (access & secondAccess & 2) !== 0 && dirty)
      found.push(`${name} writable, which no shadow page maps so any more, and nobody asks for a flush`);
  }
}

/** With NX huge pages no large page is executable, and what the recovery worker is to look at is counted. */
function checkNxHugePages(machine: Machine, found: string[]): void {
  for (const page of machine.pages.values()) {
    const format = machine.tableFormat(page.pfn);
    const { level } = page;
    if (!format.isLargeLevel(level) || level === 1) continue;
    for (let index = 0; index < 512; index++) {
      const [lo, hi] = machine.entryWords(page.pfn, index);
      if (!isPresent(lo) || format.classify(level, lo) !== LEAF || (format.access(level, lo, hi) & ACC_EXEC) === 0)
        continue;
      found.push(
        `entry ${index} of the table at host frame ${hex(page.pfn)} maps an executable page of level ${level}`,
      );
    }
  }
  const { possibleNxHugePages: possible } = machine.small;
  for (const pfn of possible)
    if (!machine.pages.get(pfn)?.nxHugePageDisallowed)
      found.push(`possible_nx_huge_pages has host frame ${hex(pfn)}, where no table stands for NX huge pages' sake`);
  const counted = machine.counter('nx_lpage_splits');
  if (counted !== possible.length)
    found.push(`nx_lpage_splits is ${counted}, but possible_nx_huge_pages has ${possible.length} tables`);
}

/** Whether a vCPU is on its way from L1 to L2 or back, which nobody else sees. */
function isSwitching(machine: Machine, vcpu: Vcpu): boolean {
  return machine.tasks.some((task) => task.vcpu === vcpu.id && task.stack.some(({ fn }) => fn.startsWith('nested_')));
}

/** A vCPU's root has the role that is wanted, and as many references as there are vCPUs that keep it. */
function checkRoots(machine: Machine, found: string[]): void {
  const references = new Map<Pfn, number>();
  const count = (pfn: Pfn): void => void references.set(pfn, (references.get(pfn) ?? 0) + 1);
  for (const vcpu of machine.vcpus) {
    const { mmu } = vcpu;
    for (const name of ['root', 'guest'] as const) {
      for (const pfn of machine.rootTables(vcpu.mmus[name])) count(pfn);
      for (const { pfn } of vcpu.mmus[name].prevRoots) if (pfn >= 0) count(pfn);
    }
    const page = isSwitching(machine, vcpu) ? undefined : machine.pages.get(vcpu.root);
    if (page && !page.invalid && vcpu.requests === 0 && page.role !== mmu.rootRole)
      found.push(
        `vCPU ${vcpu.id} runs on a root of role ${roleWords(page.role)}, but its MMU wants ${roleWords(mmu.rootRole)}`,
      );
    const { paging, rootGfn } = vcpu.walked;
    if (page?.shadow && roleField(page.role, 'direct') === 0 && paging && vcpu.requests === 0 && page.gfn !== rootGfn)
      found.push(`vCPU ${vcpu.id} runs on the tables of gfn ${hex(page.gfn)}, but its CR3 is ${hex(rootGfn * 4096)}`);
  }
  for (const page of machine.pages.values()) {
    if (page.rootCount === 0 && !references.has(page.pfn)) continue;
    const own = page.shadow || machine.policies.roots !== 'today' || page.invalid ? 0 : 1;
    const expected = (references.get(page.pfn) ?? 0) + own;
    if (page.shadow ? page.rootCount !== expected : page.parent < 0 && !page.invalid && page.rootCount !== expected)
      found.push(
        `the root at host frame ${hex(page.pfn)} (${roleWords(page.role)}) counts ${page.rootCount} references, but has ${expected}`,
      );
  }
}
