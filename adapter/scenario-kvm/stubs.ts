import { LONG_MODE } from '../../engine/guest/registers.ts';
import type { Program, Statement } from '../../engine/program.ts';

/**
 * Where the stubs lie (native/guests/scenario.S). They have a memslot of their own above the scenario's memory, and an
 * entry of every guest's root table that the scenario does not use, by which they see all of the guest's memory too.
 *
 *     page 0            code of the supervisor
 *     page 1            code of the user
 *     page 2            the user's stack: the address to which a fetched `ret` returns
 *     page 3            GDT and IDT
 *     page 4 …          a page for each vCPU: its TSS, and its stack from the end
 *     TABLES            PDPT, page directory and page table of these, then a page directory for each 1G of guest memory
 */
const PAGE = 4096n;
const USER_CODE = 0x1000n;
const USER_STACK = 0x2000n;
const DESCRIPTORS = 0x3000n;
const IDT = 0x800n;
const VCPU_PAGES = 0x4000n;
const TABLES = 0x20000n;
const MOST_VCPUS = Number((TABLES - VCPU_PAGES) / PAGE);
const GIGA = 1n << 30n;
const LARGE = 1n << 21n;

const EXCEPTIONS = 0x100n;
const ACTIONS = 0x400n;
const KERNEL_CODE = 0x08n;

/** Entries: present, writable, accessed, dirty; the user's besides; large. */
const SUPERVISOR = 0x63n;
const USERS = 0x67n;
const PS = 0x80n;

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
  /** Guest-physical address and size of their slot, and the slot's id. */
  readonly gpa: bigint;
  readonly size: bigint;
  readonly slot: number;
  /** Index in each root table, and the entry that stands there. */
  readonly index: number;
  readonly entry: bigint;
  /** Virtual address of the slot's beginning. */
  readonly base: bigint;
  /** Bytes of the slot by offset, but for the code. */
  readonly pages: ReadonlyMap<bigint, Uint8Array>;
}

