// A deliberately simple model of AArch64 address translation: VMSAv8-64, EL1&0 regime, stage 1 with or without stage 2.
// Written from the Arm Architecture Reference Manual for A-profile (DDI 0487):
//   ch. D8 'The AArch64 Virtual Memory System Architecture' (D8.1 address translation, D8.2 translation process,
//   D8.3 descriptor formats, D8.4 memory access control, D8.5 hardware updates to the tables); J1.1 (its pseudocode);
//   D24.2 (TCR_EL1, VTCR_EL2, SCTLR_EL1).
// Section numbers follow that edition; they shift between revisions, the section titles do not.
// It is an oracle for property tests: it imports nothing, caches nothing and changes nothing.
// Assumed: FEAT_LVA, FEAT_LPA, FEAT_LPA2, FEAT_TTST, FEAT_HPDS, FEAT_HAFDBS, FEAT_PAN, FEAT_XNX and 52-bit physical
// addresses. Not modelled: TBI, E0PD, NFD, EPAN, NV1, VMSAv9-128, permission indirection and overlays,
// memory types, Secure and Realm state, and the write that an update of AF or the dirty state itself is to stage 2.

export interface Memory {
  /** Little-endian value of 4 or 8 bytes at a physical address. */
  read(address: bigint, bytes: 4 | 8): bigint;
}

export interface ArmRegisters {
  ttbr0: bigint;
  ttbr1: bigint;
  tcr: bigint;
  sctlr: bigint;
  pan: boolean;
  /** Stage 2 is on if both of these are there. */
  vttbr?: bigint | undefined;
  vtcr?: bigint | undefined;
}

export interface ArmAccess {
  kind: 'read' | 'write' | 'fetch';
  el0: boolean;
}

export interface ArmFault {
  kind: 'fault';
  stage: 1 | 2;
  what: 'address size' | 'translation' | 'access flag' | 'permission';
  /** -1 … 3. */
  level: number;
  /** A stage-2 fault of the read of a stage-1 descriptor. */
  onTableWalk: boolean;
}

export type ArmOutcome = { kind: 'ok'; ipa: bigint; pa: bigint } | { kind: 'no-range' } | ArmFault;

/** What an intermediate physical address becomes. */
type Stage2Result = { kind: 'mapped'; pa: bigint } | ArmFault;

/** How the tables of one stage are laid out. */
interface Layout {
  /** 12, 14 or 16. */
  granuleBits: number;
  /** 64 - TxSZ. */
  inputBits: number;
  outputBits: number;
  startLevel: number;
  /** Where descriptors keep address bits 51:48: nowhere, in 9:8 and 49:48 (DS = 1), or in 15:12 (64 KB). */
  wide: 'no' | 'lpa2' | 'lpa';
}

/** The value with bits high..low set, both ends included; nothing if high < low. */
function bits(high: number, low: number): bigint {
  let value = 0n;
  for (let position = low; position <= high; position += 1) value |= 1n << BigInt(position);
  return value;
}

function bit(value: bigint, position: number): boolean {
  return ((value >> BigInt(position)) & 1n) === 1n;
}

function field(value: bigint, high: number, low: number): number {
  return Number((value & bits(high, low)) >> BigInt(low));
}

// D24.2, TCR_EL1.TG0 and VTCR_EL2.TG0: 00 4 KB, 01 64 KB, 10 16 KB. 11 is reserved; here 4 KB.
function granuleOfTg0(tg0: number): number {
  if (tg0 === 1) return 16;
  if (tg0 === 2) return 14;
  return 12;
}

// D24.2, TCR_EL1.TG1: 01 16 KB, 10 4 KB, 11 64 KB. 00 is reserved; here 4 KB.
function granuleOfTg1(tg1: number): number {
  if (tg1 === 1) return 14;
  if (tg1 === 3) return 16;
  return 12;
}

// D24.2, TCR_EL1.DS and VTCR_EL2.DS: they change the descriptors of 4 KB and 16 KB. With 64 KB it is the 52-bit output
// size that puts address bits into descriptors.
function wideFormat(granuleBits: number, ds: boolean, physicalSize: number): 'no' | 'lpa2' | 'lpa' {
  if (granuleBits === 16) return physicalSize === 6 ? 'lpa' : 'no';
  return ds ? 'lpa2' : 'no';
}

