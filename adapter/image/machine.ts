import type { Feature } from '../../engine/formats/format.ts';
import { arm64Regime } from '../../engine/guest/arm64.ts';
import { type Regime, RegimeError } from '../../engine/guest/regime.ts';
import { LONG_MODE, PAGING_REGISTERS, type PagingName, type Registers } from '../../engine/guest/registers.ts';
import { riscvRegime } from '../../engine/guest/riscv.ts';
import { type X86Second, x86Regime } from '../../engine/guest/x86-regime.ts';
import { hex } from '../../engine/memory/words.ts';
import { ImageError } from './errors.ts';
import type { MemoryImage } from './image.ts';

/** What a person says of the machine whose memory an image is: registers by name, in hexadecimal or as numbers. */
export interface MachineOptions {
  readonly paging?: PagingName;
  readonly maxPhyAddr?: number;
  /** Which CPU of a core. */
  readonly cpu?: number;
  readonly registers: Readonly<Partial<Record<ImageRegister, bigint>>>;
  /** arm64: registers are those of EL2. */
  readonly el2?: boolean;
  readonly nptPaging?: '4-level' | '5-level';
}

export const IMAGE_REGISTERS = {
  x86: ['cr0', 'cr3', 'cr4', 'efer', 'ept', 'npt'],
  arm64: ['ttbr0', 'ttbr1', 'tcr', 'sctlr', 'vttbr', 'vtcr'],
  riscv: ['satp', 'hgatp'],
} as const;
export type ImageRegister = (typeof IMAGE_REGISTERS)[keyof typeof IMAGE_REGISTERS][number];

const ARCHITECTURES = ['x86', 'arm64', 'riscv'] as const;
/** As in “of an x86 machine”. */
export const MACHINE_WORDS = { x86: 'an x86', arm64: 'an arm64', riscv: 'a RISC-V' } as const;
/** The translation of each CPU of a core, or of the one whose registers are given. @throws as `imageRegime` */
export function imageRegimes(image: MemoryImage, options: MachineOptions): Regime[] {
  const { cpus } = image.facts;
  if (!cpus || Object.keys(options.registers).length > 0) return [imageRegime(image, options)];
  return cpus.map((_, cpu) => imageRegime(image, { ...options, cpu }));
}

/**
 * The translation of an image: by the registers that are given, else by those that a core keeps.
 * @throws ImageError and RegimeError that name the option or the register
 */
export function imageRegime(image: MemoryImage, options: MachineOptions): Regime {
  const given = Object.keys(options.registers) as ImageRegister[];
  const architectures = ARCHITECTURES.filter((arch) =>
    given.some((name) => (IMAGE_REGISTERS[arch] as readonly string[]).includes(name)),
  );
  if (architectures.length > 1)
    throw new ImageError(`registers of ${architectures.join(' and of ')} are given: ${given.join(', ')}`);
  const [arch = options.paging ? 'x86' : image.facts.arch] = architectures;
  if (arch === undefined)
    throw new ImageError(
      `${image.path} does not say where page tables begin: give cr3 (x86), ttbr0 or ttbr1 with tcr (arm64), or satp (RISC-V), or only a second stage (ept, npt, vttbr with vtcr, hgatp)`,
    );
  if (image.facts.arch !== undefined && image.facts.arch !== arch)
    throw new ImageError(
      `${image.path} is the memory of ${MACHINE_WORDS[image.facts.arch]} machine; registers of ${arch} are given`,
    );
  const regime =
    arch === 'x86' ? x86(image, options) : arch === 'arm64' ? arm64(image, options) : riscv(image, options);
  const roots = [...(regime.second ? [regime.second] : []), ...(regime.second ? [] : regime.stages)];
  for (const { register, value, tree } of roots) {
    if (!image.has(tree.root))
      throw new RegimeError(
        `${register} ${hex(value)}: the root table lies at ${hex(BigInt(tree.root) * 4096n)}, where ${image.path} has no memory`,
      );
  }
  return regime;
}

function x86(image: MemoryImage, { registers, paging, maxPhyAddr = 52, cpu, nptPaging }: MachineOptions): Regime {
  const { ept, npt } = registers;
  if (ept !== undefined && npt !== undefined) throw new ImageError('ept and npt are given: a machine has one of them');
  const second: X86Second | undefined =
    ept !== undefined
      ? { kind: 'ept', root: ept, levels: 4 }
      : npt !== undefined
        ? { kind: 'npt', root: npt, levels: nptPaging === '5-level' ? 5 : 4 }
        : undefined;
  const features: ReadonlySet<Feature> = new Set(['1g-pages']);
  const found = guestRegisters(image, registers, paging, cpu, second !== undefined);
  return x86Regime(found, { maxPhyAddr, features }, second);
}

