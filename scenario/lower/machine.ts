import { launch } from '../../engine/attributes/launch.ts';
import { VM_TYPES, type VmType } from '../../engine/attributes/state.ts';
import type { Feature } from '../../engine/formats/format.ts';
import { Machine, MachineError } from '../../engine/machine.ts';
import { MAX_SLOT_ID, MemslotError } from '../../engine/memory/memslots.ts';
import { choosePolicy, DEFAULT_POLICIES, policyProblem } from '../../engine/policies.ts';
import type { MachineConfig, SlotConfig } from '../../engine/program.ts';
import { L1TF_MOST_BITS } from '../../engine/tdp/spte.ts';
import { didYouMean, type Placed, type Problems, spanOf } from '../diagnostics.ts';
import type * as Ast from '../generated/ast.ts';
import { FEATURES } from '../names.ts';
import { sizeWords } from '../number.ts';
import { constant } from './expression.ts';
import { lowerRange } from './ranges.ts';

/** What a scenario without a `machine` block runs on, and what one that leaves something out has instead. */
export const DEFAULT_MACHINE: MachineConfig = {
  slots: [{ id: 0, base: 0n, size: 64n << 20n, readonly: false, pageLevel: 1 }],
  second: 'ept',
  maxPhyAddr: 46,
  features: ['1g-pages', 'execute-only'],
};

/** Each slot is compared with all before it. */
const MAX_SLOTS = 1024;

type SecondStage = Pick<MachineConfig, 'second' | 'secondLevels'>;
const SECOND_STAGES: Readonly<Record<string, SecondStage>> = {
  'tdp ept 4-level': { second: 'ept' },
  'tdp ept 5-level': { second: 'ept', secondLevels: 5 },
  'tdp npt 4-level': { second: 'npt' },
  'tdp npt 5-level': { second: 'npt', secondLevels: 5 },
  shadow: { second: 'shadow' },
};
const SECOND_STAGE_WORDS = Object.keys(SECOND_STAGES).join(', ');
/** Words of second stages that are known and wait to be modelled. */
const LATER = ['ept', 'npt', 'stage-2', '3-level', 'pae'];

export const PAGE_LEVELS: ReadonlyMap<bigint, number> = new Map([
  [1n << 12n, 1],
  [1n << 21n, 2],
  [1n << 30n, 3],
]);

export function lowerMachine(machines: readonly Ast.Machine[], problems: Problems): MachineConfig {
  const [machine, ...others] = machines;
  for (const other of others)
    problems.error(other, `a second machine: the first is on line ${spanOf(machine).line}, and a scenario has one`);
  if (!machine) return DEFAULT_MACHINE;
  if (machine.architecture !== undefined && machine.architecture !== 'x86-64')
    problems.error(machine, `machine ${machine.architecture} is not modelled yet; there is: x86-64`);

  const memory: Ast.Memory[] = [];
  const seen = new Map<string, Ast.MachineItem>();
  let { maxPhyAddr } = DEFAULT_MACHINE;
  let stage: SecondStage = { second: DEFAULT_MACHINE.second };
  let features: readonly Feature[] | undefined;
  let policies = DEFAULT_POLICIES;
  let sanitize = false;
  let vm: VmType | undefined;
  const policyItems = new Map<string, Ast.Policy>();
  let memoryFault: 'convert' | 'stop' | undefined;
  const ranges: (NonNullable<MachineConfig['privateRanges']>[number] & { readonly item: Ast.PrivateMemory })[] = [];
  for (const item of machine.items) {
    if (item.$type === 'Memory') {
      memory.push(item);
      continue;
    }
    if (item.$type === 'PrivateMemory') {
      const range = lowerRange(item.base, item.size, 'gpa', problems);
      if (range) ranges.push({ item, ...range, launched: item.launched });
      continue;
    }
    if (item.$type === 'Sanitize') {
      sanitize = true;
      continue;
    }
    if (item.$type === 'Policy') {
      const earlier = policyItems.get(item.subject);
      if (earlier)
        problems.error(item, `policy ${item.subject} is given twice: it is on line ${spanOf(earlier).line} already`);
      policyItems.set(item.subject, item);
      const chosen = choosePolicy(policies, item.subject, item.value ?? '');
      if ('error' in chosen) problems.error(item, chosen.error);
      else policies = chosen;
      continue;
    }
    const before = seen.get(item.$type);
    if (before) problems.error(item, `given twice: it is on line ${spanOf(before).line} already`);
    seen.set(item.$type, item);
    if (item.$type === 'VmKind') vm = lowerVm(item, problems);
    else if (item.$type === 'MemoryFault') memoryFault = lowerMemoryFault(item, problems);
    else if (item.$type === 'SecondStage') stage = lowerSecondStage(item, problems) ?? stage;
    else if (item.$type === 'MaxPhyAddr') maxPhyAddr = lowerMaxPhyAddr(item, problems) ?? maxPhyAddr;
    else features = lowerFeatures(item, problems);
  }
  features ??= DEFAULT_MACHINE.features;
  const cpu = seen.get('Cpu');
  if (cpu && features.includes('l1tf')) {
    if (stage.second === 'npt') problems.error(cpu, 'cpu l1tf: it is a bug of Intel’s processors, which have no NPT');
    if (maxPhyAddr > L1TF_MOST_BITS)
      problems.error(
        cpu,
        `cpu l1tf: KVM takes no processor of ${maxPhyAddr} physical address bits for one with it: maxphyaddr ${L1TF_MOST_BITS} at most`,
      );
  }
  // A processor with NPT is AMD's, and so are its guests' reserved bits.
  if (stage.second === 'npt') features = [...features, 'amd'];
  const config: MachineConfig = {
    slots: [],
    ...stage,
    maxPhyAddr,
    features,
    policies,
    ...(vm === undefined ? {} : { vm }),
    ...(memoryFault === undefined ? {} : { memoryFault }),
    ...(sanitize ? { sanitize } : {}),
  };
  checkVm(machine, config, problems);
  if (memory.length === 0)
    problems.warning(machine, 'a machine without memory: every access will be MMIO; add a line like memory 0 +64M');
  const slots = lowerMemory(memory, config, problems);
  if (ranges.length === 0) return { ...config, slots };
  const launched = ranges.filter(({ item, ...range }) =>
    checked(item, problems, () => {
      launch(
        new Machine({ machine: { ...config, slots, privateRanges: [range] }, guests: [], tasks: [], expects: [] }, 1),
      );
    }),
  );
  return { ...config, slots, privateRanges: launched.map(({ item: _, ...range }) => range) };
}

