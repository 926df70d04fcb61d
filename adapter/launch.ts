import { PAGING, type PagingName } from '../engine/guest/registers.ts';
import { IMAGE_REGISTERS, type ImageRegister } from './image/machine.ts';
import { type KvmLaunch, OF_KVM_GUESTS, parseKvm, parseWanted } from './kvm/launch.ts';
import type { WantedOfKvm } from './kvm/wanted.ts';
import { type LabLaunch, parseLab } from './lab/launch.ts';

/** An image of memory to look at, and what is known of its machine. */
export interface ImageLaunch {
  readonly path: string;
  /** `GPA[+SIZE]@OFFSET`, for raw images. */
  readonly map: readonly string[];
  readonly registers: Readonly<Partial<Record<ImageRegister, bigint>>>;
  readonly paging?: PagingName;
  readonly el2?: boolean;
}

/** A recording of KVM's events. */
export interface TraceLaunch {
  readonly path: string;
  /** Which of the virtual machines in it, where several are told apart: 0 is the one with most events. */
  readonly machine: number;
}

/** What a launch configuration says, checked. The schema in package.json describes the same attributes. */
export interface LaunchArguments extends WantedOfKvm {
  /** Path of a `.mmu` file; of the image that is looked at, or of the guest. */
  readonly program: string;
  readonly image?: ImageLaunch;
  readonly trace?: TraceLaunch;
  readonly kvm?: KvmLaunch;
  /** What runs a scenario. */
  readonly target?: 'emulator' | 'kvm';
  /** In which lab a scenario runs on KVM; without it on this machine. */
  readonly lab?: LabLaunch;
  readonly stopOnEntry: boolean;
  /** Stops once more when everything has ended, instead of ending the session. */
  readonly stopAtEnd: boolean;
  /** Log entries kept to go back: each takes about 50 bytes. */
  readonly history: number;
  /** Run without stopping at anything. */
  readonly noDebug: boolean;
  /** Policies by name, over those of the scenario. */
  readonly policies: Readonly<Record<string, string>>;
  /** Who makes the first steps, in the emulator: `vcpu0:56 vmm:14`, as `kvm-mmu explore` tells it. */
  readonly schedule?: string;
}

export const DEFAULT_HISTORY = 1 << 20;
const MAX_HISTORY = 1 << 26;
const OF_IMAGES = ['image', 'map', 'registers', 'paging', 'el2'];
const OF_SCENARIOS = ['program', 'target', 'stopOnEntry', 'stopAtEnd', 'history', 'policies', 'schedule'];
/** Of a scenario on KVM as of a guest. */
const OF_BOTH = ['lab', 'kvmTables', 'record'];
const OF_TRACES = ['trace', 'machine'];
const KNOWN = [...OF_SCENARIOS, ...OF_IMAGES, ...OF_TRACES, ...OF_KVM_GUESTS];
/** Attributes that VS Code itself puts into every configuration. */
const VSCODE_OWN = [
  'type',
  'name',
  'request',
  'noDebug',
  'preLaunchTask',
  'postDebugTask',
  'internalConsoleOptions',
  'presentation',
  'debugServer',
  'serverReadyAction',
  'suppressMultipleSessionWarning',
  'linux',
  'osx',
  'windows',
];

function shown(value: unknown): string {
  return JSON.stringify(value) ?? String(value);
}

