import { LONG_MODE, PAGING_REGISTERS, type PagingName } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
import type { Program, Statement } from '../../engine/program.ts';

/**
 * Where the stubs lie (native/guests/scenario.S and scenario32.S). Those of a paging mode have a memslot of their own above the
 * scenario's memory, and entries of every guest's root table that the scenario does not use, by which they see all of the guest's
 * memory too.
 *
 *     page 0            code of the supervisor
 *     page 1            code of the user
 *     page 2            the user's stack: the address to which a fetched `ret` returns
 *     page 3            GDT and IDT
 *     page 4 …          a page for each vCPU: its TSS, and its stack from the end
 *     TABLES            tables of these from the top down, then one for each chunk of guest memory
 */
const PAGE = 4096n;
const USER_CODE = 0x1000n;
const USER_STACK = 0x2000n;
const DESCRIPTORS = 0x3000n;
const IDT = 0x800n;
const VCPU_PAGES = 0x4000n;
const TABLES = 0x20000n;
const MOST_VCPUS = Number((TABLES - VCPU_PAGES) / PAGE);
const LARGE = 1n << 21n;
const FOUR_GIGA = 1n << 32n;
/** The first of their slots. */
const SLOT = 32000;

/** Where 32-bit code begins. */
const LOAD_TSS = 0x80n;
const EXCEPTIONS = 0x100n;
const ACTIONS = 0x400n;
const KERNEL_CODE = 0x08n;
const KERNEL_DATA = 0x10n;
const USER_DATA = 0x33n;
/** Behind the user's data segment. */
const tssSelector = (vcpu: number): bigint => 0x38n + 8n * BigInt(vcpu);
/** AL after an action that no exception has ended. */
export const DONE = 0xffn;

/** Entries: present, writable, accessed, dirty; the user's besides; large. */
const SUPERVISOR = 0x63n;
const USERS = 0x67n;
const PS = 0x80n;
/** A PDPTE of PAE: everything but P is reserved, or of no use. */
const P = 1n;

/** How a paging mode's stubs are mapped. Where KVM may meet CR4.PSE = 0 there are no large pages. */
interface Layout {
  readonly code: 'scenario.bin' | 'scenario32.bin';
  readonly entryBytes: 4 | 8;
  /** Address bits that an entry of the root table translates, and such entries from which one may be taken. */
  readonly rootShift: bigint;
  readonly rootEntries: number;
  readonly rootBits: bigint;
  /** Tables between root and the stubs' page table. */
  readonly between: number;
  /** Guest memory that one table maps, the pages of that, and its entries' bits. */
  readonly chunk: bigint;
  readonly page: bigint;
  readonly bits: bigint;
  /** Chunks at most. */
  readonly chunks: number;
}

const LAYOUTS = {
  '4-level': {
    code: 'scenario.bin',
    entryBytes: 8,
    rootShift: 39n,
    // In the lower half: some hypervisors keep the upper one from user code.
    rootEntries: 256,
    rootBits: USERS,
    between: 2,
    chunk: 1n << 30n,
    page: LARGE,
    bits: SUPERVISOR | PS,
    chunks: 511,
  },
  pae: {
    code: 'scenario32.bin',
    entryBytes: 8,
    rootShift: 30n,
    rootEntries: 4,
    rootBits: P,
    between: 1,
    chunk: LARGE,
    page: PAGE,
    bits: SUPERVISOR,
    chunks: 511,
  },
  '32-bit': {
    code: 'scenario32.bin',
    entryBytes: 4,
    rootShift: 22n,
    rootEntries: 1024,
    rootBits: USERS,
    between: 0,
    chunk: 1n << 22n,
    page: PAGE,
    bits: SUPERVISOR,
    chunks: 511,
  },
} as const satisfies Readonly<Partial<Record<PagingName, Layout>>>;