function lowerVm(item: Ast.VmKind, problems: Problems): VmType | undefined {
  const found = VM_TYPES.find((type) => type === item.type);
  return (
    found ?? problems.error(item, `unknown VM ${item.type}${didYouMean(item.type, VM_TYPES)}: ${VM_TYPES.join(', ')}`)
  );
}

function lowerMemoryFault(item: Ast.MemoryFault, problems: Problems): 'convert' | 'stop' | undefined {
  if (item.answer === 'convert' || item.answer === 'stop') return item.answer;
  return problems.error(item, `memory-fault ${item.answer}: the VMM can convert the page, or stop the vCPU`);
}

/** What protects memory wants tables of its maker. */
function checkVm(
  place: Placed,
  { vm, second, secondLevels, maxPhyAddr, policies = DEFAULT_POLICIES }: MachineConfig,
  problems: Problems,
): void {
  const bit = vm === 'snp' ? 51 : vm === 'tdx' ? (secondLevels === 5 ? 51 : 47) : 52;
  if (maxPhyAddr > bit)
    problems.error(
      place,
      `maxphyaddr ${maxPhyAddr}: of vm ${vm} bit ${bit} of an address says whether memory is private; at most ${bit}`,
    );
  if (vm === 'snp' && second !== 'npt') problems.error(place, 'vm snp needs second-stage tdp npt 4-level');
  if (vm === 'tdx' && second !== 'ept') problems.error(place, 'vm tdx needs second-stage tdp ept 4-level');
  if (vm === 'software-protected' && second === 'shadow')
    problems.error(place, 'vm software-protected needs the TDP MMU: second-stage tdp ept 4-level, for example');
  const problem = policyProblem(policies, vm);
  if (problem !== undefined) problems.error(place, problem);
}

function lowerSecondStage(item: Ast.SecondStage, problems: Problems): SecondStage | undefined {
  const words = item.words.join(' ');
  const second = SECOND_STAGES[words];
  if (second) return second;
  const later = item.words.some((word) => LATER.includes(word));
  if (later) problems.error(item, `second-stage ${words} is not modelled yet; there are: ${SECOND_STAGE_WORDS}`);
  else problems.error(item, `unknown second stage ${words}; there are: ${SECOND_STAGE_WORDS}`);
  return undefined;
}

function lowerMaxPhyAddr(item: Ast.MaxPhyAddr, problems: Problems): number | undefined {
  const bits = constant(item.bits, 'maxphyaddr', problems);
  if (bits === undefined) return undefined;
  if (bits < 32n || bits > 52n) return problems.error(item.bits, `maxphyaddr ${bits} is out of range: 32 … 52`);
  return Number(bits);
}

