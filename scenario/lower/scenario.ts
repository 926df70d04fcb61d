import { ASYNC_PF_WORKER } from '../../engine/async-pf/queue.ts';
import { HAZARD_NAMES } from '../../engine/attributes/hazards.ts';
import { PAGING, type PagingName } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
import type {
  Expectation,
  GuestTables,
  Mapping,
  NeverExpectation,
  Program,
  SlotConfig,
  Statement,
  TaskProgram,
} from '../../engine/program.ts';
import { didYouMean, headerSpan, Problems, spanOf } from '../diagnostics.ts';
import type * as Ast from '../generated/ast.ts';
import { FAMILIES, isRegister, VALUES } from '../names.ts';
import { sizeWords } from '../number.ts';
import { constant, lowerExpression, type Names } from './expression.ts';
import { lowerMachine, lowerSlot, slotId } from './machine.ts';
import { lowerEntry, lowerMap, type Surroundings } from './mapping.ts';
import { aligned, Coverage } from './ranges.ts';
import { expressionText, lowerStatements, STATEMENT_WORDS, type StatementContext } from './statement.ts';

/** A parsed scenario as plain data, whole only when `problems` has no error afterwards. */
export function lowerScenario(scenario: Ast.Scenario, problems: Problems): Program {
  const machine = lowerMachine(scenario.machines, problems);
  const slots = [...machine.slots, ...laterSlots(scenario.tasks, machine.slots)];
  const around: Surroundings = { machine, coverage: new Coverage(slots), paging: '4-level' };
  const guests = lowerGuests(scenario.guests, around, problems);
  const spaces = new Map(guests.map((guest) => [guest.name, surroundingsOf(guest, guests, around)]));
  const names: Names = {
    guests: guests.map(({ name }) => name),
    variables: [],
    vcpus: scenario.tasks.filter((task) => task.$type === 'Vcpu').length,
  };
  const context = { ...around, spaces, names, slots: new Set(slots.map(({ id }) => id)) };
  const tasks = lowerTasks(scenario.tasks, guests, context, problems);
  const never = scenario.expects.flatMap((node) => lowerNever(node, problems));
  if (tasks.some(({ body }) => swaps(body)))
    tasks.push({ kind: 'host', name: ASYNC_PF_WORKER, body: [], span: tasks.at(-1)!.span });
  const expects = scenario.expects.flatMap((node): Expectation[] => {
    if (!node.condition) return [];
    const condition = lowerExpression(node.condition, problems, names);
    return condition ? [{ condition, text: expressionText(node.condition), span: spanOf(node) }] : [];
  });
  if (scenario.tasks.length === 0) problems.warning(undefined, 'nothing to run: add a vcpu or a host block');
  return { machine, guests, tasks, expects, ...(never.length === 0 ? {} : { never }) };
}

function lowerNever(node: Ast.Expect, problems: Problems): NeverExpectation[] {
  if (!node.never) return [];
  const found = HAZARD_NAMES.find((name) => name === node.hazard);
  if (found) return [{ hazard: found, span: spanOf(node) }];
  const suggestion = didYouMean(node.hazard ?? '', HAZARD_NAMES);
  problems.error(node, `unknown hazard ${node.hazard}${suggestion}; there are: ${HAZARD_NAMES.join(', ')}`);
  return [];
}

/** Whether memory is swapped out, for which there is a worker then that reads it. */
function swaps(body: readonly Statement[]): boolean {
  return body.some(
    (statement) =>
      (statement.kind === 'notifier' && statement.how === 'swap-out') ||
      ((statement.kind === 'repeat' || statement.kind === 'enter' || statement.kind === 'smm') &&
        swaps(statement.body)),
  );
}

/** Slots as host tasks add or move them; the tasks' own lowering tells what is wrong with them. */
function laterSlots(tasks: readonly Ast.Task[], initial: readonly SlotConfig[]): SlotConfig[] {
  const silent = new Problems();
  const found: SlotConfig[] = [];
  const visit = (body: readonly Ast.Statement[]): void => {
    for (const node of body) {
      if (node.$type === 'Repeat' || node.$type === 'Enter' || node.$type === 'Smm') visit(node.body);
      else if (node.$type === 'AddSlot') {
        const slot = lowerSlot(node, 0, silent);
        if (slot) found.push(slot);
      } else if (node.$type === 'MoveSlot') {
        const id = slotId(node.id, silent);
        const base = constant(node.base, 'gpa', silent);
        const slot = initial.find((candidate) => candidate.id === id);
        if (slot && base !== undefined) found.push({ ...slot, base });
      }
    }
  };
  for (const task of tasks) visit(task.body);
  return found;
}

