import { invalidateBegin, invalidateEnd } from '../host/invalidate.ts';
import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import { backingPfn, hostMappingLevel } from '../memory/memslots.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { AGAIN, call, defineFunction, NEXT, returns } from '../operation.ts';
import type { Ordering } from '../policies.ts';
import { type PageFault, RET_PF, RMP_FAILED } from '../tdp/fault.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { tdpMmuZapLeafs, zapLeafsLocals } from '../tdp/zap.ts';
import { clearFrame } from './clear-frame.ts';
import { splitDirectMap } from './direct-map.ts';
import { type Busy, findsBusy, rmpEntry, rmpMake } from './rmp.ts';
import { forgetLaunched } from './tdx.ts';

const PAGES_2M = 512;

/** Whether the RMP is brought up to date by faults, and not by the conversion. */
export function preparesAtFault(machine: Machine): boolean {
  const deferred: readonly Ordering[] = ['today', 'deferred'];
  return machine.vm === 'snp' && deferred.includes(machine.policies.conversion);
}

const isInPlace = (machine: Machine): boolean => machine.policies['guest-memfd'] === 'in-place';

/** What a page must be in the RMP before a fault maps it, or undefined where it is so already. */
function wanted(machine: Machine, { pfn, isPrivate }: PageFault): 'private' | 'shared' | undefined {
  if (!preparesAtFault(machine)) return undefined;
  const isAssigned = rmpEntry(machine, pfn) !== undefined;
  if (isPrivate) return isAssigned ? undefined : 'private';
  return isInPlace(machine) && isAssigned ? 'shared' : undefined;
}

/** kvm_gmem_get_pfn: the frame of a private page, which is taken and emptied where there was none. */
export const kvmGmemGetPfn = defineFunction<{ readonly fault: PageFault }>({
  name: 'kvm_gmem_get_pfn',
  where: 'virt/kvm/guest_memfd.c',
  about: 'The frame behind a private page: from guest_memfd, not from a mapping of userspace’s.',
  steps: [
    {
      name: 'folio',
      text: 'kvm_gmem_get_folio: the page of the file, allocated and cleared at its first use',
      run(machine, task, { fault }) {
        const slot = machine.slots.find(fault.gfn);
        // Gone meanwhile, or moved: KVM goes on with the slot that it found, until its check for staleness has it try again.
        if (!slot?.gmem) return returns(task, RET_PF.RETRY);
        const { folios } = machine.attributes;
        fault.pfn = backingPfn(slot, fault.gfn, slot.gmem);
        fault.mapWritable = !slot.readonly;
        if (folios.get(fault.pfn) === undefined) {
          if (!isInPlace(machine)) clearFrame(machine, fault.pfn);
          folios.set(machine, fault.pfn, fault.gfn);
        }
        return NEXT;
      },
    },
    {
      name: 'prepare',
      text: 'kvm_gmem_prepare_folio: SNP asks the RMP, and assigns the page where it is not yet the guest’s',
      run: (machine, task, { fault }) =>
        wanted(machine, fault) ? call(task, sevGmemPrepare, { fault }) : returns(task, RET_PF.CONTINUE),
    },
    {
      name: 'result',
      text: 'the page is the guest’s; or RMPUPDATE has failed',
      local: true,
      run: (_machine, task) => returns(task, Math.min(task.result, RET_PF.CONTINUE)),
    },
  ],
});

interface PrepareLocals extends Busy {
  readonly fault: PageFault;
}

export const sevGmemPrepare = defineFunction<PrepareLocals>({
  name: 'sev_gmem_prepare',
  where: 'arch/x86/kvm/svm/sev.c',
  about:
    'Makes a page the guest’s in the RMP as it is about to be mapped; a shared one the hypervisor’s, where pages are converted in place.',
  steps: [
    {
      name: 'direct-map',
      text: 'adjust_direct_map: the kernel’s own mapping is split to 4K, so that its other pages can still be written',
      run(machine, _task, { fault }) {
        splitDirectMap(machine, fault.pfn);
        return NEXT;
      },
    },
    {
      name: 'rmpupdate',
      text: 'rmp_make_private or rmp_make_shared: RMPUPDATE, which flushes the page’s translations',
      run(machine, task, locals) {
        const { fault } = locals;
        if (findsBusy(machine, task, locals, 'RMPUPDATE', fault.pfn)) return AGAIN;
        const to = wanted(machine, fault);
        const error = to ? rmpMake(machine, fault.pfn, to === 'private' ? fault.gfn : -1, 1) : 0;
        return returns(task, error === 0 ? RET_PF.CONTINUE : RMP_FAILED);
      },
    },
  ],
});

export function needsPreparation(machine: Machine, fault: PageFault): boolean {
  return wanted(machine, fault) !== undefined;
}

