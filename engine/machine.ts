import { type AsyncPf, newAsyncPf } from './async-pf/queue.ts';
import type { Hazard } from './attributes/hazards.ts';
import { type Conversion, MemoryAttributes, type VmType } from './attributes/state.ts';
import { flatten, type Instruction } from './code.ts';
import { COUNTERS, type CounterName } from './counters.ts';
import { type Format, TABLE } from './formats/compile.ts';
import type { Feature } from './formats/format.ts';
import {
  changeProblem,
  type GuestCpu,
  LONG_MODE,
  PAGING_REGISTERS,
  REGISTERS,
  RegisterError,
  type RegisterName,
  type Registers,
  registerProblem,
  UNPAGED,
} from './guest/registers.ts';
import type { WalkMemory } from './guest/walk.ts';
import { applyCpu, applyGuestMode, applyMmu, applyRegisters } from './hardware-view.ts';
import { Kind, Log } from './history/log.ts';
import { takeBack } from './history/undo.ts';
import type { Injection } from './injections.ts';
import { roleField } from './kernel/role.ts';
import { backingPfn, frameRange, type Memslot, Memslots, newBacking } from './memory/memslots.ts';
import { PhysicalMemory } from './memory/physical.ts';
import { type TlbEntry, tlbSpan } from './memory/tlb.ts';
import { type Gfn, highWord, lowWord, type Pfn, toBigint, type Vfn } from './memory/words.ts';
import type { Mirror } from './mirror.ts';
import { LOCKS, type LockName, type Task } from './operation.ts';
import { DEFAULT_POLICIES, type Policies } from './policies.ts';
import type { MachineConfig, Program, SlotConfig } from './program.ts';
import type { Mmu } from './roots/mmu.ts';
import { SecondFormats } from './second-formats.ts';
import { ShadowMmu, type ShadowState } from './shadow/state.ts';
import { TableFrames, type TakenFrame } from './table-frames.ts';
import type { MmuPage } from './tdp/mmu-page.ts';
import { emptyEntry } from './tdp/spte.ts';
import { type GuestMode, MMUS, Vcpu } from './vcpu.ts';

/** KVM's tables take host frames from here up; guest memory lies above. */
const TABLE_FRAMES = 0x1000;
const FIRST_BACKING_FRAME = 0x100000;
/** Warnings that are kept with their place. */
const KEPT_WARNINGS = 200;

/** Who made a change that no task made: the person at the debugger. */
export const USER_TASK = 0xffff;

export interface LockState {
  readonly writer: number;
  readonly readers: readonly number[];
}

/** `mmu_invalidate_seq`, `mmu_invalidate_in_progress` and the hull of the ranges being invalidated. */
export interface InvalidationState {
  readonly seq: number;
  readonly inProgress: number;
  readonly start: Gfn;
  readonly end: Gfn;
}

const COUNTER_NUMBER = new Map(COUNTERS.map((name, index) => [name, index]));

/** State that checkpoints copy; all else is restored by undoing the log. */
export interface SmallState {
  tasks: Task[];
  counters: Float64Array;
  /** Task whose turn it was last. */
  current: number;
  /** Where the guests' next tables come from. */
  tablePools: { next: number; readonly step: 1 | -1; free: number[] }[];
  failures: { text: string; line: number; actual: string }[];
  /** The first of the warnings; the log has them all while it lasts. */
  warnings: { text: string; task: string; step: number; line?: number }[];
  /** Host frame from which the next backing is taken. */
  nextBacking: Pfn;
  /** Of each vCPU, the page that was found to be MMIO last (mmio_gfn, mmio_gen), and the generation of the slots then. */
  mmioPages: { gfn: Gfn; generation: number }[];
  /** Of each vCPU, its asynchronous page faults. */
  asyncPf: AsyncPf[];
  /** `mmu_valid_gen`, by which shadow pages are obsolete. */
  mmuValidGen: number;
  /** Age that the next shadow page gets. */
  nextAge: number;
  /** Mistakes that KVM makes from now on. */
  injected: Injection[];
  /** Tables that stand where NX huge pages alone forbid a large one, the oldest first (`possible_nx_huge_pages`). */
  possibleNxHugePages: Pfn[];
  /** Shadow pages that are to become unsync at the next fault, by such a mistake. */
  lateUnsync: Pfn[];
  /** KVM_SET_MEMORY_ATTRIBUTES ioctls that have not returned. */
  conversions: Conversion[];
  /** What has happened that must not, each once. */
  hazards: { readonly hazard: Hazard; readonly text: string }[];
}

export class MachineError extends Error {}

/**
 * One virtual machine: its memory, vCPUs, KVM's tables and locks, and the operations in progress. Every change of the
 * state goes through a method here that logs it, so that it can be undone.
 */
