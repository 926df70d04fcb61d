import { ABSENT, type Format, LEAF, TABLE } from '../formats/compile.ts';
import { decodeEntry } from '../formats/decode.ts';
import { untranslatable } from '../guest/access.ts';
import { PFERR_FETCH, PFERR_USER, PFERR_WRITE } from '../guest/permission.ts';
import { finishWalk, type Reference, startWalk, type Walk } from '../guest/walk.ts';
import { isMemoryKind, Kind } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, frameToAddress, hex, hexWords, type Pfn, pageOffset } from '../memory/words.ts';
import { describeWalkFault } from '../tdp/explain-fault.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import { spteFormat, spteNote } from '../tdp/spte.ts';
import type {
  AddressField,
  Answer,
  EntryRun,
  HistoryAnswer,
  Query,
  ReferenceAnswer,
  RootAnswer,
  TableAnswer,
  TableQuery,
  WalkAnswer,
} from './answers.ts';
import { readOnlyMemory } from './translate.ts';
import { faultSentence } from './words.ts';

/** What a question may know beyond the machine: where the last stop was, and the fault it stopped at. */
export interface Moment {
  /** Log position of the stop before; entries set since then are marked. */
  readonly since: number;
  readonly fault: FaultInfo | undefined;
}

/** An answer and the host frames that it was read from: it can change only when one of them does. */
export interface Read {
  readonly answer: Answer;
  readonly frames: ReadonlySet<Pfn>;
}

/** Answers a question. Never throws: what cannot be answered is an `error` answer that says why. */
export function answer(machine: Machine, query: Query, moment: Moment): Read {
  const frames = new Set<Pfn>();
  try {
    return { answer: dispatch(machine, query, moment, frames), frames };
  } catch (error) {
    return { answer: { kind: 'error', message: (error as Error).message }, frames };
  }
}

function dispatch(machine: Machine, query: Query, moment: Moment, frames: Set<Pfn>): Answer {
  switch (query.kind) {
    case 'walk':
      return walkAnswer(machine, query, frames);
    case 'table':
      return tableAnswer(machine, query, moment, frames);
    case 'roots':
      return { kind: 'roots', certainty: 'exact', roots: rootAnswers(machine) };
    case 'slots':
      return {
        kind: 'slots',
        certainty: 'exact',
        generation: machine.slots.generation,
        slots: machine.slots.list.map((slot) => ({
          id: slot.id,
          gpa: hex(frameToAddress(slot.base)),
          size: slot.pages * 4096,
          hpa: hex(frameToAddress(slot.backing.pfn)),
          pageSize: 4096 * 512 ** (slot.backing.pageLevel - 1),
          readonly: slot.readonly,
          logDirty: slot.logDirty,
          invalid: slot.invalid,
        })),
      };
    case 'costs':
      return {
        kind: 'costs',
        certainty: 'exact',
        steps: machine.steps,
        counters: Object.fromEntries(machine.counterList()),
      };
    case 'history':
      return historyAnswer(machine, query);
  }
}

// ---- walks

