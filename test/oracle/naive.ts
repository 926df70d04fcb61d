// A deliberately simple model of x86-64 address translation, written from the manuals:
//   Intel SDM vol. 3: ch. 4 'Paging', ch. 29 'VMX Support for Address Translation' (29.3 EPT), ch. 28.2.1 exit
//   qualifications; AMD APM vol. 2: ch. 5 'Page Translation and Protection', 15.25 'Nested Paging'.
// Section numbers follow those editions; they shift between revisions, the section titles do not.
// It is an oracle for property tests: it imports nothing, caches nothing and changes nothing.
// Scope: 4-level long mode (or paging off). No LA57, PCID, LAM, CET, PKS, SGX, SEV.

export interface NaiveMemory {
  /** 64-bit little-endian value at an 8-aligned host-physical address. */
  read(hpa: bigint): bigint;
}

export interface NaiveRegisters {
  cr0: bigint;
  cr3: bigint;
  cr4: bigint;
  efer: bigint;
  rflags: bigint;
  pkru: bigint;
  cpl: number;
}

export interface NaiveAccess {
  kind: 'read' | 'write' | 'fetch';
  /** Supervisor access made by the processor itself (descriptor tables), even at CPL 3. */
  implicit: boolean;
}

export interface NaiveCpu {
  maxPhyAddr: number;
  oneGigPages: boolean;
  amd: boolean;
}

export interface NaiveSecond {
  kind: 'ept' | 'npt';
  /** Host-physical address of the PML4 table. */
  root: bigint;
  maxPhyAddr: number;
  oneGigPages: boolean;
  executeOnly: boolean;
}

export type NaiveOutcome =
  | {
      kind: 'ok';
      gpa: bigint;
      hpa: bigint;
      /** Host-physical addresses of guest entries whose A bit is 0 and has to become 1, root first, none twice. */
      setAccessed: bigint[];
      /** Host-physical address of the guest leaf whose D bit is 0 and has to become 1. */
      setDirty: bigint[];
    }
  | { kind: 'not-canonical' }
  | {
      kind: 'page-fault';
      errorCode: number;
      /** Guest level of the entry that decided; for a permission fault the level of the leaf. */
      level: number;
    }
  | {
      kind: 'violation';
      /** Full address including the offset; for a guest-table reference the address of the guest entry. */
      gpa: bigint;
      /** EPT: bits 0-5, 7, 8. NPT: 0. */
      exitQualification: number;
      /** NPT: EXITINFO1 including bits 32 and 33. EPT: 0. */
      npfErrorCode: bigint;
      /** Second-stage level of the entry that decided; for a permission failure the level of the leaf. */
      level: number;
      forTable: boolean;
    }
  | { kind: 'misconfiguration'; gpa: bigint; level: number; forTable: boolean };

/** What a guest-physical address becomes: a host-physical one, or the outcome that ends the translation. */
type SecondResult = { kind: 'mapped'; hpa: bigint } | Extract<NaiveOutcome, { kind: 'violation' | 'misconfiguration' }>;

/** The value with bits high..low set, both ends included; nothing if high < low. */
function bits(high: number, low: number): bigint {
  let value = 0n;
  for (let position = low; position <= high; position += 1) value |= 1n << BigInt(position);
  return value;
}

function bit(value: bigint, position: number): boolean {
  return ((value >> BigInt(position)) & 1n) === 1n;
}

// SDM 4.5 / APM 5.3: a table index is 9 bits: 47:39 at level 4, 38:30 at 3, 29:21 at 2, 20:12 at 1. EPT: SDM 29.3.2.
function entryAddress(table: bigint, address: bigint, level: number): bigint {
  if (level === 4) return table + ((address >> 39n) & 0x1ffn) * 8n;
  if (level === 3) return table + ((address >> 30n) & 0x1ffn) * 8n;
  if (level === 2) return table + ((address >> 21n) & 0x1ffn) * 8n;
  return table + ((address >> 12n) & 0x1ffn) * 8n;
}

// SDM 4.5 / APM 5.3: a leaf gives address bits 51:30, 51:21 or 51:12; the rest is the offset. EPT: SDM 29.3.2.
function leafAddress(entry: bigint, address: bigint, level: number): bigint {
  if (level === 3) return (entry & bits(51, 30)) | (address & bits(29, 0));
  if (level === 2) return (entry & bits(51, 21)) | (address & bits(20, 0));
  return (entry & bits(51, 12)) | (address & bits(11, 0));
}