/** Checks the arguments of a launch request. @returns what is wrong, naming attribute, value and what would do. */
export function parseLaunch(raw: unknown): LaunchArguments | { readonly error: string } {
  const given = attributes(raw);
  if (typeof given.error === 'string') return { error: given.error };
  if (given.trace !== undefined) return parseTrace(given);
  if (given.guest !== undefined || given.connect !== undefined) return parseGuest(given, 'launch');
  if (given.machine !== undefined) return { error: '"machine" is for recordings: "trace" is missing' };
  if (given.image !== undefined) return parseImage(given);
  const alone = OF_IMAGES.find((name) => given[name] !== undefined);
  if (alone !== undefined) return { error: `"${alone}" is for images: "image" is missing` };
  const ofKvm = OF_KVM_GUESTS.find((name) => given[name] !== undefined && !OF_BOTH.includes(name));
  if (ofKvm !== undefined) return { error: `"${ofKvm}" is for a guest under KVM: "guest" is missing` };
  const {
    program,
    target = given.lab === undefined ? 'emulator' : 'kvm',
    stopOnEntry = false,
    stopAtEnd = false,
    history = DEFAULT_HISTORY,
    policies = {},
    schedule,
  } = given;
  if (typeof program !== 'string' || program === '')
    return { error: `"program" must be the path of a .mmu file, not ${shown(program)}` };
  if (target !== 'emulator' && target !== 'kvm')
    return { error: `"target" must be "emulator" or "kvm", not ${shown(target)}` };
  if (target === 'emulator' && given.lab !== undefined)
    return { error: '"lab" is a machine with KVM, and "target" says that the emulator is to run the scenario' };
  const lab = given.lab === undefined ? undefined : parseLab(given.lab);
  if (lab && 'error' in lab) return lab;
  const wanted = parseWanted(given);
  if ('error' in wanted) return wanted;
  if (target === 'emulator' && wanted.tables !== undefined)
    return { error: '"kvmTables" is for "target": "kvm": the emulator’s tables are its own' };
  if (target === 'emulator' && wanted.record !== undefined)
    return { error: '"record" is for "target": "kvm": it saves what KVM’s tracepoints tell' };
  if (typeof stopOnEntry !== 'boolean')
    return { error: `"stopOnEntry" must be true or false, not ${shown(stopOnEntry)}` };
  if (typeof stopAtEnd !== 'boolean') return { error: `"stopAtEnd" must be true or false, not ${shown(stopAtEnd)}` };
  if (typeof history !== 'number' || !Number.isInteger(history) || history < 65536 || history > MAX_HISTORY)
    return {
      error: `"history" must be a whole number of log entries from 65536 to ${MAX_HISTORY}, not ${shown(history)}`,
    };
  if (!isPolicies(policies))
    return {
      error: `"policies" must be an object of names and values, such as {"page-split": "lazy"}, not ${shown(policies)}`,
    };
  if (schedule !== undefined && (typeof schedule !== 'string' || schedule.trim() === ''))
    return { error: `"schedule" must be text such as "vcpu0:56 vmm:14", not ${shown(schedule)}` };
  if (schedule !== undefined && target === 'kvm')
    return { error: '"schedule" is for the emulator: who runs on KVM the host’s scheduler decides' };
  return {
    ...(schedule === undefined ? {} : { schedule }),
    target,
    ...(lab ? { lab } : {}),
    ...wanted,
    policies,
    program,
    stopOnEntry,
    stopAtEnd,
    history,
    noDebug: given.noDebug === true,
  };
}

/** The same for an attach request: to a machine that a helper has. */
export function parseAttach(raw: unknown): LaunchArguments | { readonly error: string } {
  const given = attributes(raw);
  return typeof given.error === 'string' ? { error: given.error } : parseGuest(given, 'attach');
}

/** The attributes of a configuration; one of them, `error`, says what is wrong with their names. */
function attributes(raw: unknown): Record<string, unknown> {
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw))
    return { error: `the launch configuration must be an object, not ${shown(raw)}` };
  const unknown = Object.keys(raw).find(
    (name) => !KNOWN.includes(name) && !VSCODE_OWN.includes(name) && !name.startsWith('__'),
  );
  return unknown === undefined
    ? { ...raw }
    : {
        error: `unknown launch attribute "${unknown}"; there are ${KNOWN.map((known) => `"${known}"`).join(', ')}`,
      };
}

function parseGuest(
  given: Readonly<Record<string, unknown>>,
  request: 'launch' | 'attach',
): LaunchArguments | { readonly error: string } {
  const foreign = [...OF_SCENARIOS, ...OF_IMAGES].find(
    (name) => given[name] !== undefined && name !== 'stopOnEntry' && name !== 'target',
  );
  if (foreign !== undefined) return { error: `"${foreign}" does not go with a guest under KVM` };
  const { target = 'kvm', stopOnEntry = request === 'attach' } = given;
  if (target !== 'kvm') return { error: `"target" must be "kvm" for a guest, not ${shown(target)}` };
  if (typeof stopOnEntry !== 'boolean')
    return { error: `"stopOnEntry" must be true or false, not ${shown(stopOnEntry)}` };
  const kvm = parseKvm(given, request);
  if ('error' in kvm) return kvm;
  return {
    program: kvm.guest ?? (typeof kvm.connect === 'string' ? kvm.connect : 'guest'),
    kvm,
    stopOnEntry,
    stopAtEnd: false,
    history: DEFAULT_HISTORY,
    noDebug: given.noDebug === true,
    policies: {},
  };
}

