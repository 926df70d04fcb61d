import { ACC_EXEC, ACC_USER, ACC_WRITE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import type { PendingAccess } from '../operation.ts';
import type { RmpEntry } from './state.ts';

// Privilege levels within a guest of SNP: software at VMPL 0 says which pages those behind it may use, and how.

/** A right, as RMPADJUST has it: reading, writing, fetching in user mode, and in supervisor mode. */
const READ = 1;
const WRITE = 2;
const FETCH_USER = 4;
const FETCH_SUPERVISOR = 8;
const ALL = 15;

/** @param words as `rightsWords` has them */
export function rightsMask(words: string): number {
  const [read, write, execute] = words;
  return (
    (read === 'r' ? READ : 0) | (write === 'w' ? WRITE : 0) | (execute === 'x' ? FETCH_USER | FETCH_SUPERVISOR : 0)
  );
}

/** The privilege level of a vCPU of SNP: 0, the most privileged, to 3. */
export function vmplOf({ attributes }: Machine, vcpu: number): number {
  return attributes.vmpls.get(vcpu) ?? 0;
}

/** What a VMPL may do with a page. */
export function rightsOf({ rights }: RmpEntry, vmpl: number): number {
  return vmpl === 0 ? ALL : (rights >>> (4 * (vmpl - 1))) & ALL;
}

export function withRights(rights: number, vmpl: number, of: number): number {
  const shift = 4 * (vmpl - 1);
  return (rights & ~(ALL << shift)) | (of << shift);
}

/** `rwx`; `rw-`; `---` */
export function rightsWords(rights: number): string {
  return [
    rights & READ ? 'r' : '-',
    rights & WRITE ? 'w' : '-',
    rights & (FETCH_USER | FETCH_SUPERVISOR) ? 'x' : '-',
  ].join('');
}

/** The same in ACC_* bits, of which ACC_USER means that reading is allowed. */
export function accessOf(rights: number): number {
  return (
    (rights & READ ? ACC_USER : 0) |
    (rights & WRITE ? ACC_WRITE : 0) |
    (rights & (FETCH_USER | FETCH_SUPERVISOR) ? ACC_EXEC : 0)
  );
}

/** The right that an access needs. */
export function rightNeeded({ kind, cpl, implicit }: PendingAccess): number {
  if (kind === 'write') return WRITE;
  if (kind === 'read') return READ;
  return cpl === 3 && !implicit ? FETCH_USER : FETCH_SUPERVISOR;
}
