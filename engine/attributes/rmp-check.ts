import { ACC_EXEC, ACC_USER, ACC_WRITE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import { formatSize, type Gfn, type Pfn } from '../memory/words.ts';
import type { PendingAccess } from '../operation.ts';
import { rmpEntry } from './rmp.ts';
import { GUEST_ASID } from './state.ts';
import { accessOf, rightNeeded, rightsOf, rightsWords, vmplOf } from './vmpl.ts';

/** What the check of an access against the RMP finds wrong. */
export interface RmpProblem {
  /** `not-validated` is the guest's to handle (#VC); the others exit to the hypervisor. */
  readonly kind: 'owner' | 'size' | 'vmpl' | 'not-validated';
  readonly reason: string;
}

/**
 * The check of a translated access. That is all of what the architecture is said to check: owner, ASID, gfn, size, acceptance, VMPL. The order
 * is unverified (it is that of VeriSMo's model of the hardware), and that only writes to shared memory are checked.
 * @param level of the second-stage leaf
 */
export function checkRmp(
  machine: Machine,
  vcpu: number,
  access: PendingAccess,
  gfn: Gfn,
  pfn: Pfn,
  level: number,
): RmpProblem | undefined {
  const entry = rmpEntry(machine, pfn);
  const frame = `hpa 0x${(pfn * 4096).toString(16)}`;
  if (!access.isPrivate) {
    if (access.kind !== 'write' || entry === undefined) return undefined;
    return { kind: 'owner', reason: `${frame} is assigned to a guest, and the access is not private` };
  }
  if (entry === undefined) return { kind: 'owner', reason: `${frame} is not assigned to the guest` };
  if (entry.asid !== GUEST_ASID)
    return { kind: 'owner', reason: `${frame} is assigned to another guest (ASID ${entry.asid})` };
  if (entry.gfn !== gfn)
    return { kind: 'owner', reason: `${frame} is assigned as gfn 0x${entry.gfn.toString(16)}, not this one` };
  if (level !== entry.level)
    return { kind: 'size', reason: `the second stage maps ${sizeOf(level)} where the RMP has ${sizeOf(entry.level)}` };
  const { page } = access;
  if (page?.level === 1 && entry.level === 2)
    return { kind: 'size', reason: `${page.name} names a page of 4K where the RMP has 2M` };
  if (!entry.validated && page?.name !== 'PVALIDATE')
    return { kind: 'not-validated', reason: `the guest has not accepted ${frame} (PVALIDATE)` };
  const vmpl = vmplOf(machine, vcpu);
  const rights = rightsOf(entry, vmpl);
  if (!page && (rights & rightNeeded(access)) === 0)
    return { kind: 'vmpl', reason: `VMPL ${vmpl} may not ${access.kind} ${frame}: it has ${rightsWords(rights)}` };
  return undefined;
}

/** The rights that a translation of an access may keep, in ACC_* bits: no more than the check would let pass. */
export function rmpAccess(machine: Machine, vcpu: number, { isPrivate }: PendingAccess, pfn: Pfn): number {
  const entry = rmpEntry(machine, pfn);
  if (!entry) return ACC_USER | ACC_WRITE | ACC_EXEC;
  return isPrivate ? accessOf(rightsOf(entry, vmplOf(machine, vcpu))) : ACC_USER | ACC_EXEC;
}

const sizeOf = (level: number): string => formatSize(4096 * 512 ** (level - 1));
