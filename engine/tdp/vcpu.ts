import { Kind } from '../history/log.ts';
import { lockStep, unlockStep } from '../lock-steps.ts';
import { type Machine, REQ_MMU_FREE_OBSOLETE_ROOTS, REQ_TLB_FLUSH, type Vcpu } from '../machine.ts';
import { call, defineFunction, NEXT, returns } from '../operation.ts';

/** Whether a vCPU must pass through `vcpu_enter_guest` before it can touch memory. */
export function mustEnter(vcpu: Vcpu): boolean {
  return vcpu.root < 0 || vcpu.requests !== 0;
}

/** Gives up a vCPU's root; a root that is being taken down goes with its last reference (`kvm_tdp_mmu_put_root`). */
function freeRoot(machine: Machine, vcpu: Vcpu): void {
  const root = machine.page(vcpu.root);
  machine.setRoot(vcpu, -1);
  machine.updatePage(root.pfn, { rootCount: root.rootCount - 1 });
  if (root.rootCount === 1) machine.freeTable(root.pfn);
}

export const vcpuEnterGuest = defineFunction<object>({
  name: 'vcpu_enter_guest',
  where: 'arch/x86/kvm/x86.c',
  about: 'The way into the guest: requests first, then a root to run on.',
  steps: [
    {
      name: 'free-obsolete-roots',
      text: 'KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: give up a root that was invalidated',
      run(machine, task) {
        const vcpu = machine.vcpu(task.vcpu);
        if ((vcpu.requests & REQ_MMU_FREE_OBSOLETE_ROOTS) !== 0) {
          if (vcpu.root >= 0 && machine.page(vcpu.root).invalid) freeRoot(machine, vcpu);
          machine.setRequests(vcpu, vcpu.requests & ~REQ_MMU_FREE_OBSOLETE_ROOTS);
        }
        return NEXT;
      },
    },
    {
      name: 'flush',
      text: 'KVM_REQ_TLB_FLUSH: empty this vCPU’s TLB',
      run(machine, task) {
        const vcpu = machine.vcpu(task.vcpu);
        if ((vcpu.requests & REQ_TLB_FLUSH) !== 0) {
          machine.flushTlb(vcpu);
          machine.setRequests(vcpu, vcpu.requests & ~REQ_TLB_FLUSH);
        }
        return NEXT;
      },
    },
    {
      name: 'reload',
      text: 'kvm_mmu_reload: without a root, load one',
      run: (machine, task) => (machine.vcpu(task.vcpu).root < 0 ? call(task, kvmMmuLoad, {}) : NEXT),
    },
    {
      name: 'enter',
      text: 'run the guest',
      run(machine, task) {
        machine.append(Kind.ENTRY, task.vcpu, 0, 0, 0, 0);
        return returns(task, 0);
      },
    },
  ],
});

export const kvmMmuLoad = defineFunction<object>({
  name: 'kvm_mmu_load',
  where: 'arch/x86/kvm/mmu/mmu.c',
  about: 'Gives the vCPU a root: the one that all vCPUs of this role share, or a new one.',
  steps: [
    lockStep('mmu_lock', 'read'),
    {
      name: 'root',
      text: 'kvm_tdp_mmu_alloc_root: take a valid root of the wanted role, or allocate an empty one',
      run(machine, task) {
        const vcpu = machine.vcpu(task.vcpu);
        const shared = machine.roots().find((root) => !root.invalid);
        // A new root starts with two references: the vCPU's and the MMU's own.
        const root =
          shared ??
          machine.allocateTable({
            gfn: 0,
            level: machine.secondFormat.rootLevel,
            parent: -1,
            parentIndex: 0,
          });
        machine.updatePage(root.pfn, { rootCount: root.rootCount + 1 });
        machine.setRoot(vcpu, root.pfn);
        return NEXT;
      },
    },
    unlockStep('mmu_lock'),
    {
      name: 'flush',
      text: 'flush what the TLB may hold of an earlier root',
      run(machine, task) {
        machine.flushTlb(machine.vcpu(task.vcpu));
        return returns(task, 0);
      },
    },
  ],
});
