import type { Walk } from '../guest/walk.ts';
import { frameToAddress, pageOffset } from '../memory/words.ts';
import type { PendingAccess } from '../operation.ts';
import {
  type FaultInfo,
  PFERR_GUEST_ENC,
  PFERR_GUEST_FINAL,
  PFERR_GUEST_PAGE,
  PFERR_GUEST_RMP,
  PFERR_GUEST_SIZEM,
  PFERR_GUEST_VMPL,
  PFERR_PRIVATE_ACCESS,
} from '../tdp/fault.ts';
import type { RmpProblem } from './rmp-check.ts';

/** The #NPF of an access that the tables allow and the RMP refuses. P is set: the entries are there. */
export function rmpFault(
  vcpu: number,
  walk: Walk,
  access: PendingAccess,
  problem: RmpProblem,
  isTable = false,
): FaultInfo {
  const isPrivate = isTable || access.isPrivate === true;
  const errorCode =
    1 +
    (access.kind === 'write' && !isTable ? 2 : 0) +
    4 +
    (access.kind === 'fetch' && !isTable ? 16 : 0) +
    PFERR_GUEST_RMP +
    (isTable ? PFERR_GUEST_PAGE : PFERR_GUEST_FINAL) +
    (isPrivate ? PFERR_GUEST_ENC : 0) +
    (problem.kind === 'size' ? PFERR_GUEST_SIZEM : 0) +
    (problem.kind === 'vmpl' ? PFERR_GUEST_VMPL : 0);
  return {
    ...refused(vcpu, walk, access, isTable),
    kind: 'rmp',
    errorCode: errorCode + (isPrivate ? PFERR_PRIVATE_ACCESS : 0),
    exitInfo: errorCode,
    isPrivate,
    reason: problem.reason,
  };
}

/**
 * The EPT violation of an access to a page that the secure EPT has as pending, of a guest that wants no #VE for it (SEPT_VE_DISABLE). No bit of the
 * qualification says what an entry grants, for it grants nothing.
 */
export function pendingFault(vcpu: number, walk: Walk, access: PendingAccess, isTable = false): FaultInfo {
  return {
    ...refused(vcpu, walk, access, isTable),
    kind: 'violation',
    errorCode: isTable ? PFERR_GUEST_PAGE : PFERR_GUEST_FINAL,
    exitInfo: 0,
    isPrivate: true,
    isPending: true,
    reason: 'the guest has not accepted the page (TDG.MEM.PAGE.ACCEPT)',
  };
}

/** What is the same of all that is refused behind tables that allow it. */
function refused(
  vcpu: number,
  walk: Walk,
  access: PendingAccess,
  isTable: boolean,
): Omit<FaultInfo, 'kind' | 'errorCode' | 'exitInfo' | 'reason'> {
  return {
    vcpu,
    access: access.kind,
    cpl: access.cpl,
    implicit: access.implicit,
    gva: access.address,
    gpa: frameToAddress(walk.gfn, isTable ? 0 : pageOffset(access.address)),
    target: isTable ? 'table' : 'page',
    guestLevel: walk.level,
    level: walk.secondLeafLevel,
    index: walk.secondIndex,
    lo: walk.lo,
    hi: walk.hi,
    table: walk.secondTable,
  };
}