/** Paging modes for which there are stubs. */
export type StubPaging = keyof typeof LAYOUTS;
export const isStubPaging = (paging: PagingName): paging is StubPaging => paging in LAYOUTS;
/** Whether they are 32-bit code. */
export const isNarrow = (paging: PagingName): boolean => paging === 'pae' || paging === '32-bit';

export const ACTION = {
  read: 0,
  write: 4,
  fetch: 8,
  cr0: 9,
  cr3: 10,
  cr4: 11,
  invlpg: 12,
  efer: 13,
  pkru: 14,
} as const;

export interface Stubs {
  readonly paging: StubPaging;
  /** Name of the file of their code. */
  readonly code: Layout['code'];
  /** Guest-physical address and size of their slot, and the slot's id. */
  readonly gpa: bigint;
  readonly size: bigint;
  readonly slot: number;
  /** What stands in each root table: from which entry on, bytes of an entry, and the entries. */
  readonly index: number;
  readonly entryBytes: 4 | 8;
  readonly entries: readonly bigint[];
  /** Virtual address of the slot's beginning, and the first address behind all that they map. */
  readonly base: bigint;
  readonly end: bigint;
  /** Numbers of the chunks of guest memory that they see, in the order of their virtual addresses. */
  readonly chunks: readonly bigint[];
  /** Bytes of the slot by offset, but for the code. */
  readonly pages: ReadonlyMap<bigint, Uint8Array>;
}

/** Virtual address by which the stubs see a guest-physical one. */
export function directAddress({ paging, base, chunks }: Stubs, gpa: bigint): bigint {
  const { chunk } = LAYOUTS[paging];
  const place = chunks.indexOf(gpa / chunk);
  if (place < 0) throw new RangeError(`gpa ${hex(gpa)} lies in no memory that the stubs map`);
  return base + BigInt(1 + place) * chunk + (gpa % chunk);
}

/** The address of an action at a privilege level: an access of so many bytes, or one by name. */
export function actionAddress(
  { base }: Stubs,
  action: keyof typeof ACTION,
  size: 1 | 2 | 4 | 8,
  user: boolean,
): bigint {
  const number = ACTION[action] + (ACTION[action] < 8 ? Math.log2(size) : 0);
  return base + (user ? USER_CODE : 0n) + ACTIONS + BigInt(number) * 16n;
}

/** What the user's accesses come back by. */
export const userDone = ({ base }: Stubs): bigint => base + USER_CODE;
const userStack = ({ base }: Stubs): bigint => base + USER_STACK + PAGE - 8n;
const vcpuPage = (vcpu: number): bigint => VCPU_PAGES + BigInt(vcpu) * PAGE;
const vcpuStack = ({ base }: Pick<Stubs, 'base'>, vcpu: number): bigint => base + vcpuPage(vcpu) + PAGE;

/** Registers with which a vCPU begins: those of the machine, and where the stubs' things are. */
export function firstRegisters(stubs: Stubs, vcpu: number, cr3: bigint): Record<string, bigint> {
  const { base, paging } = stubs;
  return {
    rsp: vcpuStack(stubs, vcpu),
    ...(isNarrow(paging)
      ? // A return to the user's 32-bit code would take the supervisor's segments away.
        { rip: base + LOAD_TSS, rcx: tssSelector(vcpu), ds: USER_DATA, es: USER_DATA }
      : // As after an action.
        { rip: base, rax: DONE, r15: vcpuStack(stubs, vcpu) }),
    gdt_base: base + DESCRIPTORS,
    gdt_limit: tssSelector(MOST_VCPUS) - 1n,
    idt_base: base + DESCRIPTORS + IDT,
    idt_limit: 32n * gateBytes(paging) - 1n,
    tr_base: base + vcpuPage(vcpu),
    cr0: LONG_MODE.cr0,
    cr3,
    ...PAGING_REGISTERS[paging],
  };
}

/** What an action takes besides its own address. */
export interface ActionInput {
  readonly address: bigint;
  readonly value: bigint;
  readonly user: boolean;
  readonly rflags: bigint;
}