export class Machine {
  readonly config: MachineConfig;
  readonly program: Program;
  readonly code: readonly (readonly Instruction[])[];
  readonly memory: PhysicalMemory;
  /** Whose state this machine shows, when it is not the emulator's own. */
  readonly mirror: Mirror | undefined;
  readonly log: Log;
  /** What CPUID says to the guests. */
  cpu: GuestCpu;
  /** How KVM's tables are read, by the level of their root; `secondFormat`: those of the machine's own levels. */
  readonly formats: SecondFormats;
  readonly secondFormat: Format;
  readonly policies: Policies;
  /** Whether second-stage tables (EPT or NPT) translate the guests' addresses (`tdp_enabled`); else shadow tables do. */
  readonly isTdp: boolean;
  /** Whether those are the TDP MMU's (`tdp_mmu_enabled`); else they are shadow pages too, direct ones. */
  readonly hasTdpMmu: boolean;
  readonly vcpus: Vcpu[] = [];
  slots = new Memslots();
  /** KVM's tables by frame. */
  readonly pages = new Map<Pfn, MmuPage>();
  /** What KVM keeps beside its shadow pages. */
  readonly shadow = new ShadowMmu();
  /** Private and shared memory. */
  readonly attributes = new MemoryAttributes();
  /** Where KVM's tables lie. */
  readonly tableFrames = new TableFrames(TABLE_FRAMES);
  #dummyRoot: Pfn = -1;
  locks: LockState[] = LOCKS.map(() => ({ writer: -1, readers: [] }));
  invalidation: InvalidationState = { seq: 0, inProgress: 0, start: 0, end: 0 };
  small: SmallState;
  /** Steps run so far: the machine's clock. */
  steps = 0;
  readonly walkMemory: WalkMemory;
  /** Host memory, as the processor walks shadow tables in it. */
  readonly hostMemory: WalkMemory;
  /** Root frames of the program's guests, by name. */
  readonly guestRoots = new Map<string, Gfn>();
  /** Task on whose behalf the log is written. */
  acting = USER_TASK;

  constructor(program: Program, logLimit = 1 << 20, mirror?: Mirror) {
    this.program = program;
    this.mirror = mirror;
    this.memory = new PhysicalMemory(mirror?.memory);
    this.config = program.machine;
    this.policies = program.machine.policies ?? DEFAULT_POLICIES;
    this.isTdp = this.config.second !== 'shadow';
    this.hasTdpMmu = this.isTdp && this.policies['tdp-mmu'] === 'on';
    this.log = new Log(logLimit);
    const { maxPhyAddr, features } = this.config;
    const wide = this.config.secondLevels === 5;
    const privacy: readonly Feature[] =
      { snp: ['c-bit' as const], tdx: [wide ? ('shared-51' as const) : ('shared-47' as const)] }[this.vm as string] ??
      [];
    this.cpu = { maxPhyAddr, features: new Set([...features, ...privacy]) };
    this.formats = new SecondFormats(this.config);
    this.secondFormat = this.formats.main;
    this.code = program.tasks.map(flatten);
    this.small = {
      tasks: [],
      counters: new Float64Array(COUNTERS.length),
      current: 0,
      tablePools: [],
      failures: [],
      warnings: [],
      nextBacking: FIRST_BACKING_FRAME,
      mmioPages: [],
      asyncPf: [],
      mmuValidGen: 0,
      nextAge: 0,
      injected: [],
      possibleNxHugePages: [],
      lateUnsync: [],
      conversions: [],
      hazards: [],
    };
    for (const slot of this.config.slots) this.slots = this.slots.with(this.makeSlot(slot));
    let vcpus = 0;
    program.tasks.forEach((task, id) => {
      const vcpu = task.kind === 'vcpu' ? vcpus++ : -1;
      this.small.tasks.push({
        id,
        kind: task.kind,
        name: task.kind === 'vcpu' ? `vCPU ${task.name}` : task.name,
        vcpu,
        pc: 0,
        loops: [],
        stack: [],
        result: 0,
        state: this.code[id]!.length === 0 ? 'done' : 'ready',
        wants: null,
        holds: [],
        access: null,
        cr2: 0n,
        loaded: 0n,
        errorCode: 0,
      });
      if (vcpu >= 0) this.small.asyncPf.push(newAsyncPf());
      if (vcpu >= 0) this.vcpus.push(new Vcpu(vcpu, this.#firstRegisters(task.guest), this.cpu));
    });
    this.walkMemory = {
      page: (pfn) => this.memory.page(pfn),
      setBits: (pfn, index, lo, hi) => {
        const isGuests = pfn >= FIRST_BACKING_FRAME;
        if (isGuests && this.injects('ad-bits-lost')) return;
        if (isGuests && this.injects('ad-bits-wrong-entry')) this.#setNeighbourBits(pfn, index, lo, hi);
        else this.storeEntry(Kind.ENTRY_BITS, pfn, index, lo, hi);
      },
      resolve: (gfn) => this.resolve(gfn),
      mayUpdate: (gfn) => this.slots.find(gfn)?.readonly === false,
    };
    this.hostMemory = { ...this.walkMemory, resolve: (frame) => Number(frame), mayUpdate: () => true };
  }

  /** What a walk would set in an entry is set in the one beside it. */
  #setNeighbourBits(pfn: Pfn, index: number, lo: number, hi: number): void {
    const [oldLo, oldHi] = this.entryWords(pfn, index);
    const [besideLo, besideHi] = this.entryWords(pfn, index ^ 1);
    this.storeEntry(
      Kind.ENTRY_BITS,
      pfn,
      index ^ 1,
      (besideLo | (lo & ~oldLo)) >>> 0,
      (besideHi | (hi & ~oldHi)) >>> 0,
    );
  }

  /** As a kernel with such tables runs; before paging without any. */
  #firstRegisters(guest: string | undefined): Registers {
    if (guest === undefined) return { ...UNPAGED };
    const tables = this.program.guests.find(({ name }) => name === guest);
    return { ...LONG_MODE, ...PAGING_REGISTERS[tables?.paging ?? '4-level'] };
  }