function walkAnswer(machine: Machine, query: Extract<Query, { kind: 'walk' }>, frames: Set<Pfn>): WalkAnswer {
  const vcpu = machine.vcpu(query.vcpu);
  const asked = BigInt(query.address);
  const kind = query.access ?? 'read';
  const cpl = query.cpl ?? 0;
  const implicit = query.implicit ?? false;
  // A guest-physical question is a walk of the second stage alone.
  const mode = query.space === 'gva' ? vcpu.mode : { ...vcpu.mode, paging: false };
  // Where nobody accesses, AC excuses a supervisor's look at a user page.
  const asking = query.access === undefined ? { ...mode, ac: true } : mode;
  const access = { kind, address: asked, size: 1, value: 0n, cpl, implicit };
  const bits =
    (kind === 'write' ? PFERR_WRITE : kind === 'fetch' ? PFERR_FETCH : 0) | (cpl === 3 && !implicit ? PFERR_USER : 0);
  const base = {
    kind: 'walk',
    certainty: 'exact',
    vcpu: vcpu.id,
    space: query.space,
    address: hex(asked),
    access: kind,
    cpl,
    implicit,
    paging: mode.paging,
    fields: addressFields(mode.paging ? mode.format : machine.secondFormat, asked),
    registers: registersThatCount(machine, vcpu.id, mode.paging),
  } as const;
  const second = vcpu.second;
  const problem = query.space === 'gva' ? untranslatable(vcpu.mode, asked) : undefined;
  if (problem !== undefined)
    return {
      ...base,
      second: second?.kind ?? 'none',
      references: [],
      outcome: { status: 'untranslatable', reason: problem },
      sentence: problem,
    };
  const trace: Reference[] = [];
  const walk = startWalk(asking, second, addressToFrame(asked), { bits, implicit });
  finishWalk(walk, asking, second, readOnlyMemory(machine), trace);
  for (const reference of trace) frames.add(reference.pfn);
  const references = trace.map((reference, index) =>
    referenceAnswer(machine, mode.format, reference, index, index === trace.length - 1),
  );
  const tail = { second: second?.kind ?? ('none' as const), references };
  if (walk.status === 'done') {
    const gpa = frameToAddress(walk.gfn, pageOffset(asked));
    const guestSize = mode.paging ? mode.format.span[walk.leafLevel]! * 4096 : undefined;
    if (!second) {
      const reason =
        walk.pfn < 0
          ? 'no slot holds this gpa: an access is MMIO'
          : 'KVM has no tables yet: the first access will fault';
      return {
        ...base,
        ...tail,
        outcome: {
          status: 'no-root',
          gpa: hex(gpa),
          ...(guestSize ? { guestSize, rights: rights(walk) } : {}),
          reason,
        },
        sentence: `${query.space} ${hex(asked)} is gpa ${hex(gpa)}; ${reason}`,
      };
    }
    const hpa = frameToAddress(walk.pfn, pageOffset(asked));
    const secondSize = second.format.span[walk.secondLeafLevel]! * 4096;
    return {
      ...base,
      ...tail,
      outcome: {
        status: 'done',
        gpa: hex(gpa),
        hpa: hex(hpa),
        ...(guestSize ? { guestSize, rights: rights(walk) } : {}),
        secondSize,
        reason: 'the translation succeeds',
      },
      sentence: `${query.space} ${hex(asked)} is gpa ${hex(gpa)} and hpa ${hex(hpa)}: ${walk.references} memory references`,
    };
  }
  const fault = describeWalkFault(vcpu.id, walk, asking, second, access);
  return {
    ...base,
    ...tail,
    outcome: {
      status: walk.status === 'running' ? 'guest-fault' : walk.status,
      ...(fault.gpa === undefined ? {} : { gpa: hex(fault.gpa) }),
      errorCode: hex(fault.errorCode),
      ...(fault.kind === 'guest' ? {} : { exitInfo: hex(fault.exitInfo) }),
      reason: fault.reason,
    },
    sentence: faultSentence(fault),
  };
}

function rights(walk: Walk): string {
  return `r${walk.access & 2 ? 'w' : '-'}${walk.access & 1 ? 'x' : '-'}${walk.access & 4 ? 'u' : 's'}`;
}

function addressFields(format: Format, address: bigint): AddressField[] {
  const fields = [...format.spec.levels].map(({ level, entry }) => {
    const low = 12 + 9 * (level - 1);
    return { name: entry, level, bits: [low + 8, low] as const, value: Number((address >> BigInt(low)) & 511n) };
  });
  return [...fields, { name: 'offset', level: 0, bits: [11, 0], value: pageOffset(address) }];
}

function registersThatCount(machine: Machine, vcpu: number, paging: boolean) {
  const { registers, mode, second } = machine.vcpu(vcpu);
  const root = second
    ? [{ name: second.kind === 'ept' ? 'EPTP' : 'nCR3', value: hex(frameToAddress(second.root)) }]
    : [];
  if (!paging) return root;
  const flag = (name: string, value: boolean) => ({ name, value: value ? '1' : '0' });
  return [
    { name: 'CR3', value: hex(registers.cr3) },
    flag('CR0.WP', mode.wp),
    flag('EFER.NXE', mode.nxe),
    flag('CR4.SMEP', mode.smep),
    flag('CR4.SMAP', mode.smap),
    flag('RFLAGS.AC', mode.ac),
    flag('CR4.PKE', mode.pke),
    ...(mode.pke ? [{ name: 'PKRU', value: hex(mode.pkru) }] : []),
    ...root,
  ];
}

function referenceAnswer(
  machine: Machine,
  guest: Format,
  reference: Reference,
  index: number,
  last: boolean,
): ReferenceAnswer {
  const format = reference.stage === 'guest' ? guest : machine.secondFormat;
  const note = reference.stage === 'second' ? spteNote(spteFormat(format), reference.lo, reference.hi) : undefined;
  const purpose =
    reference.stage === 'guest' || reference.forLevel > 0
      ? `${guest.level(reference.forLevel).table} (level ${reference.forLevel})`
      : 'page';
  return {
    number: index + 1,
    stage: reference.stage,
    level: reference.level,
    purpose,
    forLevel: reference.forLevel,
    table: hex(frameToAddress(reference.table)),
    index: reference.index,
    address: hex(frameToAddress(reference.pfn, reference.offset)),
    entry: decodeEntry(format, reference.level, reference.lo, reference.hi),
    ...(note === undefined ? {} : { note }),
    decides: last,
  };
}

