import { pendingFault, rmpFault } from '../attributes/explain.ts';
import { carryOut } from '../attributes/page-instruction.ts';
import { checkRmp, rmpAccess } from '../attributes/rmp-check.ts';
import { sharedBit } from '../attributes/tdx.ts';
import { vmmMemoryFault } from '../attributes/vmm.ts';
import { ACC_EXEC, ACC_USER, ACC_WRITE } from '../formats/compile.ts';
import { Kind } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, pageOffset, type Vfn } from '../memory/words.ts';
import { AGAIN, call, defineFunction, NEXT, type PendingAccess, returns, type Task } from '../operation.ts';
import { vcpuEnterGuest } from '../roots/enter.ts';
import { describeShadowFault } from '../shadow/explain-fault.ts';
import { handleExit } from '../tdp/exit.ts';
import { describeWalkFault } from '../tdp/explain-fault.ts';
import { EFAULT, EFAULT_PRIVATE, type FaultInfo } from '../tdp/fault.ts';
import { EXIT_EMULATED, EXIT_INJECTED } from '../tdp/results.ts';
import type { Vcpu } from '../vcpu.ts';
import { PFERR_FETCH, PFERR_PRESENT, PFERR_USER, PFERR_WRITE, permissionFault } from './permission.ts';
import type { PagingMode } from './registers.ts';
import { isCanonical, type SecondStage, startWalk, stepWalk, type Walk } from './walk.ts';

/** How the processor's part of an access ended. */
export const TRANSLATED = 0;
/** The guest got an exception; the instruction is over. */
export const FAULTED = 1;
/** The hypervisor completed the instruction. */
export const EMULATED = 2;
/** KVM_RUN returned an error: the vCPU cannot go on. */
export const FAILED = 3;
/** The instruction has done all that it does, and left no translation in the TLB. */
export const COMPLETED = 4;

/** The access in PFERR_* bits, as both stages check it. */
export function accessBits(access: PendingAccess): number {
  const kind = access.kind === 'write' ? PFERR_WRITE : access.kind === 'fetch' ? PFERR_FETCH : 0;
  return kind | (access.cpl === 3 && !access.implicit ? PFERR_USER : 0);
}

interface WalkLocals {
  readonly vfn: Vfn;
  /** The access, and once the guest's leaf is known, whether it is to private memory. */
  access: PendingAccess;
  walk: Walk | null;
  fault: FaultInfo | null;
}

/**
 * A TLB miss: the processor walks the guest's tables, each of their frames through the second stage. Ends with the
 * translation in the TLB, with a guest exception, or with the instruction emulated.
 */
