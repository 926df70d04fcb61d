import { GUEST_ASID, ownerWords, type RmpEntry } from '../attributes/state.ts';
import { frameOf } from '../attributes/tdx.ts';
import { rightsOf, rightsWords } from '../attributes/vmpl.ts';
import { LEAF, TABLE } from '../formats/compile.ts';
import { decodeEntry } from '../formats/decode.ts';
import type { Machine } from '../machine.ts';
import { backingPfn, hostMappingLevel, type Memslot } from '../memory/memslots.ts';
import { tlbSpan } from '../memory/tlb.ts';
import { formatSize, frameToAddress, type Gfn, hex, type Pfn } from '../memory/words.ts';
import { rmapKey } from '../shadow/state.ts';
import { findEntry } from '../tdp/iterate.ts';
import { isPresent, spteFormat, spteNote } from '../tdp/spte.ts';
import { REQ_TLB_FLUSH } from '../vcpu.ts';
import type { PageAnswer, PageRow, TableQuery } from './answers.ts';
import { conversionProgress } from './attribute-map.ts';
import { needPrivateMemory } from './attributes.ts';
import { frameKinds, knowsFrames, type StageRoot, stageNames, stageRoots } from './memory-stages.ts';
import { MemoryState, PRIVATE, SHARED } from './memory-state.ts';

const PAGES_2M = 512;
const address = (frame: number): string => hex(frameToAddress(frame));
const kind = (isPrivate: boolean): string => (isPrivate ? 'private' : 'shared');
const sizeOf = (level: number): string => formatSize(4096 * PAGES_2M ** (level - 1));

function exact(name: string, words: string, more: Partial<PageRow> = {}): PageRow {
  return { name, words, certainty: 'exact', ...more };
}

/**
 * What must not be. While a conversion of the page has not returned what does not fit yet may still follow, and of the past nobody
 * remembers which were under way.
 */
function wrong(state: MemoryState, gfn: Gfn, isWrong: boolean): Pick<PageRow, 'mark'> {
  const isConverted = state.conversions.some(({ start, end }) => start <= gfn && gfn < end);
  return isWrong && state.at === undefined && !isConverted ? { mark: 'problem' } : {};
}

function slotRow(slot: Memslot | undefined): PageRow {
  if (!slot) return exact('memslot', 'none: an access is MMIO');
  const flags = [
    ...(slot.gmem ? ['guest_memfd'] : ['no guest_memfd: it can have no private pages']),
    ...(slot.readonly ? ['read-only'] : []),
    ...(slot.logDirty ? ['dirty logging'] : []),
    ...(slot.invalid ? ['invalid: it is being changed'] : []),
  ];
  return exact(
    'memslot',
    `slot ${slot.id}, gpa ${address(slot.base)} +${formatSize(slot.pages * 4096)}: ${flags.join(', ')}`,
  );
}

/** snp_lookup_rmpentry, at the state's moment. */
function rmpEntryOf({ rmp }: MemoryState, pfn: Pfn): RmpEntry | undefined {
  const large = rmp.get(pfn - (pfn % PAGES_2M));
  return large?.level === 2 ? { ...large, gfn: large.gfn + (pfn % PAGES_2M) } : rmp.get(pfn);
}

function rmpRow(state: MemoryState, gfn: Gfn, pfn: Pfn): PageRow {
  const entry = rmpEntryOf(state, pfn);
  if (!entry) return exact('RMP entry', 'the frame is the hypervisor’s');
  const isOwn = entry.asid === GUEST_ASID;
  const rights = [1, 2, 3].map((vmpl) => `VMPL ${vmpl} ${rightsWords(rightsOf(entry, vmpl))}`);
  const words = [
    `${ownerWords(entry)}, as gpa ${address(entry.gfn)}`,
    sizeOf(entry.level),
    entry.validated ? 'validated' : 'not validated',
    ...(entry.rights === 0 ? [] : rights),
  ];
  return exact('RMP entry', words.join(', '), wrong(state, gfn, !isOwn || entry.gfn !== gfn));
}

