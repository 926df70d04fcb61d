import { ACC_EXEC, ACC_USER, ACC_WRITE } from '../formats/compile.ts';

/** Page-fault error code bits (SDM vol. 3, 4.7; KVM: PFERR_*). */
export const PFERR_PRESENT = 1;
export const PFERR_WRITE = 2;
export const PFERR_USER = 4;
export const PFERR_RSVD = 8;
export const PFERR_FETCH = 16;
export const PFERR_PK = 32;

const NAMES: readonly [number, string][] = [
  [PFERR_PRESENT, 'P'],
  [PFERR_WRITE, 'W'],
  [PFERR_USER, 'U'],
  [PFERR_RSVD, 'RSVD'],
  [PFERR_FETCH, 'F'],
  [PFERR_PK, 'PK'],
];

/** `0x3 P|W`: an error code as KVM's tracepoints print it. */
export function errorCodeWords(code: number): string {
  const names = NAMES.filter(([bit]) => (code & bit) !== 0).map(([, name]) => name);
  return names.length === 0 ? `0x${code.toString(16)}` : `0x${code.toString(16)} ${names.join('|')}`;
}

/** The state bits that decide permissions. */
export interface Protection {
  /** CR0.WP */
  readonly wp: boolean;
  /** EFER.NXE */
  readonly nxe: boolean;
  /** CR4.SMEP */
  readonly smep: boolean;
  /** CR4.SMAP */
  readonly smap: boolean;
  /** RFLAGS.AC */
  readonly ac: boolean;
  /** CR4.PKE */
  readonly pke: boolean;
  readonly pkru: number;
}

/** An access as the permission check sees it: PFERR_WRITE, PFERR_USER and PFERR_FETCH say what it does. */
export interface AccessKind {
  readonly bits: number;
  /** A supervisor access that the processor makes on its own, such as reading a descriptor: AC does not excuse it. */
  readonly implicit: boolean;
}

/**
 * `permissions[i]` answers for the accesses with error-code bits 4:1 equal to i: bit `acc` is set when an address with
 * those rights faults. Bit 3 of an access (RSVD, which no access sets) stands for "SMAP does not apply", as in KVM's
 * `update_permission_bitmask`.
 */
export function permissionBitmaps(protection: Omit<Protection, 'ac' | 'pke' | 'pkru'>): Uint8Array {
  const bitmaps = new Uint8Array(16);
  for (let index = 0; index < 16; index++) {
    const bits = index << 1;
    const user = (bits & PFERR_USER) !== 0;
    const write = (bits & PFERR_WRITE) !== 0;
    const fetch = (bits & PFERR_FETCH) !== 0;
    const smapOff = (bits & PFERR_RSVD) !== 0;
    for (let access = 0; access < 8; access++) {
      const userPage = (access & ACC_USER) !== 0;
      const faults =
        (write && (access & ACC_WRITE) === 0 && (user || protection.wp)) ||
        (user && !userPage) ||
        (fetch && protection.nxe && (access & ACC_EXEC) === 0) ||
        (fetch && protection.smep && !user && userPage) ||
        (!fetch && protection.smap && !smapOff && !user && userPage);
      if (faults) bitmaps[index]! |= 1 << access;
    }
  }
  return bitmaps;
}

/** The two PKRU bits of a key: 1 = access disabled, 2 = write disabled. */
export function pkruBits(pkru: number, key: number): number {
  return (pkru >>> (2 * key)) & 3;
}

/** Whether PKRU denies a data access to a user page. The caller knows CR4.PKE to be set. */
export function pkruDenies(protection: Protection, key: number, kind: AccessKind): boolean {
  if ((kind.bits & PFERR_FETCH) !== 0) return false;
  const denied = pkruBits(protection.pkru, key);
  if ((denied & 1) !== 0) return true;
  const user = (kind.bits & PFERR_USER) !== 0;
  return (denied & 2) !== 0 && (kind.bits & PFERR_WRITE) !== 0 && (user || protection.wp);
}

/**
 * The error-code bits by which a mapped address refuses an access: 0, or P with PK when PKRU is a cause
 * (KVM: `permission_fault`).
 */
export function permissionFault(
  bitmaps: Uint8Array,
  protection: Protection,
  access: number,
  key: number,
  kind: AccessKind,
): number {
  const smapOff = protection.ac && !kind.implicit ? PFERR_RSVD : 0;
  const faults = (bitmaps[(kind.bits | smapOff) >> 1]! >> access) & 1;
  const denied = protection.pke && (access & ACC_USER) !== 0 && pkruDenies(protection, key, kind);
  if (denied) return PFERR_PRESENT | PFERR_PK;
  return faults ? PFERR_PRESENT : 0;
}

/** Names of the entries that withhold a right, such as `PDE 3`. */
export interface Withholding {
  readonly write: string;
  readonly user: string;
  readonly execute: string;
}

/** Which rule refused, for people: every one that applies, with the entry, the bit and the register that decide. */
export function permissionReasons(
  protection: Protection,
  access: number,
  key: number,
  kind: AccessKind,
  entries: Withholding,
): string[] {
  const user = (kind.bits & PFERR_USER) !== 0;
  const write = (kind.bits & PFERR_WRITE) !== 0;
  const fetch = (kind.bits & PFERR_FETCH) !== 0;
  const userPage = (access & ACC_USER) !== 0;
  const reasons: string[] = [];
  if (user && !userPage) reasons.push(`${entries.user} is for the supervisor (U=0) and the access is at CPL 3`);
  if (write && (access & ACC_WRITE) === 0 && (user || protection.wp))
    reasons.push(`${entries.write} is read-only (W=0)${user ? '' : ' and CR0.WP is 1'}`);
  if (fetch && protection.nxe && (access & ACC_EXEC) === 0) reasons.push(`${entries.execute} forbids execution (NX=1)`);
  if (fetch && protection.smep && !user && userPage)
    reasons.push('CR4.SMEP forbids the supervisor to execute a user page (U=1 in every entry)');
  if (!fetch && protection.smap && !user && userPage && (kind.implicit || !protection.ac)) {
    const ac = kind.implicit ? ', implicitly, whatever RFLAGS.AC says' : ' while RFLAGS.AC is 0';
    reasons.push(`CR4.SMAP forbids the supervisor to access a user page (U=1 in every entry)${ac}`);
  }
  if (protection.pke && userPage && pkruDenies(protection, key, kind)) {
    const what = (pkruBits(protection.pkru, key) & 1) !== 0 ? 'access to' : 'writes to';
    reasons.push(`PKRU disables ${what} pages of key ${key}`);
  }
  return reasons;
}