export const pageWalk = defineFunction<WalkLocals>({
  name: 'page_walk',
  where: 'the processor',
  about: 'A TLB miss: the guest’s tables are walked, each of their frames through the second-stage tables.',
  steps: [
    {
      name: 'begin',
      text: 'start at the guest’s root (CR3), or at the page itself while paging is off',
      local: true,
      run(machine, task, locals) {
        const vcpu = machine.vcpu(task.vcpu);
        machine.count('tlb.misses');
        locals.access = task.access!;
        const isDirect = isByFrame(locals.access);
        const isPage = isDirect || !vcpu.mode.paging;
        const mode = isDirect ? { ...vcpu.hardware, paging: false } : vcpu.hardware;
        const walk = startWalk(mode, secondOf(vcpu, locals.access, isPage), locals.vfn, {
          bits: accessBits(locals.access),
          implicit: locals.access.implicit && !machine.injects('smap-ac-implicit'),
        });
        if (isPage) walk.gfn += sharedBits(machine, locals.access);
        locals.walk = walk;
        return NEXT;
      },
    },
    {
      name: 'reference',
      text: 'make one memory reference: a second-stage entry, or a guest entry in a frame located by now; who is kicked out of the guest meanwhile starts anew',
      run(machine, task, locals) {
        const vcpu = machine.vcpu(task.vcpu);
        if (vcpu.requests !== 0) return 'enter';
        const walk = locals.walk!;
        const memory = vcpu.shadowed ? machine.hostMemory : machine.walkMemory;
        const { level, secondLevel } = walk;
        const second = secondOf(vcpu, locals.access, level === 0);
        stepWalk(walk, vcpu.hardware, second, memory);
        // The second stage has just said where a table of the guest's lies.
        if (machine.vm !== 'ordinary' && level > 0 && secondLevel > 0 && walk.secondLevel === 0) {
          const refused = checkOwned(machine, task, walk, locals.access, secondLevel);
          if (refused === 'lost') return returns(task, FAULTED);
          if (refused) {
            machine.count('walks.references', walk.references);
            locals.walk = null;
            locals.fault = refused;
            return 'exit';
          }
        }
        if (level > 0 && walk.level === 0 && walk.isPrivate !== undefined && locals.access.isPrivate === undefined)
          locals.access = { ...locals.access, isPrivate: walk.isPrivate };
        // The guest's entries lie in private memory; what they lead to may be shared, and is found in the other tables.
        if (vcpu.secure && level > 0 && walk.level === 0) {
          walk.secondTable = secondOf(vcpu, locals.access, true)!.root;
          walk.gfn += sharedBits(machine, locals.access);
        }
        if (walk.status === 'running') return AGAIN;
        machine.count('walks.references', walk.references);
        if (walk.status === 'done') return NEXT;
        locals.walk = null;
        if (vcpu.shadowed) {
          locals.fault = describeShadowFault(machine, vcpu, walk, locals.access);
          return 'exit';
        }
        locals.fault = describeWalkFault(vcpu.id, walk, vcpu.mode, second, locals.access, vcpu.guestMode?.guest);
        return walk.status === 'guest-fault' ? 'deliver' : 'exit';
      },
    },
    {
      name: 'fill',
      text: 'of SNP, ask the RMP (order and set of its checks are unverified), of TDX, whether the guest has accepted the page; then keep the translation in the TLB, with the rights of both stages',
      run(machine, task, locals) {
        const vcpu = machine.vcpu(task.vcpu);
        if (vcpu.requests !== 0) return 'enter';
        const { walk, access } = locals;
        const refused = machine.vm === 'ordinary' ? undefined : checkOwned(machine, task, walk!, access, 0);
        if (refused === 'lost') return returns(task, FAULTED);
        if (refused) {
          locals.fault = refused;
          return 'exit';
        }
        if (access.page) {
          carryOut(machine, task, access, walk!);
          return returns(task, COMPLETED);
        }
        fillFromWalk(machine, vcpu, walk!, access);
        return returns(task, TRANSLATED);
      },
    },
    {
      name: 'deliver',
      text: 'deliver #PF to the guest: CR2 and the error code',
      run(machine, task, locals) {
        deliverPageFault(machine, task, locals.fault!, false);
        return returns(task, FAULTED);
      },
    },
    {
      name: 'exit',
      text: 'exit to the hypervisor with the faulting gpa',
      local: true,
      run(machine, task, locals) {
        machine.count('exits');
        machine.count(locals.fault!.kind === 'rmp' ? 'faults.rmp' : 'faults.second');
        machine.append(Kind.EXIT, task.vcpu, 0, 0, 0, 0, locals.fault);
        return handleExit(machine, task, locals.fault!);
      },
    },
    {
      name: 'resume',
      text: 'look at what the handler returned: an error ends KVM_RUN, an emulated instruction is over',
      local: true,
      run(_machine, task, locals) {
        if (task.result === EFAULT || task.result === EFAULT_PRIVATE) {
          locals.fault = { ...locals.fault!, isPrivate: task.result === EFAULT_PRIVATE };
          return 'memory-fault';
        }
        locals.fault = null;
        if (task.result < 0) return returns(task, FAILED);
        if (task.result === EXIT_EMULATED) return returns(task, EMULATED);
        if (task.result === EXIT_INJECTED) return returns(task, FAULTED);
        return NEXT;
      },
    },
    {
      name: 'enter',
      text: 'enter the guest again, at the same instruction',
      local: true,
      run: (_machine, task) => call(task, vcpuEnterGuest, {}),
    },
    { name: 'again', text: 'the instruction starts anew: walk again', local: true, run: () => 'begin' },
    {
      name: 'memory-fault',
      text: 'KVM_EXIT_MEMORY_FAULT: userspace decides',
      local: true,
      run(_machine, task, locals) {
        const info = locals.fault!;
        locals.fault = null;
        return call(task, vmmMemoryFault, { info });
      },
    },
    { name: 'resolved', text: 'the VMM has done something about it', local: true, run: () => 'enter' },
  ],
});

/**
 * What SNP's RMP, or TDX's module, has to say of a frame to which a walk leads: of the page, or of a table of the guest's, which is private memory.
 * @param tableLevel level of the second-stage leaf that maps the table; 0: it is the page
 * @returns the fault; `lost` where the guest has to handle it itself (#VC); undefined where the access may go on
 */
function checkOwned(
  machine: Machine,
  task: Task,
  walk: Walk,
  access: PendingAccess,
  tableLevel: number,
): FaultInfo | 'lost' | undefined {
  const isTable = tableLevel > 0;
  const { page: _, ...read } = { ...access, kind: 'read' as const, isPrivate: true };
  const own: PendingAccess = isTable ? read : access;
  const pfn = isTable ? walk.tablePfn : walk.pfn;
  if (machine.vm === 'snp') {
    const problem = checkRmp(machine, task.vcpu, own, walk.gfn, pfn, isTable ? tableLevel : walk.secondLeafLevel);
    if (!problem) return undefined;
    if (problem.kind !== 'not-validated') return rmpFault(task.vcpu, walk, access, problem, isTable);
    machine.count('faults.vc');
    const text = `${task.name}: #VC at 0x${access.address.toString(16)}: ${problem.reason}`;
    machine.warn(text);
    machine.append(Kind.NOT_VALIDATED, task.vcpu, 0, 0, 0, 0, text);
    return 'lost';
  }
  const isSecure = machine.vcpu(task.vcpu).secure !== undefined && own.isPrivate !== false;
  const isRefused = isSecure && own.page === undefined && machine.attributes.pending.get(pfn) === true;
  return isRefused ? pendingFault(task.vcpu, walk, access, isTable) : undefined;
}

