import { type Arm64Shape, arm64Levels, arm64Stage1, arm64Stage2, type Granule } from '../formats/arm64.ts';
import { Format } from '../formats/compile.ts';
import { SUPER_EXEC, SUPER_READ, SUPER_WRITE, USER_EXEC, USER_READ, USER_WRITE } from '../formats/format.ts';
import { addressToFrame, hex } from '../memory/words.ts';
import type { Descent } from '../pgtable/descend.ts';
import type { Tree } from '../pgtable/tables.ts';
import { entryName, outsideWords, type Regime, type RegimeAccess, RegimeError, type Stage, topBase } from './regime.ts';
import { beyondWords, rangesWords, twoStageWalk, type WalkRules } from './two-stage.ts';

/** Registers of the EL1&0 regime, of EL2 or of EL2&0 (VHE), and those of stage 2. */
export interface Arm64Registers {
  /** Of which exception level the TTBRs and TCR are; `el2` without VHE has one range. */
  readonly regime: 'el1' | 'el2' | 'vhe';
  readonly ttbr0?: bigint;
  readonly ttbr1?: bigint;
  readonly tcr?: bigint;
  readonly vttbr?: bigint;
  readonly vtcr?: bigint;
  /** SCTLR_ELx: WXN, bit 19, counts. */
  readonly sctlr?: bigint;
  /** PSTATE.PAN */
  readonly pan?: boolean;
}

const GRANULE_0: readonly (Granule | undefined)[] = [12, 16, 14, undefined];
const GRANULE_1: readonly (Granule | undefined)[] = [undefined, 14, 12, 16];
/** Bits of an output address by IPS or PS. */
const OUTPUT_BITS = [32, 36, 40, 42, 44, 48, 52];

const field = (value: bigint, high: number, low: number): number =>
  Number((value >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n));
const SIZES = { 12: '4K', 14: '16K', 16: '64K' } as const;

/** The root that a TTBR names: its address bits, aligned as the size of the top table asks, from 64 bytes up. */
function rootOf(register: string, ttbr: bigint, format: Format, shape: Arm64Shape, outputBits: number): Tree {
  // No table is aligned to less than 64 bytes: bit 0 is CnP.
  let address = ttbr & ((1n << 48n) - 64n);
  // With 52-bit addresses bits 51:48 stand at 5:2.
  if (shape.wide) address |= BigInt(field(ttbr, 5, 2)) << 48n;
  const bytes = BigInt(format.entries[format.rootLevel]! * 8);
  const alignment = bytes < 64n ? 64n : bytes;
  if (address % alignment !== 0n && bytes >= 4096n)
    throw new RegimeError(
      `${register} ${hex(ttbr)}: the table at ${hex(address)} is not aligned to its ${bytes} bytes`,
    );
  address -= address % alignment;
  if (address >> BigInt(outputBits) !== 0n)
    throw new RegimeError(`${register} ${hex(ttbr)} is beyond the ${outputBits} bits of a physical address`);
  return { format, root: addressToFrame(address), rootEntry: Number((address & 0xfffn) / 8n) };
}

interface RangeSettings {
  readonly tsz: number;
  readonly granule: Granule | undefined;
  readonly granuleField: string;
  readonly disabled: boolean;
  readonly flat: boolean;
}

function stage1(
  registers: Arm64Registers,
  which: 0 | 1,
  ttbr: bigint,
  { tsz, granule, granuleField, disabled, flat }: RangeSettings,
  outputField: number,
  ds: boolean,
): Stage | undefined {
  const suffix = registers.regime === 'el1' ? 'EL1' : 'EL2';
  const tcr = `TCR_${suffix} ${hex(registers.tcr!)}`;
  if (disabled) return undefined;
  if (granule === undefined) throw new RegimeError(`${tcr}: ${granuleField} is reserved`);
  const outputBits = OUTPUT_BITS[outputField];
  if (outputBits === undefined) throw new RegimeError(`${tcr}: an output size (IPS, PS) of ${outputField} is reserved`);
  const wide = granule === 16 ? outputBits === 52 : ds;
  const least = granule === 16 || ds ? 12 : 16;
  const most = granule === 16 ? 47 : 48;
  if (tsz < least || tsz > most)
    throw new RegimeError(`${tcr}: T${which}SZ is ${tsz}; with ${SIZES[granule]} granules it is ${least} … ${most}`);
  const inputBits = 64 - tsz;
  const shape: Arm64Shape = { granule, inputBits, levels: arm64Levels(granule, inputBits), wide, flat };
  const spec = arm64Stage1(shape, registers.regime === 'el2' ? 1 : 2);
  const format = new Format(spec, { maxPhyAddr: wide ? outputBits : Math.min(outputBits, 48), features: new Set() });
  const register = `TTBR${which}_${suffix}`;
  const tree = rootOf(register, ttbr, format, shape, outputBits);
  return { register, value: ttbr, tree, base: which === 1 ? topBase(format) : 0 };
}

