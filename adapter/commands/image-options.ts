import type { Regime } from '../../engine/guest/regime.ts';
import { PAGING, type PagingName } from '../../engine/guest/registers.ts';
import type { Tables } from '../../engine/pgtable/tables.ts';
import { NestedMemory } from '../../engine/queries/leaves.ts';
import { type MemoryImage, openImage, type RawMapping } from '../image/image.ts';
import { IMAGE_REGISTERS, type ImageRegister, imageRegime } from '../image/machine.ts';
import { readNumber, UsageError } from './usage.ts';

const REGISTERS: readonly ImageRegister[] = Object.values(IMAGE_REGISTERS).flat();

/** Options that say which memory, and what its machine's registers were. */
export const IMAGE_OPTIONS = {
  memory: { type: 'string' },
  map: { type: 'string', multiple: true },
  paging: { type: 'string' },
  cpu: { type: 'string' },
  maxphyaddr: { type: 'string' },
  'npt-paging': { type: 'string' },
  el2: { type: 'boolean' },
  cr0: { type: 'string' },
  cr3: { type: 'string' },
  cr4: { type: 'string' },
  efer: { type: 'string' },
  ept: { type: 'string' },
  npt: { type: 'string' },
  ttbr0: { type: 'string' },
  ttbr1: { type: 'string' },
  tcr: { type: 'string' },
  sctlr: { type: 'string' },
  vttbr: { type: 'string' },
  vtcr: { type: 'string' },
  satp: { type: 'string' },
  hgatp: { type: 'string' },
} as const;

export type ImageValues = Readonly<
  Partial<Record<Exclude<keyof typeof IMAGE_OPTIONS, 'map' | 'el2'>, string>> & { map?: string[]; el2?: boolean }
>;

/** `GPA@OFFSET` or `GPA+SIZE@OFFSET`: bytes of a raw image from OFFSET are memory from GPA. */
export function readMapping(written: string, what = '--map'): RawMapping {
  const parts = /^([^+@]+)(?:\+([^@]+))?@(.+)$/.exec(written);
  if (!parts) throw new UsageError(`${what} must be GPA@OFFSET or GPA+SIZE@OFFSET, not ${written}`);
  const [, gpa, size, offset] = parts as unknown as [string, string, string | undefined, string];
  return {
    gpa: readSize(gpa, what),
    size: size === undefined ? undefined : readSize(size, what),
    offset: Number(readSize(offset, what)),
  };
}

/** A number, in decimal or hexadecimal, with K, M, G or T behind it. @throws UsageError */
export function readSize(written: string, what: string): bigint {
  const parts = /^(.*?)([KMGT]?)$/.exec(written)!;
  const value = readNumber(parts[1]!, what) << BigInt(10 * ['', 'K', 'M', 'G', 'T'].indexOf(parts[2]!));
  if (value >= 1n << 64n) throw new UsageError(`${what} ${written} has more than 64 bits`);
  return value;
}

function choice<T extends string>(written: string | undefined, what: string, among: readonly T[]): T | undefined {
  if (written === undefined) return undefined;
  const found = among.find((each) => each === written);
  if (found === undefined) throw new UsageError(`${what} must be ${among.join(', ')}, not ${written}`);
  return found;
}

function whole(written: string | undefined, what: string, least: number, most: number): number | undefined {
  if (written === undefined) return undefined;
  const value = Number(written);
  if (!Number.isInteger(value) || value < least || value > most)
    throw new UsageError(`${what} must be a whole number from ${least} to ${most}, not ${written}`);
  return value;
}

export interface OpenedImage {
  readonly image: MemoryImage;
  readonly regime: Regime;
  /** Memory in which the tables of the regime's first stage lie: the guest's, where there is a second stage. */
  readonly guestMemory: Tables;
}

/** The image and the translation that the options name. @throws UsageError, ImageError, RegimeError */
export function openMachine(values: ImageValues, path = values.memory): OpenedImage {
  if (path === undefined) throw new UsageError('--memory IMAGE is missing: a raw image of memory, or an ELF core');
  const registers: Partial<Record<ImageRegister, bigint>> = {};
  for (const name of REGISTERS) {
    const written = values[name];
    if (written !== undefined) registers[name] = readNumber(written, `--${name}`);
  }
  const paging = choice(values.paging, '--paging', Object.keys(PAGING) as PagingName[]);
  const nptPaging = choice(values['npt-paging'], '--npt-paging', ['4-level', '5-level'] as const);
  const maxPhyAddr = whole(values.maxphyaddr, '--maxphyaddr', 32, 52);
  const cpu = whole(values.cpu, '--cpu', 0, 65535);
  const image = openImage(
    path,
    (values.map ?? []).map((each) => readMapping(each)),
  );
  const regime = imageRegime(image, {
    registers,
    ...(paging ? { paging } : {}),
    ...(nptPaging ? { nptPaging } : {}),
    ...(maxPhyAddr === undefined ? {} : { maxPhyAddr }),
    ...(cpu === undefined ? {} : { cpu }),
    ...(values.el2 ? { el2: true } : {}),
  });
  return { image, regime, guestMemory: guestMemoryOf(image, regime) };
}

export function guestMemoryOf(image: Tables, regime: Regime): Tables {
  return regime.second && regime.stages.length > 0 ? new NestedMemory(image, regime.second.tree) : image;
}