const RMP_CHECKS: PageRow = {
  name: 'RMP checks',
  words: 'owner, ASID, gfn, size, acceptance, VMPL, in this order; of the guest’s tables as for reads',
  certainty: 'exact',
  mark: 'unverified',
};

function directMapWords({ split, holes }: MemoryState, pfn: Pfn): string {
  if (holes.get(pfn)) return 'left out';
  return split.get(Math.floor(pfn / PAGES_2M)) ? 'mapped, its 2M split to 4K' : 'mapped with 2M';
}

/** Rows about both frames that may be behind a page, where a slot has guest_memfd. */
function frameRows(state: MemoryState, slot: Memslot, gfn: Gfn): PageRow[] {
  const { machine } = state;
  const shared = backingPfn(slot, gfn);
  const backing = `userspace’s mapping, in pages of ${sizeOf(hostMappingLevel(slot, gfn))}`;
  if (!slot.gmem) return [exact('frame', backing, { value: address(shared) })];
  const pfn = backingPfn(slot, gfn, slot.gmem);
  const has = state.folios.get(pfn) === undefined ? 'guest_memfd has no page there yet' : 'guest_memfd has the page';
  return [
    ...(pfn === shared
      ? [exact('frame', 'one for both kinds: pages are converted in place', { value: address(pfn) })]
      : [exact('shared frame', backing, { value: address(shared) })]),
    exact(pfn === shared ? 'guest_memfd' : 'private frame', has, pfn === shared ? {} : { value: address(pfn) }),
    ...(machine.vm === 'snp' ? [rmpRow(state, gfn, pfn), RMP_CHECKS] : []),
    exact('direct map', `the private frame is ${directMapWords(state, pfn)}`),
  ];
}

/** The entry of a second stage at which a walk for a page ends. */
function stageRow(
  state: MemoryState,
  name: string,
  { root, offset, format, tables, certainty }: StageRoot,
  slot: Memslot | undefined,
  gfn: Gfn,
): PageRow {
  const isKnown = knowsFrames(state.machine);
  if (!isKnown && state.at !== undefined) return { name, words: 'not remembered of the past', certainty: 'unknown' };
  if (root < 0) return exact(name, 'no root yet: KVM makes it when a vCPU first enters the guest');
  const row = (words: string, more: Partial<PageRow>): PageRow => ({ ...exact(name, words, more), certainty });
  const input = gfn + offset;
  let [table, level] = [root, format.rootLevel];
  for (;;) {
    const index = format.indexOf(input, level);
    const page = tables.page(table);
    const [lo, hi] = [page[2 * index]!, page[2 * index + 1]!];
    const entry = format.classify(level, lo);
    if (level > 1 && entry === TABLE) {
      table = format.frame(level, lo, hi);
      level--;
      continue;
    }
    const span = format.span[level]!;
    const where = format.level(level).entry;
    const place: Pick<PageRow, 'table'> =
      state.at === undefined ? { table: tableQuery(table, level, input - (input % (span * PAGES_2M))) } : {};
    if (entry !== LEAF || !isPresent(lo)) {
      const note = spteNote(spteFormat(format), lo, hi) ?? decodeEntry(format, level, lo, hi).state;
      return row(`not mapped: ${where} ${index} (level ${level}) is ${note}`, place);
    }
    const target = format.frame(level, lo, hi) + (gfn % span);
    const kinds = slot ? frameKinds(slot, gfn, target) : 0;
    const isPrivate = state.isPrivate(gfn);
    const right = isPrivate ? PRIVATE : SHARED;
    const what =
      kinds === 3 || !isKnown
        ? 'the frame'
        : kinds === 0
          ? 'a frame that is not the page’s'
          : `the ${kind(kinds === PRIVATE)} frame`;
    const rights = decodeEntry(format, level, lo, hi).rights.slice(0, 3);
    const stale = isKnown && (kinds & right) === 0;
    const words = [
      `${where} ${index} (level ${level}, ${sizeOf(level)}) maps ${what}, ${rights}`,
      ...((lo & format.dirtyLo) !== 0 ? ['dirty'] : []),
      ...(stale ? [`stale: the page is ${kind(isPrivate)}`] : []),
    ];
    return row(words.join(', '), {
      value: address(target),
      ...place,
      ...wrong(state, gfn, stale),
    });
  }
}

