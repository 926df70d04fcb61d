import { asyncPfOf, clearQueue } from '../async-pf/queue.ts';
import {
  CR3_NOFLUSH,
  pagingMode,
  REGISTER_BITS,
  RegisterError,
  type RegisterName,
  type Registers,
} from '../guest/registers.ts';
import { isCanonical } from '../guest/walk.ts';
import { roleField } from '../kernel/role.ts';
import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, frameToAddress, hex, type Pfn, toBigint } from '../memory/words.ts';
import { call, defineFunction, NEXT, returns, type Task } from '../operation.ts';
import { invalidateAddress } from '../shadow/invalidate.ts';
import { REQ_APF_READY, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST, type Vcpu } from '../vcpu.ts';
import {
  afterSetCpuid,
  clearMmioInfo,
  initMmu,
  invalidatePcid,
  loadPdptrs,
  needsPdptrs,
  newPgd,
  resetContext,
  unload,
} from './context.ts';
import { enterGuest, mustEnter, vcpuEnterGuest } from './enter.ts';
import { tellInvalidation } from './invalidation.ts';
import type { RootInfo } from './mmu.ts';

const isTdp = (machine: Machine): boolean => machine.config.second !== 'shadow';

function mask(register: RegisterName, ...names: readonly string[]): bigint {
  return names.reduce((bits, name) => bits | (1n << BigInt(REGISTER_BITS[register]![name]!)), 0n);
}
const [WP, PG] = [mask('cr0', 'wp'), mask('cr0', 'pg')];
const [PAE, PGE, PCIDE, SMEP] = [mask('cr4', 'pae'), mask('cr4', 'pge'), mask('cr4', 'pcide'), mask('cr4', 'smep')];
/** KVM_MMU_CR4_ROLE_BITS */
const CR4_ROLE = mask('cr4', 'pse', 'pae', 'la57', 'smep', 'smap', 'pke');
/** X86_CR4_PDPTR_BITS */
const CR4_PDPTR = mask('cr4', 'pge', 'pse', 'pae', 'smep');
const [LME, NXE] = [mask('efer', 'lme'), mask('efer', 'nxe')];

const ask = (machine: Machine, vcpu: Vcpu, requests: number): void =>
  machine.setRequests(vcpu, vcpu.requests | requests);

/** kvm_post_set_cr0 */
function afterCr0(machine: Machine, vcpu: Vcpu, old: bigint, now: bigint): void {
  const changed = old ^ now;
  const { roots } = machine.policies;
  if (changed === WP && roots === 'today' && !machine.injects('wp-unloads')) {
    if ((now & PG) === 0n) return;
    if (isTdp(machine)) {
      // The tables are no others: only how the guest's are read has changed.
      initMmu(machine, vcpu);
      return;
    }
  }
  if ((changed & PG) !== 0n) {
    // In 2022 what was under way was forgotten, and a guest that slept on it slept on.
    if (roots !== 'today') clearQueue(machine, vcpu);
    else if ((now & PG) !== 0n && asyncPfOf(machine, vcpu).enabled) ask(machine, vcpu, REQ_APF_READY);
  }
  if ((changed & old & PG) !== 0n) {
    if (roots === 'today') ask(machine, vcpu, REQ_TLB_FLUSH_GUEST);
    else if (roots === 'posted') unload(machine, vcpu);
  }
  if ((changed & (PG | WP)) !== 0n) resetContext(machine, vcpu);
}

/** kvm_post_set_cr4 */
function afterCr4(machine: Machine, vcpu: Vcpu, old: bigint, now: bigint): void {
  const changed = old ^ now;
  if (machine.policies.roots === 'before') {
    if ((changed & (CR4_ROLE | PGE)) !== 0n || (changed & old & PCIDE) !== 0n) resetContext(machine, vcpu);
    return;
  }
  if (machine.policies.roots === 'posted') {
    if ((changed & CR4_ROLE) !== 0n) {
      resetContext(machine, vcpu);
      if ((changed & now & SMEP) !== 0n) ask(machine, vcpu, REQ_TLB_FLUSH_GUEST);
    } else if ((changed & PCIDE) !== 0n) unload(machine, vcpu);
    else if ((changed & PGE) !== 0n) ask(machine, vcpu, REQ_TLB_FLUSH_GUEST);
    return;
  }
  if ((changed & CR4_ROLE) !== 0n) resetContext(machine, vcpu);
  // Roots are kept by CR3 and its PCID, which meant nothing so far.
  if (!isTdp(machine) && (changed & now & PCIDE) !== 0n && !machine.injects('previous-roots-kept'))
    unload(machine, vcpu);
  if ((changed & PGE) !== 0n || (changed & old & PCIDE) !== 0n) ask(machine, vcpu, REQ_TLB_FLUSH_GUEST);
  else if ((changed & PAE) !== 0n || (changed & now & SMEP) !== 0n) ask(machine, vcpu, REQ_TLB_FLUSH_CURRENT);
}

