import { REGISTER_BITS, type RegisterName, type Registers } from '../guest/registers.ts';
import { ROLE_FIELDS, type RoleField, roleField } from '../kernel/role.ts';

/** Of `kvm_mmu_extended_role`: the guest's mode, as far as no table depends on it (7.1: kvm_host.h). The last two were Linux 5.15's. */
export const EXT_ROLE_FIELDS = {
  valid: 0,
  execonly: 1,
  cr4_pse: 2,
  cr4_pke: 3,
  cr4_smap: 4,
  cr4_smep: 5,
  cr4_la57: 6,
  efer_lma: 7,
  cr0_pg: 8,
  cr4_pae: 9,
} as const;
export type ExtRoleField = keyof typeof EXT_ROLE_FIELDS;

/** Which of them a kernel has. @param is2022 as before the CPU's role was a thing of its own */
export function extRoleLayout(is2022: boolean): ExtRoleField[] {
  const others: readonly ExtRoleField[] = is2022 ? ['efer_lma'] : ['cr0_pg', 'cr4_pae'];
  return (Object.keys(EXT_ROLE_FIELDS) as ExtRoleField[]).filter((name) => !others.includes(name));
}

/** `kvm_cpu_role`: what the guest's processor is in. `base` is a role word, of the tables that shadow the guest's own. */
export interface CpuRole {
  readonly base: number;
  readonly ext: number;
}

export const NO_ROLE: CpuRole = { base: 0, ext: 0 };
const ACC_ALL = 7;

/** A role word of fields; those left out are 0. */
export function makeRole(fields: Readonly<Partial<Record<RoleField, number | boolean>>>): number {
  let role = 0;
  for (const [name, value] of Object.entries(fields)) role |= Number(value) << ROLE_FIELDS[name as RoleField][0];
  return role >>> 0;
}

/** A role word with some of its fields changed. */
export function withRole(role: number, fields: Readonly<Partial<Record<RoleField, number | boolean>>>): number {
  let changed = role;
  for (const [name, value] of Object.entries(fields)) {
    const [low, width] = ROLE_FIELDS[name as RoleField];
    changed = (changed & ~(((1 << width) - 1) << low)) | (Number(value) << low);
  }
  return changed >>> 0;
}

function has(registers: Registers, register: RegisterName, name: string): boolean {
  return ((registers[register] >> BigInt(REGISTER_BITS[register]![name]!)) & 1n) !== 0n;
}

/**
 * kvm_calc_cpu_role. Without paging only SMM and guest mode count beside `direct`, and the level is 0.
 * @param where whether L2 runs, whether the processor is in system-management mode, and whether KVM is that of 2022
 */
export function cpuRole(
  registers: Registers,
  where: { readonly guestMode: boolean; readonly smm: boolean; readonly is2022?: boolean },
): CpuRole {
  const { guestMode, smm, is2022 = false } = where;
  const paging = has(registers, 'cr0', 'pg');
  if (!paging) return { base: makeRole({ access: ACC_ALL, direct: true, guest_mode: guestMode, smm }), ext: 1 };
  const long = has(registers, 'efer', 'lme');
  const wp = has(registers, 'cr0', 'wp');
  const pae = has(registers, 'cr4', 'pae');
  const la57 = long && has(registers, 'cr4', 'la57');
  const [smep, smap] = [has(registers, 'cr4', 'smep'), has(registers, 'cr4', 'smap')];
  const ext: Readonly<Record<ExtRoleField, boolean>> = {
    valid: true,
    execonly: false,
    cr4_pse: has(registers, 'cr4', 'pse'),
    cr4_pke: long && has(registers, 'cr4', 'pke'),
    cr4_smap: smap,
    cr4_smep: smep,
    cr4_la57: la57,
    efer_lma: long,
    cr0_pg: true,
    cr4_pae: pae,
  };
  return {
    base: makeRole({
      level: long ? (la57 ? 5 : 4) : pae ? 3 : 2,
      has_4_byte_gpte: !pae,
      access: ACC_ALL,
      efer_nx: has(registers, 'efer', 'nxe'),
      cr0_wp: wp,
      smep_andnot_wp: smep && !wp,
      smap_andnot_wp: smap && !wp,
      guest_mode: guestMode,
      smm,
    }),
    ext: extRoleLayout(is2022).reduce((word, name) => word | (Number(ext[name]) << EXT_ROLE_FIELDS[name]), 0),
  };
}

/**
 * kvm_calc_tdp_mmu_root_page_role: the same whatever the guest does with CR0, CR4 and EFER.
 * @param like5_15 with the guest's EFER.NX and CR0.WP, as Linux 5.15 had it
 */
export function tdpRootRole(cpu: CpuRole, level: number, like5_15: boolean): number {
  const role = makeRole({
    level,
    direct: true,
    access: ACC_ALL,
    efer_nx: true,
    cr0_wp: true,
    guest_mode: roleField(cpu.base, 'guest_mode'),
    smm: roleField(cpu.base, 'smm'),
  });
  if (!like5_15) return role;
  const own = withRole(0xffff_ffff, { efer_nx: 0, cr0_wp: 0 });
  return ((role & own) | (cpu.base & ~own)) >>> 0;
}

/** kvm_init_shadow_mmu: the processor's role, in tables of at least three levels, always with NX. */
export function shadowRootRole(cpu: CpuRole): number {
  return withRole(cpu.base, { level: Math.max(cpu.base & 15, 3), efer_nx: 1 });
}

/** kvm_calc_shadow_ept_root_page_role: EPT knows nothing of CR0, CR4 and EFER. Role and root role are one. */
export function shadowEptRole(level: number, accessedDirty: boolean, execOnly: boolean): CpuRole {
  return {
    base: makeRole({ level, access: ACC_ALL, ad_disabled: !accessedDirty, guest_mode: true }),
    ext: (1 << EXT_ROLE_FIELDS.valid) | (Number(execOnly) << EXT_ROLE_FIELDS.execonly),
  };
}

/**
 * kvm_init_shadow_npt_mmu: the role of L1's processor, in tables of as many levels as the host's. Where those have a level more its root
 * only passes through.
 */
export function shadowNptRole(cpu: CpuRole, level: number): number {
  const passthrough = level === 5 && roleField(cpu.base, 'level') === 4;
  return withRole(cpu.base, { level, passthrough });
}

/** The extended role in words: `pse smep lma`. */
export function extRoleWords({ ext }: CpuRole): string {
  const names = Object.entries(EXT_ROLE_FIELDS).filter(([name, bit]) => name !== 'valid' && (ext >> bit) & 1);
  return names.map(([name]) => name.replace(/^(cr[04]|efer)_/, '')).join(' ');
}
