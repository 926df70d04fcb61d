// A deliberately simple model of RISC-V address translation: Sv39, Sv48 and Sv57, alone or as VS-stage with a G-stage
// (Sv39x4, Sv48x4, Sv57x4). Written from 'The RISC-V Instruction Set Manual, Volume II: Privileged Architecture':
//   chapters 'Supervisor-Level ISA' (satp; Sv39, Sv48, Sv57; 'Virtual Address Translation Process'),
//   'Hypervisor Extension' (hgatp; 'Two-Stage Address Translation') and 'Svadu'.
// Sections are cited by title; their numbers shift.
// It is an oracle for property tests: it imports nothing, caches nothing and changes nothing.
// Not modelled: PMP and PMA, Svnapot, pointer masking, and the write that an A/D update itself is to the G-stage.

export interface Memory {
  /** Little-endian value of 4 or 8 bytes at a physical address. */
  read(address: bigint, bytes: 4 | 8): bigint;
}

export interface RiscvRegisters {
  /** With hgatp this is vsatp. */
  satp: bigint;
  hgatp?: bigint | undefined;
  /** sstatus, with hgatp vsstatus. */
  sum: boolean;
  mxr: boolean;
  /** Hardware updates A and D (menvcfg.ADUE, henvcfg.ADUE), in both stages. */
  svadu: boolean;
}

export interface RiscvAccess {
  kind: 'read' | 'write' | 'fetch';
  /** U-mode or VU-mode. */
  user: boolean;
}

export interface RiscvFault {
  kind: 'fault';
  what: 'page fault' | 'guest-page fault';
  /** Level of the entry that decided, 0 = last level. */
  level: number;
  cause: number;
}

export type RiscvOutcome = { kind: 'ok'; gpa: bigint; pa: bigint } | { kind: 'not-canonical' } | RiscvFault;

/** What a guest-physical address becomes. */
type GuestResult = { kind: 'mapped'; pa: bigint } | RiscvFault;

/** The value with bits high..low set, both ends included; nothing if high < low. */
function bits(high: number, low: number): bigint {
  let value = 0n;
  for (let position = low; position <= high; position += 1) value |= 1n << BigInt(position);
  return value;
}

function bit(value: bigint, position: number): boolean {
  return ((value >> BigInt(position)) & 1n) === 1n;
}

// 'Supervisor Address Translation and Protection (satp) Register': MODE (63:60) 8 is Sv39, 9 Sv48, 10 Sv57; hgatp has
// the same numbers for Sv39x4, Sv48x4, Sv57x4.
function levelsOfMode(mode: bigint): number {
  if (mode === 8n) return 3;
  if (mode === 9n) return 4;
  if (mode === 10n) return 5;
  throw new Error(`no translation mode ${mode}`);
}

// 'Machine Cause (mcause) Register', exception codes.
function pageFaultCause(kind: RiscvAccess['kind']): number {
  if (kind === 'fetch') return 12;
  if (kind === 'read') return 13;
  return 15;
}

function guestPageFaultCause(kind: RiscvAccess['kind']): number {
  if (kind === 'fetch') return 20;
  if (kind === 'read') return 21;
  return 23;
}

// Sv39: page-table entry. V 0, R 1, W 2, X 3, U 4, G 5, A 6, D 7, RSW 9:8, PPN 53:10, reserved 60:54, PBMT 62:61, N 63.
function physicalPage(entry: bigint): bigint {
  return (entry & bits(53, 10)) >> 10n;
}

// 'Virtual Address Translation Process', steps 3 and 4: an entry with R or X is a leaf.
function isLeaf(entry: bigint): boolean {
  return bit(entry, 1) || bit(entry, 3);
}

// Steps 3 to 5, as far as they concern the entry alone: is it unusable where it stands?
function isUnusable(entry: bigint, level: number): boolean {
  // Step 3: not valid; writable without being readable.
  if (!bit(entry, 0)) return true;
  if (bit(entry, 2) && !bit(entry, 1)) return true;
  // Step 3: reserved bits 60:54, and N without Svnapot.
  if ((entry & bits(60, 54)) !== 0n) return true;
  if (bit(entry, 63)) return true;

  if (!isLeaf(entry)) {
    // Step 4: a pointer at the last level.
    if (level === 0) return true;
    // Sv39: in a pointer PBMT, A, D and U are reserved as well.
    if ((entry & bits(63, 54)) !== 0n) return true;
    if (bit(entry, 4) || bit(entry, 6) || bit(entry, 7)) return true;
    return false;
  }

  // The later step of the process that looks at superpages: the low 9 * level bits of the PPN have to be 0.
  if ((physicalPage(entry) & bits(9 * level - 1, 0)) !== 0n) return true;
  return false;
}

// The step that compares A and D: A = 0, or D = 0 for a store, faults unless hardware updates them (Svadu).
function needsUpdateBySoftware(entry: bigint, kind: RiscvAccess['kind'], svadu: boolean): boolean {
  if (svadu) return false;
  if (!bit(entry, 6)) return true;
  if (kind === 'write' && !bit(entry, 7)) return true;
  return false;
}

