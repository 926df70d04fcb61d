import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { clearWriteFlooding } from '../shadow/pages.ts';
import { putShadowRoot } from '../shadow/zap.ts';
import { putTdpRoot } from '../tdp/root.ts';
import {
  MMUS,
  REQ_LOAD_MMU_PGD,
  REQ_MMU_SYNC,
  REQ_TLB_FLUSH_CURRENT,
  REQ_TLB_FLUSH_GUEST,
  type Vcpu,
} from '../vcpu.ts';
import {
  findAndKeepCurrent,
  findWithoutCurrent,
  INVALID_ROOT,
  PREV_ROOTS,
  ROOT_CURRENT,
  ROOTS_ALL,
  type RootInfo,
  rootPrevious,
} from './mmu.ts';
import { type CpuRole, cpuRole, NO_ROLE, shadowRootRole, tdpRootRole, withRole } from './role.ts';

/** The two roles of an MMU. */
export interface Roles {
  readonly cpu: CpuRole;
  readonly rootRole: number;
}

/** The roles that follow from the guest's registers, for root_mmu. */
function rolesOf(machine: Machine, vcpu: Vcpu): Roles {
  const is2022 = machine.policies.roots !== 'today';
  const where = { guestMode: vcpu.guestMode !== undefined, smm: vcpu.smm !== undefined, is2022 };
  const cpu = cpuRole(vcpu.registers, where);
  const rootRole = machine.isTdp ? tdpRootRole(cpu, machine.secondFormat.rootLevel, is2022) : shadowRootRole(cpu);
  return { cpu, rootRole };
}

/** kvm_init_mmu. Of a nested guest the roles are nested_mmu's, which has no tables. */
export function initMmu(machine: Machine, vcpu: Vcpu): void {
  const roles = rolesOf(machine, vcpu);
  if (vcpu.guestMode?.nested) setRoles(machine, vcpu, { ...roles, rootRole: 0 }, 'nested');
  else setRoles(machine, vcpu, roles);
}

/**
 * New roles, and a root of them. Until the series the root was looked for first, by a role that was computed for that alone
 * (kvm_mmu_calc_root_page_role).
 */
export function switchPgd(machine: Machine, vcpu: Vcpu, pgd: bigint, roles = rolesOf(machine, vcpu)): void {
  if (machine.policies.roots !== 'before') {
    setRoles(machine, vcpu, roles);
    newPgd(machine, vcpu, pgd);
    return;
  }
  newPgd(machine, vcpu, pgd, roles.rootRole);
  setRoles(machine, vcpu, roles);
}

/** Gives an MMU its roles, if they are others. @param which the active one unless told */
export function setRoles(machine: Machine, vcpu: Vcpu, { cpu, rootRole }: Roles, which = vcpu.active): void {
  const { cpuRole: before, rootRole: role } = vcpu.mmus[which];
  if (before.base === cpu.base && before.ext === cpu.ext && role === rootRole) return;
  machine.setMmu(vcpu, { cpuRole: cpu, rootRole }, which);
}

/** root_to_sp: special roots, which are the processor's alone, have none. */
export function rootPage(machine: Machine, root: Pfn) {
  return root < 0 ? undefined : machine.pages.get(root);
}

function putRoot(machine: Machine, root: Pfn): void {
  const page = rootPage(machine, root);
  if (!page) return;
  machine.count('roots.released');
  if (machine.injects('root-leak')) return;
  if (page.shadow) putShadowRoot(machine, page);
  else putTdpRoot(machine, page);
}

/** kvm_mmu_free_roots @param which ROOT_* @param name of which MMU: the active one unless told */
export function freeRoots(machine: Machine, vcpu: Vcpu, which: number, name = vcpu.active): void {
  const mmu = vcpu.mmus[name];
  const prevRoots = mmu.prevRoots.map((root, index) => {
    if ((which & rootPrevious(index)) === 0 || root.pfn < 0) return root;
    putRoot(machine, root.pfn);
    return INVALID_ROOT;
  });
  let { root } = mmu;
  if ((which & ROOT_CURRENT) !== 0 && root.pfn >= 0) {
    if (root.pfn === mmu.paeRoot) machine.freePaeRoots(mmu.paeRoot, (pfn) => putRoot(machine, pfn));
    else putRoot(machine, root.pfn);
    root = INVALID_ROOT;
  }
  if (root !== mmu.root || prevRoots.some((each, index) => each !== mmu.prevRoots[index]))
    machine.setMmu(vcpu, { root, prevRoots }, name);
}

/** The words of the guest's PDPTEs in memory; none is present where there is no memory. */
function readPdptrs(machine: Machine, { mode: { rootGfn, rootEntry } }: Vcpu): readonly number[] {
  const pfn = machine.resolve(rootGfn);
  return pfn < 0 ? [0, 0, 0, 0, 0, 0, 0, 0] : [...machine.memory.page(pfn).subarray(2 * rootEntry, 2 * rootEntry + 8)];
}

/** load_pdptrs: where they have changed the root, which was made of them, is of no use. */
export function loadPdptrs(machine: Machine, vcpu: Vcpu): readonly number[] {
  const loaded = readPdptrs(machine, vcpu);
  if (vcpu.mmu.pdptrs?.every((word, at) => word === loaded[at])) return vcpu.mmu.pdptrs;
  freeRoots(machine, vcpu, ROOT_CURRENT);
  machine.setMmu(vcpu, { pdptrs: loaded });
  return loaded;
}