/** Registers by which an action is asked for. */
export function actionRegisters(
  stubs: Stubs,
  vcpu: number,
  action: bigint,
  { address, value, user, rflags }: ActionInput,
): Record<string, bigint> {
  if (!isNarrow(stubs.paging))
    return {
      rsi: action,
      rbx: address,
      rdx: value,
      r11: userStack(stubs),
      r12: rflags,
      r13: user ? 1n : 0n,
    };
  return {
    rsi: action,
    rbx: address,
    rdx: BigInt.asUintN(32, value),
    rcx: value >> 32n,
    rdi: rflags,
    rbp: user ? userStack(stubs) : 0n,
    rsp: vcpuStack(stubs, vcpu),
  };
}

/** Registers by which an action's outcome is told, beside AL. */
export const OUTCOME: Readonly<Record<StubPaging, { value: string; error: string; rip: string }>> = {
  '4-level': { value: 'r8', error: 'r9', rip: 'r10' },
  pae: { value: 'rcx', error: 'rdx', rip: 'rsi' },
  '32-bit': { value: 'rcx', error: 'rdx', rip: 'rsi' },
};

function* statements(body: readonly Statement[]): Generator<Statement> {
  for (const statement of body) {
    yield statement;
    if (statement.kind === 'repeat') yield* statements(statement.body);
  }
}

const statementsOf = ({ tasks }: Program): Statement[] => tasks.flatMap(({ body }) => [...statements(body)]);

/** Guest memory that there is at some time. */
function slotRanges(program: Program): Range[] {
  return [
    ...program.machine.slots.map(({ base, size }) => ({ base, size })),
    ...statementsOf(program).flatMap((statement) => {
      if (statement.kind === 'slot-add') return [statement.slot];
      const moved =
        statement.kind === 'slot-move' ? program.machine.slots.find(({ id }) => id === statement.id) : undefined;
      return moved ? [{ base: (statement as { base: bigint }).base, size: moved.size }] : [];
    }),
  ];
}

const chunksOf = (slots: readonly Range[], chunk: bigint): bigint[] =>
  [...new Set(slots.flatMap(({ base, size }) => range(base / chunk, (base + size - 1n) / chunk)))].sort((a, b) =>
    a < b ? -1 : 1,
  );

/** Why stubs of a paging mode cannot see all of a scenario's memory. */
export function unmappable(program: Program, paging: PagingName): string | undefined {
  if (!isStubPaging(paging)) return undefined;
  const { chunk, chunks, entryBytes } = LAYOUTS[paging];
  const slots = slotRanges(program);
  const beyond = slots.find(({ base, size }) => base + size > FOUR_GIGA);
  if (entryBytes === 4 && beyond)
    return `a slot goes up to ${hex(beyond.base + beyond.size)}: on KVM ${hex(FOUR_GIGA)} is the limit with ${paging} paging`;
  // Counted before they are listed.
  const least = slots.reduce((sum, { size }) => sum + size / chunk, 0n);
  if (least <= BigInt(chunks) && chunksOf(slots, chunk).length <= chunks) return undefined;
  return `the slots are more than ${hex(chunk * BigInt(chunks))} bytes, which is the limit on KVM with ${paging} paging`;
}

/** How the vCPUs of a guest run. */
export function pagingOf({ guests }: Program, name: string | undefined): PagingName {
  return guests.find((guest) => guest.name === name)?.paging ?? '4-level';
}

