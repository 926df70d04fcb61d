import { canDoAsyncPf, isAwaited, setupAsyncPf } from '../async-pf/queue.ts';
import { guestPgd } from '../async-pf/vcpu.ts';
import { kvmGmemGetPfn, needsPreparation, sevGmemPrepare } from '../attributes/gmem.ts';
import { sharedBit } from '../attributes/tdx.ts';
import { Kind } from '../history/log.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import { backingPfn } from '../memory/memslots.ts';
import type { Gfn } from '../memory/words.ts';
import { call, defineFunction, type Flow, NEXT, returns, type Task } from '../operation.ts';
import { shadowPageFault } from '../shadow/page-fault.ts';
import { REQ_APF_HALT, type Vcpu } from '../vcpu.ts';
import { directPageFault, kvmTdpMmuPageFault } from './direct-page-fault.ts';
import { emulateInstruction } from './emulate.ts';
import {
  EFAULT,
  EFAULT_PRIVATE,
  EINVAL,
  type FaultInfo,
  type PageFault,
  PFN_NOSLOT,
  PFN_RO_FAULT,
  RET_PF,
} from './fault.ts';
import { findEntry, type SpteRef } from './iterate.ts';
import { EMULATION_DONE, EMULATION_INJECTED } from './results.ts';
import { GENERATION_MASK, isMmio, isPresent, mmioGeneration, mmioGfn, needed, spteFormat } from './spte.ts';

const PRESENT = 1;
const WRITE = 2;
const RSVD = 8;
const FETCH = 16;

export const kvmMmuPageFault = defineFunction<{ readonly info: FaultInfo }>({
  name: 'kvm_mmu_page_fault',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'Every second-stage fault comes here: try to fix it, else emulate the instruction.',
  steps: [
    {
      name: 'reserved',
      text: 'a reserved bit faulted: it may be KVM’s own MMIO marker',
      local: true,
      run: (_machine, task, { info }) =>
        (info.errorCode & RSVD) !== 0 ? call(task, handleMmioPageFault, { info }) : 'fault',
    },
    {
      name: 'mmio-result',
      text: 'a valid marker is emulated, a changed table is retried; a stale marker is a plain fault',
      local: true,
      run(_machine, task) {
        if (task.result === RET_PF.EMULATE) return 'emulate';
        return task.result === RET_PF.INVALID ? NEXT : RETURN(task);
      },
    },
    {
      name: 'fault',
      text: 'kvm_mmu_do_page_fault: describe the fault and let the TDP MMU handle it, or the shadow MMU',
      run(machine, task, { info }) {
        return doPageFault(machine, task, newPageFault(machine, info));
      },
    },
    {
      name: 'result',
      text: 'RET_PF_RETRY, FIXED and SPURIOUS resume the guest; EMULATE and WRITE_PROTECTED go on',
      local: true,
      run(machine, task, { info }) {
        if (task.result === EMULATION_INJECTED) return RETURN(task);
        countResult(machine, task.result, info);
        return task.result === RET_PF.EMULATE || task.result === RET_PF.WRITE_PROTECTED ? NEXT : RETURN(task);
      },
    },
    {
      name: 'emulate',
      text: 'emulate the instruction that faulted',
      local: true,
      run: (_machine, task, { info }) => call(task, emulateInstruction, { info, gpa: 0n }),
    },
    {
      name: 'emulated',
      text: 'the instruction is over, or an exception waits for the guest',
      local: true,
      run: (_machine, task) =>
        returns(
          task,
          task.result === RET_PF.RETRY
            ? RET_PF.RETRY
            : task.result === EMULATION_INJECTED
              ? EMULATION_INJECTED
              : EMULATION_DONE,
        ),
    },
  ],
});

function doPageFault(machine: Machine, task: Task, fault: PageFault): Flow {
  const vcpu = machine.vcpu(task.vcpu);
  if (!machine.isTdp || vcpu.active === 'guest') return call(task, shadowPageFault, { fault, gw: null });
  return call(task, machine.hasTdpMmu ? kvmTdpMmuPageFault : directPageFault, { fault });
}

/** Maps the page of a fault of which a worker has read the memory: nobody waits for it, and what does not fit is let be. */
export function handlePrefetch(machine: Machine, task: Task, info: FaultInfo): Flow {
  return doPageFault(machine, task, newPageFault(machine, info, true));
}

