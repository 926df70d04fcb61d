// A deliberately simple model of x86 linear-address translation in every paging mode, without a second stage:
// 32-bit paging, PAE paging, 4-level paging and 5-level paging. Written from the manuals:
//   Intel SDM vol. 3, ch. 4 'Paging' (4.3 32-bit, 4.4 PAE, 4.5 4-level and 5-level, 4.6 access rights, 4.7 page-fault
//   exceptions, 4.8 accessed and dirty flags); AMD APM vol. 2, ch. 5 'Page Translation and Protection'.
// Section numbers follow those editions; they shift between revisions, the section titles do not.
// It is an oracle for property tests: it imports nothing, caches nothing and changes nothing.
// CR0.PG is taken to be 1. No PCID, LAM, CET, PKS, SGX, SEV.

export interface Memory {
  /** Little-endian value of 4 or 8 bytes at a physical address. */
  read(address: bigint, bytes: 4 | 8): bigint;
}

export interface X86Registers {
  cr0: bigint;
  cr3: bigint;
  cr4: bigint;
  efer: bigint;
  rflags: bigint;
  pkru: bigint;
}

export interface X86Cpu {
  maxPhyAddr: number;
  oneGigPages: boolean;
  amd: boolean;
}

export interface X86Access {
  kind: 'read' | 'write' | 'fetch';
  /** The access is made at CPL 3. */
  user: boolean;
  /** Made by the processor itself (descriptor tables): a supervisor access, even at CPL 3. */
  implicit: boolean;
}

export type X86Outcome =
  | {
      kind: 'ok';
      physical: bigint;
      pageSize: number;
      /** Physical addresses of entries whose A bit is 0 and has to become 1, root first, none twice. */
      setAccessed: bigint[];
      /** Physical address of the leaf whose D bit is 0 and has to become 1. */
      setDirty: bigint[];
    }
  | { kind: 'not-canonical' }
  | { kind: 'out-of-range' }
  | {
      kind: 'page-fault';
      errorCode: number;
      /** Level of the entry that decided, 1 = PTE; for a permission fault the level of the leaf. */
      level: number;
    };

/** What the entries of a walk grant together. */
interface Rights {
  everyWritable: boolean;
  everyUser: boolean;
  anyNoExecute: boolean;
}

/**
 * Width of the physical address that a 4-MByte page of 32-bit paging can have. This is PSE-36: bits 35:32 in PDE bits
 * 16:13. Later editions let PDE bits 20:13 hold bits 39:32 (SDM 4.3, M = min(40, MAXPHYADDR); APM 5.2.2); 40 here
 * would be that reading.
 */
const PSE_PHYSICAL_BITS = 36;

/** The value with bits high..low set, both ends included; nothing if high < low. */
function bits(high: number, low: number): bigint {
  let value = 0n;
  for (let position = low; position <= high; position += 1) value |= 1n << BigInt(position);
  return value;
}

function bit(value: bigint, position: number): boolean {
  return ((value >> BigInt(position)) & 1n) === 1n;
}

// SDM 4.7, page-fault error code.
const PRESENT = 1 << 0;
const WRITE = 1 << 1;
const USER = 1 << 2;
const RESERVED = 1 << 3;
const FETCH = 1 << 4;
const KEY = 1 << 5;

// SDM 4.6: an access at CPL 3 is a user-mode access unless it is an implicit supervisor-mode access.
function isUserAccess(access: X86Access): boolean {
  return access.user && !access.implicit;
}

// SDM 4.7: the part of the error code that does not depend on the entries.
function baseErrorCode(regs: X86Registers, access: X86Access): number {
  const pae = bit(regs.cr4, 5);
  const smep = bit(regs.cr4, 20);
  const noExecuteEnabled = bit(regs.efer, 11);
  let error = 0;
  if (access.kind === 'write') error |= WRITE;
  if (isUserAccess(access)) error |= USER;
  // I/D: an instruction fetch, with CR4.SMEP = 1, or with CR4.PAE = 1 and EFER.NXE = 1.
  if (access.kind === 'fetch' && (smep || (pae && noExecuteEnabled))) error |= FETCH;
  return error;
}