  get tasks(): Task[] {
    return this.small.tasks;
  }

  task(id: number): Task {
    const task = this.small.tasks[id];
    if (!task) throw new MachineError(`there is no task ${id}`);
    return task;
  }

  vcpu(id: number): Vcpu {
    const vcpu = this.vcpus[id];
    if (!vcpu) throw new MachineError(`there is no vCPU ${id}; the machine has ${this.vcpus.length}`);
    return vcpu;
  }

  count(name: CounterName, by = 1): void {
    this.small.counters[COUNTER_NUMBER.get(name)!]! += by;
  }

  /** Whether KVM makes a mistake. */
  injects(name: Injection): boolean {
    return this.small.injected.includes(name);
  }

  counter(name: CounterName): number {
    return this.small.counters[COUNTER_NUMBER.get(name)!]!;
  }

  /** What has been counted; of a real machine, what can be. */
  counterList(): [CounterName, number][] {
    const all = COUNTERS.map((name, index): [CounterName, number] => [name, this.small.counters[index]!]);
    return this.mirror ? all.filter(([name]) => this.mirror!.counted?.has(name)) : all;
  }

  /**
   * The guest whose tables a vCPU's CR3 leads to, of those that share its memory; what the program made itself is served from the pool
   * of the guest that runs.
   */
  poolOf({ mode: { rootGfn }, guestMode }: Vcpu): number {
    const { guests } = this.program;
    const running = guests.findIndex(({ name }) => name === guestMode?.guest);
    const within = guests[running]?.within;
    const found = guests.findIndex(
      (guest) => !guest.nested && guest.within === within && this.guestRoots.get(guest.name) === rootGfn,
    );
    if (found >= 0) return found;
    return running >= 0
      ? running
      : Math.max(
          0,
          guests.findIndex((guest) => !guest.nested && !guest.within),
        );
  }

  // ---- memory

  /** A slot with fresh host memory behind it, aligned so that the largest pages are possible. */
  makeSlot(config: SlotConfig): Memslot {
    const slot = this.describeSlot(config);
    const gigabyte = 512 * 512;
    const last = slot.gmem ?? slot.backing;
    this.small.nextBacking = Math.ceil((last.pfn + slot.pages) / gigabyte) * gigabyte;
    return slot;
  }

  /** What `makeSlot` would make. @throws MemslotError, MachineError when it is misaligned or does not fit. */
  describeSlot(config: SlotConfig): Memslot {
    const { base, pages } = frameRange(`slot ${config.id}`, config.base, config.size);
    const limit = this.secondFormat.inputFrames;
    if (base + pages > limit)
      throw new MachineError(
        `slot ${config.id} ends beyond the ${12 + Math.log2(limit)} address bits that ${this.secondFormat.spec.title} tables translate`,
      );
    const gigabyte = 512 * 512;
    const pfn = this.small.nextBacking + (base % gigabyte);
    const first = Math.ceil((pfn + pages) / gigabyte) * gigabyte;
    const isInPlace = this.policies['guest-memfd'] === 'in-place';
    const { gmemLevel } = config;
    const gmemPfn = isInPlace ? pfn : first + (base % gigabyte);
    const gmem = gmemLevel === undefined ? {} : { gmem: newBacking(gmemPfn, pages, gmemLevel) };
    const end = gmemLevel === undefined ? first : Math.ceil((gmemPfn + pages) / gigabyte) * gigabyte;
    if (end > 2 ** (this.config.maxPhyAddr - 12))
      throw new MachineError(
        `slot ${config.id} does not fit into the host's memory (MAXPHYADDR ${this.config.maxPhyAddr})`,
      );
    return {
      id: config.id,
      base,
      pages,
      readonly: config.readonly,
      logDirty: false,
      invalid: false,
      backing: newBacking(pfn, pages, config.pageLevel),
      ...gmem,
    };
  }