function stages(registers: Arm64Registers): Stage[] {
  const { regime, ttbr0, ttbr1, tcr } = registers;
  if (ttbr0 === undefined && ttbr1 === undefined) return [];
  const suffix = regime === 'el1' ? 'EL1' : 'EL2';
  if (tcr === undefined)
    throw new RegimeError(`TTBR0_${suffix} and TTBR1_${suffix} mean nothing without TCR_${suffix}`);
  const two = regime !== 'el2';
  if (!two && ttbr1 !== undefined) throw new RegimeError('EL2 without VHE has no TTBR1_EL2');
  const output = two ? field(tcr, 34, 32) : field(tcr, 18, 16);
  const ds = two ? field(tcr, 59, 59) === 1 : field(tcr, 32, 32) === 1;
  const found: (Stage | undefined)[] = [];
  if (ttbr0 !== undefined) {
    const settings = {
      tsz: field(tcr, 5, 0),
      granule: GRANULE_0[field(tcr, 15, 14)],
      granuleField: `TG0 ${field(tcr, 15, 14)}`,
      disabled: two && field(tcr, 7, 7) === 1,
      flat: two ? field(tcr, 41, 41) === 1 : field(tcr, 24, 24) === 1,
    };
    found.push(stage1(registers, 0, ttbr0, settings, output, ds));
  }
  if (ttbr1 !== undefined) {
    const settings = {
      tsz: field(tcr, 21, 16),
      granule: GRANULE_1[field(tcr, 31, 30)],
      granuleField: `TG1 ${field(tcr, 31, 30)}`,
      disabled: field(tcr, 23, 23) === 1,
      flat: field(tcr, 42, 42) === 1,
    };
    found.push(stage1(registers, 1, ttbr1, settings, output, ds));
  }
  return found.filter((stage) => stage !== undefined);
}

/** Which level a walk begins at, by SL0 (and SL2) of VTCR_EL2 (Arm ARM, VTCR_EL2.SL0). */
const START_4K = [2, 1, 0, 3];
const START_LARGE = [3, 2, 1, 0];

function stage2(vttbr: bigint | undefined, vtcr: bigint | undefined): Stage | undefined {
  if (vttbr === undefined && vtcr === undefined) return undefined;
  if (vttbr === undefined || vtcr === undefined) throw new RegimeError('stage 2 needs both VTTBR_EL2 and VTCR_EL2');
  const name = `VTCR_EL2 ${hex(vtcr)}`;
  const granule = GRANULE_0[field(vtcr, 15, 14)];
  if (granule === undefined) throw new RegimeError(`${name}: TG0 ${field(vtcr, 15, 14)} is reserved`);
  const outputBits = OUTPUT_BITS[field(vtcr, 18, 16)];
  if (outputBits === undefined) throw new RegimeError(`${name}: PS ${field(vtcr, 18, 16)} is reserved`);
  const ds = field(vtcr, 32, 32) === 1;
  const wide = granule === 16 ? outputBits === 52 : ds;
  const sl0 = field(vtcr, 7, 6);
  const start =
    field(vtcr, 33, 33) === 1 && ds && granule === 12 && sl0 === 0
      ? -1
      : (granule === 12 ? START_4K : START_LARGE)[sl0]!;
  const inputBits = 64 - field(vtcr, 5, 0);
  const levels = 4 - start;
  const shape: Arm64Shape = { granule, inputBits, levels, wide };
  const perLevel = granule - 3;
  const top = inputBits - granule - perLevel * (levels - 1);
  if (top < 1 || top > perLevel + 4)
    throw new RegimeError(
      `${name}: ${inputBits} bits of input address (T0SZ) cannot begin at level ${start} (SL0): its tables would have 2^${top} entries`,
    );
  const format = new Format(arm64Stage2(shape), {
    maxPhyAddr: wide ? outputBits : Math.min(outputBits, 48),
    features: new Set(),
  });
  return { register: 'VTTBR_EL2', value: vttbr, tree: rootOf('VTTBR_EL2', vttbr, format, shape, outputBits), base: 0 };
}

