import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import type { PendingAccess } from '../operation.ts';
import type { RmpEntry } from './state.ts';

// The reverse map table of SEV-SNP: who owns each host frame, and as which guest frame. The processor checks it after the walk.

const PAGES_2M = 512;
const EFAULT = -14;
const firstOf = (pfn: Pfn): Pfn => pfn - (pfn % PAGES_2M);

/** snp_lookup_rmpentry: the entry of a frame, which may stand at the first frame of its 2M; undefined where it is the hypervisor's. */
export function rmpEntry(machine: Machine, pfn: Pfn): RmpEntry | undefined {
  const large = machine.attributes.rmp.get(firstOf(pfn));
  return large?.level === 2 ? { ...large, gfn: large.gfn + (pfn % PAGES_2M) } : machine.attributes.rmp.get(pfn);
}

/** RMPUPDATE results (APM vol. 3). */
export const RMPUPDATE_OK = 0;
/** Another entry overlaps: the caller tries again. */
export const RMPUPDATE_OVERLAP = 4;

/**
 * RMPUPDATE: gives a frame, or an aligned 2M of frames, to a guest, or back to the hypervisor where `gfn` is −1. Translations of them go from
 * every TLB.
 */
export function rmpUpdate(machine: Machine, pfn: Pfn, gfn: Gfn, level: 1 | 2): number {
  const { rmp } = machine.attributes;
  const pages = level === 2 ? PAGES_2M : 1;
  const large = rmp.get(firstOf(pfn));
  if (level === 1 && large?.level === 2) return RMPUPDATE_OVERLAP;
  if (level === 2 && large?.level !== 2)
    for (let frame = pfn; frame < pfn + pages; frame++) if (rmp.get(frame)) return RMPUPDATE_OVERLAP;
  machine.count('rmp.updates');
  rmp.set(machine, pfn, gfn < 0 ? undefined : { gfn, level, validated: false });
  flushFrames(machine, pfn, pages);
  return RMPUPDATE_OK;
}

/** PSMASH: one entry of 2M becomes 512 of 4K, each as accepted as the whole was. */
export function psmash(machine: Machine, pfn: Pfn): void {
  const first = firstOf(pfn);
  const { gfn, validated } = machine.attributes.rmp.get(first)!;
  for (let page = 0; page < PAGES_2M; page++)
    machine.attributes.rmp.set(machine, first + page, { gfn: gfn + page, level: 1, validated });
  flushFrames(machine, first, PAGES_2M);
}

/**
 * rmp_make_private, or rmp_make_shared where `gfn` is −1: RMPUPDATE, where a part of 2M is meant after PSMASH.
 * @returns 0, or −EFAULT where the processor refuses
 */
export function rmpMake(machine: Machine, pfn: Pfn, gfn: Gfn, level: 1 | 2): number {
  const what = `RMPUPDATE of hpa 0x${(pfn * 4096).toString(16)} fails`;
  if (machine.injects('rmpupdate-fails')) {
    machine.warn(what);
    return EFAULT;
  }
  if (level === 1 && rmpEntry(machine, pfn)?.level === 2) psmash(machine, pfn);
  const result = rmpUpdate(machine, pfn, gfn, level);
  if (result === RMPUPDATE_OK) return 0;
  machine.warn(`${what} with ${result}: entries of 4K overlap`);
  return EFAULT;
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

/** What the check of an access against the RMP finds wrong. */
export interface RmpProblem {
  /** `not-validated` is the guest's to handle (#VC); the others exit to the hypervisor. */
  readonly kind: 'owner' | 'size' | 'not-validated';
  readonly reason: string;
}

/**
 * The check of a translated access. Order and exact set of the checks are unverified; so are the VMPL's rights, which are not modelled.
 * @param level of the second-stage leaf
 */
export function checkRmp(
  machine: Machine,
  access: PendingAccess,
  gfn: Gfn,
  pfn: Pfn,
  level: number,
): RmpProblem | undefined {
  const entry = rmpEntry(machine, pfn);
  const frame = `hpa 0x${(pfn * 4096).toString(16)}`;
  if (!access.isPrivate) {
    if (access.kind !== 'write' || entry === undefined) return undefined;
    return { kind: 'owner', reason: `${frame} is assigned to the guest, and the access is not private` };
  }
  if (entry === undefined) return { kind: 'owner', reason: `${frame} is not assigned to the guest` };
  if (entry.gfn !== gfn)
    return { kind: 'owner', reason: `${frame} is assigned as gfn 0x${entry.gfn.toString(16)}, not this one` };
  if (level !== entry.level)
    return { kind: 'size', reason: `the second stage maps ${sizeOf(level)} where the RMP has ${sizeOf(entry.level)}` };
  if (access.validate === 1 && entry.level === 2)
    return { kind: 'size', reason: 'PVALIDATE names a page of 4K where the RMP has 2M' };
  if (!entry.validated && access.validate === undefined)
    return { kind: 'not-validated', reason: `the guest has not accepted ${frame} (PVALIDATE)` };
  return undefined;
}

const sizeOf = (level: number): string => ['4K', '2M', '1G'][level - 1]!;

/** PVALIDATE of a page that is assigned. @returns whether sizes agree; where not, nothing is changed (FAIL_SIZEMISMATCH) */
export function pvalidate(machine: Machine, pfn: Pfn, level: 1 | 2): boolean {
  const { rmp } = machine.attributes;
  const at = level === 2 ? firstOf(pfn) : pfn;
  const entry = rmp.get(at);
  if (entry?.level !== level) return false;
  rmp.set(machine, at, { ...entry, validated: true });
  return true;
}

/** sev_private_max_mapping_level: of a page that is assigned as 4K no larger mapping holds. */
export function rmpLevel(machine: Machine, pfn: Pfn): number {
  return rmpEntry(machine, pfn)?.level ?? 1;
}