/** set_efer */
function afterEfer(machine: Machine, vcpu: Vcpu, old: bigint, now: bigint): void {
  const counts = machine.policies.roots === 'before' ? NXE : NXE | LME;
  if (((old ^ now) & counts) !== 0n) resetContext(machine, vcpu);
}

/** kvm_set_cr3. With the TDP MMU the guest writes CR3 without KVM's knowing. */
function afterCr3(machine: Machine, vcpu: Vcpu, old: bigint, now: bigint, noFlush: boolean): void {
  if (isTdp(machine)) return;
  if (needsPdptrs(machine, vcpu)) loadPdptrs(machine, vcpu);
  if (now !== old) newPgd(machine, vcpu, now);
  if (!noFlush) invalidatePcid(machine, vcpu, now & (vcpu.mode.pcide ? 0xfffn : 0n));
}

/**
 * Sets a register, with what the processor does by itself and what KVM does about it.
 * @throws RegisterError naming the register, when the new set cannot be run
 */
export function writeRegister(machine: Machine, vcpu: Vcpu, register: RegisterName, value: bigint): void {
  const before = vcpu.registers;
  const isUnseen = isGuestOwned(machine, vcpu, register, value);
  const noFlush = register === 'cr3' && vcpu.mode.pcide && (value & CR3_NOFLUSH) !== 0n;
  if (!machine.mirror) checkPdptes(machine, vcpu, register, value);
  machine.setRegister(vcpu, register, noFlush ? value & ~CR3_NOFLUSH : value);
  const [old, now] = [before[register], vcpu.registers[register]];
  if (old !== now && MODE_REGISTERS.includes(register)) machine.count('modes.changed');
  // A real machine's KVM does its own part.
  if (machine.mirror) return;
  flushAsProcessor(machine, vcpu, register, before, noFlush);
  // KVM's roles follow when its software walks the guest's tables next (kvm_mmu_refresh_passthrough_bits).
  if (isUnseen) return;
  const reloads = ((old ^ now) & (register === 'cr0' ? PG : register === 'cr4' ? CR4_PDPTR : 0n)) !== 0n;
  if (reloads && needsPdptrs(machine, vcpu)) loadPdptrs(machine, vcpu);
  switch (register) {
    case 'cr0':
      afterCr0(machine, vcpu, old, now);
      break;
    case 'cr3':
      afterCr3(machine, vcpu, old, now, noFlush);
      break;
    case 'cr4':
      afterCr4(machine, vcpu, old, now);
      break;
    case 'efer':
      afterEfer(machine, vcpu, old, now);
      break;
    default:
      break;
  }
}

/**
 * A write that has the PDPTEs loaded is refused where one of them has reserved bits (load_pdptrs). With NPT nothing is loaded: they are walked.
 * @throws RegisterError
 */
function checkPdptes(machine: Machine, vcpu: Vcpu, register: RegisterName, value: bigint): void {
  if (machine.config.second === 'npt' || !['cr0', 'cr3', 'cr4'].includes(register)) return;
  const changed = vcpu.registers[register] ^ value;
  const loads = register === 'cr3' || (changed & (register === 'cr0' ? PG : CR4_PDPTR)) !== 0n;
  if (!loads) return;
  const { paging, format, rootGfn, rootEntry } = pagingMode({ ...vcpu.registers, [register]: value }, machine.cpu);
  const level = format.spec.loadedLevel;
  const pfn = machine.resolve(rootGfn);
  if (!paging || level === undefined || pfn < 0) return;
  for (let index = rootEntry; index < rootEntry + 4; index++) {
    const entry = toBigint(...machine.entryWords(pfn, index));
    const reserved = entry & format.reservedMask(level, 'table');
    if ((entry & 1n) !== 0n && reserved !== 0n)
      throw new RegisterError(
        `${register} ${hex(value)}: PDPTE ${index - rootEntry} at gpa ${hex(frameToAddress(rootGfn, 8 * index))} is ${hex(entry)}, of which ${hex(reserved)} is reserved: #GP`,
      );
  }
}

/** Those whose writes change how the guest runs, rather than where its tables are. */
const MODE_REGISTERS: readonly RegisterName[] = ['cr0', 'cr4', 'efer'];

const CR4_FLUSHES = PGE | PAE | SMEP | PCIDE;

