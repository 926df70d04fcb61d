import { Format } from '../formats/compile.ts';
import type { Feature, FormatSpec } from '../formats/format.ts';
import { PAE } from '../formats/pae.ts';
import { X86_32 } from '../formats/x86-32.ts';
import { X86_64, X86_64_5 } from '../formats/x86-64.ts';
import { type Gfn, hex } from '../memory/words.ts';
import { type Protection, permissionBitmaps } from './permission.ts';

/** The registers that translation depends on. */
export const REGISTERS = ['cr0', 'cr3', 'cr4', 'efer', 'rflags', 'pkru', 'cpl'] as const;
export type RegisterName = (typeof REGISTERS)[number];
export type Registers = Record<RegisterName, bigint>;

/** Named bits, as scenarios and the Variables view write them: `cr0.wp`. */
export const REGISTER_BITS: Readonly<Partial<Record<RegisterName, Readonly<Record<string, number>>>>> = {
  cr0: { pe: 0, wp: 16, pg: 31 },
  cr4: { pse: 4, pae: 5, pge: 7, la57: 12, pcide: 17, smep: 20, smap: 21, pke: 22, cet: 23, pks: 24 },
  efer: { lme: 8, lma: 10, nxe: 11 },
  rflags: { ac: 18 },
};

const bit = (register: RegisterName, name: string): bigint => 1n << BigInt(REGISTER_BITS[register]![name]!);
const has = (registers: Registers, register: RegisterName, name: string): boolean =>
  (registers[register] & bit(register, name)) !== 0n;

/** 64-bit mode with paging, as a kernel runs: CR0.PE, WP and PG, CR4.PAE and PGE, EFER.LME, LMA and NXE. */
export const LONG_MODE: Registers = {
  cr0: 0x8005_0033n,
  cr3: 0n,
  cr4: 0xa0n,
  efer: 0xd01n,
  rflags: 2n,
  pkru: 0n,
  cpl: 0n,
};

/** The same before paging: linear addresses are guest-physical. */
export const UNPAGED: Registers = { ...LONG_MODE, cr0: 0x33n, cr4: 0n, efer: 0n };

/** A register value that this emulator refuses, and why. */
export class RegisterError extends Error {}

/** CR3 bits that are no address: PCID or PWT/PCD below, NOFLUSH and LAM above. */
const CR3_LAM = 3n << 61n;
/** Of a MOV to CR3: keep what the TLB has of this PCID. It is never stored. */
export const CR3_NOFLUSH = 1n << 63n;

const REFUSED: readonly [RegisterName, string, string][] = [
  ['cr4', 'cet', 'shadow stacks'],
  ['cr4', 'pks', 'protection keys for supervisor pages'],
];

/**
 * Says why a set of registers cannot be run, naming register and value; undefined when it can.
 * The rules are the architecture's (SDM vol. 3, 4.1) and the limits of this model, told apart in the words.
 */
export function registerProblem(registers: Registers, maxPhyAddr: number): string | undefined {
  for (const [register, name, words] of REFUSED) {
    if (registers[register] & bit(register, name))
      return `${register}.${name}: ${words} ${words.endsWith('s') ? 'are' : 'is'} not modelled yet`;
  }
  if (registers.cpl > 3n) return `cpl ${registers.cpl} is out of range: 0 … 3`;
  if (registers.pkru > 0xffff_ffffn) return `pkru ${hex(registers.pkru)} has more than 32 bits`;
  const paging = (registers.cr0 & bit('cr0', 'pg')) !== 0n;
  const pcide = (registers.cr4 & bit('cr4', 'pcide')) !== 0n;
  if (!paging) return pcide ? 'cr4.pcide needs cr0.pg' : undefined;
  if (!(registers.cr0 & bit('cr0', 'pe'))) return 'cr0.pg needs cr0.pe';
  const long = (registers.efer & bit('efer', 'lme')) !== 0n;
  if (!long && pcide) return 'cr4.pcide needs long mode';
  if (long && !(registers.cr4 & bit('cr4', 'pae'))) return 'efer.lme needs cr4.pae while paging is on';
  if (!long && registers.cr3 > 0xffff_ffffn)
    return `cr3 ${hex(registers.cr3)} has more than the 32 bits that there are outside of long mode`;
  if (!long && registers.cr4 & bit('cr4', 'la57')) return 'cr4.la57 needs long mode';
  if (registers.cr3 & CR3_LAM) return `cr3 ${hex(registers.cr3)}: linear-address masking is not modelled yet`;
  if (registers.cr3 & CR3_NOFLUSH) return `cr3 ${hex(registers.cr3)}: bit 63 is NOFLUSH only with cr4.pcide`;
  const address = registers.cr3 & ((1n << 61n) - 1n);
  if (address >> BigInt(maxPhyAddr) !== 0n) return `cr3 ${hex(registers.cr3)} has bits beyond MAXPHYADDR ${maxPhyAddr}`;
  return undefined;
}

