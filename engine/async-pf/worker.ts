import { frameToAddress, type Pfn } from '../memory/words.ts';
import { defineFunction, NEXT, returns } from '../operation.ts';
import { completed } from './queue.ts';

interface Locals {
  readonly vcpu: number;
  readonly token: number;
  readonly pfn: Pfn;
}

export const asyncPfExecute = defineFunction<Locals>({
  name: 'async_pf_execute',
  where: 'virt/kvm/async_pf.c',
  about: 'A worker reads a page that is swapped out, and tells the vCPU that wanted it.',
  steps: [
    {
      name: 'read',
      text: 'get_user_pages_remote: wait for the disk; the page is in memory then',
      run(machine, _task, { pfn }) {
        machine.shadow.swapped.set(machine, pfn, undefined);
        return NEXT;
      },
    },
    {
      name: 'done',
      text: 'put it among those that are done, ask the vCPU to look (KVM_REQ_APF_READY), and wake it',
      run(machine, task, { vcpu, token, pfn }) {
        const work = machine.small.asyncPf[vcpu]!.queue.find((each) => each.token === token);
        // The queue may have been cleared meanwhile.
        if (!work) return returns(task, 0);
        work.done = true;
        machine.trace('kvm_async_pf_completed', {
          address: frameToAddress(pfn),
          gva: work.addr,
        });
        completed(machine, machine.vcpu(vcpu));
        return returns(task, 0);
      },
    },
  ],
});