/** Virtual address by which the stubs see a guest-physical one. */
export function directAddress({ index }: Stubs, gpa: bigint): bigint {
  return (BigInt(index) << 39n) + GIGA + gpa;
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
export const userStack = ({ base }: Stubs): bigint => base + USER_STACK + PAGE - 8n;
const vcpuPage = (vcpu: number): bigint => VCPU_PAGES + BigInt(vcpu) * PAGE;

/** Registers with which a vCPU begins: those of the machine, and where the stubs' things are. */
export function firstRegisters(stubs: Stubs, vcpu: number, cr3: bigint): Record<string, bigint> {
  const { base } = stubs;
  return {
    rip: base,
    rsp: base + vcpuPage(vcpu) + PAGE,
    r15: base + vcpuPage(vcpu) + PAGE,
    gdt_base: base + DESCRIPTORS,
    gdt_limit: 7n * 8n - 1n,
    idt_base: base + DESCRIPTORS + IDT,
    idt_limit: 32n * 16n - 1n,
    tr_base: base + vcpuPage(vcpu),
    cr0: LONG_MODE.cr0,
    cr3,
    cr4: LONG_MODE.cr4,
    efer: LONG_MODE.efer,
  };
}

function* statements(body: readonly Statement[]): Generator<Statement> {
  for (const statement of body) {
    yield statement;
    if (statement.kind === 'repeat' || statement.kind === 'enter' || statement.kind === 'smm')
      yield* statements(statement.body);
  }
}

/** Plans the stubs of a scenario: around what it uses. */
export function planStubs(program: Program, vcpus: number): Stubs {
  if (vcpus > MOST_VCPUS) throw new RangeError(`${vcpus} vCPUs: ${MOST_VCPUS} are possible`);
  const all = program.tasks.flatMap(({ body }) => [...statements(body)]);
  const mappings = [
    ...program.guests.flatMap((guest) => guest.mappings),
    ...all.flatMap((statement) => (statement.kind === 'map' ? [statement.mapping] : [])),
  ];
  const slots = [
    ...program.machine.slots.map(({ base, size }) => ({ base, size })),
    ...all.flatMap((statement) => {
      if (statement.kind === 'slot-add') return [statement.slot];
      const moved =
        statement.kind === 'slot-move' ? program.machine.slots.find(({ id }) => id === statement.id) : undefined;
      return moved ? [{ base: (statement as { base: bigint }).base, size: moved.size }] : [];
    }),
  ];
  const literals = all.flatMap((statement) =>
    statement.kind === 'access' && statement.address.kind === 'number' ? [statement.address.value] : [],
  );
  const used = new Set([...mappings.map(({ gva }) => gva), ...literals].map((gva) => Number((gva >> 39n) & 511n)));
  // In the lower half: some hypervisors keep the upper one from user code.
  let index = 255;
  while (used.has(index)) index--;
  if (index < 0) throw new RangeError('every entry of the root tables is used: the stubs find no place');
  const ends = [...slots.map(({ base, size }) => base + size), ...mappings.map(({ gpa, size }) => gpa + size)];
  const end = ends.reduce((most, each) => (each > most ? each : most), 0n);
  const gigas = new Set(slots.flatMap(({ base, size }) => range(base / GIGA, (base + size - 1n) / GIGA)));
  const gpa = (end + LARGE - 1n) & ~(LARGE - 1n);
  const size = (TABLES + PAGE * BigInt(3 + gigas.size) + LARGE - 1n) & ~(LARGE - 1n);
  const stubs = { gpa, size, slot: 32000, index, entry: (gpa + TABLES) | USERS, base: BigInt(index) << 39n };
  return { ...stubs, pages: pagesOf(stubs, vcpus, [...gigas]) };
}

function range(first: bigint, last: bigint): bigint[] {
  return Array.from({ length: Number(last - first) + 1 }, (_, step) => first + BigInt(step));
}

function pagesOf(
  { gpa, base }: Pick<Stubs, 'gpa' | 'base'>,
  vcpus: number,
  gigas: readonly bigint[],
): Map<bigint, Uint8Array> {
  const pages = new Map<bigint, Uint8Array>();
  const put = (offset: bigint, value: bigint): void => {
    const page = offset & ~(PAGE - 1n);
    const bytes = pages.get(page) ?? new Uint8Array(Number(PAGE));
    new DataView(bytes.buffer).setBigUint64(Number(offset - page), BigInt.asUintN(64, value), true);
    pages.set(page, bytes);
  };
  put(USER_STACK + PAGE - 8n, base + USER_CODE);
  // Null, code and data of the supervisor, a hole, code and data of the user at 0x28 and 0x30.
  [0n, 0x00af9b000000ffffn, 0x00cf93000000ffffn, 0n, 0n, 0x00affb000000ffffn, 0x00cff3000000ffffn].forEach(
    (descriptor, number) => {
      put(DESCRIPTORS + 8n * BigInt(number), descriptor);
    },
  );
  for (let vector = 0n; vector < 32n; vector++) {
    const entry = base + EXCEPTIONS + 16n * vector;
    put(DESCRIPTORS + IDT + 16n * vector, gate(entry));
    put(DESCRIPTORS + IDT + 16n * vector + 8n, entry >> 32n);
  }
  for (let vcpu = 0; vcpu < vcpus; vcpu++) {
    // RSP0, at byte 4 of the TSS.
    const top = base + vcpuPage(vcpu) + PAGE;
    put(vcpuPage(vcpu), top << 32n);
    put(vcpuPage(vcpu) + 8n, top >> 32n);
  }
  const [directory, table] = [TABLES + PAGE, TABLES + 2n * PAGE];
  put(TABLES, (gpa + directory) | USERS);
  put(directory, (gpa + table) | USERS);
  for (let page = 0n; page < TABLES / PAGE; page++) {
    const isUsers = page * PAGE === USER_CODE || page * PAGE === USER_STACK;
    put(table + 8n * page, (gpa + page * PAGE) | (isUsers ? USERS : SUPERVISOR));
  }
  gigas.forEach((giga, number) => {
    const directMap = TABLES + PAGE * BigInt(3 + number);
    put(TABLES + 8n * (1n + giga), (gpa + directMap) | SUPERVISOR);
    for (let entry = 0n; entry < 512n; entry++)
      put(directMap + 8n * entry, (giga * GIGA + entry * LARGE) | SUPERVISOR | PS);
  });
  return pages;
}

/** An interrupt gate of the supervisor's: its low half. */
function gate(entry: bigint): bigint {
  return (entry & 0xffffn) | (KERNEL_CODE << 16n) | (0x8e00n << 32n) | (((entry >> 16n) & 0xffffn) << 48n);
}

/** Arguments of the helper for a scenario's machine. */
export function helperArguments(program: Program, stubs: Stubs, vcpus: number): string[] {
  const slots = program.machine.slots.map(
    ({ id, base, size, readonly }) => `${id}:0x${base.toString(16)}:0x${size.toString(16)}${readonly ? ':ro' : ''}`,
  );
  slots.push(`${stubs.slot}:0x${stubs.gpa.toString(16)}:0x${stubs.size.toString(16)}`);
  return ['--vcpus', `${Math.max(1, vcpus)}`, ...slots.flatMap((slot) => ['--slot', slot])];
}