function lowerFeatures(item: Ast.Cpu, problems: Problems): readonly Feature[] {
  const features = new Set<Feature>();
  const known = Object.keys(FEATURES);
  for (const node of item.features) {
    const { feature: name } = node;
    if (name === '1g-pages' || name === 'execute-only' || name === 'l1tf') features.add(name);
    else if (name === 'none') {
      if (item.features.length > 1) problems.error(node, 'none stands alone: cpu none');
    } else
      problems.error(node, `unknown processor feature ${name}${didYouMean(name, known)}: ${known.join(', ')}, or none`);
  }
  return [...features];
}

/** The slots, each checked by the engine's own rules against those before it. */
function lowerMemory(memory: readonly Ast.Memory[], config: MachineConfig, problems: Problems): readonly SlotConfig[] {
  if (memory.length > MAX_SLOTS) {
    problems.error(memory[MAX_SLOTS], `more than ${MAX_SLOTS} memory slots`);
    return [];
  }
  const machine = new Machine({ machine: config, guests: [], tasks: [], expects: [] }, 1);
  const slots: SlotConfig[] = [];
  let next = 0;
  for (const item of memory) {
    const slot = lowerSlot(item, next, problems);
    if (!slot) continue;
    next = slot.id + 1;
    if (slots.some(({ id }) => id === slot.id)) {
      problems.error(item, `slot ${slot.id} is given twice`);
      continue;
    }
    if (checked(item, problems, () => (machine.slots = machine.slots.with(machine.makeSlot(slot))))) slots.push(slot);
  }
  return slots;
}

/** Whether the engine takes a slot; what it says against it becomes a diagnostic. */
function checked(where: Placed, problems: Problems, action: () => void): boolean {
  try {
    action();
    return true;
  } catch (error) {
    if (!(error instanceof MemslotError || error instanceof MachineError)) throw error;
    problems.error(where, error.message);
    return false;
  }
}

/** A slot of the machine, whose id may be left to `next`, or one that a host adds. */
export function lowerSlot(item: Ast.Memory | Ast.AddSlot, next: number, problems: Problems): SlotConfig | undefined {
  const base = constant(item.base, 'the start of a slot', problems);
  const size = constant(item.size, 'the size of a slot', problems);
  let id: number | undefined = item.$type === 'AddSlot' ? slotId(item.id, problems) : next;
  let pageLevel: number | undefined = 1;
  let readonly = false;
  let gmemLevel: number | undefined;
  const seen = new Set<string>();
  for (const option of item.options) {
    if (seen.has(option.$type)) problems.error(option, 'given twice for one slot');
    seen.add(option.$type);
    switch (option.$type) {
      case 'ReadOnlyOption':
        readonly = true;
        break;
      case 'HugeOption': {
        const page = constant(option.size, 'a page size', problems);
        pageLevel = page === undefined ? undefined : PAGE_LEVELS.get(page);
        if (page !== undefined && pageLevel === undefined)
          problems.error(option, `the host has no pages of ${sizeWords(page)}: huge 2M or huge 1G`);
        break;
      }
      case 'GmemOption': {
        const page = option.size ? constant(option.size, 'a page size', problems) : 0x1000n;
        gmemLevel = page === undefined ? undefined : PAGE_LEVELS.get(page);
        if (page !== undefined && (gmemLevel === undefined || gmemLevel > 2))
          problems.error(option, `guest_memfd has no pages of ${sizeWords(page)}: guest-memfd, or guest-memfd 2M`);
        break;
      }
      case 'IdOption':
        if (item.$type === 'AddSlot') problems.error(option, 'the slot has its number already, behind add slot');
        else id = slotId(option.id, problems);
    }
  }
  if (readonly && gmemLevel !== undefined)
    problems.error(
      item,
      'KVM takes no read-only slot with a guest_memfd (-EINVAL): writes to private memory cannot be emulated',
    );
  if (base === undefined || size === undefined || id === undefined || pageLevel === undefined) return undefined;
  return { id, base, size, readonly, pageLevel, ...(gmemLevel === undefined ? {} : { gmemLevel }) };
}

export function slotId(node: Ast.Expression, problems: Problems): number | undefined {
  const id = constant(node, 'a slot’s number', problems);
  if (id === undefined) return undefined;
  if (id > BigInt(MAX_SLOT_ID)) return problems.error(node, `slot ${id} is out of range: 0 … ${MAX_SLOT_ID}`);
  return Number(id);
}