/** What a fault is called, and its status code for the level (Arm ARM, ESR_ELx.DFSC). */
type FaultKind = 'address size' | 'translation' | 'access flag' | 'permission' | 'external abort';

/** Status code of a fault at a level, −1 … 3. */
export function faultStatus(kind: FaultKind, level: number): number {
  if (level === -1) return kind === 'address size' ? 0x29 : kind === 'external abort' ? 0x13 : 0x2b;
  const base = { 'address size': 0, translation: 4, 'access flag': 8, permission: 12, 'external abort': 20 }[kind];
  return base + level;
}

const statusWords = (kind: FaultKind, level: number): string =>
  `${kind} fault, level ${level} (status 0x${faultStatus(kind, level).toString(16).padStart(2, '0')})`;

/** How a descent failed, or undefined. Where hardware manages the access flag, its lack is none. */
function descentFault(
  format: Format,
  found: Descent,
  hardwareAccess: boolean,
): { kind: FaultKind; reason: string } | undefined {
  const entry = entryName(format, found.level, found.index);
  switch (found.end) {
    case 'absent':
      return { kind: 'translation', reason: `${entry} is not valid` };
    case 'malformed':
      return {
        kind: 'address size',
        reason: `${entry} has an address beyond the ${format.options.maxPhyAddr} bits of an output address`,
      };
    case 'outside':
      return { kind: 'external abort', reason: outsideWords(format, found.level, found.table) };
    case 'leaf':
      // A block can be larger than all output addresses: what counts is the address that comes out.
      if (found.target >= 2 ** (format.options.maxPhyAddr - 12))
        return {
          kind: 'address size',
          reason: `${entry} leads beyond the ${format.options.maxPhyAddr} bits of an output address`,
        };
      return !hardwareAccess && (found.lo & format.accessedLo) === 0
        ? { kind: 'access flag', reason: `${entry} has its access flag clear (AF=0)` }
        : undefined;
  }
}

/** Rights of a stage-1 leaf under PAN and WXN, with DBM making a page writable where hardware manages dirty state. */
function stage1Rights(rights: number, { pan, sctlr = 0n, regime }: Arm64Registers, look: boolean): number {
  let left = rights;
  if (((sctlr >> 19n) & 1n) === 1n) {
    if (left & SUPER_WRITE) left &= ~SUPER_EXEC;
    if (left & USER_WRITE) left &= ~USER_EXEC;
  }
  if (pan && !look && regime !== 'el2' && rights & (USER_READ | USER_WRITE)) left &= ~(SUPER_READ | SUPER_WRITE);
  return left;
}

interface Managed {
  readonly access: boolean;
  readonly dirty: boolean;
}

function managed(control: bigint | undefined, ha: number, hd: number): Managed {
  const access = control !== undefined && field(control, ha, ha) === 1;
  return { access, dirty: access && field(control!, hd, hd) === 1 };
}

/**
 * Rights of a leaf where hardware manages dirty state: DBM (bit 51) stands in for AP[2] = 0, or in stage 2 for the write of
 * S2AP, and is limited by the tables above like it (Arm ARM, D8.5.2).
 */
function writable(format: Format, found: Descent, dirty: boolean): number {
  if (!dirty || (found.hi & (1 << 19)) === 0) return found.rights;
  const stage2 = format.spec.name === 'arm64-s2';
  const lo = stage2 ? found.lo | 0x80 : found.lo & ~0x80;
  return format.effective(found.above & format.rights(found.level, lo, found.hi));
}

const NEEDS = { read: [SUPER_READ, USER_READ], write: [SUPER_WRITE, USER_WRITE], fetch: [SUPER_EXEC, USER_EXEC] };