// D24.2, TCR_EL1.IPS and VTCR_EL2.PS. D8.1.7: at most 48 bits where descriptors hold no more. 7 is reserved: like 6.
function outputSize(physicalSize: number, wide: 'no' | 'lpa2' | 'lpa'): number {
  let size = 52;
  if (physicalSize === 0) size = 32;
  if (physicalSize === 1) size = 36;
  if (physicalSize === 2) size = 40;
  if (physicalSize === 3) size = 42;
  if (physicalSize === 4) size = 44;
  if (physicalSize === 5) size = 48;
  if (wide === 'no' && size > 48) size = 48;
  return size;
}

// D8.1.9: the input sizes there are. Below the minimum TxSZ: a level 0 Translation fault (FEAT_LVA). Above the maximum
// (FEAT_TTST: 48, with 64 KB 47) the manual lets an implementation choose; here a level 0 Translation fault as well.
function inputSizeFaults(txsz: number, granuleBits: number, ds: boolean): boolean {
  const minimum = granuleBits === 16 || ds ? 12 : 16;
  const maximum = granuleBits === 16 ? 47 : 48;
  return txsz < minimum || txsz > maximum;
}

// D8.2.5.1: a table of one granule resolves granuleBits - 3 address bits (its descriptors have 8 bytes).
function lowestIndexBit(granuleBits: number, level: number): number {
  return granuleBits + (3 - level) * (granuleBits - 3);
}

// D8.2.3: address of the first table, from TTBR bits 47:1, or with 52-bit addresses bits 47:6 and 51:48 from 5:2.
// D8.2.5.2: a table is aligned to its size (concatenated tables to the size of them all), here never to less than 64.
function firstTable(ttbr: bigint, layout: Layout): bigint {
  const entries = 1n << BigInt(layout.inputBits - lowestIndexBit(layout.granuleBits, layout.startLevel));
  let alignment = entries * 8n;
  if (alignment < 64n) alignment = 64n;
  let address = ttbr & bits(47, 1);
  if (layout.wide !== 'no') address = (ttbr & bits(47, 6)) | (BigInt(field(ttbr, 5, 2)) << 48n);
  return address - (address % alignment);
}

// D8.2.8 … D8.2.10: the start level resolves all remaining bits of the input size, every other level one table's worth.
function descriptorAddress(table: bigint, address: bigint, level: number, layout: Layout): bigint {
  const low = lowestIndexBit(layout.granuleBits, level);
  let high = low + layout.granuleBits - 3 - 1;
  if (level === layout.startLevel) high = layout.inputBits - 1;
  return table + BigInt(field(address, high, low)) * 8n;
}

// D8.3.1: what a descriptor is.
function descriptorType(descriptor: bigint, level: number, layout: Layout): 'invalid' | 'table' | 'leaf' {
  if (!bit(descriptor, 0)) return 'invalid';
  // At level 3 bit 1 = 1 is a page and bit 1 = 0 is reserved, which counts as invalid.
  if (level === 3) return bit(descriptor, 1) ? 'leaf' : 'invalid';
  if (bit(descriptor, 1)) return 'table';
  // D8.3.1.2: the levels at which a block may stand.
  if (level === 2) return 'leaf';
  if (level === 1 && layout.granuleBits === 12) return 'leaf';
  if (level === 0 && layout.granuleBits === 12 && layout.wide === 'lpa2') return 'leaf';
  if (level === 1 && layout.granuleBits === 14 && layout.wide === 'lpa2') return 'leaf';
  if (level === 1 && layout.granuleBits === 16 && layout.wide === 'lpa') return 'leaf';
  return 'invalid';
}

// D8.3.1: the address in a descriptor, bits 47:low in place and 51:48 where the format keeps them.
function addressInDescriptor(descriptor: bigint, low: number, layout: Layout): bigint {
  const address = descriptor & bits(47, low);
  if (layout.wide === 'lpa2') {
    return address | (descriptor & bits(49, 48)) | (BigInt(field(descriptor, 9, 8)) << 50n);
  }
  if (layout.wide === 'lpa') return address | (BigInt(field(descriptor, 15, 12)) << 48n);
  return address;
}

