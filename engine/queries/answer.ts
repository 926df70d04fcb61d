import { ABSENT, type Format, LEAF, TABLE } from '../formats/compile.ts';
import { decodeEntry } from '../formats/decode.ts';
import type { Entry } from '../formats/encode.ts';
import { untranslatable } from '../guest/access.ts';
import { l1Frame, l2Memory } from '../guest/nested.ts';
import { PFERR_FETCH, PFERR_USER, PFERR_WRITE } from '../guest/permission.ts';
import { inputFrame, type Stage, tableFrame } from '../guest/regime.ts';
import { finishWalk, type Reference, startWalk, type Walk } from '../guest/walk.ts';
import { isMemoryKind, Kind } from '../history/log.ts';
import { kvmMemory } from '../kernel/tables.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, frameToAddress, hex, hexWords, type Pfn, pageOffset } from '../memory/words.ts';
import { MissingFrames } from '../mirror.ts';
import { entryHi, entryLo, type Tables } from '../pgtable/tables.ts';
import { describeWalkFault } from '../tdp/explain-fault.ts';
import type { FaultInfo } from '../tdp/fault.ts';
import { spteFormat, spteNote } from '../tdp/spte.ts';
import type { Vcpu } from '../vcpu.ts';
import type {
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
import { attributeMapAnswer } from './attribute-map.ts';
import { attributesAnswer } from './attributes.ts';
import { builtCertainty, builtPage, builtRoots, builtStage, builtTable, withBuilt } from './built-answers.ts';
import { comparePolicies } from './comparison.ts';
import { emulatorBuilt } from './emulator-built.ts';
import { mirrorRoots, mirrorStage, mirrorWalk } from './mirror-answers.ts';
import { pageAnswer } from './page.ts';
import { askedFrame, finishPrivateWalk, refusalOf } from './private-walk.ts';
import { faultsAnswer, type RecordingView, recordingAnswer } from './recording-answers.ts';
import { rootCacheAnswer } from './root-cache.ts';
import { addressFields, countPresent, levelShapes, tableName } from './shapes.ts';
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

/**
 * Answers a question. What cannot be answered is an `error` answer that says why.
 * @throws MissingFrames, of a machine far away
 */
export function answer(machine: Machine, query: Query, moment: Moment): Read {
  const frames = new Set<Pfn>();
  try {
    return { answer: dispatch(machine, query, moment, frames), frames };
  } catch (error) {
    if (error instanceof MissingFrames) throw error;
    return { answer: { kind: 'error', message: (error as Error).message }, frames };
  }
}

function dispatch(machine: Machine, query: Query, moment: Moment, frames: Set<Pfn>): Answer {
  switch (query.kind) {
    case 'walk':
      if (machine.mirror) return mirrorWalk(machine.mirror, query, frames);
      return isShadow(machine)
        ? withBuilt(shadowBuilt(machine), walkAnswer(machine, query, frames))
        : walkAnswer(machine, query, frames);
    case 'table':
      return tableAnswer(machine, query, moment, frames);
    case 'roots':
      return {
        kind: 'roots',
        certainty: 'exact',
        ...builtCertainty(machine.mirror?.built?.()),
        roots: machine.mirror ? mirrorRoots(machine.mirror) : rootAnswers(machine),
      };
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
    case 'recording':
      return recordingAnswer(recordingOf(machine));
    case 'faults':
      return faultsAnswer(recordingOf(machine), query.first, query.count);
    case 'root-cache':
      return rootCacheAnswer(machine);
    case 'attribute-map':
      return attributeMapAnswer(machine, query.at);
    case 'attributes':
      return attributesAnswer(machine, query, moment.since);
    case 'page':
      return pageAnswer(machine, query.gpa, query.at);
    case 'comparison':
      if (machine.mirror)
        throw new Error(
          'only the emulator can do a thing in several ways; kvm-mmu compare runs a scenario on several kernels',
        );
      return comparePolicies(machine.program, query.policy, query.values, COMPARED_STEPS).answer;
    case 'history':
      return historyAnswer(machine, query);
  }
}

/** Steps that a run may take while a session waits for the comparison. */
const COMPARED_STEPS = 1_000_000;

/** The emulator's shadow tables translate virtual addresses: they are told as a real KVM's are. */
const isShadow = (machine: Machine): boolean => machine.config.second === 'shadow';

function shadowBuilt(machine: Machine) {
  return { tables: emulatorBuilt(machine), maxPhyAddr: machine.config.maxPhyAddr };
}

function recordingOf({ mirror }: Machine): RecordingView {
  if (!mirror?.recording) throw new Error('this machine is not shown from a recording');
  return mirror.recording();
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
  const levels = {
    secondName: second?.format.spec.stage ?? '',
    secondLevels: second ? levelShapes(second.format) : [],
  };
  const of = vcpu.guestMode ? ` of ${vcpu.guestMode.guest}` : '';
  const problem = query.space === 'gva' ? untranslatable(vcpu.mode, asked) : undefined;
  if (problem !== undefined)
    return {
      ...base,
      second: second?.kind ?? 'none',
      ...levels,
      references: [],
      outcome: { status: 'untranslatable', reason: problem },
      sentence: problem,
    };
  const trace: Reference[] = [];
  const at = mode.paging ? { frame: addressToFrame(asked), isPrivate: undefined } : askedFrame(machine, asked);
  const walk = startWalk(asking, second, at.frame, { bits, implicit });
  const nested = vcpu.guestMode?.nested;
  const memory = readOnlyMemory(machine);
  let isPrivate: boolean | undefined;
  if (machine.vm === 'ordinary')
    finishWalk(walk, asking, second, nested ? { ...l2Memory(machine, nested.mode), setBits() {} } : memory, trace);
  else isPrivate = finishPrivateWalk(machine, vcpu, walk, asking, query.private ?? at.isPrivate, memory, trace);
  for (const reference of trace) frames.add(reference.pfn);
  const references = trace.map((reference, index) =>
    referenceAnswer(machine, mode.format, reference, index, index === trace.length - 1),
  );
  const ofModule = vcpu.secure && isPrivate ? { secondName: `secure ${levels.secondName}` } : {};
  const tail = { second: second?.kind ?? 'none', ...levels, ...ofModule, references };
  if (walk.status === 'done') {
    const gpa = frameToAddress(walk.gfn, pageOffset(asked));
    const guestSize = mode.paging ? mode.format.span[walk.leafLevel]! * 4096 : undefined;
    if (!second && isShadow(machine) && walk.pfn >= 0)
      return {
        ...base,
        ...tail,
        outcome: {
          status: 'done',
          gpa: hex(gpa),
          ...(guestSize ? { guestSize, rights: rights(walk) } : {}),
          reason: 'the translation succeeds',
        },
        sentence: `${query.space} ${hex(asked)}${of} is gpa ${hex(gpa)}: ${references.length} memory references`,
      };
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
        sentence: `${query.space} ${hex(asked)}${of} is gpa ${hex(gpa)}; ${reason}`,
      };
    }
    const hpa = frameToAddress(walk.pfn, pageOffset(asked));
    const secondSize = second.format.span[walk.secondLeafLevel]! * 4096;
    const found = `${query.space} ${hex(asked)}${of} is gpa ${hex(gpa)} and hpa ${hex(hpa)}`;
    const refusal =
      isPrivate === undefined || query.access === undefined
        ? undefined
        : refusalOf(machine, vcpu, walk, { ...access, isPrivate });
    return {
      ...base,
      ...tail,
      outcome: {
        status: refusal ? 'refused' : 'done',
        gpa: hex(gpa),
        hpa: hex(hpa),
        ...(guestSize ? { guestSize, rights: rights(walk) } : {}),
        secondSize,
        reason: 'the translation succeeds',
        ...refusal,
      },
      sentence: refusal ? `${found}, but ${refusal.reason}` : `${found}: ${walk.references} memory references`,
    };
  }
  const fault = describeWalkFault(vcpu.id, walk, asking, second, access, vcpu.guestMode?.guest);
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