/** Registers of the guest, from options or from a core; undefined where only the second stage is wanted. */
function guestRegisters(
  image: MemoryImage,
  { cr0, cr3, cr4, efer }: MachineOptions['registers'],
  paging: PagingName | undefined,
  cpu: number | undefined,
  hasSecond: boolean,
): Registers | undefined {
  if (cr3 !== undefined) {
    const mode = PAGING_REGISTERS[paging ?? '4-level'];
    return {
      ...LONG_MODE,
      cr0: cr0 ?? LONG_MODE.cr0,
      cr3,
      cr4: cr4 ?? mode.cr4,
      efer: efer ?? mode.efer,
    };
  }
  if (hasSecond) return undefined;
  const { cpus, vmcoreinfo } = image.facts;
  if (cpus) {
    const chosen = cpus[cpu ?? 0];
    if (!chosen) throw new ImageError(`${image.path} has no CPU ${cpu}: it has ${cpus.length}, counted from 0`);
    return {
      ...LONG_MODE,
      cr0: chosen.cr0,
      cr3: chosen.cr3,
      cr4: chosen.cr4,
      // QEMU's notes lack EFER; every kernel that can sets NXE.
      efer: chosen.long ? 0xd01n : 0x800n,
    };
  }
  const root = vmcoreinfo && kernelRoot(vmcoreinfo);
  if (root !== undefined) {
    const mode =
      vmcoreinfo?.get('NUMBER(pgtable_l5_enabled)') === '1' ? PAGING_REGISTERS['5-level'] : PAGING_REGISTERS['4-level'];
    return { ...LONG_MODE, cr3: root, ...mode };
  }
  throw new ImageError(`${image.path} keeps no control registers: give cr3${paging ? '' : ', and paging'}`);
}

/** Where an x86-64 kernel's text is mapped: its physical base is VMCOREINFO's `phys_base`. */
const START_KERNEL_MAP = 0xffff_ffff_8000_0000n;

/** The physical address of a kernel's own top table, by its VMCOREINFO. */
function kernelRoot(info: ReadonlyMap<string, string>): bigint | undefined {
  const symbol = info.get('SYMBOL(init_top_pgt)') ?? info.get('SYMBOL(swapper_pg_dir)');
  const base = info.get('NUMBER(phys_base)');
  if (symbol === undefined || base === undefined || !/^-?\d+$/.test(base) || !/^[0-9a-f]+$/i.test(symbol))
    return undefined;
  return BigInt.asUintN(64, BigInt(`0x${symbol}`) - START_KERNEL_MAP + BigInt(base));
}

/** TG1 of TCR_EL1 by page size. */
const TG1: Readonly<Record<string, bigint>> = { 4096: 2n, 16384: 1n, 65536: 3n };
/** IPS of 48 bits: what a kernel's VMCOREINFO does not say. */
const IPS_48 = 5n << 32n;

/** TTBR1_EL1 and TCR_EL1 as an arm64 kernel's VMCOREINFO has them: `swapper_pg_dir` in the kernel's image. */
function kernelRange(info: ReadonlyMap<string, string> | undefined): { ttbr1: bigint; tcr: bigint } | undefined {
  const symbol = info?.get('SYMBOL(swapper_pg_dir)');
  const offset = info?.get('NUMBER(kimage_voffset)');
  const t1sz = info?.get('NUMBER(TCR_EL1_T1SZ)');
  const tg1 = TG1[info?.get('PAGESIZE') ?? ''];
  if (tg1 === undefined || ![symbol, offset, t1sz].every((each) => each && /^(0x)?[0-9a-f]+$/i.test(each)))
    return undefined;
  const ttbr1 = BigInt.asUintN(48, BigInt(`0x${symbol}`) - BigInt(offset!));
  return { ttbr1, tcr: (BigInt(t1sz!) << 16n) | (tg1 << 30n) | IPS_48 };
}

function arm64(image: MemoryImage, options: MachineOptions): Regime {
  const isGiven = Object.keys(options.registers).length > 0;
  const registers = isGiven ? options.registers : { ...kernelRange(image.facts.vmcoreinfo) };
  const { el2 } = options;
  const { ttbr0, ttbr1, tcr, sctlr, vttbr, vtcr }: MachineOptions['registers'] = registers;
  if (ttbr0 === undefined && ttbr1 === undefined && vttbr === undefined)
    throw new ImageError(
      `${image.path} keeps no translation registers: give ttbr0 or ttbr1 with tcr, or vttbr with vtcr`,
    );
  const regime = el2 ? (ttbr1 === undefined ? 'el2' : 'vhe') : 'el1';
  return arm64Regime({
    regime,
    ...(ttbr0 === undefined ? {} : { ttbr0 }),
    ...(ttbr1 === undefined ? {} : { ttbr1 }),
    ...(tcr === undefined ? {} : { tcr }),
    ...(sctlr === undefined ? {} : { sctlr }),
    ...(vttbr === undefined ? {} : { vttbr }),
    ...(vtcr === undefined ? {} : { vtcr }),
  });
}

function riscv(image: MemoryImage, { registers }: MachineOptions): Regime {
  const { satp, hgatp } = registers;
  if (satp === undefined && hgatp === undefined)
    throw new ImageError(`${image.path} keeps no satp: give satp or hgatp`);
  return riscvRegime({ ...(satp === undefined ? {} : { satp }), ...(hgatp === undefined ? {} : { hgatp }) });
}