// ---- tables

function tableAnswer(machine: Machine, query: TableQuery, moment: Moment, frames: Set<Pfn>): TableAnswer {
  const guest = query.space === 'guest';
  const format = guest ? machine.vcpu(query.vcpu).mode.format : machine.secondFormat;
  const frame = addressToFrame(BigInt(query.table));
  const pfn = guest ? machine.resolve(frame) : frame;
  if (pfn < 0) throw new Error(`the table at gpa ${query.table} lies where there is no memory`);
  if (!guest && !machine.pages.has(pfn)) throw new Error(`KVM has no table at hpa ${query.table} (any more)`);
  frames.add(pfn);
  const level = format.level(query.level);
  const page = machine.memory.page(pfn);
  const changed = changedEntries(machine, moment.since, pfn);
  const runs: EntryRun[] = [];
  let present = 0;
  for (let index = 0; index < 512; index++) {
    const lo = page[2 * index]!;
    const hi = page[2 * index + 1]!;
    const state = format.classify(query.level, lo);
    if (state !== ABSENT) present++;
    const was = changed.get(index);
    const faulting = isFaulting(moment.fault, query, frame, index);
    const previous = runs.at(-1);
    if (previous && was === undefined && !faulting && continues(format, query.level, page, index, previous, state)) {
      runs[runs.length - 1] = { ...previous, count: previous.count + 1 };
      continue;
    }
    const note = guest ? undefined : spteNote(spteFormat(format), lo, hi);
    const size = format.span[query.level]! * 4096;
    const input = signExtend(BigInt(query.base) + BigInt(size) * BigInt(index), guest);
    const child =
      state === TABLE
        ? ({
            kind: 'table',
            space: query.space,
            vcpu: query.vcpu,
            table: hex(frameToAddress(format.frame(query.level, lo, hi))),
            level: query.level - 1,
            base: hex(input),
          } as const)
        : undefined;
    runs.push({
      index,
      count: 1,
      input: hex(input),
      size,
      entry: decodeEntry(format, query.level, lo, hi),
      ...(note === undefined || note === 'empty' ? {} : { note }),
      ...(child ? { child } : {}),
      ...(child && child.table === query.table ? { recursive: true as const } : {}),
      ...(was === undefined ? {} : { was }),
      faulting,
    });
  }
  return {
    kind: 'table',
    certainty: 'exact',
    query,
    name: `${level.table} (level ${query.level})`,
    format: format.spec.title,
    present,
    runs,
  };
}

/** Whether an entry goes on where a run ends: absent like it, or a leaf with equal attributes and the next address. */
function continues(
  format: Format,
  level: number,
  page: Uint32Array,
  index: number,
  run: EntryRun,
  state: number,
): boolean {
  if (run.was !== undefined || run.faulting || state === TABLE) return false;
  const lo = page[2 * index]!;
  const hi = page[2 * index + 1]!;
  const lastLo = page[2 * index - 2]!;
  const lastHi = page[2 * index - 1]!;
  if (state === ABSENT) return run.entry.state === 'absent' && lo === lastLo && hi === lastHi;
  if (format.classify(level, lastLo) !== LEAF) return false;
  const slot = 2 * level + 1;
  if (((lo ^ lastLo) & ~format.addressLo[slot]!) !== 0 || ((hi ^ lastHi) & ~format.addressHi[slot]!) !== 0)
    return false;
  return format.frame(level, lo, hi) === format.frame(level, lastLo, lastHi) + format.span[level]!;
}

function signExtend(address: bigint, guest: boolean): bigint {
  const low = address & ((1n << 48n) - 1n);
  return guest && (low >> 47n) & 1n ? low | (0xffffn << 48n) : low;
}

/** Entries of a frame set since a log position: index → value before. */
function changedEntries(machine: Machine, since: number, pfn: Pfn): Map<number, string> {
  const changed = new Map<number, string>();
  const { log } = machine;
  for (let position = Math.max(since, log.first); position < log.length; position++) {
    if (!isMemoryKind(log.kindAt(position))) continue;
    const entry = log.at(position);
    if (Math.floor(entry.address / 512) !== pfn) continue;
    const index = entry.address % 512;
    if (!changed.has(index)) changed.set(index, hexWords(entry.oldLo, entry.oldHi));
  }
  const page = machine.memory.page(pfn);
  for (const [index, old] of changed)
    if (old === hexWords(page[2 * index]!, page[2 * index + 1]!)) changed.delete(index);
  return changed;
}

