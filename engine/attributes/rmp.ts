import type { Machine } from '../machine.ts';
import { frameToAddress, type Gfn, hex, type Pfn } from '../memory/words.ts';
import type { Task } from '../operation.ts';
import { EFAULT } from '../tdp/fault.ts';
import { GUEST_ASID, type RmpEntry } from './state.ts';
import { rightsOf, vmplOf, withRights } from './vmpl.ts';

// The reverse map table of SEV-SNP: who owns each host frame, and as which guest frame. The processor checks it after the walk.

const PAGES_2M = 512;
const firstOf = (pfn: Pfn): Pfn => pfn - (pfn % PAGES_2M);

/** snp_lookup_rmpentry: the entry of a frame, which may stand at the first frame of its 2M; undefined where it is the hypervisor's. */
export function rmpEntry(machine: Machine, pfn: Pfn): RmpEntry | undefined {
  const large = machine.attributes.rmp.get(firstOf(pfn));
  return large?.level === 2 ? { ...large, gfn: large.gfn + (pfn % PAGES_2M) } : machine.attributes.rmp.get(pfn);
}

/** What RMPUPDATE, PSMASH, RMPADJUST and PVALIDATE return (APM vol. 3). */
export const RMP_RESULTS = {
  SUCCESS: 0,
  /** An address is not aligned. */
  FAIL_INPUT: 1,
  /** It is a VMPL's to do that is more privileged. */
  FAIL_PERMISSION: 2,
  /** Another processor is in the middle of changing the entry. */
  FAIL_INUSE: 3,
  /** An entry of 2M lies over it, or entries of 4K below it; or another processor works in the same 2M. */
  FAIL_OVERLAP: 4,
  /** 2M are meant where the RMP has 4K. */
  FAIL_SIZEMISMATCH: 6,
} as const;
export type RmpResult = keyof typeof RMP_RESULTS;

/** An instruction is one step, in the middle of which nobody else can be met: with the mistake injected, each finds its entry so once. */
export interface Busy {
  /** It has found it so. */
  wasBusy?: true;
}

/** @returns whether the instruction has just found its entry in use, so that the kernel has to repeat it */
export function findsBusy(
  machine: Machine,
  { name }: Task,
  locals: Busy,
  instruction: 'RMPUPDATE' | 'PSMASH',
  pfn: Pfn,
): boolean {
  if (locals.wasBusy || !machine.injects('rmp-in-use')) return false;
  locals.wasBusy = true;
  const result: RmpResult = instruction === 'RMPUPDATE' ? 'FAIL_OVERLAP' : 'FAIL_INUSE';
  const where = hex(frameToAddress(pfn));
  machine.warn(
    `${name}: ${instruction} of hpa ${where} returns ${result} (${RMP_RESULTS[result]}): another processor is at it; the kernel tries again`,
  );
  return true;
}

/**
 * RMPUPDATE: gives a frame, or 2M of frames, to a guest, or back to the hypervisor where `to` is undefined. A guest has to accept it anew, and
 * of its VMPLs but the first none may use it. Translations of the frames go from every TLB.
 */
export function rmpUpdate(
  machine: Machine,
  pfn: Pfn,
  level: 1 | 2,
  to: Pick<RmpEntry, 'gfn' | 'asid'> | undefined,
): RmpResult {
  const { rmp } = machine.attributes;
  const pages = level === 2 ? PAGES_2M : 1;
  if (pfn % pages !== 0 || (to && to.gfn % pages !== 0)) return 'FAIL_INPUT';
  const large = rmp.get(firstOf(pfn));
  if (level === 1 && large?.level === 2) return 'FAIL_OVERLAP';
  if (level === 2 && large?.level !== 2)
    for (let frame = pfn; frame < pfn + pages; frame++) if (rmp.get(frame)) return 'FAIL_OVERLAP';
  machine.count('rmp.updates');
  rmp.set(machine, pfn, to && { gfn: to.gfn, level, validated: false, asid: to.asid, rights: 0 });
  flushFrames(machine, pfn, pages);
  return 'SUCCESS';
}

/** PSMASH: one entry of 2M becomes 512 of 4K, each accepted, and with rights, as the whole was. */
export function psmash(machine: Machine, pfn: Pfn): void {
  const first = firstOf(pfn);
  const whole = machine.attributes.rmp.get(first)!;
  for (let page = 0; page < PAGES_2M; page++)
    machine.attributes.rmp.set(machine, first + page, { ...whole, gfn: whole.gfn + page, level: 1 });
  flushFrames(machine, first, PAGES_2M);
}

/**
 * rmp_make_private, or rmp_make_shared where `gfn` is −1: RMPUPDATE, where a part of 2M is meant after PSMASH. Of 2M the caller knows that no
 * entries of 4K are in the way.
 * @returns 0, or −EFAULT where the processor refuses
 */
export function rmpMake(machine: Machine, pfn: Pfn, gfn: Gfn, level: 1 | 2): number {
  if (machine.injects('rmp-update-fails')) {
    machine.warn(`RMPUPDATE of hpa ${hex(frameToAddress(pfn))} fails`);
    return EFAULT;
  }
  if (level === 1 && rmpEntry(machine, pfn)?.level === 2) psmash(machine, pfn);
  const result = rmpUpdate(machine, pfn, level, gfn < 0 ? undefined : { gfn, asid: GUEST_ASID });
  if (result !== 'SUCCESS') throw new Error(`RMPUPDATE of pfn ${pfn}: ${result}`);
  return 0;
}

/** PVALIDATE, or what rescinds it, of a page that is assigned. @returns `unchanged` (CF) where the page is so already */
export function pvalidate(machine: Machine, pfn: Pfn, level: 1 | 2, validated: boolean): RmpResult | 'unchanged' {
  const { rmp } = machine.attributes;
  const at = level === 2 ? firstOf(pfn) : pfn;
  const entry = rmp.get(at);
  if (entry?.level !== level) return 'FAIL_SIZEMISMATCH';
  if (entry.validated === validated) return 'unchanged';
  rmp.set(machine, at, { ...entry, validated });
  // What is not validated any more must not be found in a TLB.
  if (!validated) flushFrames(machine, at, level === 2 ? PAGES_2M : 1);
  return 'SUCCESS';
}

/** RMPADJUST: a VMPL says what one that is less privileged may do with a page; no more than it may itself. */
export function rmpAdjust(
  machine: Machine,
  vcpu: number,
  pfn: Pfn,
  { level, vmpl, rights }: { readonly level: 1 | 2; readonly vmpl: number; readonly rights: number },
): RmpResult {
  const { rmp } = machine.attributes;
  const at = level === 2 ? firstOf(pfn) : pfn;
  const entry = rmp.get(at);
  if (entry?.level !== level) return 'FAIL_SIZEMISMATCH';
  if ((rights & ~rightsOf(entry, vmplOf(machine, vcpu))) !== 0) return 'FAIL_PERMISSION';
  rmp.set(machine, at, { ...entry, rights: withRights(entry.rights, vmpl, rights) });
  flushFrames(machine, at, level === 2 ? PAGES_2M : 1);
  return 'SUCCESS';
}

function flushFrames(machine: Machine, pfn: Pfn, pages: number): void {
  for (const vcpu of machine.vcpus) {
    if (vcpu.tlb.count === 0) continue;
    vcpu.tlb.entries.forEach((entry, slot) => {
      if (!entry) return;
      const span = PAGES_2M ** (entry.level - 1);
      const first = entry.pfn - (entry.pfn % span);
      if (first < pfn + pages && pfn < first + span) machine.dropTlb(vcpu, slot);
    });
  }
}