function lowerGuests(guests: readonly Ast.Guest[], around: Surroundings, problems: Problems): GuestTables[] {
  const lines = new Map<string, number>();
  const done: GuestTables[] = [];
  // L1's second-stage tables first: those of its guests lie in what they map.
  for (const guest of [...guests.filter(({ stage }) => stage), ...guests.filter(({ stage }) => !stage)]) {
    const { name } = guest;
    const span = headerSpan(guest, `guest ${name}`);
    const line = lines.get(name);
    if (line !== undefined) problems.error(span, `guest ${name} is on line ${line} already`);
    else lines.set(name, span.line);
    if (isRegister(name) || FAMILIES.has(name) || VALUES.includes(name) || name === 'vcpu')
      problems.error(span, `${name} has a meaning in expressions already: call the guest something else`);
    if (around.coverage.empty) problems.error(span, `guest ${name} has no memory to keep its tables in`);

    const words = guest.stage ? lowerNested(guest, around, problems) : lowerPaging(guest, problems);
    const { paging } = words;
    const within = lowerWithin(guest, done, problems);
    const own = surroundingsOf({ ...words, ...(within ? { within: within.name } : {}) }, done, around);
    const mappings: Mapping[] = [];
    let tablesAt: bigint | undefined;
    for (const item of guest.items) {
      let mapping: Mapping | undefined;
      if (item.$type === 'MapRange') mapping = lowerMap(item, own, problems);
      else if (item.$type === 'RawEntry') mapping = lowerEntry(item, own, problems);
      else if (item.$type === 'TablesAt') {
        if (tablesAt !== undefined) problems.error(item, 'tables at is given twice');
        const base = constant(item.base, 'tables at', problems);
        if (base === undefined || !aligned(item.base, 'tables at', base, problems)) continue;
        if (own.coverage.firstOutside({ base, size: 4096n }) !== undefined)
          problems.error(item, `tables at ${hex(base)}: there is no memory slot`);
        tablesAt = base;
      } else
        problems.error(
          item,
          `${STATEMENT_WORDS[item.$type]}: a guest block holds tables at, map and entry; this belongs in a vcpu or host block`,
        );
      if (mapping) mappings.push(mapping);
    }
    warnOfOverlaps(mappings, problems);
    done.push({
      name,
      ...(paging === '4-level' ? {} : { paging }),
      ...(words.nested ? { nested: words.nested } : {}),
      ...(within ? { within: within.name } : {}),
      ...(tablesAt === undefined ? {} : { tablesAt }),
      mappings,
      span,
    });
  }
  return done;
}

/** What statements are checked against that edit a guest's tables: memory is the slots', or what L1's tables map. */
function surroundingsOf(
  { paging = '4-level', nested, within }: Pick<GuestTables, 'paging' | 'nested' | 'within'>,
  guests: readonly GuestTables[],
  around: Surroundings,
): Surroundings {
  const tables = guests.find(({ name }) => name === within);
  const slots = tables?.mappings.map(({ gva, size }) => ({ base: gva, size }));
  return {
    ...around,
    paging,
    ...(nested ? { nested } : {}),
    ...(slots ? { coverage: new Coverage(slots) } : {}),
  };
}

const PAGING_NAMES = Object.keys(PAGING) as PagingName[];

type TableWords = Required<Pick<GuestTables, 'paging'>> & Pick<GuestTables, 'nested'>;

/** `guest NAME pae`: how its tables are made, and what its vCPUs' CR4 and EFER select. */
function lowerPaging({ words, $cstNode }: Ast.Guest, problems: Problems): TableWords {
  const [paging = '4-level', ...others] = words;
  const found = PAGING_NAMES.find((name) => name === paging);
  if (!found) problems.error({ $cstNode }, `unknown paging ${paging}; there are ${PAGING_NAMES.join(', ')}`);
  if (others.length > 0) problems.error({ $cstNode }, `guest … ${words.join(' ')}: one paging is enough`);
  return { paging: found ?? '4-level' };
}

/** `nested NAME 5-level no-ad`: L1's tables for its guests; in EPTP accessed and dirty bits can be left off. */
function lowerNested({ words, $cstNode }: Ast.Guest, { machine }: Surroundings, problems: Problems): TableWords {
  let paging: PagingName = '4-level';
  let accessedDirty = true;
  for (const word of words) {
    if (word === '4-level' || word === '5-level') paging = word;
    else if (word === 'no-ad') accessedDirty = false;
    else problems.error({ $cstNode }, `nested … ${word}: it has 4-level or 5-level tables, and no-ad or not`);
  }
  if (machine.second === 'shadow')
    problems.error(
      { $cstNode },
      'nested: KVM offers its guests a second stage where it has one itself: second-stage tdp',
    );
  if (!accessedDirty && machine.second === 'npt')
    problems.error({ $cstNode }, 'nested … no-ad: only EPTP says so; NPT always has accessed and dirty bits');
  if (paging === '5-level' && machine.second !== 'shadow' && machine.secondLevels !== 5)
    problems.error(
      { $cstNode },
      `nested … 5-level needs a processor with as many: second-stage tdp ${machine.second} 5-level`,
    );
  return { paging, nested: { accessedDirty } };
}