// SDM 4.6.1: do the rights of the whole walk deny the access?
function denied(regs: X86Registers, access: X86Access, rights: Rights): boolean {
  const writeProtect = bit(regs.cr0, 16);
  const smep = bit(regs.cr4, 20);
  const smap = bit(regs.cr4, 21);
  const alignmentCheck = bit(regs.rflags, 18);
  const write = access.kind === 'write';
  const fetch = access.kind === 'fetch';
  // SDM 4.6: a user-mode address is one whose U/S is 1 in every entry that controls the translation.
  const userAddress = rights.everyUser;

  // SDM 4.6.1: no fetch, of either mode, where XD is 1 in any entry.
  if (fetch && rights.anyNoExecute) return true;

  if (isUserAccess(access)) {
    // User-mode accesses: only user-mode addresses; writes need R/W in every entry, whatever CR0.WP.
    if (!userAddress) return true;
    if (write && !rights.everyWritable) return true;
    return false;
  }

  // Supervisor-mode writes: with CR0.WP = 1 they need R/W in every entry.
  if (write && writeProtect && !rights.everyWritable) return true;
  // Supervisor-mode data accesses to user-mode addresses, CR4.SMAP = 1: only explicit ones with EFLAGS.AC = 1.
  if (!fetch && userAddress && smap && (access.implicit || !alignmentCheck)) return true;
  // Supervisor-mode fetches from user-mode addresses: not with CR4.SMEP = 1.
  if (fetch && userAddress && smep) return true;
  return false;
}

// SDM 4.6.2: does the protection key in bits 62:59 of the leaf deny the access? Only 4-level and 5-level paging ask.
function keyDenied(regs: X86Registers, access: X86Access, rights: Rights, leaf: bigint): boolean {
  const writeProtect = bit(regs.cr0, 16);
  const protectionKeys = bit(regs.cr4, 22);
  // Only data accesses to user-mode addresses.
  if (!protectionKeys) return false;
  if (access.kind === 'fetch') return false;
  if (!rights.everyUser) return false;
  const key = Number((leaf >> 59n) & 0xfn);
  const accessDisable = bit(regs.pkru, 2 * key);
  const writeDisable = bit(regs.pkru, 2 * key + 1);
  if (accessDisable) return true;
  // WD concerns supervisor-mode writes only with CR0.WP = 1.
  if (writeDisable && access.kind === 'write' && (isUserAccess(access) || writeProtect)) return true;
  return false;
}

// SDM 4.8: the entries of a successful walk whose A bit (bit 5) is 0. One entry may serve several levels.
function accessedUpdates(visited: { address: bigint; entry: bigint }[]): bigint[] {
  const addresses: bigint[] = [];
  for (const { address, entry } of visited) {
    if (!bit(entry, 5) && !addresses.includes(address)) addresses.push(address);
  }
  return addresses;
}

// SDM 4.8: D (bit 6) of the leaf, for a write.
function dirtyUpdates(leaf: { address: bigint; entry: bigint }, access: X86Access): bigint[] {
  if (access.kind === 'write' && !bit(leaf.entry, 6)) return [leaf.address];
  return [];
}