// Reserved bits of a present entry in the x86-64 format. SDM 4.5 (entry format tables); APM 5.3.
function longModeReserved(
  level: number,
  entry: bigint,
  maxPhyAddr: number,
  noExecuteEnabled: boolean,
  oneGigPages: boolean,
  amd: boolean,
): bigint {
  // SDM 4.5: address bits from MAXPHYADDR up to 51 are reserved in every entry. APM 5.3: they must be zero.
  let reserved = bits(51, maxPhyAddr);
  // SDM 4.5, APM 5.6.1: bit 63 is reserved while EFER.NXE = 0.
  if (!noExecuteEnabled) reserved |= bits(63, 63);
  // SDM 4.5: bit 7 (PS) of a PML4E is reserved.
  if (level === 4) reserved |= bits(7, 7);
  // APM 5.3.3: in a PML4E bit 8 must be zero too; Intel ignores it.
  if (level === 4 && amd) reserved |= bits(8, 8);
  // SDM 4.5: PS in a PDPTE is reserved without 1-GByte pages (CPUID.80000001H:EDX.Page1GB). APM 5.3.5.
  if (level === 3 && !oneGigPages) reserved |= bits(7, 7);
  // SDM 4.5: a PDPTE that maps 1 GByte reserves 29:13 (bit 12 is PAT).
  if (level === 3 && bit(entry, 7)) reserved |= bits(29, 13);
  // SDM 4.5: a PDE that maps 2 MByte reserves 20:13 (bit 12 is PAT).
  if (level === 2 && bit(entry, 7)) reserved |= bits(20, 13);
  return reserved;
}

// SDM 29.3 EPT. A/D flags on in the EPTP, mode-based execute control off, page-walk length 4.
function translateEpt(
  memory: NaiveMemory,
  second: NaiveSecond,
  gpa: bigint,
  kind: 'read' | 'write' | 'fetch',
  forTable: boolean,
): SecondResult {
  // SDM 28.2.1, exit qualification for EPT violations. Bits 0/1/2: data read, data write, instruction fetch.
  let accessBits = 0;
  if (kind === 'read') accessBits = 0b001;
  if (kind === 'write') accessBits = 0b010;
  if (kind === 'fetch') accessBits = 0b100;
  // SDM 28.2.1: with A/D flags for EPT a guest-paging-structure access is a write and sets both bit 0 and bit 1.
  if (forTable) accessBits = 0b011;
  // SDM 28.2.1: bit 7, the guest linear-address field is valid: always here. Bit 8: the access is to the translation
  // of a linear address (1) rather than to a paging-structure entry (0).
  const fixedBits = 0x80 | (forTable ? 0 : 0x100);

  // SDM 29.3.2: EPT with a walk length of 4 uses bits 47:0. The manual does not expect a higher address with it;
  // here such an address is one that has no translation, decided at level 4.
  if (gpa >> 48n !== 0n) {
    return {
      kind: 'violation',
      gpa,
      exitQualification: accessBits | fixedBits,
      npfErrorCode: 0n,
      level: 4,
      forTable,
    };
  }

  let table = second.root & bits(51, 12);
  // SDM 28.2.1: bits 5:3 of the qualification are the AND of bits 2:0 over the entries used.
  let rights = 0b111n;
  for (let level = 4; level >= 1; level -= 1) {
    const entry = memory.read(entryAddress(table, gpa, level));

    // SDM 29.3.2: an entry is present if any of bits 2:0 is 1; the other bits of a not-present entry are ignored.
    // SDM 28.2.1: bits 5:3 are 0 if any entry used is not present.
    if ((entry & 0b111n) === 0n) {
      return {
        kind: 'violation',
        gpa,
        exitQualification: accessBits | fixedBits,
        npfErrorCode: 0n,
        level,
        forTable,
      };
    }

    // SDM 29.3.2: PDPTE and PDE are leaves when bit 7 is 1; a PTE always is, whatever its (ignored) bit 7.
    const leaf = level === 1 || ((level === 2 || level === 3) && bit(entry, 7));

    // SDM 29.3.3.1: misconfiguration, looked for in each present entry as it is visited.
    let misconfigured = false;
    // Writable but not readable (010 and 110).
    if (bit(entry, 1) && !bit(entry, 0)) misconfigured = true;
    // Execute-only (100) without support for it (IA32_VMX_EPT_VPID_CAP bit 0).
    if ((entry & 0b111n) === 0b100n && !second.executeOnly) misconfigured = true;
    // SDM 29.3.2, entry format tables: reserved bits.
    if ((entry & bits(51, second.maxPhyAddr)) !== 0n) misconfigured = true;
    if (level === 4 && (entry & bits(7, 3)) !== 0n) misconfigured = true;
    if ((level === 3 || level === 2) && !leaf && (entry & bits(6, 3)) !== 0n) misconfigured = true;
    if (level === 3 && leaf && (entry & bits(29, 12)) !== 0n) misconfigured = true;
    if (level === 2 && leaf && (entry & bits(20, 12)) !== 0n) misconfigured = true;
    // 1-GByte EPT page without support for it (IA32_VMX_EPT_VPID_CAP bit 17): bit 7 is reserved.
    if (level === 3 && leaf && !second.oneGigPages) misconfigured = true;
    // Memory type 2, 3 or 7 in a leaf.
    const memoryType = (entry >> 3n) & 0b111n;
    if (leaf && (memoryType === 2n || memoryType === 3n || memoryType === 7n)) misconfigured = true;
    if (misconfigured) return { kind: 'misconfiguration', gpa, level, forTable };

    rights &= entry;

    if (leaf) {
      // SDM 29.3.3.2: a right is there only if every entry used has it.
      const readable = bit(rights, 0);
      const writable = bit(rights, 1);
      const executable = bit(rights, 2);
      // SDM 29.3.3.2: with A/D flags for EPT, guest-paging-structure accesses are treated as writes. The entry is
      // read as well, but no entry that is not misconfigured is writable without being readable.
      let allowed: boolean;
      if (forTable) allowed = readable && writable;
      else if (kind === 'read') allowed = readable;
      else if (kind === 'write') allowed = writable;
      else allowed = executable;
      if (!allowed) {
        const rightBits = Number(rights & 0b111n) << 3;
        return {
          kind: 'violation',
          gpa,
          exitQualification: accessBits | rightBits | fixedBits,
          npfErrorCode: 0n,
          level,
          forTable,
        };
      }
      return { kind: 'mapped', hpa: leafAddress(entry, gpa, level) };
    }

    table = entry & bits(51, 12);
  }
  throw new Error('unreachable: level 1 is always a leaf');
}

