import assert from 'node:assert/strict';
import { planStubs, type Stubs } from '../../adapter/scenario-kvm/stubs.ts';
import { openRecording } from '../../adapter/trace/open.ts';
import { project } from '../../engine/history/project.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { roleField, roleWords } from '../../engine/kernel/role.ts';
import type { KvmRoles, KvmRoot, KvmTables } from '../../engine/kernel/tables.ts';
import type { Machine } from '../../engine/machine.ts';
import { parseScenario } from '../../scenario/index.ts';
import { STUBS } from './run-both.ts';

// What the shadow MMU tells of itself, so that two machines can be compared whose memory lies elsewhere.

const ADDRESS = 0xf_ffff_ffff_f000n;

/** What is compared: the code that makes the accesses has faults, pages and entries of its own. Asked in the order of the events. */
export interface Compared {
  /** The address of a fault, as far as it can be compared; undefined for none that counts. */
  fault(address: bigint): bigint | undefined;
  isPage(gfn: bigint, role: bigint, isZap: boolean): boolean;
  isEntry(gfn: bigint): boolean;
  /** Bits of a role. */
  readonly roleKnown: number;
}

/** The lab's processor, QEMU's, forgets P when a reserved bit faults (its mmu_translate): of such a fault P is not compared. */
const pferr = (code: bigint): string => `0x${((code & 8n) === 0n ? code : code & ~1n).toString(16)}`;

/** What both machines tell of an event, without where host memory lies; undefined for what only one of them can have. */
function told(recording: Recording, at: number, of: Compared): string | undefined {
  const { name, fields } = TRACEPOINTS[recording.kind(at)]!;
  const index = (wanted: string): number => fields.findIndex((each) => each.name === wanted);
  const field = (wanted: string): bigint => recording.value(at, index(wanted));
  const hex = (wanted: string): string => `0x${field(wanted).toString(16)}`;
  switch (name) {
    case 'kvm_page_fault': {
      const address = of.fault(field('fault_address'));
      return address === undefined ? undefined : `#PF 0x${address.toString(16)}, ${pferr(field('error_code'))}`;
    }
    case 'kvm_inj_exception':
      // One that the processor could not deliver at once comes again.
      return field('exception') === 14n && field('reinjected') === 0n ? `injects #PF, ${hex('error_code')}` : undefined;
    case 'kvm_mmu_get_page':
    case 'kvm_mmu_prepare_zap_page':
    case 'kvm_mmu_sync_page':
    case 'kvm_mmu_unsync_page': {
      if (!of.isPage(field('gfn'), field('role'), name === 'kvm_mmu_prepare_zap_page')) return undefined;
      const role = roleWords(Number(field('role')) & of.roleKnown, of.roleKnown);
      const created = name === 'kvm_mmu_get_page' ? (field('created') ? ', new' : ', existing') : '';
      return `${name.slice('kvm_mmu_'.length)} ${hex('gfn')}: ${role}, ${field('root_count')} roots${field('unsync') ? ', unsync' : ''}${created}`;
    }
    case 'kvm_mmu_set_spte':
      if (!of.isEntry(field('gfn'))) return undefined;
      return `set_spte ${hex('gfn')} level ${field('level')}: 0x${(field('spte') & ~ADDRESS).toString(16)}`;
    default:
      return undefined;
  }
}

/**
 * A vCPU's current root and those before it: for which CR3, in what role, and how many references they have. Of PAE roots, which no
 * kvm_mmu_page is for, the four pages that they lead to.
 */
/** The roles of each vCPU's MMUs, as the engine or the kernel has them. */
export function roles({ roles: told }: KvmTables, mmus: readonly KvmRoles['mmu'][] = ['root']): string[] {
  return (
    told!
      // What has never been used has no level.
      .filter(({ mmu, rootRole }) => mmus.includes(mmu) && (mmu === 'nested' || roleField(rootRole, 'level') !== 0))
      .map(
        ({ vcpu, mmu, rootRole, cpuRole: { base, ext } }) =>
          // nested_mmu has no root.
          `${mmu}_mmu of vCPU ${vcpu}: ${mmu === 'nested' ? '' : `root ${roleWords(rootRole)}; `}CPU ${roleWords(base)}, extended 0x${ext.toString(16)}`,
      )
  );
}