export function deliverPageFault(machine: Machine, task: Task, fault: FaultInfo, injected: boolean): void {
  machine.count('faults.guest');
  task.cr2 = fault.gva;
  task.errorCode = injectedErrorCode(machine, fault);
  machine.append(Kind.GUEST_FAULT, task.vcpu, injected ? 1 : 0, 0, task.errorCode, 0, fault);
}

function injectedErrorCode(machine: Machine, { errorCode, access }: FaultInfo): number {
  if (machine.injects('error-without-present')) return errorCode & ~PFERR_PRESENT;
  if (machine.injects('error-with-fetch') && access === 'fetch') return errorCode | PFERR_FETCH;
  return errorCode;
}

/** TDG.MEM.PAGE.ACCEPT names a page by its guest-physical address, whatever the guest's tables are. */
export const isByFrame = ({ page }: PendingAccess): boolean => page?.name === 'TDG.MEM.PAGE.ACCEPT';

/** The second stage of a reference: of TDX private memory, tables among it, has the module's. */
function secondOf(vcpu: Vcpu, { isPrivate }: PendingAccess, isPage: boolean): SecondStage | undefined {
  return vcpu.secure && !(isPage && isPrivate === false) ? vcpu.secure : vcpu.second;
}

/** What a TDX guest adds to the frame of shared memory. */
function sharedBits(machine: Machine, { isPrivate }: PendingAccess): number {
  return machine.vm === 'tdx' && isPrivate === false ? sharedBit(machine) : 0;
}

function fillFromWalk(machine: Machine, vcpu: Vcpu, walk: Walk, access: PendingAccess): void {
  const { isPrivate } = access;
  // Of a large page that is shared the RMP has been asked of one frame alone.
  const isAsked = machine.vm === 'snp' && access.isPrivate === false && machine.policies['guest-memfd'] === 'in-place';
  const level = isAsked ? 1 : Math.min(walk.leafLevel, vcpu.shadowed ? 3 : walk.secondLeafLevel, 3);
  machine.fillTlb(vcpu, {
    vfn: walk.vfn,
    gfn: vcpu.shadowed ? machine.gfnOf(walk.pfn) : walk.gfn - sharedBits(machine, access),
    pfn: walk.pfn,
    level,
    access: walk.access,
    key: walk.key,
    global: walk.global,
    pcid: vcpu.mode.pcid,
    secondAccess: walk.secondAccess & (machine.vm === 'snp' ? rmpAccess(machine, vcpu.id, access, walk.pfn) : ~0),
    dirty: walk.leafDirty && (vcpu.shadowed !== undefined || walk.secondDirty),
    ...(isPrivate === undefined ? {} : { isPrivate }),
  });
}

/** Whether a non-canonical address ends the access before any translation. */
export function untranslatable({ paging, addressBits }: PagingMode, address: bigint): string | undefined {
  const vfn = addressToFrame(address);
  if (paging && addressBits > 32)
    return isCanonical(vfn, addressBits)
      ? undefined
      : `0x${address.toString(16)} is not canonical (bits 63:${addressBits - 1} differ): #GP`;
  const when = paging ? 'outside of long mode' : 'while paging is off';
  return address > 0xffff_ffffn
    ? `0x${address.toString(16)} is beyond 4G, which no address reaches ${when}`
    : undefined;
}

/**
 * The host frame for a page of the access if the TLB has it with the rights that are needed, or −1: then a walk must
 * decide.
 */
export function lookUp(vcpu: Vcpu, vfn: Vfn, access: PendingAccess): number {
  const mode = vcpu.hardware;
  const entry = vcpu.tlb.find(vfn, mode.pcid);
  if (entry === undefined) return -1;
  if (access.isPrivate !== undefined && entry.isPrivate !== access.isPrivate) return -1;
  const bits = accessBits(access);
  if (access.kind === 'write' && !entry.dirty) return -1;
  const need = access.kind === 'fetch' ? ACC_EXEC : access.kind === 'write' ? ACC_WRITE : ACC_USER;
  if ((entry.secondAccess & need) === 0) return -1;
  if (
    mode.paging &&
    permissionFault(mode.permissions, mode, entry.access, entry.key, { bits, implicit: access.implicit }) !== 0
  )
    return -1;
  const span = entry.level === 1 ? 1 : entry.level === 2 ? 512 : 512 * 512;
  return entry.pfn - (entry.pfn % span) + (vfn % span);
}

/** Pages that an access touches: one, or two when it crosses a boundary. */
export function accessPages(access: PendingAccess): Vfn[] {
  const first = addressToFrame(access.address);
  return pageOffset(access.address) + access.size > 4096 ? [first, (first + 1) % 2 ** 52] : [first];
}
