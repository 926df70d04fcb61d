import { ACC_USER, ACC_WRITE } from '../formats/compile.ts';
import { accessBits, accessPages } from '../guest/access.ts';
import { l2Memory, walkNested } from '../guest/nested.ts';
import { PFERR_RSVD, PFERR_USER, permissionFault } from '../guest/permission.ts';
import { finishWalk, startWalk } from '../guest/walk.ts';
import { Kind } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import { frameToAddress, type Gfn, hex, highWord, lowWord, pageOffset } from '../memory/words.ts';
import { defineFunction, NEXT, type PendingAccess, returns } from '../operation.ts';
import { initMmu } from '../roots/context.ts';
import { injectPageFault, reflectFault } from '../shadow/page-fault.ts';
import { trackWrite } from '../shadow/track-write.ts';
import type { Vcpu } from '../vcpu.ts';
import { describeWalkFault } from './explain-fault.ts';
import type { FaultInfo } from './fault.ts';
import { EMULATION_DONE, EMULATION_INJECTED } from './results.ts';
import { isMmio, mmioGfn, spteFormat } from './spte.ts';

interface EmulateLocals {
  readonly info: FaultInfo;
  /** Guest-physical address of the operand, once KVM has walked the guest's tables for it. */
  gpa: bigint;
}

/**
 * vcpu_mmio_gva_to_gpa: with shadow paging KVM's marker says which frame an address means, and for whom. The guest's tables are not
 * walked again, whatever has become of them, or of the bits that are reserved in them.
 */
function markedFrame(machine: Machine, vcpu: Vcpu, { errorCode }: FaultInfo, access: PendingAccess): Gfn | undefined {
  if ((errorCode & PFERR_RSVD) === 0 || machine.isTdp || vcpu.active !== 'root' || access.kind === 'fetch')
    return undefined;
  if (accessPages(access).length > 1) return undefined;
  const { table, index } = machine.shadowPath(vcpu, access.address).at(-1)!;
  const [lo, hi] = machine.entryWords(table, index);
  const spte = spteFormat(machine.secondFormat);
  if (!isMmio(spte, lo, hi)) return undefined;
  const kind = { bits: accessBits(access), implicit: access.implicit };
  const refused = permissionFault(vcpu.mode.permissions, vcpu.mode, lo & (ACC_WRITE | ACC_USER), 0, kind);
  return refused === 0 ? mmioGfn(spte, lo, hi) : undefined;
}

export const emulateInstruction = defineFunction<EmulateLocals>({
  name: 'x86_emulate_instruction',
  where: 'arch/x86/kvm/x86.c',
  about: 'KVM executes the instruction itself: it walks the guest’s tables, then reaches memory through the memslots.',
  steps: [
    {
      name: 'translate',
      text: 'walk the guest’s tables in software for the operand; a guest fault is injected; no A/D bits in read-only slots',
      run(machine, task, locals) {
        const { info } = locals;
        machine.count('emulated');
        const vcpu = machine.vcpu(task.vcpu);
        const access = task.access!;
        // kvm_mmu_refresh_passthrough_bits: what the guest has changed without an exit.
        if (machine.isTdp) initMmu(machine, vcpu);
        const marked = markedFrame(machine, vcpu, info, access);
        if (marked !== undefined) {
          locals.gpa = frameToAddress(marked, pageOffset(access.address));
          return NEXT;
        }
        for (const vfn of accessPages(access)) {
          const walk = startWalk(vcpu.mode, undefined, vfn, { bits: accessBits(access), implicit: access.implicit });
          const { nested } = vcpu.guestMode ?? {};
          finishWalk(walk, vcpu.mode, undefined, nested ? l2Memory(machine, nested.mode) : machine.walkMemory);
          if (nested && walk.status === 'done') {
            const l2 = walk.gfn;
            const through = walkNested(machine, nested.mode, l2, accessBits(access) | PFERR_USER);
            if (through.status !== 'done') {
              const at = vfn === accessPages(access)[0] ? pageOffset(access.address) : 0;
              return reflectFault(machine, task, through, { ...info, gpa: frameToAddress(l2, at) });
            }
            walk.gfn = through.gfn;
          }
          if (walk.status === 'guest-fault') {
            injectPageFault(
              machine,
              task,
              describeWalkFault(vcpu.id, walk, vcpu.mode, undefined, access, vcpu.guestMode?.guest),
            );
            return returns(task, EMULATION_INJECTED);
          }
          if (vfn === accessPages(access)[0]) locals.gpa = frameToAddress(walk.gfn, pageOffset(access.address));
        }
        return NEXT;
      },
    },
    {
      name: 'access',
      text: 'memory behind a slot is read or written; anything else leaves as KVM_EXIT_MMIO for userspace to complete; a fetch cannot',
      run(machine, task, { info, gpa }) {
        // L1's tables did not allow the access: L1 has got its VM exit.
        if (info.guest !== undefined && !machine.vcpu(task.vcpu).guestMode) return returns(task, EMULATION_INJECTED);
        const access = task.access!;
        const slot = machine.slots.find(Number(gpa >> 12n));
        // The emulator needs the instruction's bytes before it knows what to do (handle_emulation_failure).
        if (access.kind === 'fetch' && !slot) {
          const words = `no memslot holds the instruction at gpa ${hex(gpa)}`;
          if (access.cpl === 3) machine.warn(`${task.name}: ${words}: KVM injects #UD`);
          else machine.fail(task, `${words}: KVM_EXIT_INTERNAL_ERROR`);
          return returns(task, EMULATION_DONE);
        }
        const crosses = pageOffset(gpa) + access.size > 4096;
        if (slot && !(slot.readonly && access.kind === 'write') && !crosses) {
          const pfn = machine.resolve(Number(gpa >> 12n));
          if (access.kind === 'write') {
            machine.storeBytes(pfn, pageOffset(gpa), access.size, access.value);
            trackWrite(machine, gpa, access.size);
          }
        } else
          machine.append(Kind.MMIO, task.vcpu, access.size, 0, lowWord(access.value), highWord(access.value), {
            ...info,
            kind: 'mmio',
            gpa,
          });
        return returns(task, EMULATION_DONE);
      },
    },
  ],
});