// SDM 4.3, 32-bit paging. APM 5.2.2.
function translate32(memory: Memory, regs: X86Registers, cpu: X86Cpu, linear: bigint, access: X86Access): X86Outcome {
  const error = baseErrorCode(regs, access);
  const pageSizeExtension = bit(regs.cr4, 4);

  // SDM 4.3: CR3 bits 31:12 locate the page directory; bits 31:22 of the address select one of its 1024 entries.
  const pdeAddress = (regs.cr3 & bits(31, 12)) + ((linear >> 22n) & 0x3ffn) * 4n;
  const pde = memory.read(pdeAddress, 4);
  if (!bit(pde, 0)) return { kind: 'page-fault', errorCode: error, level: 2 };

  // SDM 4.3: with CR4.PSE = 1 and PS (bit 7) = 1 the PDE maps 4 MBytes; with CR4.PSE = 0 bit 7 is ignored.
  if (pageSizeExtension && bit(pde, 7)) {
    // Physical-address bits from 32 up start at PDE bit 13. What the width does not reach, up to bit 21, is reserved.
    let width = PSE_PHYSICAL_BITS;
    if (cpu.maxPhyAddr < width) width = cpu.maxPhyAddr;
    if (width < 32) width = 32;
    const reserved = bits(21, 13 + (width - 32));
    if ((pde & reserved) !== 0n) return { kind: 'page-fault', errorCode: error | PRESENT | RESERVED, level: 2 };

    // SDM 4.6: 32-bit paging has no execute-disable.
    const rights: Rights = { everyWritable: bit(pde, 1), everyUser: bit(pde, 2), anyNoExecute: false };
    if (denied(regs, access, rights)) return { kind: 'page-fault', errorCode: error | PRESENT, level: 2 };

    const upper = ((pde & bits(20, 13)) >> 13n) << 32n;
    const leaf = { address: pdeAddress, entry: pde };
    return {
      kind: 'ok',
      physical: upper | (pde & bits(31, 22)) | (linear & bits(21, 0)),
      pageSize: 4 * 1024 * 1024,
      setAccessed: accessedUpdates([leaf]),
      setDirty: dirtyUpdates(leaf, access),
    };
  }

  // SDM 4.3: PDE bits 31:12 locate the page table; bits 21:12 of the address select the entry. No reserved bits in
  // either: bit 7 of a PTE is PAT.
  const pteAddress = (pde & bits(31, 12)) + ((linear >> 12n) & 0x3ffn) * 4n;
  const pte = memory.read(pteAddress, 4);
  if (!bit(pte, 0)) return { kind: 'page-fault', errorCode: error, level: 1 };

  const rights: Rights = {
    everyWritable: bit(pde, 1) && bit(pte, 1),
    everyUser: bit(pde, 2) && bit(pte, 2),
    anyNoExecute: false,
  };
  if (denied(regs, access, rights)) return { kind: 'page-fault', errorCode: error | PRESENT, level: 1 };

  const leaf = { address: pteAddress, entry: pte };
  return {
    kind: 'ok',
    physical: (pte & bits(31, 12)) | (linear & bits(11, 0)),
    pageSize: 4 * 1024,
    setAccessed: accessedUpdates([{ address: pdeAddress, entry: pde }, leaf]),
    setDirty: dirtyUpdates(leaf, access),
  };
}

// SDM 4.4, PAE paging. APM 5.2.3.
function translatePae(memory: Memory, regs: X86Registers, cpu: X86Cpu, linear: bigint, access: X86Access): X86Outcome {
  const error = baseErrorCode(regs, access);
  const noExecuteEnabled = bit(regs.efer, 11);

  // SDM 4.4.1: CR3 bits 31:5 locate four PDPTEs; bits 31:30 of the address select one. The processor judges their
  // reserved bits when it loads CR3, so of the entry itself only P matters in a walk. It has no rights and no A bit.
  const pdpteAddress = (regs.cr3 & bits(31, 5)) + ((linear >> 30n) & 0x3n) * 8n;
  const pdpte = memory.read(pdpteAddress, 8);
  if (!bit(pdpte, 0)) return { kind: 'page-fault', errorCode: error, level: 3 };

  // SDM 4.4.2, tables of the formats: bits 62:MAXPHYADDR are reserved in PDEs and PTEs; bit 63 while EFER.NXE = 0.
  let alwaysReserved = bits(62, cpu.maxPhyAddr);
  if (!noExecuteEnabled) alwaysReserved |= bits(63, 63);

  // SDM 4.4.2: bits 29:21 of the address select the PDE.
  const pdeAddress = (pdpte & bits(51, 12)) + ((linear >> 21n) & 0x1ffn) * 8n;
  const pde = memory.read(pdeAddress, 8);
  if (!bit(pde, 0)) return { kind: 'page-fault', errorCode: error, level: 2 };
  // SDM 4.4.2: PS = 1 maps 2 MBytes, whatever CR4.PSE; it reserves bits 20:13 (bit 12 is PAT).
  const large = bit(pde, 7);
  let pdeReserved = alwaysReserved;
  if (large) pdeReserved |= bits(20, 13);
  if ((pde & pdeReserved) !== 0n) return { kind: 'page-fault', errorCode: error | PRESENT | RESERVED, level: 2 };

  if (large) {
    const rights: Rights = { everyWritable: bit(pde, 1), everyUser: bit(pde, 2), anyNoExecute: bit(pde, 63) };
    if (denied(regs, access, rights)) return { kind: 'page-fault', errorCode: error | PRESENT, level: 2 };
    const leaf = { address: pdeAddress, entry: pde };
    return {
      kind: 'ok',
      physical: (pde & bits(51, 21)) | (linear & bits(20, 0)),
      pageSize: 2 * 1024 * 1024,
      setAccessed: accessedUpdates([leaf]),
      setDirty: dirtyUpdates(leaf, access),
    };
  }

  // SDM 4.4.2: bits 20:12 of the address select the PTE (its bit 7 is PAT).
  const pteAddress = (pde & bits(51, 12)) + ((linear >> 12n) & 0x1ffn) * 8n;
  const pte = memory.read(pteAddress, 8);
  if (!bit(pte, 0)) return { kind: 'page-fault', errorCode: error, level: 1 };
  if ((pte & alwaysReserved) !== 0n) return { kind: 'page-fault', errorCode: error | PRESENT | RESERVED, level: 1 };

  const rights: Rights = {
    everyWritable: bit(pde, 1) && bit(pte, 1),
    everyUser: bit(pde, 2) && bit(pte, 2),
    anyNoExecute: bit(pde, 63) || bit(pte, 63),
  };
  if (denied(regs, access, rights)) return { kind: 'page-fault', errorCode: error | PRESENT, level: 1 };

  const leaf = { address: pteAddress, entry: pte };
  return {
    kind: 'ok',
    physical: (pte & bits(51, 12)) | (linear & bits(11, 0)),
    pageSize: 4 * 1024,
    setAccessed: accessedUpdates([{ address: pdeAddress, entry: pde }, leaf]),
    setDirty: dirtyUpdates(leaf, access),
  };
}