  /** The host frame behind a guest frame, by whether it is private now; −1 when no slot holds it. */
  resolve(gfn: Gfn): Pfn {
    if (this.mirror) return this.mirror.resolve(gfn);
    const slot = this.slots.find(gfn);
    if (!slot) return -1;
    return slot.gmem && this.attributes.store.isPrivate(gfn) ? backingPfn(slot, gfn, slot.gmem) : backingPfn(slot, gfn);
  }

  /** What protects the guests' memory from the host. */
  get vm(): VmType {
    return this.config.vm ?? 'ordinary';
  }

  /** The guest frame that a host frame backs; −1 when it backs none. */
  gfnOf(pfn: Pfn): Gfn {
    for (const slot of this.slots.list) {
      for (const [index, moved] of Object.entries(slot.backing.moved))
        if (moved === pfn) return slot.base + Number(index);
      const index = pfn - slot.backing.pfn;
      if (index >= 0 && index < slot.pages && slot.backing.moved[index] === undefined) return slot.base + index;
      const inGmem = slot.gmem ? pfn - slot.gmem.pfn : -1;
      if (inGmem >= 0 && inGmem < slot.pages) return slot.base + inGmem;
    }
    return -1;
  }

  /** A fresh host frame for a page that the host migrates. */
  allocateFrame(): Pfn {
    return this.small.nextBacking++;
  }

  append(
    kind: Kind,
    address: number,
    oldLo: number,
    oldHi: number,
    newLo: number,
    newHi: number,
    object?: unknown,
  ): void {
    this.log.append(this.acting, this.steps, kind, address, oldLo, oldHi, newLo, newHi, object);
  }

  /** Stores 8 bytes at entry `index` (0 … 511) of a frame. */
  storeEntry(kind: Kind, pfn: Pfn, index: number, lo: number, hi: number, half?: 0 | 1): void {
    const page = this.memory.writable(pfn);
    const word = 2 * index;
    this.append(kind, pfn * 512 + index, page[word]!, page[word + 1]!, lo, hi, half);
    page[word] = lo;
    page[word + 1] = hi;
  }

  /** @param half of two entries of 4 bytes the one that a guest stores */
  storeData(pfn: Pfn, index: number, lo: number, hi: number, half?: 0 | 1): void {
    this.storeEntry(Kind.MEMORY, pfn, index, lo, hi, half);
  }

  readEntry(pfn: Pfn, index: number): bigint {
    const page = this.memory.page(pfn);
    return toBigint(page[2 * index]!, page[2 * index + 1]!);
  }

  /** Stores 1 … 8 bytes within one frame. */
  storeBytes(pfn: Pfn, offset: number, size: number, value: bigint): void {
    for (let done = 0; done < size; ) {
      const at = offset + done;
      const within = at % 8;
      const bytes = Math.min(8 - within, size - done);
      const mask = ((1n << BigInt(8 * bytes)) - 1n) << BigInt(8 * within);
      const old = this.readEntry(pfn, Math.floor(at / 8));
      const part = ((value >> BigInt(8 * done)) << BigInt(8 * within)) & mask;
      const next = (old & ~mask) | part;
      this.storeEntry(Kind.MEMORY, pfn, Math.floor(at / 8), lowWord(next), highWord(next));
      done += bytes;
    }
  }

  /** The bytes of a frame, as they lie in memory: to read only. Hosts are little-endian, as guests are. */
  pageBytes(pfn: Pfn): Uint8Array {
    const page = this.memory.page(pfn);
    return new Uint8Array(page.buffer, page.byteOffset, page.byteLength);
  }