/** What the processor's TLB forgets with a register write (SDM vol. 3, 4.10.4.1). */
function flushAsProcessor(
  machine: Machine,
  vcpu: Vcpu,
  register: RegisterName,
  before: Registers,
  noFlush: boolean,
): void {
  const changed = before[register] ^ vcpu.registers[register];
  if (register === 'cr3') {
    const { pge, pcide, pcid } = vcpu.mode;
    if (!noFlush) machine.flushTlb(vcpu, pge, pcide ? pcid : undefined);
  }
  if (register === 'cr0' && (changed & PG) !== 0n) machine.flushTlb(vcpu);
  else if (register === 'cr4' && (changed & CR4_FLUSHES) !== 0n) machine.flushTlb(vcpu);
  // NXE decides whether bit 63 is reserved: cached rights would be judged by the old meaning.
  else if (register === 'efer' && changed !== 0n) machine.flushTlb(vcpu);
}

/**
 * Whether the processor lets the guest change these bits without an exit: with EPT CR0.WP, since Linux 6.4 (vmx_l1_guest_owned_cr0_bits). Of a nested
 * guest it would be L1's to say, too.
 */
function isGuestOwned(machine: Machine, vcpu: Vcpu, register: RegisterName, next: bigint): boolean {
  const { config, policies } = machine;
  const isToday = policies.roots === 'today' && vcpu.guestMode === undefined && !machine.injects('wp-unloads');
  return isToday && config.second === 'ept' && register === 'cr0' && (vcpu.registers.cr0 ^ next) === WP;
}

/** KVM's function behind a register write that makes the guest exit; undefined where none does. */
export function registerFunction(machine: Machine, vcpu: Vcpu, register: RegisterName, next: bigint) {
  if (isGuestOwned(machine, vcpu, register, next)) return undefined;
  if (register === 'cr0') return kvmSetCr0;
  if (register === 'cr4') return kvmSetCr4;
  if (register === 'efer') return setEfer;
  return register === 'cr3' && !isTdp(machine) ? kvmSetCr3 : undefined;
}

interface WriteLocals {
  readonly register: RegisterName;
  readonly value: bigint;
}

const write = (text: string) => ({
  name: 'write',
  text,
  run(machine: Machine, task: Task, { register, value }: WriteLocals) {
    machine.count('exits');
    writeRegister(machine, machine.vcpu(task.vcpu), register, value);
    return NEXT;
  },
});

/** The guest's next instruction needs a guest that runs. */
const enter = {
  name: 'enter',
  text: 'enter the guest again, behind the instruction',
  run(machine: Machine, task: Task) {
    if (mustEnter(machine.vcpu(task.vcpu))) return call(task, vcpuEnterGuest, {});
    enterGuest(machine, task);
    return NEXT;
  },
};

const kvmSetCr0 = defineFunction<WriteLocals>({
  name: 'kvm_set_cr0',
  where: 'arch/x86/kvm/x86.c',
  about: 'The guest writes CR0: what follows for its roles, and by policy for its roots.',
  steps: [
    write(
      'take the value; a change of PG or WP changes the CPU’s role, and resets the MMU unless WP alone changed under TDP',
    ),
    enter,
  ],
});

const kvmSetCr3 = defineFunction<WriteLocals>({
  name: 'kvm_set_cr3',
  where: 'arch/x86/kvm/x86.c',
  about: 'The guest switches to other tables: a root of them may be among the three kept.',
  steps: [
    write(
      'kvm_mmu_new_pgd: look for a root of this CR3 and role; kvm_invalidate_pcid, unless NOFLUSH: have it synchronized',
    ),
    enter,
  ],
});

const kvmSetCr4 = defineFunction<WriteLocals>({
  name: 'kvm_set_cr4',
  where: 'arch/x86/kvm/x86.c',
  about: 'The guest writes CR4: most bits change its role, PGE and PCIDE ask for a flush.',
  steps: [write('take the value; a change of PSE, PAE, LA57, SMEP, SMAP or PKE resets the MMU'), enter],
});

const setEfer = defineFunction<WriteLocals>({
  name: 'set_efer',
  where: 'arch/x86/kvm/x86.c',
  about: 'The guest writes EFER: NXE and LME change its role.',
  steps: [write('take the value; a change of NXE or LME resets the MMU'), enter],
});

interface InvlpgLocals {
  readonly address: bigint;
  /** Roots that are still to be looked at. */
  roots: Pfn[];
}