// SDM 4.5: the index is 9 bits: 56:48 at level 5, 47:39 at 4, 38:30 at 3, 29:21 at 2, 20:12 at 1. APM 5.3.
function longModeEntryAddress(table: bigint, linear: bigint, level: number): bigint {
  if (level === 5) return table + ((linear >> 48n) & 0x1ffn) * 8n;
  if (level === 4) return table + ((linear >> 39n) & 0x1ffn) * 8n;
  if (level === 3) return table + ((linear >> 30n) & 0x1ffn) * 8n;
  if (level === 2) return table + ((linear >> 21n) & 0x1ffn) * 8n;
  return table + ((linear >> 12n) & 0x1ffn) * 8n;
}

// SDM 4.5, tables of the formats; APM 5.3. Reserved bits of a present entry.
function longModeReserved(entry: bigint, level: number, regs: X86Registers, cpu: X86Cpu): bigint {
  const noExecuteEnabled = bit(regs.efer, 11);
  // Address bits from MAXPHYADDR up to 51; bits 62:52 are ignored or hold the protection key.
  let reserved = bits(51, cpu.maxPhyAddr);
  // SDM 4.5, APM 5.6.1: bit 63 while EFER.NXE = 0.
  if (!noExecuteEnabled) reserved |= bits(63, 63);
  // Bit 7 (PS) of a PML5E and of a PML4E.
  if (level === 5 || level === 4) reserved |= bits(7, 7);
  // APM 5.3.3: bit 8 of these two as well; SDM 4.5 ignores it.
  if ((level === 5 || level === 4) && cpu.amd) reserved |= bits(8, 8);
  // PS of a PDPTE on a processor without 1-GByte pages.
  if (level === 3 && !cpu.oneGigPages) reserved |= bits(7, 7);
  // A PDPTE that maps 1 GByte: 29:13. A PDE that maps 2 MBytes: 20:13. Bit 12 is PAT in both.
  if (level === 3 && bit(entry, 7)) reserved |= bits(29, 13);
  if (level === 2 && bit(entry, 7)) reserved |= bits(20, 13);
  return reserved;
}

