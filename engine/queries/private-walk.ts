import { pendingFault, rmpFault } from '../attributes/explain.ts';
import { checkRmp } from '../attributes/rmp-check.ts';
import { frameOf, sharedBit } from '../attributes/tdx.ts';
import type { PagingMode } from '../guest/registers.ts';
import { type Reference, type SecondStage, stepWalk, type Walk, type WalkMemory } from '../guest/walk.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, hex } from '../memory/words.ts';
import type { PendingAccess } from '../operation.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import type { Vcpu } from '../vcpu.ts';

// Walks of guests with private memory, that change nothing: which tables they go through, and what refuses the page at their end.

/** A guest-physical frame as it is asked about: of TDX its shared bit says which memory is meant. */
export function askedFrame(machine: Machine, address: bigint): { frame: number; isPrivate: boolean | undefined } {
  const frame: number = frameOf(machine, address);
  return { frame, isPrivate: frame === addressToFrame(address) ? undefined : false };
}

/**
 * Walks to the end, of TDX through the secure EPT to private memory and to the guest's tables, through KVM's own to shared.
 * @param meant which memory is meant, where the guest's tables do not tell it; undefined: what the page's attribute says
 * @returns whether the page is private memory, which is known once the guest's tables have been walked
 */
export function finishPrivateWalk(
  machine: Machine,
  { secure, second }: Vcpu,
  walk: Walk,
  mode: PagingMode,
  meant: boolean | undefined,
  memory: WalkMemory,
  trace: Reference[],
): boolean {
  let stage: SecondStage | undefined = secure ?? second;
  let isPrivate = true;
  const arrive = (): void => {
    isPrivate = walk.isPrivate ?? meant ?? machine.attributes.store.isPrivate(walk.gfn);
    if (!secure || isPrivate) return;
    stage = second;
    walk.secondTable = second!.root;
    walk.gfn += sharedBit(machine);
  };
  if (secure) walk.secondTable = secure.root;
  if (walk.level === 0) arrive();
  while (walk.status === 'running') {
    const { level } = walk;
    stepWalk(walk, mode, stage, memory, trace);
    if (level > 0 && walk.level === 0) arrive();
  }
  if (secure) walk.gfn %= sharedBit(machine);
  return isPrivate;
}

/** What refuses an access to the page that a walk has led to. */
export interface Refusal {
  readonly reason: string;
  readonly errorCode?: string;
  readonly exitInfo?: string;
}

/** What RMP or TDX's module has against an access; undefined where it may go on. @param access with `isPrivate` */
export function refusalOf(machine: Machine, vcpu: Vcpu, walk: Walk, access: PendingAccess): Refusal | undefined {
  if (machine.vm === 'snp') {
    const problem = checkRmp(machine, vcpu.id, access, walk.gfn, walk.pfn, walk.secondLeafLevel);
    if (!problem) return undefined;
    if (problem.kind === 'not-validated') return { reason: `${problem.reason}: #VC` };
    return inHex(rmpFault(vcpu.id, walk, access, problem));
  }
  const isPending = vcpu.secure !== undefined && access.isPrivate && machine.attributes.pending.get(walk.pfn) === true;
  return isPending ? inHex(pendingFault(vcpu.id, walk, access)) : undefined;
}

const inHex = ({ reason, errorCode, exitInfo }: FaultInfo): Refusal => ({
  reason,
  errorCode: hex(errorCode),
  exitInfo: hex(exitInfo),
});