/** Leaves the result of the callee as this function's. */
const RETURN = (task: Task): number => returns(task, task.result);

function countResult(machine: Machine, result: number, info: FaultInfo): void {
  machine.append(Kind.FAULT_RESULT, info.vcpu, 0, 0, Math.max(result, 0), 0, info);
  if (result === RET_PF.FIXED) machine.count('faults.fixed');
  else if (result === RET_PF.SPURIOUS) machine.count('faults.spurious');
  else if (result === RET_PF.RETRY) {
    machine.count('faults.retried');
    // Whoever invalidates must come to its end.
    machine.task(machine.acting).yields = machine.invalidation.inProgress > 0;
  }
}

/** What faulted for the MMU in charge: a gva with shadow paging, else a gpa. */
const addressOf = (machine: Machine, info: FaultInfo): bigint => (machine.isTdp ? info.gpa! : info.gva);

function newPageFault(machine: Machine, info: FaultInfo, prefetch = false): PageFault {
  const addr = addressOf(machine, info);
  // Behind shadow pages it becomes known by the walk of the guest's tables.
  const gpa = (info.gpa ?? 0n) & ~leftOut(machine);
  const write = (info.errorCode & WRITE) !== 0;
  const exec = (info.errorCode & FETCH) !== 0;
  const large = machine.secondFormat.spec.largeLevels
    .map(({ level }) => level)
    .filter((level) => machine.secondFormat.isLargeLevel(level));
  return {
    info,
    vcpu: info.vcpu,
    addr,
    gfn: Number(gpa >> 12n),
    write,
    exec,
    present: (info.errorCode & PRESENT) !== 0,
    rsvd: (info.errorCode & RSVD) !== 0,
    isPrivate: isPrivateFault(machine, info),
    needs: needed(write, exec),
    maxLevel: Math.max(1, ...large),
    reqLevel: 1,
    goalLevel: 1,
    slot: machine.slots.find(Number(gpa >> 12n))?.id ?? -1,
    mmuSeq: 0,
    pfn: PFN_NOSLOT,
    mapWritable: false,
    prefetch,
    hugePageDisallowed: false,
  };
}

/** Of a TDX guest's address the shared bit, which is no part of the gfn. */
function leftOut(machine: Machine): bigint {
  if (machine.vm !== 'tdx' || machine.injects('tdx-shared-bit')) return 0n;
  return BigInt(sharedBit(machine)) << 12n;
}

/** kvm_mmu_prepare_memory_fault_exit: what KVM_RUN will say of the access. */
const memoryFault = ({ isPrivate }: PageFault): number => (isPrivate ? EFAULT_PRIVATE : EFAULT);

/** PFERR_PRIVATE_ACCESS: of SNP and TDX the guest says so, of a software-protected VM the attribute does. */
function isPrivateFault(machine: Machine, { isPrivate, gpa, errorCode }: FaultInfo): boolean {
  if (machine.vm === 'software-protected')
    return (errorCode & RSVD) === 0 && machine.attributes.store.isPrivate(Number((gpa ?? 0n) >> 12n));
  return isPrivate === true;
}

/** The entry of the shadow tables at which a walk for an address ends. */
function shadowEntry(machine: Machine, vcpu: Vcpu, gva: bigint): SpteRef {
  const last = machine.shadowPath(vcpu, gva).at(-1)!;
  const [lo, hi] = machine.entryWords(last.table, last.index);
  return { ...last, lo, hi };
}

/** vcpu_cache_mmio_info */
function rememberMmio(machine: Machine, vcpu: number, gfn: Gfn): void {
  machine.small.mmioPages[vcpu] = { gfn, generation: machine.slots.generation };
}

