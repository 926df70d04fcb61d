import { permissionBitmaps } from './guest/permission.ts';
import { type GuestCpu, pagingMode, type Registers } from './guest/registers.ts';
import { roleField } from './kernel/role.ts';
import type { Machine } from './machine.ts';
import type { Mmu } from './roots/mmu.ts';
import type { MmuName, Vcpu } from './vcpu.ts';

// What a vCPU's processor walks, and how, follows from its registers, its MMUs and CPUID: these functions put them in place. Who logs
// the change calls them, and undo does.

/** Puts a vCPU's registers in place. */
export function applyRegisters(machine: Machine, vcpu: Vcpu, registers: Registers): void {
  vcpu.registers = registers;
  vcpu.mode = pagingMode(registers, machine.cpu, vcpu.mmu.pdptrs);
  applyShadowMode(machine, vcpu);
}

/** Puts what CPUID says in place; what registers mean follows. */
export function applyCpu(machine: Machine, cpu: GuestCpu): void {
  machine.cpu = cpu;
  for (const vcpu of machine.vcpus) applyRegisters(machine, vcpu, vcpu.registers);
}

/** Puts one of a vCPU's MMUs in place. */
export function applyMmu(machine: Machine, vcpu: Vcpu, which: MmuName, mmu: Mmu): void {
  const { pdptrs } = vcpu.mmus[which];
  vcpu.mmus = { ...vcpu.mmus, [which]: mmu };
  if (mmu.pdptrs !== pdptrs && which === vcpu.active) vcpu.mode = pagingMode(vcpu.registers, machine.cpu, mmu.pdptrs);
  applyRoot(machine, vcpu);
}

/** Puts in place which guest runs, L1 or one of its own, and with which registers. */
export function applyGuestMode(
  machine: Machine,
  vcpu: Vcpu,
  { guestMode, registers, saved }: Pick<Vcpu, 'guestMode' | 'registers' | 'saved'>,
): void {
  vcpu.guestMode = guestMode;
  vcpu.saved = saved;
  applyRegisters(machine, vcpu, registers);
  applyRoot(machine, vcpu);
}

/** What the processor walks follows from the active MMU. */
function applyRoot(machine: Machine, vcpu: Vcpu): void {
  const { second } = machine.config;
  const { root, mmu } = vcpu;
  applyShadowMode(machine, vcpu);
  if (root < 0) vcpu.second = undefined;
  else if (second !== 'shadow') {
    const level = roleField(mmu.rootRole, 'level');
    const withoutBits =
      roleField(mmu.rootRole, 'ad_disabled') === 1 ? machine.formats.withoutAccessedDirty[level] : undefined;
    vcpu.second = { kind: second, format: withoutBits ?? machine.formats.ofRoot(level), root };
    const secure = mmu.mirrorRoot < 0 ? undefined : machine.page(mmu.mirrorRoot).external;
    vcpu.secure = secure === undefined || second !== 'ept' ? undefined : { ...vcpu.second, root: secure };
  }
}

/**
 * With shadow paging the processor itself walks KVM's tables, by the guest's CR4 but always with CR0.WP and EFER.NXE; those tables,
 * and not the guest's, are what it knows.
 */
function applyShadowMode(machine: Machine, vcpu: Vcpu): void {
  if (machine.config.second !== 'shadow') return;
  const { mode, root } = vcpu;
  const protection = { ...mode, wp: true, nxe: true, pke: false, pdptrs: undefined };
  vcpu.shadowed = {
    ...protection,
    paging: true,
    format: machine.shadowFormat(vcpu.mmu),
    rootGfn: Math.max(root, 0),
    rootEntry: 0,
    reportsFetch: true,
    permissions: permissionBitmaps(protection),
  };
}