export const kvmMmuInvlpg = defineFunction<InvlpgLocals>({
  name: 'kvm_mmu_invlpg',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about:
    'The guest invalidates an address: of an unsync page its entry is made as the guest’s is, below every root that is kept.',
  steps: [
    {
      name: 'flush',
      text: 'flush the address from the TLB; with direct tables that is all',
      run(machine, task, locals) {
        machine.count('exits');
        const vcpu = machine.vcpu(task.vcpu);
        tellInvalidation(machine, vcpu, `invlpg ${hex(locals.address)}`);
        machine.invalidatePage(vcpu, addressToFrame(locals.address));
        if (roleField(vcpu.mmu.rootRole, 'direct') === 1) return 'enter';
        clearMmioInfo(machine, vcpu);
        const { root, prevRoots } = vcpu.mmu;
        locals.roots = [root, ...prevRoots].map(({ pfn }) => pfn).filter((pfn) => pfn >= 0);
        return NEXT;
      },
    },
    lockStep('mmu_lock', 'write'),
    {
      name: 'invalidate',
      text: '__kvm_mmu_invalidate_addr: down from each root, as long as something below is unsync',
      run(machine, task, { address, roots }) {
        const vcpu = machine.vcpu(task.vcpu);
        for (const root of roots) invalidateAddress(machine, vcpu, root, address);
        task.result = 0;
        return NEXT;
      },
    },
    unlockStep('mmu_lock'),
    enter,
  ],
});

interface InvpcidLocals {
  readonly type: 0 | 1 | 2 | 3;
  readonly pcid: bigint;
  readonly address: bigint;
}

export const kvmHandleInvpcid = defineFunction<InvpcidLocals>({
  name: 'kvm_handle_invpcid',
  where: 'arch/x86/kvm/x86.c',
  about:
    'The guest invalidates by PCID: an address, a PCID, or all. With the TDP MMU it does so without KVM’s knowing.',
  steps: [
    {
      name: 'invalidate',
      text: 'an address: below the roots of its PCID alone; a PCID: as a CR3 write without NOFLUSH; all: as the guest’s own flush',
      run(machine, task, { type, pcid, address }) {
        const vcpu = machine.vcpu(task.vcpu);
        if (type === 0 && !isCanonical(addressToFrame(address), vcpu.mode.addressBits)) {
          machine.warn(`${task.name}: invpcid of ${hex(address)}, which is not canonical: #GP`);
          return NEXT;
        }
        if (pcid > 0xfffn || (pcid > 0n && !vcpu.mode.pcide)) {
          const why = pcid > 0xfffn ? 'has more than 12 bits' : 'needs cr4.pcide';
          machine.warn(`${task.name}: invpcid with PCID ${pcid}, which ${why}: #GP`);
          return NEXT;
        }
        if (type === 0) machine.invalidatePage(vcpu, addressToFrame(address), Number(pcid));
        else machine.flushTlb(vcpu, type !== 2, type === 1 ? Number(pcid) : undefined);
        if (isTdp(machine)) return NEXT;
        machine.count('exits');
        tellInvalidation(machine, vcpu, `invpcid ${type}${type < 2 ? `, PCID ${pcid}` : ''}`);
        if (type > 1) ask(machine, vcpu, REQ_TLB_FLUSH_GUEST);
        else if (type === 1) invalidatePcid(machine, vcpu, pcid);
        else {
          const { root, prevRoots } = vcpu.mmu;
          const isOf = ({ pgd }: RootInfo): boolean => !vcpu.mode.pcide || (pgd & 0xfffn) === pcid;
          for (const each of [root, ...prevRoots])
            if (each.pfn >= 0 && isOf(each)) invalidateAddress(machine, vcpu, each.pfn, address);
        }
        return NEXT;
      },
    },
    enter,
  ],
});

export const kvmSetCpuid = defineFunction<{ readonly maxPhyAddr: number }>({
  name: 'kvm_set_cpuid',
  where: 'arch/x86/kvm/cpuid.c',
  about: 'KVM_SET_CPUID2: which bits of an entry are reserved may change, so that no table made before will do.',
  steps: [
    {
      name: 'set',
      text: 'take the new CPUID',
      run(machine, task, { maxPhyAddr }) {
        const nested = machine.vcpus.find(({ guestMode }) => guestMode?.nested);
        if (nested) {
          machine.warn(`vCPU ${nested.id} runs a nested guest: KVM_SET_CPUID2 fails with -EINVAL`);
          return returns(task, -22);
        }
        machine.setCpu({ ...machine.cpu, maxPhyAddr });
        return NEXT;
      },
    },
    {
      name: 'mmu',
      text: 'kvm_mmu_after_set_cpuid: mark the roles invalid and reset every vCPU’s MMU',
      run(machine, task) {
        for (const vcpu of machine.vcpus) {
          afterSetCpuid(machine, vcpu);
          machine.flushTlb(vcpu);
        }
        return returns(task, 0);
      },
    },
  ],
});