// SDM 4.5, 4-level and 5-level paging. APM 5.3.
function translateLong(memory: Memory, regs: X86Registers, cpu: X86Cpu, linear: bigint, access: X86Access): X86Outcome {
  // SDM 4.5: CR4.LA57 (bit 12) selects five levels.
  const fiveLevels = bit(regs.cr4, 12);

  // SDM vol. 1, 3.3.7.1: canonical means that the bits from 47 (56 with LA57) up are all 0 or all 1.
  if (fiveLevels) {
    const top = (linear & bits(63, 56)) >> 56n;
    if (top !== 0n && top !== 0xffn) return { kind: 'not-canonical' };
  } else {
    const top = (linear & bits(63, 47)) >> 47n;
    if (top !== 0n && top !== 0x1ffffn) return { kind: 'not-canonical' };
  }

  const error = baseErrorCode(regs, access);
  const rights: Rights = { everyWritable: true, everyUser: true, anyNoExecute: false };
  const visited: { address: bigint; entry: bigint }[] = [];

  // SDM 4.5.2: CR3 bits 51:12 locate the first table.
  let table = regs.cr3 & bits(51, 12);
  for (let level = fiveLevels ? 5 : 4; level >= 1; level -= 1) {
    const address = longModeEntryAddress(table, linear, level);
    const entry = memory.read(address, 8);

    // SDM 4.5, 4.7: with P = 0 the rest of the entry is ignored and the error code has P = 0.
    if (!bit(entry, 0)) return { kind: 'page-fault', errorCode: error, level };

    // SDM 4.7: a reserved bit gives RSVD with P.
    if ((entry & longModeReserved(entry, level, regs, cpu)) !== 0n) {
      return { kind: 'page-fault', errorCode: error | PRESENT | RESERVED, level };
    }

    // SDM 4.6: R/W and U/S have to be 1 in every entry, XD in none.
    if (!bit(entry, 1)) rights.everyWritable = false;
    if (!bit(entry, 2)) rights.everyUser = false;
    if (bit(entry, 63)) rights.anyNoExecute = true;
    visited.push({ address, entry });

    // SDM 4.5: a PDPTE or PDE with PS = 1 is a leaf, and every PTE (its bit 7 is PAT).
    const isLeaf = level === 1 || ((level === 2 || level === 3) && bit(entry, 7));
    if (!isLeaf) {
      table = entry & bits(51, 12);
      continue;
    }

    // SDM 4.7: PK is 1 whenever the key denies the access, also when the entries deny it as well.
    if (keyDenied(regs, access, rights, entry)) {
      return { kind: 'page-fault', errorCode: error | PRESENT | KEY, level };
    }
    if (denied(regs, access, rights)) return { kind: 'page-fault', errorCode: error | PRESENT, level };

    // SDM 4.5: the leaf gives address bits 51:30, 51:21 or 51:12; the rest is the offset.
    let physical = (entry & bits(51, 12)) | (linear & bits(11, 0));
    let pageSize = 4 * 1024;
    if (level === 2) {
      physical = (entry & bits(51, 21)) | (linear & bits(20, 0));
      pageSize = 2 * 1024 * 1024;
    }
    if (level === 3) {
      physical = (entry & bits(51, 30)) | (linear & bits(29, 0));
      pageSize = 1024 * 1024 * 1024;
    }
    return {
      kind: 'ok',
      physical,
      pageSize,
      setAccessed: accessedUpdates(visited),
      setDirty: dirtyUpdates({ address, entry }, access),
    };
  }
  throw new Error('unreachable: level 1 is always a leaf');
}

export function translateX86(
  memory: Memory,
  regs: X86Registers,
  cpu: X86Cpu,
  address: bigint,
  access: X86Access,
): X86Outcome {
  // SDM 4.1.1: CR4.PAE (bit 5) = 0 is 32-bit paging; CR4.PAE = 1 is PAE paging with EFER.LME (bit 8) = 0 and 4-level
  // or 5-level paging with EFER.LME = 1.
  const pae = bit(regs.cr4, 5);
  const longMode = bit(regs.efer, 8);
  if (pae && longMode) return translateLong(memory, regs, cpu, address, access);

  // SDM 4.3, 4.4: these two modes translate 32-bit linear addresses.
  if (address >> 32n !== 0n) return { kind: 'out-of-range' };
  if (pae) return translatePae(memory, regs, cpu, address, access);
  return translate32(memory, regs, cpu, address, access);
}