// Last step: a leaf at level L gives the address bits from 12 + 9 * L up; the rest is the offset.
function leafAddress(entry: bigint, address: bigint, level: number): bigint {
  const offset = bits(12 + 9 * level - 1, 0);
  return ((physicalPage(entry) << 12n) & ~offset) | (address & offset);
}

// 'Guest Physical Address Translation'. faultKind is what the guest was doing, which decides the cause; kind is what is
// done to this address.
function translateGuest(
  memory: Memory,
  regs: RiscvRegisters,
  gpa: bigint,
  kind: RiscvAccess['kind'],
  faultKind: RiscvAccess['kind'],
): GuestResult {
  // 'hgatp': without it, or with MODE = 0 (Bare), guest-physical addresses are physical addresses.
  if (regs.hgatp === undefined || regs.hgatp >> 60n === 0n) return { kind: 'mapped', pa: gpa };

  const fault = (level: number): RiscvFault => ({
    kind: 'fault',
    what: 'guest-page fault',
    level,
    cause: guestPageFaultCause(faultKind),
  });
  const levels = levelsOfMode(regs.hgatp >> 60n);
  const root = levels - 1;

  // Sv39x4, Sv48x4, Sv57x4: two bits wider than the plain mode (41, 50, 59); all bits above have to be 0.
  const width = 12 + 9 * levels + 2;
  if (gpa >> BigInt(width) !== 0n) return fault(root);

  // hgatp.PPN (43:0); the root has 16 KiB and is aligned to them, so the low two bits of PPN are 0.
  let table = (regs.hgatp & bits(43, 2)) << 12n;
  for (let level = root; level >= 0; level -= 1) {
    const shift = BigInt(12 + 9 * level);
    // The root is indexed by two bits more.
    const index = level === root ? (gpa >> shift) & 0x7ffn : (gpa >> shift) & 0x1ffn;
    const entry = memory.read(table + index * 8n, 8);
    if (isUnusable(entry, level)) return fault(level);

    if (!isLeaf(entry)) {
      table = physicalPage(entry) << 12n;
      continue;
    }

    // Every access of this stage is one of U-mode: U has to be 1. No SUM, no MXR.
    if (!bit(entry, 4)) return fault(level);
    if (kind === 'read' && !bit(entry, 1)) return fault(level);
    if (kind === 'write' && !bit(entry, 2)) return fault(level);
    if (kind === 'fetch' && !bit(entry, 3)) return fault(level);
    if (needsUpdateBySoftware(entry, kind, regs.svadu)) return fault(level);
    return { kind: 'mapped', pa: leafAddress(entry, gpa, level) };
  }
  throw new Error('unreachable: a pointer at level 0 is unusable');
}

export function translateRiscv(
  memory: Memory,
  regs: RiscvRegisters,
  address: bigint,
  access: RiscvAccess,
): RiscvOutcome {
  const levels = levelsOfMode(regs.satp >> 60n);
  const root = levels - 1;
  const fault = (level: number): RiscvFault => ({
    kind: 'fault',
    what: 'page fault',
    level,
    cause: pageFaultCause(access.kind),
  });

  // Sv39: bits 63:39 all equal bit 38 (Sv48: 63:48 bit 47, Sv57: 63:57 bit 56).
  const width = 12 + 9 * levels;
  const top = (address & bits(63, width - 1)) >> BigInt(width - 1);
  if (top !== 0n && top !== bits(63 - (width - 1), 0)) return { kind: 'not-canonical' };

  // Step 1: satp.PPN (43:0).
  let table = (regs.satp & bits(43, 0)) << 12n;
  for (let level = root; level >= 0; level -= 1) {
    // Step 2. 'Two-Stage Address Translation': tables of the VS-stage are at guest-physical addresses; reading one is
    // an implicit read of the G-stage, and its fault has the cause of the original access.
    const index = (address >> BigInt(12 + 9 * level)) & 0x1ffn;
    const location = translateGuest(memory, regs, table + index * 8n, 'read', access.kind);
    if (location.kind !== 'mapped') return location;
    const entry = memory.read(location.pa, 8);
    if (isUnusable(entry, level)) return fault(level);

    if (!isLeaf(entry)) {
      table = physicalPage(entry) << 12n;
      continue;
    }

    // R, W, X. 'Memory Privilege in sstatus Register': with MXR = 1 a read may use X as well.
    const readable = bit(entry, 1) || (regs.mxr && bit(entry, 3));
    if (access.kind === 'read' && !readable) return fault(level);
    if (access.kind === 'write' && !bit(entry, 2)) return fault(level);
    if (access.kind === 'fetch' && !bit(entry, 3)) return fault(level);

    // U: user accesses only where it is 1. S-mode never executes there, and reads and writes only with SUM = 1.
    const userPage = bit(entry, 4);
    if (access.user && !userPage) return fault(level);
    if (!access.user && userPage && access.kind === 'fetch') return fault(level);
    if (!access.user && userPage && !regs.sum) return fault(level);

    if (needsUpdateBySoftware(entry, access.kind, regs.svadu)) return fault(level);

    const gpa = leafAddress(entry, address, level);
    const final = translateGuest(memory, regs, gpa, access.kind, access.kind);
    if (final.kind !== 'mapped') return final;
    return { kind: 'ok', gpa, pa: final.pa };
  }
  throw new Error('unreachable: a pointer at level 0 is unusable');
}