export function roots({ roots: list, tables }: KvmTables, isStub: (gfn: bigint) => boolean): string[] {
  const pageWords = (frame: number): string[] => {
    const { gfn, role, roleKnown, counts, entries } = tables.get(frame)!;
    if (roleKnown !== 0) return [`gfn 0x${gfn.toString(16)}, ${roleWords(role)}, ${counts!.roots} roots`];
    return [0, 1, 2, 3].flatMap((index) => {
      const entry = (BigInt(entries[2 * index + 1]!) << 32n) | BigInt(entries[2 * index]!);
      const child = tables.get(Number((entry & ADDRESS) >> 12n));
      if ((entry & 1n) === 0n || !child || isStub(BigInt(child.gfn))) return [];
      return pageWords(child.frame).map((words) => `${index}: ${words}`);
    });
  };
  return [...list]
    .sort((a, b) => place(a) - place(b))
    .map(
      ({ mmu, which, pgd, frame, invalid }) =>
        `${mmu === undefined ? '' : `${mmu} `}${which}: CR3 0x${pgd!.toString(16)}, ${pageWords(frame).join('; ')}${invalid ? ', invalid' : ''}`,
    );
}

/** Those of root_mmu first, of each the current one. */
const place = ({ mmu, which }: KvmRoot): number =>
  (mmu === undefined ? 0 : 10) + (which === 'current' ? 0 : 1 + Number(which));

/** @param own threads whose events count: on a machine that others use, theirs do not */
export function sequence(recording: Recording, of: Compared, own?: ReadonlySet<number>): string[] {
  return Array.from({ length: recording.length }, (_, at) =>
    own?.has(recording.pid(at)) === false ? undefined : told(recording, at, of),
  ).filter((each) => each !== undefined);
}

/** What the engine has done, as KVM would have told it. */
export function projected(machine: Machine): Recording {
  const lines = [...project(machine)].map(
    ({ step, event, text }, at) => `  task-1  [000] ..... ${step}.${`${at}`.padStart(6, '0')}: ${event}: ${text}\n`,
  );
  return openRecording(new TextEncoder().encode(`# tracer: nop\n#\n${lines.join('')}`));
}

/**
 * What KVM tells besides the engine, by the function of KVM's that does it. make_spte, until Linux 6.13: an entry that was synchronized
 * has no A, so that a fault which finds it there sets it once more.
 */
export function allowed(
  engine: readonly string[],
  kvm: readonly string[],
  [major, minor]: readonly number[],
): string[] {
  const once = withoutRetries(engine, kvm);
  if (major! > 6 || (major === 6 && minor! >= 13)) return once;
  const kept: string[] = [];
  let isSynced = false;
  once.forEach((event, at) => {
    isSynced ||= event.startsWith('sync_page') || event.endsWith(', unsync, existing');
    const isAgain = isSynced && event.startsWith('set_spte') && once[at + 1] === engine[kept.length];
    if (event === engine[kept.length] || !isAgain) kept.push(event);
  });
  return kept;
}

/**
 * mmu_sync_children gives up behind a page that it has synchronized where another task wants the processor, and the fault is tried again: told
 * are the fault and the pages on its way once more. Accepted where that is all, and the next event lines up.
 */
function withoutRetries(engine: readonly string[], kvm: readonly string[]): string[] {
  const kept: string[] = [];
  for (let at = 0; at < kvm.length; at++) {
    const event = kvm[at]!;
    const first = kept.lastIndexOf(event);
    const isRetry =
      event.startsWith('#PF') &&
      kept.at(-1)?.startsWith('sync_page') &&
      first >= 0 &&
      !kept.slice(first + 1).some((each) => each.startsWith('#PF'));
    let next = at + 1;
    while (isRetry && kvm[next]?.startsWith('get_page') && kept.indexOf(kvm[next]!, first) >= 0) next++;
    if (isRetry && engine[kept.length] !== event && kvm[next] === engine[kept.length]) at = next - 1;
    else kept.push(event);
  }
  return kept;
}

export const isStub = (gfn: bigint): boolean => gfn >= BigInt(STUBS.first) && gfn < BigInt(STUBS.end);
/**
 * The guests' own tables lie at the end of the first slot, and from 8M up, and frame 0 is one where CR4.PSE = 0 makes a table of a
 * large page: only the stubs' mapping of all memory maps them.
 */
const isTable = (gfn: bigint): boolean =>
  (gfn >= 0xf00n && gfn < 0x1000n) || (gfn >= 0x800n && gfn < 0x900n) || gfn === 0n;

/** Where the code that makes a program's accesses on KVM lies in the guest's address space, and how it is mapped. */
export function stubsOf(text: string): Stubs {
  const { program } = parseScenario(text);
  const [stubs] = planStubs(program!, 1).values();
  assert.ok(stubs && isStub(stubs.gpa >> 12n));
  return stubs;
}

/** Direct pages shadow the large pages that the stubs have in long mode; the scenario has none. */
export const comparedOf = ({ paging, base, end }: Stubs): Compared => ({
  fault: (address) => (address < base || address >= end ? address : undefined),
  isPage: (gfn, role) => !isStub(gfn) && (paging !== '4-level' || (role & 0x80n) === 0n),
  isEntry: (gfn) => !isStub(gfn) && !isTable(gfn),
  roleKnown: 0x0001_1fff,
});