/** Plans the stubs of a scenario, of each paging mode of its guests: around what it uses. */
export function planStubs(program: Program, vcpus: number): ReadonlyMap<PagingName, Stubs> {
  if (vcpus > MOST_VCPUS) throw new RangeError(`${vcpus} vCPUs: ${MOST_VCPUS} are possible`);
  const all = statementsOf(program);
  const mappings = [
    ...program.guests.flatMap((guest) => guest.mappings),
    ...all.flatMap((statement) => (statement.kind === 'map' ? [statement.mapping] : [])),
  ];
  const slots = slotRanges(program);
  const literals = all.flatMap((statement) =>
    statement.kind === 'access' && statement.address.kind === 'number' ? [statement.address.value] : [],
  );
  const used = [
    ...mappings.map(({ gva, size }) => ({ base: gva, size })),
    ...literals.map((base) => ({ base, size: 1n })),
  ];
  const ends = [...slots.map(({ base, size }) => base + size), ...mappings.map(({ gpa, size }) => gpa + size)];
  let gpa = roundUp(ends.reduce((most, each) => (each > most ? each : most), 0n));
  const planned = new Map<PagingName, Stubs>();
  for (const paging of new Set(program.guests.map((guest) => guest.paging ?? '4-level'))) {
    if (!isStubPaging(paging)) continue;
    const stubs = planMode({ paging, gpa, slot: SLOT + planned.size, used, slots, vcpus });
    planned.set(paging, stubs);
    gpa += stubs.size;
  }
  return planned;
}

const roundUp = (address: bigint): bigint => (address + LARGE - 1n) & ~(LARGE - 1n);

interface Range {
  readonly base: bigint;
  readonly size: bigint;
}

interface Place {
  readonly paging: StubPaging;
  readonly gpa: bigint;
  readonly slot: number;
  /** Of the guests' address spaces, and of guest memory. */
  readonly used: readonly Range[];
  readonly slots: readonly Range[];
  readonly vcpus: number;
}

function planMode({ paging, gpa, slot, used, slots, vcpus }: Place): Stubs {
  const layout: Layout = LAYOUTS[paging];
  const { rootShift, rootEntries, between, chunk } = layout;
  const chunks = chunksOf(slots, chunk);
  const size = roundUp(TABLES + PAGE * BigInt(between + 1 + chunks.length));
  if (layout.entryBytes === 4 && gpa + size > FOUR_GIGA)
    throw new RangeError(
      `there is no place below 4G for the code that makes the accesses of guests with ${paging} paging`,
    );
  const table = (number: number): bigint => gpa + TABLES + PAGE * BigInt(number);
  const chunkEntries = chunks.map((_, number) => table(between + 1 + number) | SUPERVISOR);
  const entries = [table(0) | layout.rootBits, ...(between === 0 ? chunkEntries : [])];
  const taken = new Set(
    used.flatMap(({ base, size: length }) => range(base >> rootShift, (base + length - 1n) >> rootShift).map(Number)),
  );
  const isFree = (from: number): boolean => entries.every((_, at) => !taken.has(from + at));
  let index = rootEntries - entries.length;
  while (index >= 0 && !isFree(index)) index--;
  if (index < 0)
    throw new RangeError(
      entries.length === 1
        ? 'every entry of the root tables is used: the stubs find no place'
        : `no ${entries.length} entries of the root tables in a row are unused: the stubs find no place`,
    );
  const base = BigInt(index) << rootShift;
  const place = {
    paging,
    code: layout.code,
    gpa,
    size,
    slot,
    index,
    entryBytes: layout.entryBytes,
    entries,
    base,
    chunks,
  };
  return {
    ...place,
    end: base + BigInt(1 + chunks.length) * chunk,
    pages: pagesOf(place, layout, vcpus, chunkEntries),
  };
}

function range(first: bigint, last: bigint): bigint[] {
  return Array.from({ length: Number(last - first) + 1 }, (_, step) => first + BigInt(step));
}