export const handleMmioPageFault = defineFunction<{ readonly info: FaultInfo }>({
  name: 'handle_mmio_page_fault',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'Decides whether a reserved-bit fault is KVM’s MMIO marker, and whether the marker is still valid.',
  steps: [
    {
      name: 'find',
      text: 'the page that was MMIO last is so again; else get_mmio_spte: read the entry again, without a lock',
      run(machine, task, { info }) {
        const vcpu = machine.vcpu(task.vcpu);
        const isShadow = machine.hasShadowPages(vcpu);
        const address = addressOf(machine, info);
        const gfn = Number(address >> 12n);
        const last = machine.small.mmioPages[task.vcpu];
        // mmio_info_in_cache, which takes frame 0 for nothing, and knows nothing of nested guests.
        const isSame = last?.generation === machine.slots.generation || machine.injects('mmio-generation');
        if (gfn !== 0 && vcpu.active === 'root' && last?.gfn === gfn && isSame) {
          machine.count('faults.mmio');
          return returns(task, RET_PF.EMULATE);
        }
        const spte = spteFormat(machine.secondFormat);
        const entry = isShadow ? shadowEntry(machine, vcpu, address) : findEntry(machine, vcpu.root, gfn);
        if (isMmio(spte, entry.lo, entry.hi)) {
          const current = machine.slots.generation % (GENERATION_MASK + 1);
          const valid = mmioGeneration(entry.lo, entry.hi) === current || machine.injects('mmio-generation');
          machine.trace('check_mmio_spte', {
            spte: entry,
            kvm_gen: current,
            spte_gen: mmioGeneration(entry.lo, entry.hi),
            valid,
          });
          if (!valid) return returns(task, RET_PF.INVALID);
          rememberMmio(machine, task.vcpu, gfn);
          machine.count('faults.mmio');
          machine.trace('handle_mmio_page_fault', {
            addr: isShadow ? address & ~0xfffn : address,
            gfn: mmioGfn(spte, entry.lo, entry.hi),
            access: isShadow && spte.mmioAccess !== 0 ? entry.lo & 6 : spte.mmioAccess,
          });
          return returns(task, RET_PF.EMULATE);
        }
        if (isPresent(entry.lo) || machine.secondFormat.classify(entry.level, entry.lo) !== 0) {
          machine.count('faults.misconfig');
          if (machine.secondFormat.isMalformed(entry.level, entry.lo, entry.hi)) {
            machine.warn(
              `reserved bits set in the level-${entry.level} entry for ${machine.isTdp ? 'gpa' : 'gva'} 0x${address.toString(16)}, which is no MMIO marker: KVM_RUN fails with -EINVAL`,
            );
            return returns(task, EINVAL);
          }
        }
        return returns(task, RET_PF.RETRY);
      },
    },
  ],
});

interface FaultLocals {
  readonly fault: PageFault;
}

/** page_fault_handle_page_track: whether a table that is shadowed, and not of the last level, would be written. */
export function isWriteTracked(machine: Machine, fault: PageFault): boolean {
  return fault.present && fault.write && !fault.rsvd && (machine.shadow.writeTracked.get(fault.gfn) ?? 0) > 0;
}

/** mmu_invalidate_retry_gfn: whether what was read about a gfn may be out of date. */
export function mustRetry(machine: Machine, seq: number, gfn: Gfn): boolean {
  const { invalidation } = machine;
  // One that was begun without a range: the kernel warns, and takes everything for its range.
  if (invalidation.inProgress > 0 && invalidation.start < 0) return true;
  if (invalidation.inProgress > 0 && gfn >= invalidation.start && gfn < invalidation.end) return true;
  return invalidation.seq !== seq;
}

