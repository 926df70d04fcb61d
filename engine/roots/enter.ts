import { checkAsyncPfCompletion, injectAsyncPf } from '../async-pf/vcpu.ts';
import { Kind } from '../history/log.ts';
import { lockStep, unlockStep } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { BLOCKED, call, defineFunction, NEXT, RETURNED, returns, type Step, type Task } from '../operation.ts';
import { makePagesAvailable } from '../shadow/limits.ts';
import { isObsolete } from '../shadow/pages.ts';
import { allocateShadowRoots } from '../shadow/roots.ts';
import { syncRoots, unsyncPrevious } from '../shadow/sync.ts';
import { mmuHoldsRoots } from '../tdp/root.ts';
import {
  REQ_APF_HALT,
  REQ_APF_READY,
  REQ_LOAD_MMU_PGD,
  REQ_MMU_FREE_OBSOLETE_ROOTS,
  REQ_MMU_SYNC,
  REQ_TLB_FLUSH,
  REQ_TLB_FLUSH_CURRENT,
  REQ_TLB_FLUSH_GUEST,
  REQ_VM_DEAD,
  type Vcpu,
} from '../vcpu.ts';
import { clearMmioInfo, freeRoots, initMmu, rootPage } from './context.ts';
import { ROOT_CURRENT, type RootInfo, rootPrevious } from './mmu.ts';
import { withRole } from './role.ts';

/** Whether a vCPU must pass through `vcpu_enter_guest` before it can touch memory. */
export function mustEnter(vcpu: Vcpu): boolean {
  return vcpu.root < 0 || vcpu.requests !== 0;
}

/** The processor runs the guest from now on. */
export function enterGuest(machine: Machine, { vcpu }: Task): void {
  machine.append(Kind.ENTRY, vcpu, 0, 0, 0, 0);
  machine.count('entries');
}

/** is_obsolete_root: a special root, of which nothing can be told, is. */
function isObsoleteRoot(machine: Machine, { pfn }: RootInfo): boolean {
  if (pfn < 0) return false;
  const page = rootPage(machine, pfn);
  if (!page) return true;
  return isObsolete(machine, page);
}

/** kvm_mmu_free_obsolete_roots: L1's, and its guests'. */
function freeObsoleteRoots(machine: Machine, vcpu: Vcpu): void {
  for (const name of ['root', 'guest'] as const) {
    const { root, prevRoots } = vcpu.mmus[name];
    let which = isObsoleteRoot(machine, root) ? ROOT_CURRENT : 0;
    for (const [index, previous] of prevRoots.entries())
      if (isObsoleteRoot(machine, previous)) which |= rootPrevious(index);
    freeRoots(machine, vcpu, which, name);
  }
}

/** kvm_vcpu_flush_tlb_guest: what the guest asked to be flushed is synchronized first, as far as it is shadowed. */
function flushGuest(machine: Machine, vcpu: Vcpu): void {
  if (!machine.isTdp) {
    syncRoots(machine, vcpu);
    freeRoots(
      machine,
      vcpu,
      unsyncPrevious(machine, vcpu).reduce((which, index) => which | rootPrevious(index), 0),
    );
  }
  machine.flushTlb(vcpu);
}

/** A step that handles one request. */
function request(
  name: string,
  text: string,
  bit: number,
  handle: (machine: Machine, vcpu: Vcpu) => void,
  /** Whether it changes shadow pages, which is nobody else's meanwhile. */
  locked = false,
): Step<object> {
  return {
    name,
    text,
    run(machine, task) {
      const vcpu = machine.vcpu(task.vcpu);
      if ((vcpu.requests & bit) === 0) return NEXT;
      const isLocked = locked && (!machine.isTdp || vcpu.active === 'guest');
      if (isLocked && !machine.acquire(task, 'mmu_lock', 'write')) return BLOCKED;
      machine.setRequests(vcpu, vcpu.requests & ~bit);
      handle(machine, vcpu);
      if (isLocked) machine.release(task, 'mmu_lock');
      return NEXT;
    },
  };
}

const flushGuestRequest = request(
  'flush-guest',
  'KVM_REQ_TLB_FLUSH_GUEST: flush as the guest’s own instruction would; shadow pages are synchronized first',
  REQ_TLB_FLUSH_GUEST,
  flushGuest,
  true,
);

