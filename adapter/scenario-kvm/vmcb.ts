import { LONG_MODE, type Registers } from '../../engine/guest/registers.ts';
import { KERNEL_CODE, KERNEL_DATA } from './layout.ts';

/** EFER.SVME: of a processor that runs guests, and of each guest's own EFER (APM vol. 2, 15.5.1). */
export const SVME = 1n << 12n;

/** Fields of a VMCB (APM vol. 2, appendix B), as offsets. */
const INTERCEPTS = 0x10;
const ASID = 0x58;
const EXIT_CODE = 0x70;
const NESTED_CONTROL = 0x90;
const NESTED_CR3 = 0xb0;
const STATE = 0x400;
const SEGMENTS = { es: 0x00, cs: 0x10, ss: 0x20, ds: 0x30, gdtr: 0x60, idtr: 0x80 } as const;
const QUADS = {
  efer: 0xd0,
  cr4: 0x148,
  cr3: 0x150,
  cr0: 0x158,
  dr7: 0x160,
  dr6: 0x168,
  rflags: 0x170,
  rip: 0x178,
  rsp: 0x1d8,
  rax: 0x1f8,
  g_pat: 0x268,
} as const;
/** VMRUN, without which no VMCB is valid, and VMMCALL, by which the guest comes out. */
const VMRUN_VMMCALL = 3;
/** Attributes of flat segments. */
const CODE = 0xa9b;
const DATA = 0xc93;
const RESET = { dr6: 0xffff_0ff0n, dr7: 0x400n, g_pat: 0x0007_0406_0007_0406n };

/** The guest that a VMCB is for: its registers, where its code begins, and the nested tables, unless it has none. */
export interface VmcbGuest {
  readonly registers: Registers;
  readonly rip: bigint;
  readonly rsp: bigint;
  readonly rax: bigint;
  readonly gdt: readonly [base: bigint, limit: bigint];
  readonly idt: readonly [base: bigint, limit: bigint];
  readonly nestedCr3: bigint | undefined;
}

/** A VMCB with which 64-bit code of CPL 0 begins, and which brings out nothing but VMMCALL. */
export function vmcbOf({ registers, rip, rsp, rax, gdt, idt, nestedCr3 }: VmcbGuest): Uint8Array {
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  const quad = (at: number, value: bigint): void => view.setBigUint64(at, value, true);
  view.setUint32(INTERCEPTS, VMRUN_VMMCALL, true);
  view.setUint32(ASID, 1, true);
  if (nestedCr3 !== undefined) {
    quad(NESTED_CONTROL, 1n);
    quad(NESTED_CR3, nestedCr3);
  }
  const segment = (
    name: keyof typeof SEGMENTS,
    selector: bigint,
    attributes: number,
    [base, limit]: readonly [bigint, bigint],
  ): void => {
    const at = STATE + SEGMENTS[name];
    view.setUint16(at, Number(selector), true);
    view.setUint16(at + 2, attributes, true);
    view.setUint32(at + 4, Number(limit), true);
    quad(at + 8, base);
  };
  const flat = [0n, 0xffff_ffffn] as const;
  segment('cs', KERNEL_CODE, CODE, flat);
  for (const name of ['es', 'ss', 'ds'] as const) segment(name, KERNEL_DATA, DATA, flat);
  segment('gdtr', 0n, 0, gdt);
  segment('idtr', 0n, 0, idt);
  const { cr0, cr3, cr4, efer } = registers;
  const values = { ...RESET, cr0, cr3, cr4, efer: efer | SVME, rflags: LONG_MODE.rflags, rip, rsp, rax };
  for (const [name, at] of Object.entries(QUADS)) quad(STATE + at, values[name as keyof typeof QUADS]);
  return bytes;
}

/** Why a guest has come out: EXITCODE, EXITINFO1 and EXITINFO2. */
export interface VmExit {
  readonly code: bigint;
  readonly info: readonly [bigint, bigint];
}

/** Where in a VMCB the processor has told, and how many bytes. */
export const VM_EXIT = { at: BigInt(EXIT_CODE), size: 24 } as const;

export function vmExitOf(bytes: Uint8Array): VmExit {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return { code: view.getBigUint64(0, true), info: [view.getBigUint64(8, true), view.getBigUint64(16, true)] };
}

export const EXIT_VMMCALL = 0x81n;
/** A nested page fault: what L1's tables refuse. */
export const EXIT_NPF = 0x400n;
