import type { Machine } from '../machine.ts';
import { REQ_TLB_FLUSH } from '../vcpu.ts';

/**
 * kvm_flush_remote_tlbs: every vCPU is kicked out of the guest, and flushes before it enters again. No vCPU touches
 * memory in between, so the caller need not wait.
 */
export function flushRemoteTlbs(machine: Machine): void {
  for (const vcpu of machine.vcpus) machine.setRequests(vcpu, vcpu.requests | REQ_TLB_FLUSH);
}