// APM 15.25 nested paging with a 4-level host table, host EFER.NXE = 1.
function translateNpt(
  memory: NaiveMemory,
  second: NaiveSecond,
  gpa: bigint,
  kind: 'read' | 'write' | 'fetch',
  forTable: boolean,
): SecondResult {
  // APM 15.25.6: host walks for guest page tables are always data writes, even for a code read.
  const write = forTable || kind === 'write';
  const fetch = !forTable && kind === 'fetch';
  // APM 15.25.6: EXITINFO1 has the #PF error code, U always 1 since nested accesses are user accesses, and
  // bit 32 (final address) or bit 33 (guest page table).
  let error = 1n << 2n;
  if (write) error |= 1n << 1n;
  if (fetch) error |= 1n << 4n;
  if (forTable) error |= 1n << 33n;
  else error |= 1n << 32n;
  const present = 1n << 0n;
  const reservedSet = 1n << 3n;

  // APM 5.3, 15.25: a 4-level nested table translates bits 47:0. A higher address has no entry here: not present.
  if (gpa >> 48n !== 0n) {
    return { kind: 'violation', gpa, exitQualification: 0, npfErrorCode: error, level: 4, forTable };
  }

  let table = second.root & bits(51, 12);
  let everyWritable = true;
  let everyUser = true;
  let anyNoExecute = false;
  for (let level = 4; level >= 1; level -= 1) {
    const entry = memory.read(entryAddress(table, gpa, level));

    // APM 5.4.1: P = 0, the rest of the entry is ignored; error code P = 0.
    if (!bit(entry, 0)) {
      return { kind: 'violation', gpa, exitQualification: 0, npfErrorCode: error, level, forTable };
    }

    // APM 15.25.6 and 8.4.2: reserved bits give RSVD with P.
    const reserved = longModeReserved(level, entry, second.maxPhyAddr, true, second.oneGigPages, true);
    if ((entry & reserved) !== 0n) {
      return {
        kind: 'violation',
        gpa,
        exitQualification: 0,
        npfErrorCode: error | present | reservedSet,
        level,
        forTable,
      };
    }

    // APM 5.6: U/S and R/W have to be 1 at every level, NX at no level.
    if (!bit(entry, 1)) everyWritable = false;
    if (!bit(entry, 2)) everyUser = false;
    if (bit(entry, 63)) anyNoExecute = true;

    // APM 5.3: PDPE and PDE are leaves when PS is 1; a PTE always is (its bit 7 is PAT).
    const leaf = level === 1 || ((level === 2 || level === 3) && bit(entry, 7));
    if (leaf) {
      let denied = false;
      // APM 15.25.5: nested accesses are user accesses, so U/S has to be 1; CR0.WP therefore does not matter.
      if (!everyUser) denied = true;
      if (write && !everyWritable) denied = true;
      if (fetch && anyNoExecute) denied = true;
      if (denied) {
        return { kind: 'violation', gpa, exitQualification: 0, npfErrorCode: error | present, level, forTable };
      }
      return { kind: 'mapped', hpa: leafAddress(entry, gpa, level) };
    }

    table = entry & bits(51, 12);
  }
  throw new Error('unreachable: level 1 is always a leaf');
}

