import { jsonAnswer } from './json-answer.ts';
import { quote, RspError } from './packet.ts';

/** A memslot, and where its memory lies in the helper's memfd. Addresses and sizes in bytes. */
export interface KvmSlot {
  readonly id: number;
  readonly gpa: bigint;
  readonly size: bigint;
  /** `ro`, `log`, `private`. */
  readonly flags: readonly string[];
  readonly offset: bigint;
}

const SECOND_STAGES = ['ept', 'npt', 'shadow'] as const;

/** What `qKvm.Info` says of the helper's machine (native/PROTOCOL.md). */
export interface KvmInfo {
  readonly version: number;
  readonly pid: number;
  /** The kernel's own number of its boot, by which a client knows that it is on the same machine; empty if it was not told. */
  readonly boot: string;
  /** What KVM translates guest-physical addresses with: the processor's tables of Intel or AMD, or shadow tables. */
  readonly secondStage: (typeof SECOND_STAGES)[number];
  /** The memfd in the helper's process, and its inode. */
  readonly memory: {
    readonly fd: number;
    readonly inode: number;
    readonly slots: readonly KvmSlot[];
    /** Private memory, in order: of slots with a guest_memfd the host sees none of it. */
    readonly private: readonly { readonly gpa: bigint; readonly size: bigint }[];
  };
  readonly vcpus: number;
  /** The vCPUs' threads in their order, as tracepoints name them; absent where the helper cannot know them. */
  readonly threads?: readonly number[];
  /** Bits of a physical address. */
  readonly maxphyaddr: number;
  /** Whether the guest's CPUID has pages of 1G, and its vendor, whose reserved bits differ. */
  readonly pages1g: boolean;
  readonly vendor: string;
  /** Per capability why the host lacks it, in words; empty when it is there. */
  readonly has: Readonly<Record<string, string>>;
}

const { parse, record, list, count, words, address } = jsonAnswer('qKvm.Info');

/** The answer to `qKvm.Info`. Members that are not known here are a newer helper's, and left alone. @throws RspError */
export function parseInfo(text: string): KvmInfo {
  const info = parse(text);
  const version = count(info, 'version');
  if (version !== 1) throw new RspError(`the helper speaks version ${version} of its protocol; 1 is understood`);
  const memory = record(info.memory, 'memory');
  const has = record(info.has, 'has');
  const said = words(info, 'secondStage');
  const secondStage = SECOND_STAGES.find((each) => each === said);
  if (secondStage === undefined)
    throw new RspError(`secondStage in the answer to qKvm.Info is ${quote(said)}, none of ${SECOND_STAGES.join(', ')}`);
  return {
    version,
    pid: count(info, 'pid'),
    boot: typeof info.boot === 'string' ? info.boot : '',
    secondStage,
    memory: {
      fd: count(memory, 'fd'),
      inode: count(memory, 'inode'),
      slots: list(memory, 'slots').map(parseSlot),
      private: memory.private === undefined ? [] : list(memory, 'private').map(parseRange),
    },
    vcpus: count(info, 'vcpus'),
    ...(info.threads === undefined ? {} : { threads: list(info, 'threads').map(parseThread) }),
    maxphyaddr: count(info, 'maxphyaddr'),
    pages1g: info.pages1g === true,
    vendor: words(info, 'vendor'),
    has: Object.fromEntries(Object.keys(has).map((name) => [name, words(has, name)])),
  };
}

function parseThread(value: unknown): number {
  return count({ 'a thread': value }, 'a thread');
}

function parseRange(value: unknown): { gpa: bigint; size: bigint } {
  const [gpa, size] = Array.isArray(value) ? value : [];
  const range = { 'where private memory begins': gpa, 'its size': size };
  return { gpa: address(range, 'where private memory begins'), size: address(range, 'its size') };
}

function parseSlot(value: unknown): KvmSlot {
  const slot = record(value, 'a slot');
  return {
    id: count(slot, 'id'),
    gpa: address(slot, 'gpa'),
    size: address(slot, 'size'),
    flags: words(slot, 'flags')
      .split('+')
      .filter((flag) => flag !== ''),
    offset: address(slot, 'offset'),
  };
}
