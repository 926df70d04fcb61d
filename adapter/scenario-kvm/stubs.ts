import type { PagingName } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
import type { Mapping, Program, Statement } from '../../engine/program.ts';
import {
  FOUR_GIGA,
  isStubPaging,
  LARGE,
  LAYOUTS,
  type Layout,
  MOST_VCPUS,
  PAGE,
  type StubPaging,
  SUPERVISOR,
  TABLES,
  USERS,
} from './layout.ts';
import { stubPages } from './stub-pages.ts';

/** The first of their slots. */
const SLOT = 32000;

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
  /** Of guests that run guests. */
  readonly nested?: StubsNested;
  /** Bytes of the slot by offset, but for the code. */
  readonly pages: ReadonlyMap<bigint, Uint8Array>;
}

/** How L1's guests get at the stubs: at the same addresses, guest-physical ones too. */
export interface StubsNested {
  /** What stands in the root of L1's nested tables. */
  readonly index: number;
  readonly entry: bigint;
  /** Offsets in the slot: of the tables behind that entry, of the page for VM_HSAVE_PA, of vCPU 0's VMCB. */
  readonly tables: bigint;
  readonly hostSave: bigint;
  readonly vmcbs: bigint;
}

/** Virtual address by which the stubs see a guest-physical one. */
export function directAddress({ paging, base, chunks }: Stubs, gpa: bigint): bigint {
  const { chunk } = LAYOUTS[paging];
  const place = chunks.indexOf(gpa / chunk);
  if (place < 0) throw new RangeError(`gpa ${hex(gpa)} lies in no memory that the stubs map`);
  return base + BigInt(1 + place) * chunk + (gpa % chunk);
}

function* statements(body: readonly Statement[]): Generator<Statement> {
  for (const statement of body) {
    yield statement;
    if (statement.kind === 'repeat' || statement.kind === 'enter' || statement.kind === 'smm')
      yield* statements(statement.body);
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
  const nests = all.some(({ kind }) => kind === 'enter');
  if (nests) ends.push(...nestedMappings(program).map(({ gva, size }) => gva + size));
  let gpa = 0n;
  for (const end of ends) if (end > gpa) gpa = end;
  // Nested tables map the slot where it is, by an entry of their root that the scenario does not use.
  gpa = roundUp(gpa, nests ? 1n << LAYOUTS['4-level'].rootShift : LARGE);
  const planned = new Map<PagingName, Stubs>();
  for (const paging of new Set(program.guests.map((guest) => guest.paging ?? '4-level'))) {
    if (!isStubPaging(paging)) continue;
    const stubs = planMode({ paging, gpa, slot: SLOT + planned.size, used, slots, vcpus, nests });
    planned.set(paging, stubs);
    gpa += stubs.size;
  }
  return planned;
}

/** What the scenario maps in L1's tables for its guests. */
export const nestedMappings = (program: Program): Mapping[] => [
  ...program.guests.flatMap(({ nested, mappings }) => (nested ? mappings : [])),
  ...statementsOf(program).flatMap((each) => (each.kind === 'map' && each.nested !== undefined ? [each.mapping] : [])),
];

const roundUp = (address: bigint, size = LARGE): bigint => (address + size - 1n) & ~(size - 1n);

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
  /** The scenario has nested guests. */
  readonly nests: boolean;
}

function planMode({ paging, gpa, slot, used, slots, vcpus, nests }: Place): Stubs {
  const layout: Layout = LAYOUTS[paging];
  const { rootShift, rootEntries, between, chunk } = layout;
  const chunks = chunksOf(slots, chunk);
  const behind = TABLES + PAGE * BigInt(between + 1 + chunks.length);
  const nested =
    nests && paging === '4-level'
      ? {
          index: Number(gpa >> rootShift),
          entry: (gpa + behind) | USERS,
          tables: behind,
          hostSave: behind + 2n * PAGE,
          vmcbs: behind + 3n * PAGE,
        }
      : undefined;
  const size = roundUp(nested ? nested.vmcbs + PAGE * BigInt(vcpus) : behind);
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
    ...(nested ? { nested } : {}),
  };
  return {
    ...place,
    end: base + BigInt(1 + chunks.length) * chunk,
    pages: stubPages(place, layout, vcpus, chunkEntries),
  };
}

function range(first: bigint, last: bigint): bigint[] {
  return Array.from({ length: Number(last - first) + 1 }, (_, step) => first + BigInt(step));
}

/** Arguments of the helper for a scenario's machine. */
export function helperArguments(program: Program, stubs: Iterable<Stubs>, vcpus: number): string[] {
  const slots = program.machine.slots.map(
    ({ id, base, size, readonly, gmemLevel }) =>
      `${id}:0x${base.toString(16)}:0x${size.toString(16)}${readonly ? ':ro' : gmemLevel === undefined ? '' : ':private'}`,
  );
  for (const { slot, gpa, size } of stubs) slots.push(`${slot}:0x${gpa.toString(16)}:0x${size.toString(16)}`);
  const { vm } = program.machine;
  const type = vm === 'software-protected' ? ['--vm-type', vm] : [];
  return [...type, '--vcpus', `${Math.max(1, vcpus)}`, ...slots.flatMap((slot) => ['--slot', slot])];
}