export const vcpuEnterGuest = defineFunction<object>({
  name: 'vcpu_enter_guest',
  where: 'arch/x86/kvm/x86.c',
  about: 'The way into the guest: requests first, in this order, then a root to run on.',
  steps: [
    {
      name: 'pending',
      text: 'kvm_request_pending: mostly nobody has asked for anything; of a VM that is dead (KVM_REQ_VM_DEAD) KVM_RUN fails',
      run(machine, task) {
        const { requests } = machine.vcpu(task.vcpu);
        if ((requests & REQ_VM_DEAD) === 0) return requests === 0 ? 'reload' : NEXT;
        machine.fail(task, 'KVM_RUN fails with -EIO: the VM is dead');
        return RETURNED;
      },
    },
    request(
      'free-obsolete-roots',
      'KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: give up roots that were invalidated',
      REQ_MMU_FREE_OBSOLETE_ROOTS,
      freeObsoleteRoots,
    ),
    request('sync', 'KVM_REQ_MMU_SYNC: make shadow pages as the guest’s tables are', REQ_MMU_SYNC, syncRoots, true),
    request('load-pgd', 'KVM_REQ_LOAD_MMU_PGD: the processor gets the root', REQ_LOAD_MMU_PGD, () => {}),
    request('flush', 'KVM_REQ_TLB_FLUSH: empty this vCPU’s TLB', REQ_TLB_FLUSH, (machine, vcpu) => {
      // All of it, and with it what the two requests below ask for.
      machine.setRequests(vcpu, vcpu.requests & ~REQ_TLB_FLUSH_CURRENT);
      machine.flushTlb(vcpu);
    }),
    request(
      'flush-current',
      'KVM_REQ_TLB_FLUSH_CURRENT: flush what is cached of the current root',
      REQ_TLB_FLUSH_CURRENT,
      (machine, vcpu) => machine.flushTlb(vcpu),
    ),
    {
      ...flushGuestRequest,
      run(machine, task, locals) {
        const flow = flushGuestRequest.run(machine, task, locals);
        const hasMore = (machine.vcpu(task.vcpu).requests & (REQ_APF_HALT | REQ_APF_READY)) !== 0;
        return flow === NEXT && !hasMore ? 'reload' : flow;
      },
    },
    {
      name: 'async-pf',
      text: 'KVM_REQ_APF_HALT, KVM_REQ_APF_READY: halt until a page is swapped in; look which have been',
      run: (_machine, task) => call(task, checkAsyncPfCompletion, { token: -1 }),
    },
    { name: 'again', text: 'back to requests that have come meanwhile', run: () => 'pending' },
    {
      name: 'reload',
      text: 'kvm_mmu_reload: without a root, load one',
      local: true,
      run: (machine, task) => (machine.vcpu(task.vcpu).root < 0 ? call(task, kvmMmuLoad, {}) : NEXT),
    },
    {
      name: 'enter',
      text: 'run the guest, with the exception or interrupt that waits for it',
      run(machine, task) {
        enterGuest(machine, task);
        return injectAsyncPf(machine, task);
      },
    },
  ],
});

/** kvm_tdp_mmu_alloc_root: the root that all vCPUs of this role share, or a new one. */
function tdpRoot(machine: Machine, vcpu: Vcpu): RootInfo {
  const { rootRole } = vcpu.mmu;
  const shared = machine.roots().find((root) => !root.invalid && root.role === rootRole);
  const root =
    shared ??
    machine.allocateTable(
      {
        gfn: 0,
        level: machine.secondFormat.rootLevel,
        role: rootRole,
        parent: -1,
        parentIndex: 0,
        nxHugePageDisallowed: false,
      },
      mmuHoldsRoots(machine) ? 1 : 0,
    );
  machine.updatePage(root.pfn, { rootCount: root.rootCount + 1 });
  return { pgd: 0n, pfn: root.pfn };
}

/** kvm_tdp_mmu_alloc_root of the mirror, which all vCPUs share and none gives up. */
function tdpMirrorRoot(machine: Machine, vcpu: Vcpu): Pfn {
  const role = withRole(vcpu.mmu.rootRole, { is_mirror: 1 });
  const known = machine.roots().find((root) => root.role === role);
  const level = machine.secondFormat.rootLevel;
  return (
    known?.pfn ??
    machine.allocateTable({ gfn: 0, level, role, parent: -1, parentIndex: 0, nxHugePageDisallowed: false }, 1).pfn
  );
}

export const kvmMmuLoad = defineFunction<object>({
  name: 'kvm_mmu_load',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about:
    'Gives the vCPU a root: of the TDP MMU the one that all vCPUs of this role share, or shadow pages of its guest’s top table.',
  steps: [
    {
      name: 'lock',
      text: 'take mmu_lock: the TDP MMU’s roots for reading, shadow pages for writing',
      run: (machine, task) =>
        lockStep('mmu_lock', machine.hasShadowPages(machine.vcpu(task.vcpu)) ? 'write' : 'read').run(machine, task),
    },
    {
      name: 'root',
      text: 'mmu_alloc_direct_roots or mmu_alloc_shadow_roots: take a root of the wanted role, or allocate an empty one',
      run(machine, task) {
        const vcpu = machine.vcpu(task.vcpu);
        initMmu(machine, vcpu);
        const shadow = machine.hasShadowPages(vcpu);
        if (shadow) makePagesAvailable(machine);
        const mirrorRoot = machine.vm === 'tdx' ? tdpMirrorRoot(machine, vcpu) : -1;
        machine.setMmu(vcpu, {
          root: shadow ? allocateShadowRoots(machine, vcpu) : tdpRoot(machine, vcpu),
          mirrorRoot,
        });
        return NEXT;
      },
    },
    {
      name: 'sync',
      text: 'kvm_mmu_sync_roots: a shadow page that was there already may be behind the guest’s table',
      run(machine, task) {
        syncRoots(machine, machine.vcpu(task.vcpu));
        return NEXT;
      },
    },
    unlockStep('mmu_lock'),
    {
      name: 'flush',
      text: 'flush what the TLB may hold of an earlier root',
      run(machine, task) {
        const vcpu = machine.vcpu(task.vcpu);
        clearMmioInfo(machine, vcpu);
        machine.flushTlb(vcpu);
        return returns(task, 0);
      },
    },
  ],
});
