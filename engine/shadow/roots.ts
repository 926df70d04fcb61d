import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { loadPdptrs } from '../roots/context.ts';
import type { RootInfo } from '../roots/mmu.ts';
import { withRole } from '../roots/role.ts';
import type { Vcpu } from '../vcpu.ts';
import { getShadowPage } from './pages.ts';

/** mmu_alloc_root: a shadow page with one more root reference. */
function allocateRoot(machine: Machine, vcpu: Vcpu, gfn: Gfn, quadrant: number, level: number): Pfn {
  const role = withRole(vcpu.mmu.rootRole, {
    level,
    ...(roleField(vcpu.mmu.rootRole, 'has_4_byte_gpte') ? { quadrant } : {}),
  });
  const page = getShadowPage(machine, vcpu, gfn, role);
  if (!page.shadow.wasRoot) machine.count('roots.built');
  machine.replacePage({ ...page, rootCount: page.rootCount + 1, shadow: { ...page.shadow, wasRoot: true } });
  return page.pfn;
}

/** Frames that the guest's PDPTEs lead to; undefined of those that are not present. */
function guestDirectories(machine: Machine, vcpu: Vcpu): (Gfn | undefined)[] {
  const pdptrs = vcpu.mmu.pdptrs ?? loadPdptrs(machine, vcpu);
  return [0, 1, 2, 3].map((index) => {
    const [lo, hi] = [pdptrs[2 * index]!, pdptrs[2 * index + 1]!];
    return (lo & 1) === 0 ? undefined : vcpu.mode.format.frame(3, lo, hi);
  });
}

/** Whether a guest frame can hold tables that KVM shadows (kvm_vcpu_is_visible_gfn). */
const isVisible = (machine: Machine, gfn: Gfn): boolean => machine.slots.find(gfn) !== undefined;

/**
 * mmu_alloc_direct_roots and mmu_alloc_shadow_roots: one table, or the four of PAE mode behind `pae_root`. A CR3 that leads to no
 * memory gets the dummy root, in which nothing is mapped.
 */
export function allocateShadowRoots(machine: Machine, vcpu: Vcpu): RootInfo {
  const { rootRole } = vcpu.mmu;
  const level = roleField(rootRole, 'level');
  const direct = roleField(rootRole, 'direct') === 1;
  const pgd = direct ? 0n : (vcpu.guestMode?.nested?.pgd ?? vcpu.registers.cr3);
  const { rootGfn } = vcpu.walked;
  if (!direct && !isVisible(machine, rootGfn)) return { pgd, pfn: machine.dummyRoot() };
  if (level >= 4) return { pgd, pfn: allocateRoot(machine, vcpu, direct ? 0 : rootGfn, 0, level) };
  const paeRoot = machine.paeRootOf(vcpu);
  const isPae = !direct && roleField(vcpu.mmu.cpuRole.base, 'level') === 3;
  const directories = isPae ? guestDirectories(machine, vcpu) : undefined;
  for (let index = 0; index < 4; index++) {
    const gfn = direct ? index * 2 ** 18 : directories ? directories[index] : rootGfn;
    if (gfn === undefined || (!direct && !isVisible(machine, gfn))) {
      machine.setPaeRoot(paeRoot, index, gfn === undefined ? -1 : machine.dummyRoot());
      continue;
    }
    machine.setPaeRoot(paeRoot, index, allocateRoot(machine, vcpu, gfn, isPae || direct ? 0 : index, 2));
  }
  return { pgd, pfn: paeRoot };
}