function registersThatCount(machine: Machine, vcpu: number, paging: boolean) {
  const { registers, mode, second, secure } = machine.vcpu(vcpu);
  const pointer = (name: string, stage: Vcpu['second']) =>
    stage ? [{ name, value: hex(frameToAddress(stage.root)) }] : [];
  const root =
    machine.vm === 'tdx'
      ? [...pointer('EPTP', secure), ...pointer('shared EPTP', second)]
      : pointer(second?.kind === 'ept' ? 'EPTP' : 'nCR3', second);
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
  const purpose = reference.stage === 'guest' || reference.forLevel > 0 ? tableName(guest, reference.forLevel) : 'page';
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

/** Where a table's entries are read. */
interface TableView {
  readonly stage: Stage;
  readonly tables: Tables;
  /** First frame of the table, and the entry of it at which the table begins. */
  readonly frame: number;
  readonly first: number;
}

function tableView(machine: Machine, query: TableQuery): TableView {
  const address = BigInt(query.table);
  const frame = addressToFrame(address);
  const { mirror } = machine;
  const guest = query.space !== 'second';
  const stage = mirror ? mirrorStage(mirror, query) : emulatorStage(machine, query);
  const built = guest ? undefined : mirror?.built?.();
  const tables: Tables = mirror
    ? guest
      ? mirror.guestMemory
      : built
        ? kvmMemory(built.tables)
        : mirror.memory
    : guest
      ? { page: (gfn) => machine.memory.page(hostFrame(machine, query, gfn)) }
      : machine.memory;
  const isOwn = machine.pages.has(frame) || machine.vcpus.some(({ mmus }) => mmus.root.paeRoot === frame);
  const known = mirror ? tables.has?.(frame) !== false : guest ? hostFrame(machine, query, frame) >= 0 : isOwn;
  if (!known)
    throw new Error(
      guest || (mirror && !built)
        ? `the table at ${guest ? 'gpa' : 'hpa'} ${query.table} lies where there is no memory`
        : `KVM has no table at hpa ${query.table} (any more)`,
    );
  return { stage, tables, frame, first: pageOffset(address) / stage.tree.format.entryBytes };
}

/** The emulator's tables as stages: the guest's of a vCPU, and KVM's. */
function emulatorStage(machine: Machine, { space, vcpu }: TableQuery): Stage {
  if (space === 'second' && isShadow(machine)) {
    const stage = builtStage(shadowBuilt(machine), vcpu);
    if (!stage) throw new Error('KVM has no root yet');
    return stage;
  }
  if (space === 'second') return { register: '', value: 0n, tree: { format: machine.secondFormat, root: 0 }, base: 0 };
  const { registers, mode, guestMode } = machine.vcpu(vcpu);
  if (space === 'nested') {
    const nested = guestMode?.nested;
    if (!nested) throw new Error(`vCPU ${vcpu} runs no guest of L1’s now`);
    const { format, rootGfn } = nested.mode;
    return { register: nestedRegister(machine), value: nested.pgd, tree: { format, root: rootGfn }, base: 0 };
  }
  return { register: 'CR3', value: registers.cr3, tree: { format: mode.format, root: mode.rootGfn }, base: 0 };
}

const nestedRegister = (machine: Machine): string => (machine.config.second === 'ept' ? 'EPTP' : 'nCR3');

/** The host frame behind one of a guest's; −1 where there is none. Of a nested guest L1's tables lie between. */
function hostFrame(machine: Machine, { space, vcpu }: Pick<TableQuery, 'space' | 'vcpu'>, frame: number): Pfn {
  const nested = space === 'guest' && !machine.mirror ? machine.vcpu(vcpu).guestMode?.nested : undefined;
  const own = nested ? l1Frame(machine, nested.mode, frame) : frame;
  return own < 0 ? -1 : machine.resolve(own);
}

function tableAnswer(machine: Machine, query: TableQuery, moment: Moment, frames: Set<Pfn>): TableAnswer {
  const guest = query.space !== 'second';
  const { stage, tables, frame, first } = tableView(machine, query);
  const { format } = stage.tree;
  const count = format.entries[query.level]!;
  for (let each = 0; each < format.tableFrames[query.level]!; each++)
    frames.add(guest ? hostFrame(machine, query, frame + each) : frame + each);
  const changed = machine.mirror ? NO_CHANGES : changedEntries(machine, format, moment.since, [...frames][0]!);
  const size = format.span[query.level]! * 4096;
  const base = addressToFrame(BigInt(query.base));
  const below = format.rootLevel === query.level ? 0 : tableFrame(stage, base);
  const isTold = isShadow(machine) || (!machine.mirror && !machine.hasTdpMmu);
  const built = guest ? undefined : isTold ? shadowBuilt(machine) : machine.mirror?.built?.();
  const notes = guest || (machine.mirror && !built) ? undefined : spteFormat(format);
  const own = built && builtTable(built, frame);
  const isDisallowed = !machine.mirror && machine.pages.get(frame)?.nxHugePageDisallowed;
  const runs: EntryRun[] = [];
  let present = 0;
  let lastLo = 0;
  let lastHi = 0;
  for (let index = 0; index < count; index++) {
    const lo = entryLo(tables, format, frame, first + index);
    const hi = entryHi(tables, format, frame, first + index);
    const state = format.classify(query.level, lo);
    if (state !== ABSENT) present++;
    const was = changed.get(first + index);
    const faulting = isFaulting(moment.fault, query, frame, index);
    const previous = runs.at(-1);
    const goesOn =
      previous !== undefined &&
      was === undefined &&
      !faulting &&
      own?.doubtful?.get(index) === previous.certainty &&
      continues(format, query.level, { lo, hi }, { lo: lastLo, hi: lastHi }, previous, state);
    lastLo = lo;
    lastHi = hi;
    if (goesOn) {
      runs[runs.length - 1] = { ...previous, count: previous.count + 1 };
      continue;
    }
    const untold = built && state === TABLE && builtTable(built, format.frame(query.level, lo, hi))?.untold;
    const note = untold ? 'where this table lies was not recorded' : notes && spteNote(notes, lo, hi);
    const doubt = own?.doubtful?.get(index);
    const input = inputFrame(stage, (below ?? 0) + index * format.span[query.level]!);
    const child =
      state === TABLE
        ? ({
            kind: 'table',
            space: query.space,
            vcpu: query.vcpu,
            table: hex(frameToAddress(format.frame(query.level, lo, hi))),
            level: query.level - 1,
            base: hex(frameToAddress(input)),
          } as const)
        : undefined;
    runs.push({
      index,
      count: 1,
      input: hex(frameToAddress(input)),
      size,
      entry: decodeEntry(format, query.level, lo, hi),
      ...(note === undefined || note === 'empty' ? {} : { note }),
      ...(doubt === undefined ? {} : { certainty: doubt }),
      ...(child ? { child } : {}),
      ...(child && child.table === query.table ? { recursive: true as const } : {}),
      ...(was === undefined ? {} : { was }),
      faulting,
    });
  }
  return {
    kind: 'table',
    certainty: own?.certainty ?? 'exact',
    query,
    ...(own ? { page: builtPage(own) } : !guest && isDisallowed ? { page: 'NX huge page disallowed' } : {}),
    name: tableName(format, query.level),
    format: format.spec.title,
    present,
    runs,
  };
}

const NO_CHANGES: ReadonlyMap<number, string> = new Map();

/** Whether an entry goes on where a run ends: absent like it, or a leaf with equal attributes and the next address. */
function continues(format: Format, level: number, entry: Entry, last: Entry, run: EntryRun, state: number): boolean {
  if (run.was !== undefined || run.faulting || state === TABLE) return false;
  if (state === ABSENT) return run.entry.state === 'absent' && entry.lo === last.lo && entry.hi === last.hi;
  if (format.classify(level, last.lo) !== LEAF) return false;
  const slot = 2 * level + 1;
  const differs =
    ((entry.lo ^ last.lo) & ~format.anyAddressLo[slot]!) | ((entry.hi ^ last.hi) & ~format.addressHi[slot]!);
  if (differs !== 0) return false;
  return format.frame(level, entry.lo, entry.hi) === format.frame(level, last.lo, last.hi) + format.span[level]!;
}

/** Entries of a frame set since a log position: number in the frame → value before. */
function changedEntries(machine: Machine, format: Format, since: number, pfn: Pfn): Map<number, string> {
  const pairs = new Map<number, { readonly lo: number; readonly hi: number }>();
  const { log } = machine;
  for (let position = Math.max(since, log.first); position < log.length; position++) {
    if (!isMemoryKind(log.kindAt(position))) continue;
    const entry = log.at(position);
    if (Math.floor(entry.address / 512) !== pfn) continue;
    const index = entry.address % 512;
    if (!pairs.has(index)) pairs.set(index, { lo: entry.oldLo, hi: entry.oldHi });
  }
  const page = machine.memory.page(pfn);
  const changed = new Map<number, string>();
  for (const [index, { lo, hi }] of pairs) {
    if (format.wordShift === 0) {
      // The log has 8 bytes, which are two entries.
      if (page[2 * index]! !== lo >>> 0) changed.set(2 * index, hexWords(lo, 0));
      if (page[2 * index + 1]! !== hi >>> 0) changed.set(2 * index + 1, hexWords(hi, 0));
    } else if (hexWords(lo, hi) !== hexWords(page[2 * index]!, page[2 * index + 1]!))
      changed.set(index, hexWords(lo, hi));
  }
  return changed;
}

function isFaulting(fault: FaultInfo | undefined, query: TableQuery, table: number, index: number): boolean {
  if (!fault || fault.index !== index || fault.level !== query.level || fault.table !== table) return false;
  return query.space === (fault.kind === 'guest' || fault.kind === 'nested' ? fault.kind : 'second');
}

function rootAnswers(machine: Machine): RootAnswer[] {
  const answers = new Map<string, RootAnswer>();
  const add = (root: Omit<RootAnswer, 'vcpus'>, vcpu: number[]): void => {
    const known = answers.get(root.id);
    answers.set(root.id, { ...root, vcpus: [...(known?.vcpus ?? []), ...vcpu] });
  };
  for (const vcpu of machine.vcpus) {
    if (!vcpu.mode.paging) continue;
    const { rootGfn, rootEntry, format } = vcpu.mode;
    const nested = vcpu.guestMode?.nested;
    const name =
      vcpu.guestMode?.guest ??
      machine.program.guests.find((guest) => !guest.within && machine.guestRoots.get(guest.name) === rootGfn)?.name;
    const pfn = hostFrame(machine, { space: 'guest', vcpu: vcpu.id }, rootGfn);
    add(
      {
        id: `guest ${nested ? `${nested.name} ` : ''}${rootGfn}`,
        title: name ? `Guest tables of ${name}` : `Guest tables at gpa ${hex(frameToAddress(rootGfn))}`,
        space: 'guest',
        table: {
          kind: 'table',
          space: 'guest',
          vcpu: vcpu.id,
          table: hex(frameToAddress(rootGfn, rootEntry * 8)),
          level: format.rootLevel,
          base: '0x0',
        },
        format: format.spec.title,
        levels: levelShapes(format),
        canonical: format.spec.canonical === true,
        present: pfn < 0 ? 0 : countPresent({ page: () => machine.memory.page(pfn) }, format, 0, rootEntry),
        invalid: pfn < 0,
      },
      [vcpu.id],
    );
  }
  for (const vcpu of machine.vcpus) {
    const nested = vcpu.guestMode?.nested;
    if (!nested) continue;
    const { format, rootGfn } = nested.mode;
    add(
      {
        id: `nested ${nested.name}`,
        title: `L1’s ${nestedRegister(machine) === 'EPTP' ? 'EPT' : 'NPT'} tables ${nested.name} for ${vcpu.guestMode!.guest}`,
        space: 'nested',
        table: {
          kind: 'table',
          space: 'nested',
          vcpu: vcpu.id,
          table: hex(frameToAddress(rootGfn)),
          level: format.rootLevel,
          base: '0x0',
        },
        format: format.spec.title,
        levels: levelShapes(format),
        canonical: false,
        present: countPresent({ page: () => machine.memory.page(machine.resolve(rootGfn)) }, format, 0, 0),
        invalid: false,
      },
      [vcpu.id],
    );
  }
  if (isShadow(machine)) return [...answers.values(), ...builtRoots(shadowBuilt(machine))];
  const built = shadowBuilt(machine);
  const guestRoots = built.tables.roots.filter(({ mmu }) => mmu === 'guest');
  for (const root of machine.directRoots()) {
    const format = machine.secondFormat;
    add(
      {
        id: `second ${root.pfn}`,
        title: `${machine.config.second.toUpperCase()} root at hpa ${hex(frameToAddress(root.pfn))}${root.invalid ? ' (being taken down)' : root.rootCount === 0 ? ' (no vCPU has it: it waits in the hash)' : ''}`,
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
        levels: levelShapes(format),
        canonical: false,
        present: countPresent(machine.memory, format, root.pfn, 0),
        invalid: root.invalid,
      },
      machine.vcpus.filter((vcpu) => vcpu.root === root.pfn).map((vcpu) => vcpu.id),
    );
  }
  return [...answers.values(), ...builtRoots({ ...built, tables: { ...built.tables, roots: guestRoots } })];
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