  readBytes(pfn: Pfn, offset: number, size: number): bigint {
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) {
      const at = offset + i;
      const word = this.memory.page(pfn)[Math.floor(at / 4)]!;
      value = (value << 8n) | BigInt((word >>> (8 * (at % 4))) & 0xff);
    }
    return value;
  }

  setSlots(slots: Memslots): void {
    this.append(Kind.SLOTS, 0, 0, 0, 0, 0, { before: this.slots, after: slots });
    this.slots = slots;
  }

  // ---- private and shared memory

  setAttributes(start: Gfn, end: Gfn, isPrivate: boolean): void {
    const before = [...this.attributes.store.runs(start, end)];
    this.append(Kind.ATTRIBUTES, start, 0, 0, 0, 0, { start, end, isPrivate, before });
    this.attributes.store.set(start, end, isPrivate);
  }

  /** What must not happen has: told as the kernel or the processor would, and kept for whoever looks for it. */
  hazard(hazard: Hazard, text: string, gfn: Gfn): void {
    this.count('hazards');
    if (!this.small.hazards.some((known) => known.hazard === hazard)) this.small.hazards.push({ hazard, text });
    this.append(Kind.HAZARD, this.acting, 0, 0, 0, 0, { hazard, text, gfn });
  }

  // ---- vCPUs

  /** @throws RegisterError naming the register, when the new set cannot be run. */
  setRegister(vcpu: Vcpu, name: RegisterName, value: bigint): void {
    const registers = { ...vcpu.registers, [name]: BigInt.asUintN(64, value) };
    const problem = registerProblem(registers, this.config.maxPhyAddr);
    if (problem) throw new RegisterError(problem);
    const change = changeProblem(vcpu.registers, registers);
    if (change) throw new RegisterError(change);
    const old = vcpu.registers[name];
    this.append(
      Kind.REGISTER,
      vcpu.id * 16 + REGISTERS.indexOf(name),
      lowWord(old),
      highWord(old),
      lowWord(registers[name]),
      highWord(registers[name]),
    );
    applyRegisters(this, vcpu, registers);
  }

  fillTlb(vcpu: Vcpu, entry: TlbEntry): void {
    const slot = vcpu.tlb.slotOf(entry.vfn, entry.level);
    this.append(Kind.TLB_FILL, vcpu.id, slot, 0, 0, 0, { old: vcpu.tlb.entries[slot], entry });
    vcpu.tlb.set(slot, entry);
  }

  dropTlb(vcpu: Vcpu, slot: number): void {
    const old = vcpu.tlb.entries[slot];
    if (old === undefined) return;
    this.append(Kind.TLB_DROP, vcpu.id, slot, 0, 0, 0, { old });
    vcpu.tlb.set(slot, undefined);
  }

  /** Drops the entries for a virtual page, whatever their size, as INVLPG does. */
  invalidatePage(vcpu: Vcpu, vfn: Vfn, pcid = vcpu.mode.pcid): void {
    for (let level = 1; level <= 3; level++) {
      const slot = vcpu.tlb.slotOf(vfn, level);
      const entry = vcpu.tlb.entries[slot];
      if (entry && !entry.global && entry.pcid !== pcid) continue;
      if (entry && Math.floor(entry.vfn / tlbSpan(level)) === Math.floor(vfn / tlbSpan(level)))
        this.dropTlb(vcpu, slot);
    }
  }

  /** Empties a TLB; `keepGlobal` as a CR3 write with CR4.PGE does. @param pcid only what is of this address space */
  flushTlb(vcpu: Vcpu, keepGlobal = false, pcid?: number): void {
    this.count('tlb.flushes');
    if (vcpu.tlb.count === 0) return;
    const before = vcpu.tlb.entries;
    const stays = ({ global, pcid: own }: TlbEntry): boolean =>
      (keepGlobal && global) || (pcid !== undefined && own !== pcid);
    const after =
      keepGlobal || pcid !== undefined
        ? before.map((entry) => (entry && stays(entry) ? entry : undefined))
        : new Array(before.length);
    this.append(Kind.TLB_FLUSH, vcpu.id, 0, 0, 0, 0, { before, after });
    vcpu.tlb.entries = after;
    vcpu.tlb.count = vcpu.tlb.list().length;
  }

  /** Changes what CPUID says; what registers mean follows. KVM's part is afterSetCpuid's. */
  setCpu(cpu: GuestCpu): void {
    const stays = this.injects('roles-kept');
    this.append(Kind.CPUID, 0, 0, 0, 0, 0, { before: this.cpu, after: cpu });
    // Reserved bits are worked out with the roles: where those are not marked invalid, the old ones stay.
    if (stays) this.cpu = cpu;
    else applyCpu(this, cpu);
  }

  /** Changes fields of a vCPU's MMU: its roles, its root, the roots before. */
  setMmu(vcpu: Vcpu, change: Partial<Mmu>, which = vcpu.active): void {
    const before = vcpu.mmus[which];
    const after = { ...before, ...change };
    this.append(Kind.MMU, vcpu.id, MMUS.indexOf(which), 0, 0, 0, { before, after });
    applyMmu(this, vcpu, which, after);
  }

  /** Lets a vCPU enter system-management mode, or come out, with the registers that it then has. */
  setSmm(vcpu: Vcpu, smm: Registers | undefined, registers: Registers): void {
    const before = { smm: vcpu.smm, registers: vcpu.registers };
    this.append(Kind.SMM, vcpu.id, 0, 0, 0, 0, { before, after: { smm, registers } });
    vcpu.smm = smm;
    applyRegisters(this, vcpu, registers);
  }

  /** Lets a vCPU enter a nested guest, or come out, with the registers that it then has. */
  setGuestMode(
    vcpu: Vcpu,
    guestMode: GuestMode | undefined,
    registers: Registers,
    saved: Readonly<Record<string, Registers>>,
  ): void {
    const before = { guestMode: vcpu.guestMode, registers: vcpu.registers, saved: vcpu.saved };
    const after = { guestMode, registers, saved };
    this.append(Kind.GUEST_MODE, vcpu.id, 0, 0, 0, 0, { before, after });
    applyGuestMode(this, vcpu, after);
  }

  setRequests(vcpu: Vcpu, requests: number): void {
    if (requests === vcpu.requests) return;
    this.append(Kind.REQUESTS, vcpu.id, vcpu.requests, 0, requests, 0);
    vcpu.requests = requests;
  }

  // ---- KVM's tables

  /** A table of the TDP MMU's. Its root starts with the references that it is given. */
  allocateTable(
    record: Pick<MmuPage, 'gfn' | 'level' | 'role' | 'parent' | 'parentIndex' | 'nxHugePageDisallowed'>,
    rootCount = 0,
  ): MmuPage {
    const isMirrored = roleField(record.role, 'is_mirror') === 1;
    const external = isMirrored ? { external: this.allocateFrameForTables() } : {};
    const page = this.#newTable({ ...record, ...external, rootCount, invalid: false, scheduledToZap: false });
    this.count(page.parent < 0 ? 'roots.built' : 'tables.built');
    return page;
  }

  allocateShadowTable(record: Pick<MmuPage, 'gfn' | 'level' | 'role'> & { readonly shadow: ShadowState }): MmuPage {
    return this.#newTable({
      ...record,
      parent: -1,
      parentIndex: -1,
      rootCount: 0,
      invalid: false,
      scheduledToZap: false,
      nxHugePageDisallowed: false,
    });
  }

  #newTable(record: Omit<MmuPage, 'pfn'>): MmuPage {
    const { pfn, recycled } = this.#takeFrame();
    const page: MmuPage = { pfn, ...record };
    this.memory.writable(pfn).set(emptyTable);
    this.pages.set(pfn, page);
    this.append(Kind.TABLE_ALLOC, pfn, recycled ? 1 : 0, 0, 0, 0, page);
    return page;
  }

  #takeFrame(): TakenFrame {
    const taken = this.tableFrames.take();
    if (taken.pfn >= FIRST_BACKING_FRAME) throw new MachineError('KVM has no host frame left for its tables');
    return taken;
  }

  /** A frame of KVM's that is none of its tables, all zeros. */
  allocateFrameForTables(): Pfn {
    const { pfn, recycled } = this.#takeFrame();
    this.append(Kind.FRAME_ALLOC, pfn, recycled ? 1 : 0, 0, 0, 0);
    this.memory.writable(pfn).fill(0);
    return pfn;
  }

  freeFrameOfTables(pfn: Pfn): void {
    this.append(Kind.FRAME_FREE, pfn, 0, 0, 0, 0, this.memory.page(pfn).slice());
    this.memory.drop(pfn);
    this.tableFrames.give(pfn);
  }

  freeTable(pfn: Pfn): void {
    const page = this.page(pfn);
    this.append(Kind.TABLE_FREE, pfn, 0, 0, 0, 0, { page, content: this.memory.page(pfn) });
    this.pages.delete(pfn);
    this.memory.drop(pfn);
    this.tableFrames.give(pfn);
    if (page.external !== undefined) this.freeFrameOfTables(page.external);
    this.count(page.parent < 0 && !page.shadow ? 'roots.freed' : 'tables.freed');
  }

  page(pfn: Pfn): MmuPage {
    const page = this.pages.get(pfn);
    if (!page) throw new MachineError(`frame 0x${pfn.toString(16)} holds none of KVM's tables`);
    return page;
  }

  updatePage(
    pfn: Pfn,
    change: Partial<Pick<MmuPage, 'rootCount' | 'invalid' | 'scheduledToZap' | 'nxHugePageDisallowed'>>,
  ): void {
    this.replacePage({ ...this.page(pfn), ...change });
  }

  /** Puts another record in the place of a table's. */
  replacePage(after: MmuPage): void {
    this.append(Kind.TABLE_STATE, after.pfn, 0, 0, 0, 0, { before: this.page(after.pfn), after });
    this.pages.set(after.pfn, after);
  }

  /** Roots of the TDP MMU. */
  roots(): MmuPage[] {
    return [...this.pages.values()].filter((page) => page.parent < 0 && !page.shadow);
  }

  isDirectRoot({ shadow, parent, role }: MmuPage): boolean {
    if (!shadow) return parent < 0;
    return this.isTdp && !this.hasTdpMmu && shadow.wasRoot && roleField(role, 'direct') === 1;
  }

  /** Roots of tables that translate guest-physical addresses: the TDP MMU's; without it direct shadow pages, also those that no vCPU has now. */
  directRoots(): MmuPage[] {
    return [...this.pages.values()].filter((page) => this.isDirectRoot(page));
  }

  // ---- shadow paging

  /** How the tables below a vCPU's shadow root are read. */
  shadowFormat({ rootRole }: Mmu): Format {
    return this.formats.ofRoot(roleField(rootRole, 'level'));
  }

  /** How one of KVM's tables is read, and its level; those behind `pae_root` are of level 3. */
  tableFormat(pfn: Pfn): Format {
    const page = this.pages.get(pfn);
    if (!page) return this.formats.pae!;
    return page.level === 5 && page.shadow ? this.formats.ofRoot(5) : this.secondFormat;
  }

  /** Whether the tables that a vCPU's processor walks are shadow pages: direct ones, or of the guest's own tables, or of L1's for a nested guest. */
  hasShadowPages(vcpu: Vcpu): boolean {
    return !this.hasTdpMmu || vcpu.active === 'guest';
  }

  tableLevel(pfn: Pfn): number {
    return this.pages.get(pfn)?.level ?? 3;
  }

  entryWords(pfn: Pfn, index: number): [lo: number, hi: number] {
    const page = this.memory.page(pfn);
    return [page[2 * index]!, page[2 * index + 1]!];
  }

  /** mmu_spte_clear_no_track; what is empty already is left alone. */
  clearSpte(pfn: Pfn, index: number): void {
    const [lo, hi] = this.entryWords(pfn, index);
    if (lo === emptyEntry.lo && hi === emptyEntry.hi) return;
    this.setSpte(pfn, index, emptyEntry.lo, emptyEntry.hi, false);
  }

  /** Whether the processor maps pages of a level. */
  shadowLarge(level: number): boolean {
    return this.secondFormat.isLargeLevel(level);
  }

  /** Entries of the shadow tables for an address, from the root down to where they end. */
  shadowPath(vcpu: Vcpu, gva: bigint, toFirst = false): { level: number; table: Pfn; index: number }[] {
    const format = this.shadowFormat(vcpu.mmu);
    const frame = Number((gva >> 12n) & ((1n << 45n) - 1n));
    const path: { level: number; table: Pfn; index: number }[] = [];
    let table = vcpu.root;
    for (let level = format.rootLevel; level > 0 && table >= 0; level--) {
      const index = format.indexOf(frame % format.inputFrames, level);
      path.push({ level, table, index });
      if (toFirst && this.pages.get(table)?.shadow) break;
      const [lo, hi] = this.entryWords(table, index);
      if (format.classify(level, lo) !== TABLE) break;
      table = format.frame(level, lo, hi);
    }
    return path;
  }

  /** Tables that a root stands for: itself, or the four of `pae_root`. */
  rootTables({ root, paeRoot }: Mmu): Pfn[] {
    if (root.pfn < 0 || root.pfn !== paeRoot) return root.pfn < 0 ? [] : [root.pfn];
    return [0, 1, 2, 3].flatMap((index) => {
      const [lo, hi] = this.entryWords(paeRoot, index);
      return (lo & 1) === 0 ? [] : [this.formats.pae!.frame(3, lo, hi)];
    });
  }

  /** The vCPU's `pae_root`, which is there from its first use on. */
  paeRootOf(vcpu: Vcpu): Pfn {
    if (vcpu.mmu.paeRoot < 0) this.setMmu(vcpu, { paeRoot: this.allocateFrameForTables() });
    return vcpu.mmu.paeRoot;
  }

  /** @param table −1 for none (INVALID_PAE_ROOT) */
  setPaeRoot(paeRoot: Pfn, index: number, table: Pfn): void {
    const format = this.formats.pae!;
    const [lo, hi] = table < 0 ? [0, 0] : [(format.frameLo(table) | 1) >>> 0, format.frameHi(table)];
    this.setSpte(paeRoot, index, lo, hi, false);
  }

  freePaeRoots(paeRoot: Pfn, put: (table: Pfn) => void): void {
    for (let index = 0; index < 4; index++) {
      const [lo, hi] = this.entryWords(paeRoot, index);
      if ((lo & 1) !== 0) put(this.formats.pae!.frame(3, lo, hi));
      this.setPaeRoot(paeRoot, index, -1);
    }
  }

  /** A page of zeros for a CR3 that leads to no memory (`kvm_mmu_get_dummy_root`). */
  dummyRoot(): Pfn {
    if (this.#dummyRoot < 0) this.#dummyRoot = FIRST_BACKING_FRAME - 1;
    return this.#dummyRoot;
  }

  setSpte(pfn: Pfn, index: number, lo: number, hi: number, traced = true): void {
    this.count('sptes.changed');
    this.storeEntry(traced ? Kind.SPTE : Kind.SPTE_UNTRACED, pfn, index, lo, hi);
  }

  /** What a tracepoint says beyond a change of state. */
  trace(event: string, fields: Readonly<Record<string, unknown>>): void {
    this.append(Kind.TRACE, 0, 0, 0, 0, 0, { event, fields });
  }

  // ---- locks

  /** Takes a lock, or says by `false` that the task has to wait; `wants` then names it. */
  acquire(task: Task, lock: LockName, mode: 'read' | 'write'): boolean {
    const number = LOCKS.indexOf(lock);
    const state = this.locks[number]!;
    if (state.writer >= 0 || (mode === 'write' && state.readers.length > 0)) {
      task.state = 'blocked';
      task.wants = lock;
      return false;
    }
    this.#setLock(
      Kind.LOCK,
      number,
      mode === 'write' ? { writer: task.id, readers: [] } : { writer: -1, readers: [...state.readers, task.id] },
    );
    task.holds.push({ lock, mode });
    return true;
  }

  release(task: Task, lock: LockName): void {
    const number = LOCKS.indexOf(lock);
    const state = this.locks[number]!;
    const held = task.holds.findLastIndex((candidate) => candidate.lock === lock);
    if (held < 0) throw new MachineError(`${task.name} releases ${lock}, which it does not hold`);
    task.holds.splice(held, 1);
    const reader = state.readers.indexOf(task.id);
    this.#setLock(Kind.UNLOCK, number, { writer: -1, readers: state.readers.filter((_, index) => index !== reader) });
    for (const other of this.tasks) {
      if (other.state === 'blocked' && other.wants === lock) {
        other.state = 'ready';
        other.wants = null;
      }
    }
  }

  #setLock(kind: Kind, number: number, after: LockState): void {
    this.append(kind, number, 0, 0, 0, 0, { before: this.locks[number], after });
    this.locks[number] = after;
  }

  /** Tasks that hold a lock. */
  owners(lock: LockName): Task[] {
    const state = this.locks[LOCKS.indexOf(lock)]!;
    return [...(state.writer >= 0 ? [state.writer] : []), ...state.readers].map((id) => this.task(id));
  }

  setInvalidation(after: InvalidationState): void {
    this.append(Kind.INVALIDATE, 0, 0, 0, 0, 0, { before: this.invalidation, after });
    this.invalidation = after;
  }

  /** Line of the statement that a task is in the middle of, or about to run; undefined once it has ended. */
  currentLine(task: Task): number | undefined {
    const code = this.code[task.id]!;
    // A host statement has moved on by the time the function it called runs.
    const called = task.stack.length > 0 && task.access === null;
    return code[called ? task.pc - 1 : task.pc]?.statement.span.line;
  }

  warn(text: string): void {
    this.count('warnings');
    const task = this.tasks[this.acting];
    const line = task && this.currentLine(task);
    if (this.small.warnings.length < KEPT_WARNINGS)
      this.small.warnings.push({
        text,
        task: task?.name ?? 'you',
        step: this.steps,
        ...(line === undefined ? {} : { line }),
      });
    this.append(Kind.WARNING, 0, 0, 0, 0, 0, text);
  }

  /** Ends a task that cannot go on, wherever it is: its locks are dropped, and the reason is kept. */
  /** Ends a task. @param isAsked whether the scenario asks for it where this happens */
  fail(task: Task, text: string, isAsked = false): void {
    const line = this.currentLine(task) ?? 0;
    this.warn(text);
    // What a hazard has told is not told again.
    if (!isAsked && this.small.hazards.at(-1)?.text !== text)
      this.append(Kind.FAILURE, task.id, 0, 0, 0, 0, { text, line });
    this.small.failures.push({ text, line, actual: 'the task ends here' });
    for (const { lock } of [...task.holds]) this.release(task, lock);
    task.stack = [];
    task.access = null;
    task.loops = [];
    task.pc = this.code[task.id]!.length;
  }

  // ---- undo

  /** Takes back every log entry from `position` on, and forgets it. Small state is the caller's to restore. */
  undoTo(position: number): void {
    if (position < this.log.first) throw new MachineError(`history before log position ${this.log.first} is forgotten`);
    for (let at = this.log.length - 1; at >= position; at--) takeBack(this, this.log.at(at));
    this.log.truncate(position);
  }
}

const emptyTable = new Uint32Array(1024);
for (let index = 0; index < 512; index++) {
  emptyTable[2 * index] = emptyEntry.lo;
  emptyTable[2 * index + 1] = emptyEntry.hi;
}
