import { LONG_MODE, PAGING_REGISTERS } from '../../engine/guest/registers.ts';
import {
  ACTIONS,
  DESCRIPTORS,
  gateBytes,
  IDT,
  isNarrow,
  LOAD_TSS,
  MOST_VCPUS,
  PAGE,
  type StubPaging,
  tssSelector,
  USER_CODE,
  USER_DATA,
  USER_STACK,
  vcpuPage,
  vcpuStack,
} from './layout.ts';
import type { Stubs } from './stubs.ts';
import { SVME, type VmcbGuest, vmcbOf } from './vmcb.ts';

/** What the stubs do, by the numbers that they have in native/guests/scenario.S and scenario32.S. */
const ACTION = {
  read: 0,
  write: 4,
  fetch: 8,
  cr0: 9,
  cr3: 10,
  cr4: 11,
  invlpg: 12,
  efer: 13,
  pkru: 14,
  vmrun: 15,
  vmmcall: 16,
  'map-gpa-range': 17,
  'map-gpa-range by vmcall': 18,
} as const;

/** AL after an action that no exception has ended. */
export const DONE = 0xffn;
/** AL after a guest of the guest's has come out. */
export const EXITED = 0xfen;

/** The address of an action at a privilege level: an access of so many bytes, or one by name. */
export function actionAddress(
  { base }: Stubs,
  action: keyof typeof ACTION,
  size: 1 | 2 | 4 | 8,
  user: boolean,
): bigint {
  const number = ACTION[action] + (ACTION[action] < 8 ? Math.log2(size) : 0);
  return base + (user ? USER_CODE : 0n) + ACTIONS + BigInt(number) * 16n;
}

/** What the user's accesses come back by. */
export const userDone = ({ base }: Stubs): bigint => base + USER_CODE;
const userStack = ({ base }: Stubs): bigint => base + USER_STACK + PAGE - 8n;

/** Registers with which a vCPU begins: those of the machine, and where the stubs' things are. */
export function firstRegisters(stubs: Stubs, vcpu: number, cr3: bigint): Record<string, bigint> {
  const { base, paging, nested } = stubs;
  const { gdt, idt } = descriptorTables(stubs);
  const { efer, cr4 } = PAGING_REGISTERS[paging];
  return {
    rsp: vcpuStack(stubs, vcpu),
    ...(isNarrow(paging)
      ? // A return to the user's 32-bit code would take the supervisor's segments away.
        { rip: base + LOAD_TSS, rcx: tssSelector(vcpu), ds: USER_DATA, es: USER_DATA }
      : // As after an action.
        { rip: base, rax: DONE, r15: vcpuStack(stubs, vcpu) }),
    gdt_base: gdt[0],
    gdt_limit: gdt[1],
    idt_base: idt[0],
    idt_limit: idt[1],
    tr_base: base + vcpuPage(vcpu),
    cr0: LONG_MODE.cr0,
    cr3,
    cr4,
    efer: nested ? efer | SVME : efer,
  };
}

const descriptorTables = ({ base, paging }: Stubs) => ({
  gdt: [base + DESCRIPTORS, tssSelector(MOST_VCPUS) - 1n] as const,
  idt: [base + DESCRIPTORS + IDT, 32n * gateBytes(paging) - 1n] as const,
});

/** A VMCB with which a guest of the guest's begins, as its vCPU after an action. */
export const firstVmcb = (stubs: Stubs, vcpu: number, guest: Pick<VmcbGuest, 'registers' | 'nestedCr3'>): Uint8Array =>
  vmcbOf({ ...guest, ...descriptorTables(stubs), rip: stubs.base, rsp: vcpuStack(stubs, vcpu), rax: DONE });

/** What an action takes besides its own address. */
export interface ActionInput {
  readonly address: bigint;
  readonly value: bigint;
  /** Of a hypercall about memory. */
  readonly pages?: bigint;
  readonly user: boolean;
  readonly rflags: bigint;
}

/** Registers by which an action is asked for. */
export function actionRegisters(
  stubs: Stubs,
  vcpu: number,
  action: bigint,
  { address, value, pages = 0n, user, rflags }: ActionInput,
): Record<string, bigint> {
  if (!isNarrow(stubs.paging))
    return {
      rsi: action,
      rbx: address,
      rdx: value,
      rcx: pages,
      r11: userStack(stubs),
      r12: rflags,
      r13: user ? 1n : 0n,
    };
  return {
    rsi: action,
    rbx: address,
    rdx: BigInt.asUintN(32, value),
    rcx: value >> 32n,
    rdi: rflags,
    rbp: user ? userStack(stubs) : 0n,
    rsp: vcpuStack(stubs, vcpu),
  };
}

/** Registers by which an action's outcome is told, beside AL. */
export const OUTCOME: Readonly<Record<StubPaging, { value: string; error: string; rip: string }>> = {
  '4-level': { value: 'r8', error: 'r9', rip: 'r10' },
  pae: { value: 'rcx', error: 'rdx', rip: 'rsi' },
  '32-bit': { value: 'rcx', error: 'rdx', rip: 'rsi' },
};