function parseTrace(given: Record<string, unknown>): LaunchArguments | { readonly error: string } {
  const foreign = [...OF_SCENARIOS, ...OF_IMAGES, ...OF_KVM_GUESTS].find(
    (name) => given[name] !== undefined && name !== 'stopOnEntry',
  );
  if (foreign !== undefined) return { error: `"${foreign}" does not go with a recording` };
  const { trace, machine = 0, stopOnEntry = true } = given;
  if (typeof trace !== 'string' || trace === '')
    return { error: `"trace" must be the path of a recording, not ${shown(trace)}` };
  if (typeof machine !== 'number' || !Number.isInteger(machine) || machine < 0)
    return { error: `"machine" must be a whole number from 0, not ${shown(machine)}` };
  if (typeof stopOnEntry !== 'boolean')
    return { error: `"stopOnEntry" must be true or false, not ${shown(stopOnEntry)}` };
  return {
    program: trace,
    trace: { path: trace, machine },
    stopOnEntry,
    stopAtEnd: true,
    history: DEFAULT_HISTORY,
    noDebug: given.noDebug === true,
    policies: {},
  };
}

const REGISTERS: readonly string[] = Object.values(IMAGE_REGISTERS).flat();

function parseImage(given: Record<string, unknown>): LaunchArguments | { readonly error: string } {
  const foreign = OF_SCENARIOS.find((name) => given[name] !== undefined && name !== 'stopOnEntry');
  if (foreign !== undefined)
    return { error: `"${foreign}" is for scenarios, and "image" is given: an image is looked at, nothing runs` };
  const ofKvm = OF_KVM_GUESTS.find((name) => given[name] !== undefined);
  if (ofKvm !== undefined) return { error: `"${ofKvm}" is for a guest under KVM, and "image" is given` };
  const { image, map = [], registers = {}, paging, el2 = false } = given;
  if (typeof image !== 'string' || image === '')
    return { error: `"image" must be the path of an image, not ${shown(image)}` };
  if (!Array.isArray(map) || !map.every((each) => typeof each === 'string'))
    return { error: `"map" must be a list such as ["0x40000000@0"], not ${shown(map)}` };
  if (typeof registers !== 'object' || registers === null || Array.isArray(registers))
    return { error: `"registers" must be an object such as {"cr3": "0x1000"}, not ${shown(registers)}` };
  const values: Partial<Record<ImageRegister, bigint>> = {};
  for (const [name, value] of Object.entries(registers)) {
    if (!REGISTERS.includes(name))
      return { error: `"registers" has no ${shown(name)}; there are ${REGISTERS.join(', ')}` };
    const isText = typeof value === 'string' && /^(0x[0-9a-f_]+|\d+)$/i.test(value);
    if (!isText && !(typeof value === 'number' && Number.isSafeInteger(value) && value >= 0))
      return { error: `register "${name}" must be a number or text such as "0x1000", not ${shown(value)}` };
    const number = BigInt(isText ? (value as string).replaceAll('_', '') : (value as number));
    if (number >= 1n << 64n) return { error: `register "${name}" ${shown(value)} has more than 64 bits` };
    values[name as ImageRegister] = number;
  }
  const names = Object.keys(PAGING) as PagingName[];
  const chosen = names.find((name) => name === paging);
  if (paging !== undefined && chosen === undefined)
    return { error: `"paging" must be ${names.map((name) => `"${name}"`).join(', ')}, not ${shown(paging)}` };
  if (typeof el2 !== 'boolean') return { error: `"el2" must be true or false, not ${shown(el2)}` };
  return {
    program: image,
    image: { path: image, map, registers: values, ...(chosen ? { paging: chosen } : {}), ...(el2 ? { el2 } : {}) },
    stopOnEntry: true,
    stopAtEnd: true,
    history: DEFAULT_HISTORY,
    noDebug: false,
    policies: {},
  };
}

function isPolicies(value: unknown): value is Record<string, string> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  return Object.values(value).every((chosen) => typeof chosen === 'string');
}
