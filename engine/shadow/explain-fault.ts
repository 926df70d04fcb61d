import { ABSENT } from '../formats/compile.ts';
import { entryProblems } from '../formats/decode.ts';
import { PFERR_FETCH, PFERR_RSVD, PFERR_WRITE } from '../guest/permission.ts';
import { finishWalk, startWalk, type Walk } from '../guest/walk.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, frameToAddress, pageOffset } from '../memory/words.ts';
import type { PendingAccess } from '../operation.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import type { Vcpu } from '../vcpu.ts';

/** Where the guest's own tables lead, if they do: nobody but people is told, for the processor knows shadow tables alone. */
function guestGpa(machine: Machine, vcpu: Vcpu, address: bigint): bigint | undefined {
  const looking = { ...vcpu.mode, ac: true };
  const walk = startWalk(looking, undefined, addressToFrame(address), { bits: 0, implicit: false });
  finishWalk(walk, looking, undefined, { ...machine.walkMemory, setBits() {} });
  return walk.status === 'done' ? frameToAddress(walk.gfn, pageOffset(address)) : undefined;
}

/** Tells what a walk of shadow tables ran into: a #PF, which comes to KVM first. */
export function describeShadowFault(machine: Machine, vcpu: Vcpu, walk: Walk, access: PendingAccess): FaultInfo {
  return {
    vcpu: vcpu.id,
    guest: vcpu.guestMode?.guest,
    access: access.kind,
    cpl: access.cpl,
    implicit: access.implicit,
    gva: access.address,
    guestLevel: 0,
    lo: walk.lo,
    hi: walk.hi,
    kind: 'violation',
    gpa: guestGpa(machine, vcpu, access.address),
    target: 'page',
    level: walk.level,
    index: walk.index,
    table: walk.gfn,
    errorCode: walk.error,
    exitInfo: walk.error,
    reason: reason(vcpu, walk),
  };
}

function reason(vcpu: Vcpu, walk: Walk): string {
  const { format } = vcpu.hardware;
  const entry = `shadow ${format.level(walk.level).entry} ${walk.index}`;
  if (format.classify(walk.level, walk.lo) === ABSENT) return `${entry} is not present`;
  if ((walk.error & PFERR_RSVD) !== 0)
    return `${entry} is malformed: ${entryProblems(format, walk.level, walk.lo, walk.hi).join(', ')}`;
  const what =
    (walk.error & PFERR_FETCH) !== 0 ? 'execution' : (walk.error & PFERR_WRITE) !== 0 ? 'writing' : 'reading';
  return `${entry} does not allow ${what}`;
}