function isBeyond(address: bigint, sizeBits: number): boolean {
  return address >> BigInt(sizeBits) !== 0n;
}

// Stage 2: D8.2 (tables), D8.4.2 (stage 2 permissions).
function translateStage2(
  memory: Memory,
  vttbr: bigint,
  vtcr: bigint,
  ipa: bigint,
  access: ArmAccess,
  onTableWalk: boolean,
): Stage2Result {
  const fault = (what: ArmFault['what'], level: number): ArmFault => ({
    kind: 'fault',
    stage: 2,
    what,
    level,
    onTableWalk,
  });

  // D24.2, VTCR_EL2.
  const t0sz = field(vtcr, 5, 0);
  const sl0 = field(vtcr, 7, 6);
  const granuleBits = granuleOfTg0(field(vtcr, 15, 14));
  const physicalSize = field(vtcr, 18, 16);
  const hardwareAccessFlag = bit(vtcr, 21);
  const hardwareDirtyState = hardwareAccessFlag && bit(vtcr, 22);
  const ds = bit(vtcr, 32) && granuleBits !== 16;
  const sl2 = bit(vtcr, 33) && ds && granuleBits === 12;

  if (inputSizeFaults(t0sz, granuleBits, ds)) return fault('translation', 0);
  const inputBits = 64 - t0sz;

  // D8.2.8 … D8.2.10: the start level. Reserved values, and ones that do not go with T0SZ: level 0 Translation fault.
  let startLevel = 3 - sl0;
  let reserved = false;
  if (granuleBits === 12) {
    if (sl0 === 0) startLevel = 2;
    if (sl0 === 1) startLevel = 1;
    if (sl0 === 2) startLevel = 0;
    if (sl0 === 3) startLevel = 3;
    if (sl2 && sl0 === 0) startLevel = -1;
    if (sl2 && sl0 !== 0) reserved = true;
  }
  if (granuleBits === 14 && sl0 === 3 && !ds) reserved = true;
  if (granuleBits === 16 && sl0 === 3) reserved = true;
  // D8.2.2: the start level resolves at least one bit and at most one table's worth and, by concatenation, four more.
  const resolved = inputBits - lowestIndexBit(granuleBits, startLevel);
  if (reserved || resolved < 1 || resolved > granuleBits - 3 + 4) return fault('translation', 0);

  const wide = wideFormat(granuleBits, ds, physicalSize);
  const layout: Layout = { granuleBits, inputBits, outputBits: outputSize(physicalSize, wide), startLevel, wide };

  // D8.1.10, IPA size check.
  if (isBeyond(ipa, inputBits)) return fault('translation', 0);

  // D8.2.3: a table base beyond the output size is a level 0 Address size fault.
  let table = firstTable(vttbr, layout);
  if (isBeyond(table, layout.outputBits)) return fault('address size', 0);

  for (let level = startLevel; level <= 3; level += 1) {
    const descriptor = memory.read(descriptorAddress(table, ipa, level, layout), 8);
    const type = descriptorType(descriptor, level, layout);
    if (type === 'invalid') return fault('translation', level);

    if (type === 'table') {
      table = addressInDescriptor(descriptor, granuleBits, layout);
      if (isBeyond(table, layout.outputBits)) return fault('address size', level);
      continue;
    }

    const offsetBits = lowestIndexBit(granuleBits, level);
    const pa = addressInDescriptor(descriptor, offsetBits, layout) | (ipa & bits(offsetBits - 1, 0));
    if (isBeyond(pa, layout.outputBits)) return fault('address size', level);

    // D8.5.1: AF is bit 10.
    if (!bit(descriptor, 10) && !hardwareAccessFlag) return fault('access flag', level);

    // D8.4.2.1: S2AP[0] (bit 6) gives reads, S2AP[1] (bit 7) writes; DBM (bit 51) stands in for S2AP[1], D8.5.2.1.
    const readable = bit(descriptor, 6);
    const writable = bit(descriptor, 7) || (bit(descriptor, 51) && hardwareDirtyState);
    // D8.4.2.1, XN[1:0] (bits 54:53): 00 both execute, 01 only EL0, 10 nobody, 11 only EL1. It does not ask for S2AP.
    const xn = field(descriptor, 54, 53);
    let executable = xn === 0;
    if (xn === 1 && access.el0) executable = true;
    if (xn === 3 && !access.el0) executable = true;
    if (access.kind === 'read' && !readable) return fault('permission', level);
    if (access.kind === 'write' && !writable) return fault('permission', level);
    if (access.kind === 'fetch' && !executable) return fault('permission', level);

    return { kind: 'mapped', pa };
  }
  throw new Error('unreachable: level 3 has no tables');
}

