import { decodeEntry, rightsWords } from '../formats/decode.ts';
import { type Regime, type RegimeWalk, type Stage, tableFrame } from '../guest/regime.ts';
import { addressToFrame, frameToAddress, hex, type Pfn } from '../memory/words.ts';
import { type Mirror, nowhereWords } from '../mirror.ts';
import type { Query, ReferenceAnswer, RootAnswer, TableQuery, WalkAnswer, WalkOutcome } from './answers.ts';
import { builtRoots, builtStage, withBuilt } from './built-answers.ts';
import { addressFields, countPresent, levelShapes, tableName } from './shapes.ts';

// Answers of a machine that is not the emulator's: they ask the architecture's regime and know none.

function regimeOf(mirror: Mirror, vcpu: number): Regime {
  const regime = mirror.regimes[vcpu];
  if (!regime) throw new Error(`there is no CPU ${vcpu}; the machine has ${mirror.regimes.length}`);
  return regime;
}

/** The stage whose tables a question is about: of the guest's, the one that translates the table's first address. */
export function mirrorStage(mirror: Mirror, { space, vcpu, base }: TableQuery): Stage {
  const { stages, second } = regimeOf(mirror, vcpu);
  const built = space === 'second' ? mirror.built?.() : undefined;
  const found =
    (built && builtStage(built, vcpu)) ??
    (space === 'second'
      ? second
      : stages.find((stage) => tableFrame(stage, addressToFrame(BigInt(base))) !== undefined));
  if (!found) throw new Error(space === 'second' ? 'no second stage is known' : `no table translates ${base}`);
  return found;
}

export function mirrorRoots(mirror: Mirror): RootAnswer[] {
  const roots = new Map<string, RootAnswer>();
  const add = (stage: Stage, space: 'guest' | 'second', cpu: number): void => {
    const { format, root, rootEntry = 0 } = stage.tree;
    const id = `${space} ${root} ${rootEntry} ${stage.base}`;
    const known = roots.get(id);
    const memory = space === 'guest' ? mirror.guestMemory : mirror.memory;
    const there = memory.has(root);
    roots.set(id, {
      id,
      title: `${stage.register} ${hex(stage.value)}`,
      space,
      vcpus: [...(known?.vcpus ?? []), cpu],
      table: {
        kind: 'table',
        space,
        vcpu: known?.vcpus[0] ?? cpu,
        table: hex(frameToAddress(root, rootEntry * format.entryBytes)),
        level: format.rootLevel,
        base: hex(frameToAddress(stage.base)),
      },
      format: format.spec.title,
      levels: levelShapes(format),
      canonical: format.spec.canonical === true,
      present: there ? countPresent(memory, format, root, rootEntry) : 0,
      invalid: !there,
    });
  };
  mirror.regimes.forEach(({ stages, second }, cpu) => {
    for (const stage of stages) add(stage, 'guest', cpu);
    if (second) add(second, 'second', cpu);
  });
  const built = mirror.built?.();
  return [...roots.values(), ...(built ? builtRoots(built) : [])];
}

export function mirrorWalk(mirror: Mirror, query: Extract<Query, { kind: 'walk' }>, frames: Set<Pfn>): WalkAnswer {
  const walk = guestWalk(mirror, query, frames);
  const built = mirror.built?.();
  return built ? withBuilt(built, walk) : walk;
}