/** What the TDX module has for a page, where the mirror says that it has something, or where it blocks it. */
function moduleRows({ machine, at }: MemoryState, mirror: StageRoot | undefined, gfn: Gfn): PageRow[] {
  if (!mirror || mirror.root < 0) return [];
  if (at !== undefined) return [{ name: 'S-EPT', words: 'not remembered of the past', certainty: 'unknown' }];
  const root = machine.page(mirror.root).external;
  if (root === undefined) return [];
  const format = machine.secondFormat;
  const { level, lo, hi } = findEntry(machine, root, gfn);
  if (level > 1 || (lo === 0 && hi === 0)) return [exact('S-EPT', 'the TDX module has no page there')];
  const pfn = format.frame(level, lo, hi);
  const words = [
    'the TDX module has the page',
    ...(format.classify(level, lo) === LEAF ? [] : ['blocked (TDH.MEM.RANGE.BLOCK)']),
    ...(machine.attributes.pending.get(pfn) ? ['pending: the guest has not accepted it (TDG.MEM.PAGE.ACCEPT)'] : []),
  ];
  const isPoisoned = machine.attributes.poisoned.get(pfn) === true;
  if (isPoisoned) words.push('the host has written to it: who reads it takes a machine check');
  return [exact('S-EPT', words.join(', '), { value: address(pfn), ...(isPoisoned ? { mark: 'problem' } : {}) })];
}

function tableQuery(table: Pfn, level: number, base: Gfn): TableQuery {
  return { kind: 'table', space: 'second', vcpu: 0, table: address(table), level, base: address(base) };
}

/** Translations in TLBs by which vCPUs reach a page. */
function tlbRows(state: MemoryState, slot: Memslot | undefined, gfn: Gfn): PageRow[] {
  if (state.at !== undefined) return [{ name: 'TLBs', words: 'not remembered of the past', certainty: 'unknown' }];
  const { vcpus } = state.machine;
  return vcpus.flatMap(({ id, tlb, requests }) => {
    // Requests are handled before the guest is entered.
    const isFlushed = Math.floor(requests / REQ_TLB_FLUSH) % 2 === 1;
    const found = tlb.list().filter((entry) => {
      const span = tlbSpan(entry.level);
      return Math.floor(entry.gfn / span) === Math.floor(gfn / span);
    });
    return found.map((entry) => {
      const span = tlbSpan(entry.level);
      const pfn = entry.pfn - (entry.pfn % span) + (gfn % span);
      const kinds = slot ? frameKinds(slot, gfn, pfn) : 0;
      const isPrivate = state.isPrivate(gfn);
      const stale = (kinds & (isPrivate ? PRIVATE : SHARED)) === 0;
      const gva = hex(frameToAddress(entry.vfn - (entry.vfn % span) + (gfn % span)));
      const made = entry.isPrivate === undefined ? '' : `, made by a ${kind(entry.isPrivate)} access`;
      return exact(
        `TLB of vCPU ${id}`,
        `gva ${gva}, ${sizeOf(entry.level)}${made}${stale ? `; stale: the page is ${kind(isPrivate)}` : ''}${isFlushed ? '; flushed before the vCPU enters the guest again' : ''}`,
        { value: address(pfn), ...wrong(state, gfn, stale && !isFlushed) },
      );
    });
  });
}

function mixedRow(state: MemoryState, slot: Memslot, gfn: Gfn, level: 2 | 3): PageRow {
  const span = PAGES_2M ** (level - 1);
  const first = gfn - (gfn % span);
  const name = `${sizeOf(level)} around it`;
  if (first < slot.base || first + span > slot.base + slot.pages)
    return exact(name, 'sticks out of the slot: never mapped as one page');
  const isMixed = state.kinds(first, first + span) === 3;
  const isNoted = state.mixed.get(rmapKey(level, first)) === true;
  const words = `${isMixed ? 'private and shared pages' : 'all pages alike'}, ${isNoted ? 'noted as mixed' : 'not noted as mixed'}`;
  return exact(name, words, wrong(state, gfn, isMixed !== isNoted));
}

