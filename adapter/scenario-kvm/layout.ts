import type { PagingName } from '../../engine/guest/registers.ts';

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
 *     behind them       of a guest that runs guests: nested tables that map the slot where it is, the page in which the processor
 *                       keeps the guest's state, a VMCB for each vCPU
 */
export const PAGE = 4096n;
export const USER_CODE = 0x1000n;
export const USER_STACK = 0x2000n;
export const DESCRIPTORS = 0x3000n;
export const IDT = 0x800n;
const VCPU_PAGES = 0x4000n;
export const TABLES = 0x20000n;
export const MOST_VCPUS = Number((TABLES - VCPU_PAGES) / PAGE);
export const LARGE = 1n << 21n;
export const FOUR_GIGA = 1n << 32n;
/** Where 32-bit code begins. */
export const LOAD_TSS = 0x80n;
export const EXCEPTIONS = 0x100n;
export const ACTIONS = 0x400n;
export const KERNEL_CODE = 0x08n;
export const KERNEL_DATA = 0x10n;
export const USER_DATA = 0x33n;
/** Behind the user's data segment. */
export const tssSelector = (vcpu: number): bigint => 0x38n + 8n * BigInt(vcpu);

/** Entries: present, writable, accessed, dirty; the user's besides; large. */
export const SUPERVISOR = 0x63n;
export const USERS = 0x67n;
export const PS = 0x80n;
/** A PDPTE of PAE: everything but P is reserved, or of no use. */
const P = 1n;

/** How a paging mode's stubs are mapped. Where KVM may meet CR4.PSE = 0 there are no large pages. */
export interface Layout {
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

export const LAYOUTS = {
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

/** Bytes of an entry of the IDT. */
export const gateBytes = (paging: PagingName): bigint => (isNarrow(paging) ? 8n : 16n);

export const vcpuPage = (vcpu: number): bigint => VCPU_PAGES + BigInt(vcpu) * PAGE;
export const vcpuStack = ({ base }: { readonly base: bigint }, vcpu: number): bigint => base + vcpuPage(vcpu) + PAGE;