/** Says why registers cannot follow others: the architecture lets some bits change only while paging is off (SDM vol. 3, 4.1.2). */
export function changeProblem(before: Registers, after: Registers): string | undefined {
  // Where its bits 11:0 meant something else (SDM vol. 3, 4.10.1).
  if (!has(before, 'cr4', 'pcide') && has(after, 'cr4', 'pcide') && (before.cr3 & 0xfffn) !== 0n)
    return `cr4.pcide cannot be set while cr3 ${hex(before.cr3)} has bits 11:0`;
  if (!has(before, 'cr0', 'pg') || !has(after, 'cr0', 'pg')) return undefined;
  for (const [register, name] of [
    ['efer', 'lme'],
    ['cr4', 'la57'],
  ] as const) {
    // Outside of long mode LA57 is out of question, and refused as such.
    if (has(before, register, name) !== has(after, register, name))
      return `${register}.${name} cannot change while paging is on`;
  }
  return undefined;
}

/** What the registers mean for translation: computed once a change, read at every access. */
export interface PagingMode extends Protection {
  readonly paging: boolean;
  readonly format: Format;
  readonly rootGfn: Gfn;
  /** Entry of that frame at which the root table begins: PAE's four PDPTEs need only be aligned to 32 bytes. */
  readonly rootEntry: number;
  /** PAE's four PDPTEs as they were loaded, low and high words; where they are undefined they are read in memory. */
  readonly pdptrs: readonly number[] | undefined;
  /** Bits of a linear address: 32 outside of long mode, 48 or 57 with sign extension in it. */
  readonly addressBits: number;
  /** The F bit is reported only with NXE or SMEP. */
  readonly reportsFetch: boolean;
  readonly permissions: Uint8Array;
  readonly pge: boolean;
  readonly pcide: boolean;
  /** The address space that the TLB's entries are of: 0 without CR4.PCIDE. */
  readonly pcid: number;
  readonly cpl: number;
}

/** What the guest's processor offers. */
export interface GuestCpu {
  readonly maxPhyAddr: number;
  readonly features: ReadonlySet<Feature>;
}

const formats = new Map<string, Format>();

/** How x86 paging is called, and its format. */
export const PAGING = { '32-bit': X86_32, pae: PAE, '4-level': X86_64, '5-level': X86_64_5 } as const;
export type PagingName = keyof typeof PAGING;

/** What CR4 and EFER say where a kernel runs with such paging: PGE, PSE without PAE, and NXE wherever there is NX. */
export const PAGING_REGISTERS: Readonly<Record<PagingName, Pick<Registers, 'cr4' | 'efer'>>> = {
  '32-bit': { cr4: 0x90n, efer: 0n },
  pae: { cr4: 0xb0n, efer: 0x800n },
  '4-level': { cr4: 0xa0n, efer: 0xd01n },
  '5-level': { cr4: 0x10a0n, efer: 0xd01n },
};

/** The guest's table format, with NX legal or reserved as EFER.NXE says, and large pages of 32-bit paging as CR4.PSE does. */
export function guestFormat(cpu: GuestCpu, nxe: boolean, spec: FormatSpec = X86_64, pse = true): Format {
  const features = new Set(cpu.features);
  if (nxe) features.add('nx');
  else features.delete('nx');
  if (pse) features.add('pse');
  else features.delete('pse');
  const key = `${spec.name} ${cpu.maxPhyAddr} ${[...features].sort().join(' ')}`;
  let format = formats.get(key);
  if (!format) {
    format = new Format(spec, { maxPhyAddr: cpu.maxPhyAddr, features });
    formats.set(key, format);
  }
  return format;
}

/** Which paging these registers select. */
export function pagingName(registers: Registers): PagingName {
  if (!(registers.cr4 & bit('cr4', 'pae'))) return '32-bit';
  if (!(registers.efer & bit('efer', 'lme'))) return 'pae';
  return registers.cr4 & bit('cr4', 'la57') ? '5-level' : '4-level';
}

export function pagingMode(
  registers: Registers,
  cpu: GuestCpu,
  pdptrs: readonly number[] | undefined = undefined,
): PagingMode {
  const paging = has(registers, 'cr0', 'pg');
  // Without paging the format counts for nothing but the words that say so.
  const name = paging ? pagingName(registers) : '4-level';
  const long = name === '4-level' || name === '5-level';
  const protection = {
    wp: has(registers, 'cr0', 'wp'),
    nxe: has(registers, 'efer', 'nxe') && name !== '32-bit',
    smep: has(registers, 'cr4', 'smep'),
    smap: has(registers, 'cr4', 'smap'),
    ac: has(registers, 'rflags', 'ac'),
    pke: has(registers, 'cr4', 'pke') && long,
    pkru: Number(registers.pkru),
  };
  return {
    ...protection,
    paging,
    format: guestFormat(cpu, protection.nxe, PAGING[name], has(registers, 'cr4', 'pse')),
    rootGfn: Number((registers.cr3 & ((1n << 52n) - 1n)) >> 12n),
    rootEntry: name === 'pae' ? Number((registers.cr3 >> 3n) & 0x1fcn) : 0,
    pdptrs: name === 'pae' ? pdptrs : undefined,
    addressBits: long ? (name === '5-level' ? 57 : 48) : 32,
    reportsFetch: protection.nxe || protection.smep,
    permissions: permissionBitmaps(protection),
    pge: has(registers, 'cr4', 'pge'),
    pcide: has(registers, 'cr4', 'pcide'),
    pcid: has(registers, 'cr4', 'pcide') ? Number(registers.cr3 & 0xfffn) : 0,
    cpl: Number(registers.cpl),
  };
}