function isFaulting(fault: FaultInfo | undefined, query: TableQuery, table: number, index: number): boolean {
  if (!fault || fault.index !== index || fault.level !== query.level || fault.table !== table) return false;
  return (fault.kind === 'guest') === (query.space === 'guest');
}

function rootAnswers(machine: Machine): RootAnswer[] {
  const answers = new Map<string, RootAnswer>();
  const add = (root: Omit<RootAnswer, 'vcpus'>, vcpu: number[]): void => {
    const known = answers.get(root.id);
    answers.set(root.id, { ...root, vcpus: [...(known?.vcpus ?? []), ...vcpu] });
  };
  for (const vcpu of machine.vcpus) {
    if (!vcpu.mode.paging) continue;
    const { rootGfn, format } = vcpu.mode;
    const name = [...machine.guestRoots].find(([, root]) => root === rootGfn)?.[0];
    const pfn = machine.resolve(rootGfn);
    add(
      {
        id: `guest ${rootGfn}`,
        title: name ? `Guest tables of ${name}` : `Guest tables at gpa ${hex(frameToAddress(rootGfn))}`,
        space: 'guest',
        table: {
          kind: 'table',
          space: 'guest',
          vcpu: vcpu.id,
          table: hex(frameToAddress(rootGfn)),
          level: format.rootLevel,
          base: '0x0',
        },
        format: format.spec.title,
        present: pfn < 0 ? 0 : countPresent(machine, format, pfn),
        invalid: pfn < 0,
      },
      [vcpu.id],
    );
  }
  for (const root of machine.roots()) {
    const format = machine.secondFormat;
    add(
      {
        id: `second ${root.pfn}`,
        title: `${machine.config.second.toUpperCase()} root at hpa ${hex(frameToAddress(root.pfn))}${root.invalid ? ' (being taken down)' : ''}`,
        space: 'second',
        table: {
          kind: 'table',
          space: 'second',
          vcpu: 0,
          table: hex(frameToAddress(root.pfn)),
          level: root.level,
          base: '0x0',
        },
        format: format.spec.title,
        present: countPresent(machine, format, root.pfn),
        invalid: root.invalid,
      },
      machine.vcpus.filter((vcpu) => vcpu.root === root.pfn).map((vcpu) => vcpu.id),
    );
  }
  return [...answers.values()];
}

function countPresent(machine: Machine, format: Format, pfn: Pfn): number {
  const page = machine.memory.page(pfn);
  let present = 0;
  for (let index = 0; index < 512; index++)
    if (format.classify(format.rootLevel, page[2 * index]!) !== ABSENT) present++;
  return present;
}

// ---- history

const HISTORY_LIMIT = 200;
const CHANGE_WORDS: Readonly<Record<number, string>> = {
  [Kind.MEMORY]: 'stored',
  [Kind.ENTRY_BITS]: 'accessed/dirty bits set by a walk',
  [Kind.SPTE]: 'entry of KVM’s tables',
  [Kind.SPTE_UNTRACED]: 'entry of KVM’s tables',
};

function historyAnswer(machine: Machine, query: Extract<Query, { kind: 'history' }>): HistoryAnswer {
  const start = BigInt(query.address);
  const end = start + BigInt(query.size);
  const changes: HistoryAnswer['changes'][number][] = [];
  let more = false;
  const { log } = machine;
  for (let position = log.length - 1; position >= log.first; position--) {
    const what = CHANGE_WORDS[log.kindAt(position)];
    if (what === undefined) continue;
    const entry = log.at(position);
    const pfn = Math.floor(entry.address / 512);
    const frame = query.space === 'hpa' ? pfn : machine.gfnOf(pfn);
    if (frame < 0) continue;
    const address = frameToAddress(frame, (entry.address % 512) * 8);
    if (address + 8n <= start || address >= end) continue;
    if (changes.length === HISTORY_LIMIT) {
      more = true;
      break;
    }
    changes.push({
      step: entry.step,
      task: machine.tasks[entry.task]?.name ?? 'you',
      what,
      address: hex(address),
      old: hexWords(entry.oldLo, entry.oldHi),
      new: hexWords(entry.newLo, entry.newHi),
    });
  }
  return {
    kind: 'history',
    certainty: 'exact',
    changes,
    more,
    since: log.length > log.first ? log.at(log.first).step : machine.steps,
  };
}
