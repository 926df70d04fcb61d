import { errorCodeWords } from '../guest/permission.ts';
import { hex } from '../memory/words.ts';
import {
  type FaultInfo,
  PFERR_GUEST_ENC,
  PFERR_GUEST_FINAL,
  PFERR_GUEST_PAGE,
  PFERR_GUEST_RMP,
  PFERR_GUEST_SIZEM,
  PFERR_GUEST_VMPL,
} from '../tdp/fault.ts';
import type { FaultAnswer } from './answers.ts';

const DID = { read: 'read', write: 'wrote', fetch: 'fetched from' } as const;

/** `vCPU 0 wrote gpa 0x200000: EPT level-2 entry 1 is not present` */
export function faultSentence(fault: FaultInfo): string {
  const who = `vCPU ${fault.vcpu}${fault.guest === undefined ? '' : ` in ${fault.guest}`}`;
  const how = fault.cpl === 3 && !fault.implicit ? ' at CPL 3' : fault.implicit ? ' implicitly' : '';
  if (fault.kind === 'guest') return `${who} ${DID[fault.access]} gva ${hex(fault.gva)}${how}: ${fault.reason}`;
  const gpa = hex(fault.gpa ?? 0n);
  if (fault.target === 'table')
    return `${who} needed its level-${fault.guestLevel} table at gpa ${gpa} to ${fault.access === 'fetch' ? 'fetch from' : fault.access} gva ${hex(fault.gva)}: ${fault.reason}`;
  return `${who} ${DID[fault.access]} gpa ${gpa}${how}: ${fault.reason}`;
}

const MORE_BITS: readonly (readonly [number, string])[] = [
  [PFERR_GUEST_FINAL, 'final address'],
  [PFERR_GUEST_PAGE, 'guest table'],
  [PFERR_GUEST_RMP, 'RMP'],
  [PFERR_GUEST_ENC, 'private (C-bit)'],
  [PFERR_GUEST_SIZEM, 'page sizes differ'],
  [PFERR_GUEST_VMPL, 'VMPL'],
];

/** `0x100000006 W|U, final address`: KVM's error code in words. */
export function kvmErrorWords(code: number): string {
  const has = (bit: number): boolean => Math.floor(code / bit) % 2 === 1;
  const low = code % PFERR_GUEST_RMP;
  const more = MORE_BITS.filter(([bit]) => has(bit)).map(([, words]) => `, ${words}`);
  const words = errorCodeWords(low).split(' ')[1] ?? 'none';
  return `${hex(code)} ${words}${more.join('')}`;
}

export function faultAnswer(fault: FaultInfo): FaultAnswer {
  return {
    kind: fault.kind,
    vcpu: fault.vcpu,
    access: fault.access,
    gva: hex(fault.gva),
    ...(fault.gpa === undefined ? {} : { gpa: hex(fault.gpa) }),
    level: fault.level,
    index: fault.index,
    errorCode: hex(fault.errorCode),
    errorWords: kvmErrorWords(fault.errorCode),
    reason: fault.reason,
  };
}