// An address that stage 1 gave out or keeps a table at, as stage 2 sees it.
function throughStage2(
  memory: Memory,
  regs: ArmRegisters,
  ipa: bigint,
  access: ArmAccess,
  onTableWalk: boolean,
): Stage2Result {
  if (regs.vttbr === undefined || regs.vtcr === undefined) return { kind: 'mapped', pa: ipa };
  return translateStage2(memory, regs.vttbr, regs.vtcr, ipa, access, onTableWalk);
}

/** The limits that the table descriptors of a walk set together. */
interface TableLimits {
  noEl0: boolean;
  readOnly: boolean;
  el0ExecuteNever: boolean;
  el1ExecuteNever: boolean;
}

// D8.4.1.2, direct permissions of stage 1.
function stage1Allows(regs: ArmRegisters, access: ArmAccess, leaf: bigint, limits: TableLimits): boolean {
  const hardwareDirtyState = bit(regs.tcr, 39) && bit(regs.tcr, 40);
  const writeExecuteNever = bit(regs.sctlr, 19);

  // D8.5.2.1: with the dirty state managed, a leaf with DBM (bit 51) counts as one with AP[2] = 0.
  const managed = hardwareDirtyState && bit(leaf, 51);

  // D8.4.1.2.1: AP[2] (bit 7) takes the writes, AP[1] (bit 6) lets EL0 in.
  const leafWritable = !bit(leaf, 7) || managed;
  let el1Write = leafWritable;
  let el0Read = bit(leaf, 6);
  let el0Write = bit(leaf, 6) && leafWritable;

  // D8.4.1.2.2, hierarchical control: APTable[0] keeps EL0 out, APTable[1] takes the writes.
  if (limits.noEl0) {
    el0Read = false;
    el0Write = false;
  }
  // A managed dirty state (DBM) stands in for AP[2] = 0 of the leaf, and is limited like it (D8.5.2.1, rule XZFQH).
  if (limits.readOnly) {
    el1Write = false;
    el0Write = false;
  }

  // D8.4.1.2.3: UXN (bit 54) and PXN (bit 53). What EL0 may write EL1 does not execute. It does not ask for reads.
  let el0Execute = !bit(leaf, 54) && !limits.el0ExecuteNever;
  let el1Execute = !bit(leaf, 53) && !limits.el1ExecuteNever && !el0Write;
  // D8.4.1.2.3, SCTLR_EL1.WXN: what an exception level may write it does not execute.
  if (writeExecuteNever && el0Write) el0Execute = false;
  if (writeExecuteNever && el1Write) el1Execute = false;

  if (access.el0) {
    if (access.kind === 'read') return el0Read;
    if (access.kind === 'write') return el0Write;
    return el0Execute;
  }
  if (access.kind === 'fetch') return el1Execute;
  // D8.4.5.1: PSTATE.PAN keeps EL1 data accesses from what EL0 may read or write.
  if (regs.pan && (el0Read || el0Write)) return false;
  if (access.kind === 'write') return el1Write;
  return true;
}