/** `guest NAME in TABLES`: where L1 runs it. */
function lowerWithin(guest: Ast.Guest, guests: readonly GuestTables[], problems: Problems): GuestTables | undefined {
  if (!guest.within) return undefined;
  const name = guest.within.$refText;
  const found = guests.find((each) => each.name === name && each.nested);
  const place = { $cstNode: guest.within.$refNode };
  if (guest.stage) return problems.error(place, 'nested … in: L1’s guests have no guests here');
  if (found) return found;
  const known = guests.flatMap((each) => (each.nested ? [each.name] : [])).join(', ');
  return problems.error(
    place,
    `there are no nested tables ${name}; there are: ${known || 'none; write nested NAME { … }'}`,
  );
}

function warnOfOverlaps(mappings: readonly Mapping[], problems: Problems): void {
  const end = (mapping: Mapping): bigint => mapping.gva + mapping.size;
  const sorted = mappings
    .filter((mapping) => !mapping.raw)
    .sort((a, b) => (a.gva < b.gva ? -1 : a.gva > b.gva ? 1 : 0));
  let reach: Mapping | undefined;
  for (const mapping of sorted) {
    if (reach && mapping.gva < end(reach)) {
      const inner = end(reach) < end(mapping) ? reach : mapping;
      const [earlier, later] = reach.span.line <= mapping.span.line ? [reach, mapping] : [mapping, reach];
      const range = `gva ${hex(mapping.gva)} +${sizeWords(end(inner) - mapping.gva)}`;
      problems.warning(later.span, `${range} is mapped on line ${earlier.span.line} already; this line wins`);
    }
    if (!reach || end(mapping) > end(reach)) reach = mapping;
  }
}

function lowerTasks(
  tasks: readonly Ast.Task[],
  guests: readonly GuestTables[],
  context: Omit<StatementContext, 'owner'>,
  problems: Problems,
): TaskProgram[] {
  const vcpus: (TaskProgram | undefined)[] = [];
  const hosts: TaskProgram[] = [];
  const seen = new Map<string, number>();
  const { length: vcpuCount } = tasks.filter((task) => task.$type === 'Vcpu');
  for (const node of tasks) {
    if (node.$type === 'Host') {
      const span = headerSpan(node, `host ${node.name}`);
      if (node.name === ASYNC_PF_WORKER)
        problems.error(span, `host ${node.name} is KVM’s own: call the task something else`);
      const line = seen.get(`host ${node.name}`);
      if (line !== undefined) problems.error(span, `host ${node.name} is on line ${line} already`);
      seen.set(`host ${node.name}`, span.line);
      const body = lowerStatements(node.body, { ...context, owner: 'host' }, problems);
      hosts.push({ kind: 'host', name: node.name, body, span });
      continue;
    }
    const span = headerSpan(node, 'vcpu', node.id, node.guest && { $cstNode: node.guest.$refNode });
    const guest = node.guest?.$refText;
    if (guest !== undefined && !context.names.guests.includes(guest)) {
      const known = context.names.guests.join(', ') || 'none; define one as guest NAME { … }';
      problems.error({ $cstNode: node.guest?.$refNode }, `there is no guest ${guest}; guests: ${known}`);
    }
    const tables = guests.find(({ name }) => name === guest);
    if (tables?.nested || tables?.within)
      problems.error(
        { $cstNode: node.guest?.$refNode },
        `${guest} is ${tables.nested ? 'no guest, but L1’s tables for its own' : 'a guest of L1’s'}: the vCPU starts in L1, and runs it by enter`,
      );
    const own = context.spaces.get(guest ?? '') ?? context;
    const body = lowerStatements(node.body, { ...context, ...own, owner: 'vcpu' }, problems);
    const id = constant(node.id, 'a vcpu’s number', problems);
    if (id === undefined) continue;
    const line = seen.get(`vcpu ${id}`);
    if (line !== undefined) {
      problems.error(span, `vcpu ${id} is on line ${line} already`);
      continue;
    }
    seen.set(`vcpu ${id}`, span.line);
    if (id >= BigInt(vcpuCount))
      problems.error(span, `vcpu ${id}: vCPUs are numbered from 0 without gaps, here up to ${vcpuCount - 1}`);
    else vcpus[Number(id)] = { kind: 'vcpu', name: `${id}`, ...(guest === undefined ? {} : { guest }), body, span };
  }
  // The machine numbers its vCPUs as they come.
  return [...vcpus.filter((vcpu) => vcpu !== undefined), ...hosts];
}