/** is_pae_paging, where KVM has to know the PDPTEs: with shadow paging, of a guest with PAE paging. */
export function needsPdptrs(machine: Machine, { mode: { paging, format } }: Vcpu): boolean {
  return !machine.isTdp && paging && format.spec.loadedLevel !== undefined;
}

/** kvm_mmu_unload: no root is left, of L1 and of its guests, nor what was remembered of MMIO. */
export function unload(machine: Machine, vcpu: Vcpu): void {
  machine.count('roots.unloads');
  freeRoots(machine, vcpu, ROOTS_ALL, 'root');
  freeRoots(machine, vcpu, ROOTS_ALL, 'guest');
  for (const { root, paeRoot } of [vcpu.mmus.root, vcpu.mmus.guest])
    if (root.pfn >= 0 || (paeRoot >= 0 && machine.memory.page(paeRoot).some((word) => (word & 1) !== 0)))
      machine.warn('kvm_mmu_unload: a root has outlived it');
  clearMmioInfo(machine, vcpu);
}

/** vcpu_clear_mmio_info */
export function clearMmioInfo(machine: Machine, vcpu: Vcpu): void {
  delete machine.small.mmioPages[vcpu.id];
}

/**
 * kvm_mmu_reset_context: as the series was posted, roots of the new role are looked for; else all are given up. The first posting looked for L2's
 * CR3 among guest_mmu's roots too, which are L1's tables'; here that is mended, as the second did.
 */
export function resetContext(machine: Machine, vcpu: Vcpu): void {
  if (machine.policies.roots === 'posted') {
    initMmu(machine, vcpu);
    if (!vcpu.guestMode?.nested) newPgd(machine, vcpu, vcpu.registers.cr3);
    return;
  }
  unload(machine, vcpu);
  initMmu(machine, vcpu);
}

/** is_root_usable: for the same CR3 unless direct, and with the role that is wanted, so that invalid ones never are. */
function isUsable(machine: Machine, { pgd, pfn }: RootInfo, wanted: bigint, role: number): boolean {
  const page = rootPage(machine, pfn);
  if (page === undefined || !(roleField(role, 'direct') === 1 || pgd === wanted)) return false;
  return page.role === role || (machine.injects('root-wrong-role') && !page.invalid);
}

/** kvm_mmu_new_pgd: takes a root of the cache for the new CR3 if there is one; else the next entry loads it. */
export function newPgd(machine: Machine, vcpu: Vcpu, pgd: bigint, role = vcpu.mmu.rootRole): void {
  // Linux 5.15 looks only where the tables on both sides have had four levels or more so far.
  const { rootRole, cpuRole: cpu } = vcpu.mmu;
  const isLimited =
    machine.policies.roots === 'before' && !(roleField(rootRole, 'level') >= 4 && roleField(cpu.base, 'level') >= 4);
  if (isLimited) {
    freeRoots(machine, vcpu, ROOT_CURRENT);
    return;
  }
  // fast_pgd_switch: a special root is not worth keeping.
  if (vcpu.root >= 0 && !rootPage(machine, vcpu.root)) freeRoots(machine, vcpu, ROOT_CURRENT);
  const { mmu } = vcpu;
  const usable = (root: RootInfo): boolean => isUsable(machine, root, pgd, role);
  const found = vcpu.root >= 0 ? findAndKeepCurrent(mmu, usable) : findWithoutCurrent(mmu, usable);
  if (found.evicted) putRoot(machine, found.evicted.pfn);
  if (found.root !== mmu.root || found.prevRoots.some((root, index) => root !== mmu.prevRoots[index]))
    machine.setMmu(vcpu, { root: found.root, prevRoots: found.prevRoots });
  machine.count(found.found ? 'roots.hits' : 'roots.misses');
  if (!found.found) return;
  machine.setRequests(vcpu, vcpu.requests | REQ_LOAD_MMU_PGD);
  clearMmioInfo(machine, vcpu);
  const page = rootPage(machine, vcpu.root);
  if (page?.shadow) clearWriteFlooding(machine, page.pfn);
}

/** The PCID of a root's CR3. */
const pcidOf = (pgd: bigint): bigint => pgd & 0xfffn;

/** kvm_invalidate_pcid: what a CR3 write without NOFLUSH and INVPCID ask for. */
export function invalidatePcid(machine: Machine, vcpu: Vcpu, pcid: bigint): void {
  if (machine.isTdp) {
    machine.setRequests(vcpu, vcpu.requests | REQ_TLB_FLUSH_GUEST);
    return;
  }
  if (!vcpu.mode.pcide || pcidOf(vcpu.registers.cr3) === pcid)
    machine.setRequests(vcpu, vcpu.requests | REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT);
  if (!vcpu.mode.pcide || machine.injects('previous-roots-kept')) return;
  let which = 0;
  for (let i = 0; i < PREV_ROOTS; i++) if (pcidOf(vcpu.mmu.prevRoots[i]!.pgd) === pcid) which |= rootPrevious(i);
  freeRoots(machine, vcpu, which);
}

/** kvm_mmu_after_set_cpuid: roles mean something else from now on, so that none that is there will do. */
export function afterSetCpuid(machine: Machine, vcpu: Vcpu): void {
  if (machine.injects('roles-kept')) return;
  unload(machine, vcpu);
  for (const which of MMUS) {
    const { rootRole } = vcpu.mmus[which];
    machine.setMmu(vcpu, { cpuRole: NO_ROLE, rootRole: withRole(rootRole, { invalid: 1 }) }, which);
  }
  initMmu(machine, vcpu);
}
