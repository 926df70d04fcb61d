import { Kind } from '../history/log.ts';
import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import { hex } from '../memory/words.ts';
import { AGAIN, call, defineFunction, type Flow, NEXT, returns, type Task } from '../operation.ts';
import { kvmMmuLoad, mustEnter, vcpuEnterGuest } from '../roots/enter.ts';
import { handlePrefetch } from '../tdp/page-fault.ts';
import { REQ_APF_HALT, REQ_APF_READY } from '../vcpu.ts';
import { asyncPfOf, canDequeue, completed, FLAGS, sharedWord, storeShared, TOKEN, WAKE_ALL } from './queue.ts';

interface Locals {
  /** Of the fault whose page is there; −1 while there is none. */
  token: number;
}

/** The guest's walk root that a fault was for; of direct roots it means nothing. */
export function guestPgd(machine: Machine, vcpu: number): bigint {
  const { guestMode, registers } = machine.vcpu(vcpu);
  return guestMode?.nested?.pgd ?? registers.cr3;
}

export const checkAsyncPfCompletion = defineFunction<Locals>({
  name: 'kvm_check_async_pf_completion',
  where: 'virt/kvm/async_pf.c',
  about: 'Asynchronous page faults on the way into the guest: an artificial halt, and pages that workers have read.',
  steps: [
    {
      name: 'halt',
      text: 'KVM_REQ_APF_HALT: the page is swapped out, and the guest cannot be told: halt',
      run(machine, task) {
        const vcpu = machine.vcpu(task.vcpu);
        if ((vcpu.requests & REQ_APF_HALT) === 0) return 'dequeue';
        machine.setRequests(vcpu, vcpu.requests & ~REQ_APF_HALT);
        machine.count('async_pf.halts');
        return NEXT;
      },
    },
    {
      name: 'block',
      text: 'kvm_vcpu_block: until a worker has read a page',
      run(machine, task) {
        const { queue } = asyncPfOf(machine, machine.vcpu(task.vcpu));
        if (queue.some(({ done }) => done)) return NEXT;
        task.state = 'halted';
        return AGAIN;
      },
    },
    {
      name: 'dequeue',
      text: 'KVM_REQ_APF_READY: the next fault whose page is there, if the guest has taken the last token',
      run(machine, task, locals) {
        const vcpu = machine.vcpu(task.vcpu);
        machine.setRequests(vcpu, vcpu.requests & ~REQ_APF_READY);
        const apf = asyncPfOf(machine, vcpu);
        const work = apf.queue.find(({ done }) => done);
        if (!work || !canDequeue(machine, apf)) return returns(task, 0);
        locals.token = work.token;
        const isSame = work.direct === (roleField(vcpu.mmu.rootRole, 'direct') === 1);
        return work.token === WAKE_ALL || !isSame ? 'present' : NEXT;
      },
    },
    {
      name: 'reload',
      text: 'kvm_mmu_reload: without a root, load one',
      run: (machine, task) => (machine.vcpu(task.vcpu).root < 0 ? call(task, kvmMmuLoad, {}) : NEXT),
    },
    {
      name: 'fault',
      text: 'kvm_arch_async_page_ready: map the page as the fault would have, unless the guest has other tables by now',
      run(machine, task, { token }) {
        const work = asyncPfOf(machine, machine.vcpu(task.vcpu)).queue.find((each) => each.token === token);
        if (!work?.info || (!work.direct && work.pgd !== guestPgd(machine, task.vcpu))) return NEXT;
        return handlePrefetch(machine, task, work.info);
      },
    },
    {
      name: 'present',
      text: 'kvm_arch_async_page_present: a guest that was told of the fault gets its token and an interrupt',
      run(machine, task, { token }) {
        const apf = asyncPfOf(machine, machine.vcpu(task.vcpu));
        const work = apf.queue.find((each) => each.token === token);
        if (work) {
          apf.queue = apf.queue.filter((each) => each !== work);
          machine.trace('kvm_async_pf_ready', { token, gva: work.addr });
          if (work.injected && apf.enabled) {
            storeShared(machine, apf.enabled.gpa + TOKEN, BigInt(token));
            apf.interrupt = true;
            machine.count('async_pf.ready');
          }
        }
        return 'dequeue';
      },
    },
  ],
});

/** What waits for the guest when it is entered: the #PF, whose handler then runs, or the interrupt. */
export function injectAsyncPf(machine: Machine, task: Task): Flow {
  const apf = asyncPfOf(machine, machine.vcpu(task.vcpu));
  const { pending } = apf;
  if (pending) {
    const { token, info } = pending;
    apf.pending = null;
    machine.count('faults.guest');
    task.cr2 = BigInt(token);
    task.errorCode = 0;
    const reason = `its page is swapped out, which KVM tells by a #PF with the token ${hex(BigInt(token))} in CR2`;
    machine.append(Kind.GUEST_FAULT, task.vcpu, 1, 0, 0, 0, { ...info, kind: 'guest', errorCode: 0, reason });
    return call(task, asyncPfTaskWait, { token });
  }
  return apf.interrupt ? call(task, asyncPfInterrupt, {}) : returns(task, 0);
}

const asyncPfInterrupt = defineFunction<object>({
  name: 'sysvec_kvm_asyncpf_interrupt',
  where: 'arch/x86/kernel/kvm.c, in the guest',
  about: 'The guest’s handler of the interrupt that says that a page is there.',
  steps: [
    {
      name: 'wake',
      text: 'take the token, and wake what sleeps on it',
      run(machine, task) {
        const apf = asyncPfOf(machine, machine.vcpu(task.vcpu));
        apf.interrupt = false;
        if (!apf.enabled) return NEXT;
        const place = apf.enabled.gpa + TOKEN;
        const token = Number(sharedWord(machine, place));
        // Nobody sleeps who has not been told.
        if (token !== WAKE_ALL) apf.woken.push(token);
        storeShared(machine, place, 0n);
        return NEXT;
      },
    },
    {
      name: 'acknowledge',
      text: 'write MSR_KVM_ASYNC_PF_ACK: KVM may tell of the next page',
      run(machine, task) {
        machine.count('exits');
        const vcpu = machine.vcpu(task.vcpu);
        if (asyncPfOf(machine, vcpu).queue.some(({ done }) => done)) completed(machine, vcpu);
        return returns(task, 0);
      },
    },
  ],
});

const asyncPfTaskWait = defineFunction<{ readonly token: number }>({
  name: 'kvm_async_pf_task_wait_schedule',
  where: 'arch/x86/kernel/kvm.c, in the guest',
  about: 'The guest’s handler of the #PF: the thread sleeps until its page is there, and makes its access again.',
  steps: [
    {
      name: 'flags',
      text: 'clear the flags that told this #PF from others',
      run(machine, task) {
        const { enabled } = asyncPfOf(machine, machine.vcpu(task.vcpu));
        if (enabled) storeShared(machine, enabled.gpa + FLAGS, 0n);
        return NEXT;
      },
    },
    {
      name: 'sleep',
      text: 'sleep until the token has come; no other thread is there to run, so that the processor halts',
      run(machine, task, { token }) {
        const vcpu = machine.vcpu(task.vcpu);
        const apf = asyncPfOf(machine, vcpu);
        if (apf.woken.includes(token)) {
          apf.woken = apf.woken.filter((each) => each !== token);
          return returns(task, 0);
        }
        if (apf.interrupt || mustEnter(vcpu)) return call(task, vcpuEnterGuest, {});
        task.state = 'halted';
        return AGAIN;
      },
    },
    { name: 'again', text: 'the processor was woken: look again', run: () => 'sleep' },
  ],
});