function underWayRows(state: MemoryState, gfn: Gfn): PageRow[] {
  const { machine } = state;
  const rows: PageRow[] = state.conversions
    .filter(({ start, end }) => start <= gfn && gfn < end)
    .map(({ task, start, end, isPrivate }) => {
      const of = machine.tasks[task];
      const { fn, step, text, page } = conversionProgress(of, start, end);
      const where =
        fn === undefined ? '' : `; in ${fn}, next: ${step ?? 'return'}${text === undefined ? '' : ` (${text})`}`;
      const here = page === undefined ? '' : page === address(gfn) ? '; this page is next' : `; page ${page} is next`;
      return exact(
        'conversion',
        `${of?.name ?? `task ${task}`} makes gpa ${address(start)} +${formatSize((end - start) * 4096)} ${kind(isPrivate)}${where}${here}`,
        { mark: 'here' },
      );
    });
  const { inProgress, start, end, seq } = state.invalidation;
  if (inProgress > 0 && start <= gfn && gfn < end)
    rows.push(
      exact(
        'invalidation',
        `gpa ${address(start)} +${formatSize((end - start) * 4096)} is being invalidated (${inProgress} under way, sequence ${seq}): faults retry`,
        state.at === undefined ? { mark: 'here' } : {},
      ),
    );
  return rows;
}

const FRAMES_UNTOLD: PageRow = {
  name: 'frames',
  words: 'KVM does not tell which are behind the page, nor what TLBs have of it',
  certainty: 'unknown',
};

/** All that is known of a page, as rows. @throws Error where the log does not reach */
export function pageAnswer(machine: Machine, gpa: string, at: number | undefined): PageAnswer {
  needPrivateMemory(machine);
  const gfn = frameOf(machine, BigInt(gpa));
  const limit = 2 ** 40;
  if (gfn >= limit) throw new Error(`gpa ${gpa} lies beyond bit 51`);
  const state = new MemoryState(machine, at);
  const slot = state.slots.find(gfn);
  const isPrivate = state.isPrivate(gfn);
  const roots = stageRoots(state);
  const rows = [
    exact('gpa', `gfn ${hex(gfn)}`, { value: address(gfn) }),
    exact('attribute', isPrivate ? 'private (KVM_MEMORY_ATTRIBUTE_PRIVATE)' : 'shared'),
    ...underWayRows(state, gfn),
    slotRow(slot),
    ...(slot ? (knowsFrames(machine) ? frameRows(state, slot, gfn) : [FRAMES_UNTOLD]) : []),
    ...stageNames(machine).map((name, stage) => stageRow(state, name, roots[stage]!, slot, gfn)),
    ...moduleRows(state, roots[1], gfn),
    ...(knowsFrames(machine) ? tlbRows(state, slot, gfn) : []),
    ...(slot?.gmem && knowsFrames(machine) ? ([2, 3] as const).map((level) => mixedRow(state, slot, gfn, level)) : []),
    ...(at === undefined
      ? []
      : [{ name: 'conversions', words: 'which were under way is not remembered', certainty: 'unknown' } as const]),
  ];
  return { kind: 'page', certainty: 'exact', gpa: address(gfn), sentence: sentenceOf(slot, isPrivate, rows), rows };
}

function sentenceOf(slot: Memslot | undefined, isPrivate: boolean, rows: readonly PageRow[]): string {
  if (!slot) return 'No memory: no slot holds this page';
  const problems = rows.filter(({ mark }) => mark === 'problem').map(({ name }) => name);
  const problem = problems.length === 0 ? '' : `; not as it should be: ${problems.join(', ')}`;
  const converting = rows.some(({ name }) => name === 'conversion') ? ', being converted' : '';
  return `A ${kind(isPrivate)} page of slot ${slot.id}${converting}${problem}`;
}