function refusal(
  registers: Arm64Registers,
  rights: number,
  { kind, user, look = false }: RegimeAccess,
  format: Format,
  found: Descent,
): string | undefined {
  const need = NEEDS[kind][user ? 1 : 0]!;
  if ((stage1Rights(rights, registers, look) & need) !== 0) return undefined;
  const level = user ? 'EL0' : registers.regime === 'el1' ? 'EL1' : 'EL2';
  const verb = kind === 'fetch' ? 'execute' : kind;
  if ((rights & need) === 0)
    return kind === 'fetch' && !user && (rights & USER_WRITE) !== 0 && registers.regime !== 'el2'
      ? `${level} does not execute what EL0 may write`
      : `${entryName(format, found.level, found.index)} or a table above it does not let ${level} ${verb}`;
  return kind === 'fetch'
    ? 'SCTLR.WXN forbids to execute what may be written'
    : 'PSTATE.PAN keeps the kernel from what EL0 may access';
}

/** arm64 translation by its registers. @throws RegimeError */
export function arm64Regime(registers: Arm64Registers): Regime {
  const first = stages(registers);
  const second = stage2(registers.vttbr, registers.vtcr);
  // TCR.HA and HD: hardware manages access flag and dirty state.
  const [ha, hd] = registers.regime === 'el2' ? [21, 22] : [39, 40];
  const firstManaged = managed(registers.tcr, ha!, hd!);
  const secondManaged = managed(registers.vtcr, 21, 22);
  const suffix = registers.regime === 'el1' ? 'EL1' : 'EL2';
  const shown: readonly (readonly [string, bigint | undefined])[] = [
    [`TTBR0_${suffix}`, registers.ttbr0],
    [`TTBR1_${suffix}`, registers.ttbr1],
    [`TCR_${suffix}`, registers.tcr],
    [`SCTLR_${suffix}`, registers.sctlr],
    ['VTTBR_EL2', registers.vttbr],
    ['VTCR_EL2', registers.vtcr],
  ];
  const onTable = (forTable: boolean): string => (forTable ? ', on a stage-1 table walk' : '');
  const rules: WalkRules = {
    noRange: (address) => ({
      code: statusWords('translation', 0),
      reason: `${hex(address)} is in no range: ${rangesWords(first)}`,
    }),
    first(format, found, access) {
      const fault = descentFault(format, found, firstManaged.access);
      const number = format.number(found.level);
      if (fault) return { code: statusWords(fault.kind, number), reason: fault.reason };
      const rights = writable(format, found, firstManaged.dirty);
      const refused = refusal(registers, rights, access, format, found);
      return refused === undefined ? undefined : { code: statusWords('permission', number), reason: refused };
    },
    second(format, found, access, forTable) {
      const asked: RegimeAccess = forTable ? { kind: 'read', user: false } : access;
      const fault =
        descentFault(format, found, secondManaged.access) ?? stage2Refusal(found, asked, format, secondManaged.dirty);
      if (!fault) return undefined;
      const code = `stage-2 ${statusWords(fault.kind, format.number(found.level))}${onTable(forTable)}`;
      return { code, reason: fault.reason };
    },
    beyond: (format, _access, forTable) => ({
      // An address beyond the input size is reported at level 0, wherever the walk would have begun.
      code: `stage-2 ${statusWords('translation', 0)}${onTable(forTable)}`,
      reason: beyondWords(format),
    }),
    outside: (format, level) => statusWords('external abort', format.number(level)),
    rights: (format, found) => stage1Rights(writable(format, found, firstManaged.dirty), registers, false),
  };
  return {
    arch: 'arm64',
    stages: first,
    second,
    registers: shown.flatMap(([name, value]) => (value === undefined ? [] : [{ name, value }])),
    walk: (memory, address, access) => twoStageWalk(memory, first, second, rules, address, access),
    walkSecond: (memory, gpa) => twoStageWalk(memory, [], second, rules, gpa, { kind: 'read', user: false }),
  };
}

function stage2Refusal(
  found: Descent,
  { kind, user }: RegimeAccess,
  format: Format,
  dirty: boolean,
): { kind: FaultKind; reason: string } | undefined {
  if ((writable(format, found, dirty) & NEEDS[kind][user ? 1 : 0]!) !== 0) return undefined;
  const verb = kind === 'fetch' ? 'execution' : kind === 'read' ? 'reads' : 'writes';
  return { kind: 'permission', reason: `${entryName(format, found.level, found.index)} does not allow ${verb}` };
}