function pagesOf(
  { paging, gpa, base, chunks }: Omit<Stubs, 'pages' | 'end'>,
  { between, entryBytes, chunk, page: leaf, bits }: Layout,
  vcpus: number,
  chunkEntries: readonly bigint[],
): Map<bigint, Uint8Array> {
  const pages = new Map<bigint, Uint8Array>();
  const view = (offset: bigint): DataView => {
    const page = offset & ~(PAGE - 1n);
    const bytes = pages.get(page) ?? new Uint8Array(Number(PAGE));
    pages.set(page, bytes);
    return new DataView(bytes.buffer, Number(offset - page));
  };
  const put = (offset: bigint, value: bigint): void => view(offset).setBigUint64(0, BigInt.asUintN(64, value), true);
  put(USER_STACK + PAGE - 8n, base + USER_CODE);
  // Null, code and data of the supervisor, a hole, code and data of the user at 0x28 and 0x30.
  const [code, usersCode] = isNarrow(paging)
    ? [0x00cf9b000000ffffn, 0x00cffb000000ffffn]
    : [0x00af9b000000ffffn, 0x00affb000000ffffn];
  [0n, code, 0x00cf93000000ffffn, 0n, 0n, usersCode, 0x00cff3000000ffffn].forEach((descriptor, number) => {
    put(DESCRIPTORS + 8n * BigInt(number), descriptor);
  });
  for (let vector = 0n; vector < 32n; vector++) {
    const entry = base + EXCEPTIONS + 16n * vector;
    const at = DESCRIPTORS + IDT + gateBytes(paging) * vector;
    put(at, gate(entry));
    if (!isNarrow(paging)) put(at + 8n, entry >> 32n);
  }
  for (let vcpu = 0; vcpu < vcpus; vcpu++) {
    // RSP0, at byte 4 of the TSS; or ESP0, and SS0 behind it.
    const top = vcpuStack({ base }, vcpu);
    put(vcpuPage(vcpu), top << 32n);
    put(vcpuPage(vcpu) + 8n, isNarrow(paging) ? KERNEL_DATA : top >> 32n);
    if (isNarrow(paging)) put(DESCRIPTORS + tssSelector(vcpu), tssDescriptor(base + vcpuPage(vcpu)));
  }
  const table = (number: number): bigint => TABLES + PAGE * BigInt(number);
  const putEntry = (number: number, index: number, value: bigint): void => {
    const place = view(table(number) + BigInt(index * entryBytes));
    if (entryBytes === 8) place.setBigUint64(0, value, true);
    else place.setUint32(0, Number(value), true);
  };
  for (let level = 0; level < between; level++) putEntry(level, 0, (gpa + table(level + 1)) | USERS);
  if (between > 0) for (const [number, entry] of chunkEntries.entries()) putEntry(0, 1 + number, entry);
  for (let page = 0n; page < TABLES / PAGE; page++) {
    const isUsers = page * PAGE === USER_CODE || page * PAGE === USER_STACK;
    putEntry(between, Number(page), (gpa + page * PAGE) | (isUsers ? USERS : SUPERVISOR));
  }
  chunks.forEach((start, number) => {
    for (let entry = 0n; entry < chunk / leaf; entry++)
      putEntry(between + 1 + number, Number(entry), (start * chunk + entry * leaf) | bits);
  });
  return pages;
}

/** Bytes of an entry of the IDT. */
const gateBytes = (paging: PagingName): bigint => (isNarrow(paging) ? 8n : 16n);

/** An interrupt gate of the supervisor's: its low half. */
function gate(entry: bigint): bigint {
  return (entry & 0xffffn) | (KERNEL_CODE << 16n) | (0x8e00n << 32n) | (((entry >> 16n) & 0xffffn) << 48n);
}

/** A 32-bit TSS that no processor has loaded yet. */
function tssDescriptor(base: bigint): bigint {
  return 0x67n | ((base & 0xff_ffffn) << 16n) | (0x89n << 40n) | ((base >> 24n) << 56n);
}

/** Arguments of the helper for a scenario's machine. */
export function helperArguments(program: Program, stubs: Iterable<Stubs>, vcpus: number): string[] {
  const slots = program.machine.slots.map(
    ({ id, base, size, readonly }) => `${id}:0x${base.toString(16)}:0x${size.toString(16)}${readonly ? ':ro' : ''}`,
  );
  for (const { slot, gpa, size } of stubs) slots.push(`${slot}:0x${gpa.toString(16)}:0x${size.toString(16)}`);
  return ['--vcpus', `${Math.max(1, vcpus)}`, ...slots.flatMap((slot) => ['--slot', slot])];
}
