import { ABSENT } from '../formats/compile.ts';
import { entryProblems } from '../formats/decode.ts';
import { PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE, permissionReasons } from '../guest/permission.ts';
import type { PagingMode } from '../guest/registers.ts';
import { entryOffset, type SecondStage, type Walk } from '../guest/walk.ts';
import { frameToAddress, hex } from '../memory/words.ts';
import type { PendingAccess } from '../operation.ts';
import { type FaultInfo, PFERR_GUEST_ENC, PFERR_GUEST_FINAL, PFERR_GUEST_PAGE, PFERR_PRIVATE_ACCESS } from './fault.ts';

/** Exit qualification of an EPT violation (SDM vol. 3, table 28-7). */
const QUAL_READ = 1;
const QUAL_WRITE = 2;
const QUAL_FETCH = 4;
const QUAL_GVA_VALID = 0x80;
const QUAL_FINAL = 0x100;

/**
 * Tells what a walk that failed ran into. The fields that both kinds of fault share are written out twice: a spread here
 * makes populating memory four times slower.
 */
export function describeWalkFault(
  vcpu: number,
  walk: Walk,
  mode: PagingMode,
  second: SecondStage | undefined,
  access: PendingAccess,
  guest?: string,
): FaultInfo {
  if (walk.status === 'guest-fault') {
    return {
      vcpu,
      guest,
      access: access.kind,
      cpl: access.cpl,
      implicit: access.implicit,
      gva: access.address,
      guestLevel: walk.level,
      lo: walk.lo,
      hi: walk.hi,
      kind: 'guest',
      gpa: undefined,
      target: 'page',
      level: walk.level,
      index: walk.index,
      table: walk.gfn,
      errorCode: walk.error,
      exitInfo: 0,
      reason: guestReason(walk, mode),
    };
  }
  const table = walk.level > 0;
  const offset = table ? entryOffset(walk, mode) : Number(access.address & 0xfffn);
  const bits = table ? walk.error & PFERR_WRITE : walk.bits;
  const misconfigured = walk.status === 'misconfiguration';
  const rsvd = (walk.error & PFERR_RSVD) !== 0;
  const isTold = access.isPrivate !== undefined || mode.format.privacyHi !== 0;
  const where = table ? PFERR_GUEST_PAGE : PFERR_GUEST_FINAL;
  const ept = second!.kind === 'ept';
  const allowed = ept ? (walk.secondAccess & 4 ? 1 : 0) | (walk.secondAccess & 2) | (walk.secondAccess & 1 ? 4 : 0) : 0;
  const accessBits =
    (bits & PFERR_FETCH) !== 0
      ? QUAL_FETCH
      : (bits & PFERR_WRITE) !== 0
        ? table
          ? QUAL_READ | QUAL_WRITE
          : QUAL_WRITE
        : QUAL_READ;
  const isPrivate = isTold && (table || access.isPrivate === true);
  const exitInfo = ept
    ? misconfigured
      ? 0
      : accessBits | (allowed << 3) | QUAL_GVA_VALID | (table ? 0 : QUAL_FINAL)
    : (walk.error & 0x1f) +
      (rsvd ? PFERR_PRESENT : 0) +
      4 * ((walk.error & 4) === 0 ? 1 : 0) +
      where +
      (isPrivate ? PFERR_GUEST_ENC : 0);
  // What KVM makes of it: R, W and X of the access, PRESENT when any right was granted (vmx.c, __vmx_handle_ept_violation).
  const eptCode =
    ((accessBits & QUAL_READ) !== 0 ? 4 : 0) |
    ((accessBits & QUAL_WRITE) !== 0 ? 2 : 0) |
    ((accessBits & QUAL_FETCH) !== 0 ? 16 : 0) |
    (allowed !== 0 ? 1 : 0);
  return {
    vcpu,
    guest,
    access: access.kind,
    cpl: access.cpl,
    implicit: access.implicit,
    gva: access.address,
    guestLevel: walk.level,
    lo: walk.lo,
    hi: walk.hi,
    kind: misconfigured ? 'misconfiguration' : 'violation',
    gpa: frameToAddress(walk.gfn, offset),
    target: table ? 'table' : 'page',
    level: walk.secondLevel,
    index: walk.secondIndex,
    table: walk.secondTable,
    errorCode: misconfigured ? PFERR_RSVD : ept ? eptCode + where : exitInfo + (isPrivate ? PFERR_PRIVATE_ACCESS : 0),
    exitInfo,
    // A guest's tables are private memory.
    ...(isTold ? { isPrivate } : {}),
    reason: secondReason(walk, second!, bits),
  };
}

function guestReason(walk: Walk, mode: PagingMode): string {
  if (walk.tablePfn < 0)
    return `the level-${walk.level} table lies at gpa ${hex(frameToAddress(walk.gfn))}, where there is no memory`;
  const name = mode.format.level(walk.level).entry;
  const entry = `${name} ${walk.index}`;
  if (mode.format.classify(walk.level, walk.lo) === ABSENT) return `${entry} is not present`;
  const problems = entryProblems(mode.format, walk.level, walk.lo, walk.hi);
  if (problems.length > 0) return `${entry} is malformed: ${problems.join(', ')}`;
  const named = (level: number): string =>
    level === 0 ? entry : `${mode.format.level(level).entry} ${mode.format.indexOf(walk.vfn, level)}`;
  const entries = { write: named(walk.withoutWrite), user: named(walk.withoutUser), execute: named(walk.withoutExec) };
  return permissionReasons(mode, walk.access, walk.key, walk, entries).join(', and ');
}

/** Why L1's tables refuse an access of a nested guest, in words that continue "…: ". */
export function nestedReason(walk: Walk, mode: PagingMode): string {
  const isPermission = (walk.error & (PFERR_PRESENT | PFERR_RSVD)) === PFERR_PRESENT;
  if (!isPermission || mode.format.tellsUsers) return guestReason(walk, mode);
  const { format } = mode;
  const [what, level] =
    (walk.bits & PFERR_FETCH) !== 0
      ? ['execution', walk.withoutExec]
      : (walk.bits & PFERR_WRITE) !== 0
        ? ['writing', walk.withoutWrite]
        : ['reading', walk.withoutUser];
  return `${format.level(level).entry} ${format.indexOf(walk.vfn, level)} does not allow ${what}`;
}

function secondReason(walk: Walk, second: SecondStage, bits: number): string {
  const { format, kind } = second;
  const entry = `${kind.toUpperCase()} level-${walk.secondLevel} entry ${walk.secondIndex}`;
  if (walk.gfn >= format.inputFrames)
    return `gpa ${hex(frameToAddress(walk.gfn))} lies beyond the ${12 + Math.log2(format.inputFrames)} bits that the tables translate`;
  if (format.classify(walk.secondLevel, walk.lo) === ABSENT) return `${entry} is not present`;
  const problems = entryProblems(format, walk.secondLevel, walk.lo, walk.hi);
  if (problems.length > 0) return `${entry} is malformed: ${problems.join(', ')}`;
  const need = (bits & PFERR_FETCH) !== 0 ? 'execution' : (bits & PFERR_WRITE) !== 0 ? 'writing' : 'reading';
  return `${entry} does not allow ${need}`;
}