function guestWalk(mirror: Mirror, query: Extract<Query, { kind: 'walk' }>, frames: Set<Pfn>): WalkAnswer {
  const regime = regimeOf(mirror, query.vcpu);
  const address = BigInt(query.address);
  const guest = query.space === 'gva' && regime.stages.length > 0;
  const asked: Regime = guest ? regime : { ...regime, stages: [] };
  const kind = query.access ?? 'read';
  const cpl = query.cpl ?? 0;
  const walk = guest
    ? regime.walk(mirror.memory, address, { kind, user: cpl === 3, look: query.access === undefined })
    : physicalWalk(mirror, regime, address);
  for (const { frame } of walk.references) frames.add(frame);
  const { second } = regime;
  const stage = asked.stages.find((each) => tableFrame(each, addressToFrame(address)) !== undefined) ?? asked.stages[0];
  const format = (stage ?? second)?.tree.format;
  return {
    kind: 'walk',
    certainty: 'exact',
    vcpu: query.vcpu,
    space: query.space,
    address: hex(address),
    access: kind,
    cpl,
    implicit: query.implicit ?? false,
    paging: guest,
    second: second ? second.tree.format.spec.name : 'none',
    secondName: second?.tree.format.spec.stage ?? '',
    secondLevels: second ? levelShapes(second.tree.format) : [],
    fields: format ? addressFields(format, address) : [],
    registers: regime.registers.map(({ name, value }) => ({ name, value: hex(value) })),
    references: walk.references.map(
      (reference, index): ReferenceAnswer => ({
        number: index + 1,
        stage: reference.stage,
        level: reference.level,
        purpose:
          reference.stage === 'guest' || reference.forLevel > 0
            ? tableName(stage?.tree.format ?? reference.format, reference.forLevel)
            : 'page',
        forLevel: reference.forLevel,
        table: hex(frameToAddress(reference.table)),
        index: reference.index,
        address: hex(frameToAddress(reference.frame, reference.offset)),
        entry: decodeEntry(reference.format, reference.level, reference.lo, reference.hi),
        decides: index === walk.references.length - 1,
      }),
    ),
    outcome: outcomeOf(walk, stage),
    sentence: sentenceOf(query.space, address, walk, second !== undefined),
  };
}

/** A guest-physical address: through the second stage where there is one. */
function physicalWalk(mirror: Mirror, regime: Regime, gpa: bigint): RegimeWalk {
  const { second } = regime;
  if (second) return regime.walkSecond(mirror.memory, gpa);
  // What a guest's memory holds no event tells, nor where it has some.
  if (mirror.places === 'recording') return { references: [], end: 'done', gpa, hpa: gpa, reason: '' };
  const there = mirror.memory.has(addressToFrame(gpa));
  const reason = there ? 'there is memory' : nowhereWords(mirror);
  return { references: [], end: there ? 'done' : 'second-fault', gpa, ...(there ? { hpa: gpa } : {}), reason };
}

const STATUS = {
  done: 'done',
  'guest-fault': 'guest-fault',
  'second-fault': 'violation',
  untranslatable: 'untranslatable',
} as const;

function outcomeOf(walk: RegimeWalk, stage: Stage | undefined): WalkOutcome {
  const { gpa, hpa, guestSize, secondSize, rights, code, reason } = walk;
  return {
    status: STATUS[walk.end],
    ...(gpa === undefined ? {} : { gpa: hex(gpa) }),
    ...(hpa === undefined ? {} : { hpa: hex(hpa) }),
    ...(guestSize === undefined ? {} : { guestSize }),
    ...(secondSize === undefined ? {} : { secondSize }),
    ...(rights === undefined || !stage ? {} : { rights: rightsWords(stage.tree.format, rights) }),
    reason: code === undefined ? reason : `${code}: ${reason}`,
  };
}

function sentenceOf(space: 'gva' | 'gpa', address: bigint, walk: RegimeWalk, hasSecond: boolean): string {
  const asked = `${space} ${hex(address)}`;
  if (walk.end !== 'done') return `${asked}: ${walk.code === undefined ? '' : `${walk.code}: `}${walk.reason}`;
  const gpa = space === 'gva' ? ` is gpa ${hex(walk.gpa!)}` : '';
  const hpa = hasSecond && walk.hpa !== undefined ? `${gpa ? ' and' : ' is'} hpa ${hex(walk.hpa)}` : '';
  const references = walk.references.length;
  if (references === 0 && walk.reason === '') return asked;
  const count = references === 0 ? walk.reason : `${references} memory reference${references === 1 ? '' : 's'}`;
  return `${asked}${gpa}${hpa}: ${count}`;
}