export const kvmMmuFaultinPfn = defineFunction<FaultLocals>({
  name: 'kvm_mmu_faultin_pfn',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'From guest frame to host frame. What it finds may be stale at once, which the sequence number tells later.',
  steps: [
    {
      name: 'snapshot',
      text: 'remember mmu_invalidate_seq, before anything else is read',
      run(machine, _task, { fault }) {
        if (machine.vm !== 'ordinary' && machine.injects('seq-after-attributes')) return NEXT;
        fault.mmuSeq = machine.invalidation.seq;
        return machine.vm === 'ordinary' ? 'slot' : NEXT;
      },
    },
    {
      name: 'attributes',
      text: 'kvm_mem_is_private: an access of the other kind is userspace’s to resolve: KVM_EXIT_MEMORY_FAULT',
      run(machine, task, { fault }) {
        const isPrivate = machine.attributes.store.isPrivate(fault.gfn);
        if (fault.isPrivate !== isPrivate) return returns(task, memoryFault(fault));
        return machine.injects('seq-after-attributes') ? NEXT : 'slot';
      },
    },
    {
      name: 'late-snapshot',
      text: 'the mistake: mmu_invalidate_seq is remembered only now',
      run(machine, _task, { fault }) {
        fault.mmuSeq = machine.invalidation.seq;
        return NEXT;
      },
    },
    {
      name: 'slot',
      text: 'find the memslot: none is MMIO, one being deleted or moved is retried',
      run(machine, task, { fault }) {
        const slot = machine.slots.find(fault.gfn);
        if (!slot) return 'no-slot';
        fault.slot = slot.id;
        return slot.invalid ? returns(task, RET_PF.RETRY) : NEXT;
      },
    },
    {
      name: 'early-retry',
      text: 'an invalidation of the gfn is under way: retry before any work is done',
      run: (machine, task, { fault }) =>
        mustRetry(machine, fault.mmuSeq, fault.gfn) ? returns(task, RET_PF.RETRY) : NEXT,
    },
    {
      name: 'pfn',
      text: 'ask the host for the frame behind the slot’s memory; a write to a read-only slot has none',
      run(machine, task, { fault }) {
        const slot = machine.slots.find(fault.gfn);
        if (!slot) return 'no-slot';
        if (fault.isPrivate)
          return slot.gmem ? call(task, kvmGmemGetPfn, { fault }) : returns(task, memoryFault(fault));
        fault.mapWritable = !slot.readonly;
        task.result = RET_PF.CONTINUE;
        if (machine.shadow.unmapped.get(fault.gfn)) machine.shadow.unmapped.set(machine, fault.gfn, undefined);
        fault.pfn = fault.write && slot.readonly ? PFN_RO_FAULT : backingPfn(slot, fault.gfn);
        if (slot.gmem && needsPreparation(machine, fault)) return call(task, sevGmemPrepare, { fault });
        return machine.shadow.swapped.get(fault.pfn) ? 'async' : NEXT;
      },
    },
    {
      name: 'read-only',
      text: 'kvm_handle_error_pfn: a write to a read-only slot is emulated, for userspace to see',
      local: true,
      run(machine, task, { fault }) {
        // guest_memfd may have no page to give.
        if (task.result !== RET_PF.CONTINUE) return returns(task, task.result);
        if (fault.pfn !== PFN_RO_FAULT) return NEXT;
        machine.count('faults.read_only');
        return returns(task, RET_PF.EMULATE);
      },
    },
    {
      name: 'late-retry',
      text: 'invalidated while the host was asked: give the frame back and retry',
      run: (machine, task, { fault }) =>
        returns(task, mustRetry(machine, fault.mmuSeq, fault.gfn) ? RET_PF.RETRY : RET_PF.CONTINUE),
    },
    {
      name: 'no-slot',
      text: 'kvm_handle_noslot_fault: no memory here, of which private memory is none either; go on to install an MMIO marker, or emulate at once where none can be made',
      run(machine, task, { fault }) {
        if (fault.isPrivate) return returns(task, EFAULT_PRIVATE);
        if (machine.vcpu(task.vcpu).active === 'root') rememberMmio(machine, task.vcpu, Number(fault.addr >> 12n));
        fault.slot = -1;
        fault.pfn = PFN_NOSLOT;
        fault.mapWritable = false;
        const limit = machine.secondFormat.inputFrames;
        const markable =
          spteFormat(machine.secondFormat).mmio !== null &&
          fault.gfn < 2 ** (machine.config.maxPhyAddr - 12) &&
          fault.gfn < limit;
        return returns(task, markable ? RET_PF.CONTINUE : RET_PF.EMULATE);
      },
    },
    {
      name: 'async',
      text: 'the memory is swapped out: a worker reads it, and the fault is retried, while the guest is told or the vCPU halts; else wait for the disk',
      run(machine, task, { fault }) {
        if (!fault.prefetch && canDoAsyncPf(machine, task)) {
          const vcpu = machine.vcpu(task.vcpu);
          machine.trace('kvm_try_async_get_page', { gva: fault.addr, gfn: fault.gfn });
          if (isAwaited(machine, vcpu, fault.gfn)) {
            machine.trace('kvm_async_pf_repeated_fault', { gva: fault.addr, gfn: fault.gfn });
            machine.setRequests(vcpu, vcpu.requests | REQ_APF_HALT);
            return returns(task, RET_PF.RETRY);
          }
          const direct = roleField(vcpu.mmu.rootRole, 'direct') === 1;
          if (setupAsyncPf(machine, task, fault, direct, guestPgd(machine, task.vcpu)))
            return returns(task, RET_PF.RETRY);
        }
        machine.shadow.swapped.set(machine, fault.pfn, undefined);
        return 'late-retry';
      },
    },
  ],
});