function translateSecond(
  memory: NaiveMemory,
  second: NaiveSecond | undefined,
  gpa: bigint,
  kind: 'read' | 'write' | 'fetch',
  forTable: boolean,
): SecondResult {
  if (second === undefined) return { kind: 'mapped', hpa: gpa };
  if (second.kind === 'ept') return translateEpt(memory, second, gpa, kind, forTable);
  return translateNpt(memory, second, gpa, kind, forTable);
}

export function naiveTranslate(
  memory: NaiveMemory,
  registers: NaiveRegisters,
  cpu: NaiveCpu,
  second: NaiveSecond | undefined,
  gva: bigint,
  access: NaiveAccess,
): NaiveOutcome {
  // SDM 2.5 (control registers), 2.2.1 (EFER), 2.3 (EFLAGS).
  const paging = bit(registers.cr0, 31);
  const writeProtect = bit(registers.cr0, 16);
  const smep = bit(registers.cr4, 20);
  const smap = bit(registers.cr4, 21);
  const protectionKeys = bit(registers.cr4, 22);
  const noExecuteEnabled = bit(registers.efer, 11);
  const alignmentCheck = bit(registers.rflags, 18);

  // SDM 4.1.1: with CR0.PG = 0 linear addresses are physical addresses, with all rights.
  if (!paging) {
    const final = translateSecond(memory, second, gva, access.kind, false);
    if (final.kind !== 'mapped') return final;
    return { kind: 'ok', gpa: gva, hpa: final.hpa, setAccessed: [], setDirty: [] };
  }

  // SDM vol. 1, 3.3.7.1 canonical addressing; APM 5.3.1: bits 63:47 are all 0 or all 1.
  const top = (gva & bits(63, 47)) >> 47n;
  if (top !== 0n && top !== 0x1ffffn) return { kind: 'not-canonical' };

  const write = access.kind === 'write';
  const fetch = access.kind === 'fetch';
  // SDM 4.6: an access at CPL 3 is a user-mode access unless it is an implicit supervisor-mode access.
  const user = registers.cpl === 3 && !access.implicit;

  // SDM 4.7: page-fault error code. The part that does not depend on the entries:
  let error = 0;
  // W/R: the access was a write.
  if (write) error |= 1 << 1;
  // U/S: the access was a user-mode access.
  if (user) error |= 1 << 2;
  // I/D: an instruction fetch, reported only with EFER.NXE = 1 or CR4.SMEP = 1.
  if (fetch && (noExecuteEnabled || smep)) error |= 1 << 4;
  const present = 1 << 0;
  const reservedSet = 1 << 3;
  const protectionKey = 1 << 5;

  // SDM 4.5: CR3 bits 51:12 locate the PML4 table (4:3 are PWT and PCD; no PCID).
  let table = registers.cr3 & bits(51, 12);
  let everyWritable = true;
  let everyUser = true;
  let anyNoExecute = false;
  const setAccessed: bigint[] = [];
  const setDirty: bigint[] = [];

  for (let level = 4; level >= 1; level -= 1) {
    // SDM 29.3.1, APM 15.25.1: each guest entry is itself reached through the second stage.
    const entryGpa = entryAddress(table, gva, level);
    const entryLocation = translateSecond(memory, second, entryGpa, 'write', true);
    if (entryLocation.kind !== 'mapped') return entryLocation;
    const entryHpa = entryLocation.hpa;
    const entry = memory.read(entryHpa);

    // SDM 4.5 and 4.7: P = 0, the rest of the entry is ignored; error code P = 0.
    if (!bit(entry, 0)) return { kind: 'page-fault', errorCode: error, level };

    // SDM 4.7: a reserved bit gives RSVD with P. Rule 2: at each level, before any permission. PK stays 0: SDM 4.7
    // defines it by the key of a user-mode address, and this walk found none.
    const reserved = longModeReserved(level, entry, cpu.maxPhyAddr, noExecuteEnabled, cpu.oneGigPages, cpu.amd);
    if ((entry & reserved) !== 0n) {
      return { kind: 'page-fault', errorCode: error | present | reservedSet, level };
    }

    // SDM 4.6: R/W and U/S count as 1 only if they are 1 at every level, XD as 1 if it is 1 at any level.
    // Bit 63 cannot be 1 here with EFER.NXE = 0: it was reserved.
    if (!bit(entry, 1)) everyWritable = false;
    if (!bit(entry, 2)) everyUser = false;
    if (bit(entry, 63)) anyNoExecute = true;

    // SDM 4.8: A (bit 5) of every entry used. One entry may serve several levels (a table that maps itself).
    if (!bit(entry, 5) && !setAccessed.includes(entryHpa)) setAccessed.push(entryHpa);

    // SDM 4.5: PDPTE and PDE are leaves when PS is 1; a PTE always is (its bit 7 is PAT).
    const leaf = level === 1 || ((level === 2 || level === 3) && bit(entry, 7));
    if (!leaf) {
      table = entry & bits(51, 12);
      continue;
    }

    // Rule 2: permission is checked once, here, with the AND of all levels. SDM 4.6.1 from here on.
    // SDM 4.6: a user-mode address is one whose U/S is 1 at every level.
    const userAddress = everyUser;
    let denied = false;

    if (user) {
      // SDM 4.6.1, user-mode accesses: only to user-mode addresses; writes need R/W at every level, whatever
      // CR0.WP; fetches need XD = 0 at every level.
      if (!userAddress) denied = true;
      if (write && !everyWritable) denied = true;
      if (fetch && anyNoExecute) denied = true;
    } else {
      // SDM 4.6.1, supervisor-mode writes: with CR0.WP = 1 they need R/W at every level.
      if (write && writeProtect && !everyWritable) denied = true;
      // SDM 4.6.1, supervisor-mode data accesses to user-mode addresses: with CR4.SMAP = 1 only explicit accesses
      // with EFLAGS.AC = 1.
      const excused = alignmentCheck && !access.implicit;
      if (!fetch && userAddress && smap && !excused) denied = true;
      // SDM 4.6.1, supervisor-mode fetches: XD = 0 at every level; none from user-mode addresses with CR4.SMEP = 1.
      if (fetch && anyNoExecute) denied = true;
      if (fetch && userAddress && smep) denied = true;
    }

    // SDM 4.6.2, protection keys: data accesses to user-mode addresses, with the key in bits 62:59 of the leaf.
    let keyDenied = false;
    if (protectionKeys && !fetch && userAddress) {
      const key = Number((entry >> 59n) & 0xfn);
      const accessDisable = bit(registers.pkru, 2 * key);
      const writeDisable = bit(registers.pkru, 2 * key + 1);
      if (accessDisable) keyDenied = true;
      // WD concerns supervisor-mode writes only with CR0.WP = 1.
      if (write && writeDisable && (user || writeProtect)) keyDenied = true;
    }

    // SDM 4.7: PK is 1 whenever the key denies the access, also when something else denies it as well.
    if (keyDenied) return { kind: 'page-fault', errorCode: error | present | protectionKey, level };
    if (denied) return { kind: 'page-fault', errorCode: error | present, level };

    // SDM 4.8: D (bit 6) of the leaf, for a write. Rule 1: A and D only now that the guest part has succeeded.
    if (write && !bit(entry, 6)) setDirty.push(entryHpa);

    const gpa = leafAddress(entry, gva, level);
    const final = translateSecond(memory, second, gpa, access.kind, false);
    if (final.kind !== 'mapped') return final;
    return { kind: 'ok', gpa, hpa: final.hpa, setAccessed, setDirty };
  }
  throw new Error('unreachable: level 1 is always a leaf');
}