/** The largest page of a private gfn: what guest_memfd has, and of SNP what the RMP was given. */
export function gmemLevel(machine: Machine, gfn: Gfn): number {
  const slot = machine.slots.find(gfn);
  if (!slot?.gmem) return 1;
  const level = hostMappingLevel(slot, gfn, slot.gmem);
  // The module maps 4K alone.
  if (machine.vm === 'tdx') return 1;
  if (machine.vm !== 'snp') return level;
  return Math.min(level, rmpEntry(machine, backingPfn(slot, gfn, slot.gmem))?.level ?? 1);
}

interface PunchLocals extends Busy {
  readonly start: Gfn;
  readonly end: Gfn;
  next: Gfn;
}

/** kvm_gmem_punch_hole */
export const kvmGmemPunchHole = defineFunction<PunchLocals>({
  name: 'kvm_gmem_punch_hole',
  where: 'virt/kvm/guest_memfd.c',
  about: 'fallocate(FALLOC_FL_PUNCH_HOLE): the file’s pages of the range are unmapped from the guest and freed.',
  steps: [
    lockStep('mmu_lock', 'write'),
    {
      name: 'begin',
      text: 'kvm_gmem_invalidate_begin: faults on the range retry from now on',
      run(machine, _task, { start, end }) {
        invalidateBegin(machine, start, end);
        return NEXT;
      },
    },
    {
      name: 'zap',
      text: 'kvm_mmu_unmap_gfn_range: clear what maps the range',
      run: (machine, task, { start, end }) =>
        call(task, tdpMmuZapLeafs, zapLeafsLocals(machine, start, end, 0, 'mirror')),
    },
    {
      name: 'flush',
      text: 'kvm_flush_remote_tlbs, if anything was cleared',
      run(machine, task) {
        if (task.result > 0) flushRemoteTlbs(machine);
        return NEXT;
      },
    },
    unlockStep('mmu_lock'),
    {
      name: 'truncate',
      text: 'truncate_inode_pages_range: the next page is freed; of SNP it becomes the hypervisor’s again (sev_gmem_invalidate)',
      run(machine, task, locals) {
        const gfn = nextFolio(machine, locals);
        if (gfn === undefined) return NEXT;
        const pfn = gmemFrame(machine, gfn)!;
        if (rmpEntry(machine, pfn) && findsBusy(machine, task, locals, 'RMPUPDATE', pfn)) return AGAIN;
        locals.next = gfn + freeFolio(machine, gfn, locals.end);
        return AGAIN;
      },
    },
    { ...lockStep('mmu_lock', 'write'), name: 'lock-end' },
    {
      name: 'end',
      text: 'kvm_gmem_invalidate_end: faults may go on',
      run(machine) {
        invalidateEnd(machine);
        return NEXT;
      },
    },
    { ...unlockStep('mmu_lock'), name: 'unlock-end' },
  ],
});

/** The first page, from `next` on, that the file has. */
function nextFolio(machine: Machine, { next, end }: PunchLocals): Gfn | undefined {
  const { folios } = machine.attributes;
  if (end - next > folios.size) {
    const ahead = [...folios.entries()].flatMap(([pfn, gfn]) =>
      gfn >= next && gfn < end && gmemFrame(machine, gfn) === pfn ? [gfn] : [],
    );
    return ahead.length === 0 ? undefined : ahead.reduce((least, gfn) => Math.min(least, gfn));
  }
  for (let gfn = next; gfn < end; gfn++) {
    const pfn = gmemFrame(machine, gfn);
    if (pfn !== undefined && folios.get(pfn) !== undefined) return gfn;
  }
  return undefined;
}

function gmemFrame(machine: Machine, gfn: Gfn): Pfn | undefined {
  const slot = machine.slots.find(gfn);
  return slot?.gmem && backingPfn(slot, gfn, slot.gmem);
}

/** Frees a page, or the 2M that the RMP has as one. @returns how many pages that were */
function freeFolio(machine: Machine, gfn: Gfn, end: Gfn): number {
  const pfn = gmemFrame(machine, gfn)!;
  const { folios } = machine.attributes;
  const entry = rmpEntry(machine, pfn);
  const isWhole = entry?.level === 2 && pfn % PAGES_2M === 0 && gfn + PAGES_2M <= end;
  const pages = isWhole ? PAGES_2M : 1;
  forgetLaunched(machine, gfn, gfn + pages);
  for (let page = 0; page < pages; page++) folios.set(machine, pfn + page, undefined);
  if (entry) {
    if (!isWhole) splitDirectMap(machine, pfn);
    rmpMake(machine, pfn, -1, isWhole ? 2 : 1);
  }
  return pages;
}
