import { PAGING, type PagingName } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
import type { Expectation, GuestTables, Mapping, Program, SlotConfig, TaskProgram } from '../../engine/program.ts';
import { headerSpan, Problems, spanOf } from '../diagnostics.ts';
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
  const names: Names = {
    guests: guests.map(({ name }) => name),
    variables: [],
    vcpus: scenario.tasks.filter((task) => task.$type === 'Vcpu').length,
  };
  const context = { ...around, names, slots: new Set(slots.map(({ id }) => id)) };
  const tasks = lowerTasks(scenario.tasks, guests, context, problems);
  const expects = scenario.expects.flatMap((node): Expectation[] => {
    const condition = lowerExpression(node.condition, problems, names);
    return condition ? [{ condition, text: expressionText(node.condition), span: spanOf(node) }] : [];
  });
  if (scenario.tasks.length === 0) problems.warning(undefined, 'nothing to run: add a vcpu or a host block');
  return { machine, guests, tasks, expects };
}

/** Slots as host tasks add or move them; the tasks' own lowering tells what is wrong with them. */
function laterSlots(tasks: readonly Ast.Task[], initial: readonly SlotConfig[]): SlotConfig[] {
  const silent = new Problems();
  const found: SlotConfig[] = [];
  const visit = (body: readonly Ast.Statement[]): void => {
    for (const node of body) {
      if (node.$type === 'Repeat') visit(node.body);
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
  return guests.map((guest): GuestTables => {
    const { name } = guest;
    const span = headerSpan(guest, `guest ${name}`);
    const line = lines.get(name);
    if (line !== undefined) problems.error(span, `guest ${name} is on line ${line} already`);
    else lines.set(name, span.line);
    if (isRegister(name) || FAMILIES.has(name) || VALUES.includes(name) || name === 'vcpu')
      problems.error(span, `${name} has a meaning in expressions already: call the guest something else`);
    if (around.coverage.empty) problems.error(span, `guest ${name} has no memory to keep its tables in`);

    const paging = lowerPaging(guest, problems);
    const own = { ...around, paging };
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
        if (around.coverage.firstOutside({ base, size: 4096n }) !== undefined)
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
    return {
      name,
      ...(paging === '4-level' ? {} : { paging }),
      ...(tablesAt === undefined ? {} : { tablesAt }),
      mappings,
      span,
    };
  });
}

const PAGING_NAMES = Object.keys(PAGING) as PagingName[];

/** `guest NAME pae`: how its tables are made, and what its vCPUs' CR4 and EFER select. */
function lowerPaging({ paging, $cstNode }: Ast.Guest, problems: Problems): PagingName {
  if (paging === undefined) return '4-level';
  const found = PAGING_NAMES.find((name) => name === paging);
  if (!found) problems.error({ $cstNode }, `unknown paging ${paging}; there are ${PAGING_NAMES.join(', ')}`);
  return found ?? '4-level';
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
    const paging = guests.find(({ name }) => name === guest)?.paging ?? '4-level';
    const body = lowerStatements(node.body, { ...context, paging, owner: 'vcpu' }, problems);
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