export function translateArm64(memory: Memory, regs: ArmRegisters, address: bigint, access: ArmAccess): ArmOutcome {
  const fault = (what: ArmFault['what'], level: number): ArmFault => ({
    kind: 'fault',
    stage: 1,
    what,
    level,
    onTableWalk: false,
  });

  // D8.2.4: bit 55 chooses between the lower range (TTBR0_EL1) and the upper one (TTBR1_EL1). D24.2, TCR_EL1.
  const upper = bit(address, 55);
  const txsz = upper ? field(regs.tcr, 21, 16) : field(regs.tcr, 5, 0);
  const walksDisabled = upper ? bit(regs.tcr, 23) : bit(regs.tcr, 7);
  const granuleBits = upper ? granuleOfTg1(field(regs.tcr, 31, 30)) : granuleOfTg0(field(regs.tcr, 15, 14));
  const hierarchyDisabled = upper ? bit(regs.tcr, 42) : bit(regs.tcr, 41);
  const ttbr = upper ? regs.ttbr1 : regs.ttbr0;
  const physicalSize = field(regs.tcr, 34, 32);
  const hardwareAccessFlag = bit(regs.tcr, 39);
  const ds = bit(regs.tcr, 59) && granuleBits !== 16;

  if (inputSizeFaults(txsz, granuleBits, ds)) return fault('translation', 0);
  const inputBits = 64 - txsz;

  // D8.1.9: all bits above the input size have to be 0 in the lower range and 1 in the upper one.
  const above = address & bits(63, inputBits);
  if (!upper && above !== 0n) return { kind: 'no-range' };
  if (upper && above !== bits(63, inputBits)) return { kind: 'no-range' };
  // D24.2, TCR_EL1.EPD0 and EPD1: no walks with this TTBR.
  if (walksDisabled) return { kind: 'no-range' };

  // D8.2.8 … D8.2.10: stage 1 starts at the last level from which the whole input size can be resolved.
  let startLevel = 3;
  while (inputBits - lowestIndexBit(granuleBits, startLevel) > granuleBits - 3) startLevel -= 1;

  const wide = wideFormat(granuleBits, ds, physicalSize);
  const layout: Layout = { granuleBits, inputBits, outputBits: outputSize(physicalSize, wide), startLevel, wide };

  // D8.2.3: a table base beyond the output size is a level 0 Address size fault.
  let table = firstTable(ttbr, layout);
  if (isBeyond(table, layout.outputBits)) return fault('address size', 0);

  const limits: TableLimits = { noEl0: false, readOnly: false, el0ExecuteNever: false, el1ExecuteNever: false };
  for (let level = startLevel; level <= 3; level += 1) {
    // D8.2.1: with stage 2, tables of stage 1 are at intermediate physical addresses; reading one needs reads.
    const entryIpa = descriptorAddress(table, address, level, layout);
    const entry = throughStage2(memory, regs, entryIpa, { kind: 'read', el0: false }, true);
    if (entry.kind !== 'mapped') return entry;
    const descriptor = memory.read(entry.pa, 8);
    const type = descriptorType(descriptor, level, layout);
    if (type === 'invalid') return fault('translation', level);

    if (type === 'table') {
      table = addressInDescriptor(descriptor, granuleBits, layout);
      if (isBeyond(table, layout.outputBits)) return fault('address size', level);
      // D8.3.1.1, unless TCR_EL1.HPDn: APTable[1:0] bits 62:61, UXNTable bit 60, PXNTable bit 59.
      if (!hierarchyDisabled) {
        if (bit(descriptor, 61)) limits.noEl0 = true;
        if (bit(descriptor, 62)) limits.readOnly = true;
        if (bit(descriptor, 60)) limits.el0ExecuteNever = true;
        if (bit(descriptor, 59)) limits.el1ExecuteNever = true;
      }
      continue;
    }

    const offsetBits = lowestIndexBit(granuleBits, level);
    const ipa = addressInDescriptor(descriptor, offsetBits, layout) | (address & bits(offsetBits - 1, 0));
    if (isBeyond(ipa, layout.outputBits)) return fault('address size', level);

    // D8.5.1: AF is bit 10.
    if (!bit(descriptor, 10) && !hardwareAccessFlag) return fault('access flag', level);

    if (!stage1Allows(regs, access, descriptor, limits)) return fault('permission', level);

    // D8.4.3, D8.4.4: stage 2 is asked only for what stage 1 permits.
    const final = throughStage2(memory, regs, ipa, access, false);
    if (final.kind !== 'mapped') return final;
    return { kind: 'ok', ipa, pa: final.pa };
  }
  throw new Error('unreachable: level 3 has no tables');
}
