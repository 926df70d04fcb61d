import { type LabLaunch, parseLab } from '../lab/launch.ts';
import { TABLE_SOURCES, type WantedOfKvm } from './wanted.ts';

/** A virtual machine under KVM: one that is to be made, or one that a helper has already. */
export interface KvmLaunch extends WantedOfKvm {
  /** An ELF64 or flat image; of a machine that is connected to, the file whose symbols and lines count. */
  readonly guest?: string;
  /** Arguments of the helper that is to be started, without the image. */
  readonly args: readonly string[];
  /** The helper's executable, where it is not the one that was built here. */
  readonly helper?: string;
  /** Where the helper is to be started, when not on this machine. */
  readonly lab?: LabLaunch;
  /** A Unix socket, or a command whose standard input and output lead to a helper. */
  readonly connect?: string | readonly string[];
  /** Address or symbol of the guest's #PF handler. */
  readonly pageFaultHandler?: string;
}

export const OF_KVM_GUESTS = [
  'guest',
  'memory',
  'slots',
  'vcpus',
  'dirtyRing',
  'helper',
  'lab',
  'kvmTables',
  'record',
  'connect',
  'pageFaultHandler',
];
const OF_NEW_MACHINES = ['memory', 'slots', 'vcpus', 'dirtyRing', 'helper', 'lab'];

const SIZE = /^(0x[0-9a-f]+|\d+)[KMG]?$/i;
const SLOT = /^(0x[0-9a-f]+|\d+):(0x[0-9a-f]+|\d+)[KMG]?:(0x[0-9a-f]+|\d+)[KMG]?(:ro)?$/i;
const MOST_VCPUS = 16;

function shown(value: unknown): string {
  return JSON.stringify(value) ?? String(value);
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.length > 0 && value.every(isText);
}

/** Checks the attributes `kvmTables` and `record`. @returns what is wrong with them, if anything */
export function parseWanted(given: Readonly<Record<string, unknown>>): WantedOfKvm | { readonly error: string } {
  const { kvmTables, record } = given;
  const tables = TABLE_SOURCES.find((source) => source === kvmTables);
  if (kvmTables !== undefined && tables === undefined)
    return {
      error: `"kvmTables" must be ${TABLE_SOURCES.map((each) => `"${each}"`).join(', ')}, not ${shown(kvmTables)}`,
    };
  if (record !== undefined && !isText(record))
    return { error: `"record" must be the path of a file such as "trace.dat", not ${shown(record)}` };
  return { ...(tables === undefined ? {} : { tables }), ...(record === undefined ? {} : { record }) };
}

/** Checks the attributes of a KVM machine. @returns what is wrong, naming attribute, value and what would do. */
export function parseKvm(
  given: Readonly<Record<string, unknown>>,
  request: 'launch' | 'attach',
): KvmLaunch | { readonly error: string } {
  const { guest, memory, slots, vcpus = 1, dirtyRing, helper, connect, pageFaultHandler } = given;
  if (connect !== undefined && !isText(connect) && !isTexts(connect))
    return {
      error: `"connect" must be the path of a Unix socket, or a command such as ["ssh", "host", "kvm-mmu-helper", "--image", "guest.elf"], not ${shown(connect)}`,
    };
  if (request === 'attach' && connect === undefined)
    return { error: '"connect" is missing: it says where the helper is, a Unix socket or a command' };
  const idle = connect === undefined ? undefined : OF_NEW_MACHINES.find((name) => given[name] !== undefined);
  if (idle !== undefined) return { error: `"${idle}" is for a machine that is made here: with "connect" it is there` };
  if (connect === undefined ? !isText(guest) : guest !== undefined && !isText(guest))
    return { error: `"guest" must be the path of an ELF64 or flat image, not ${shown(guest)}` };
  if (memory !== undefined && !(isText(memory) && SIZE.test(memory)))
    return { error: `"memory" must be a size such as "64M", not ${shown(memory)}` };
  if (slots !== undefined && !(Array.isArray(slots) && slots.every((slot) => isText(slot) && SLOT.test(slot))))
    return { error: `"slots" must be a list such as ["1:0xf0000000:64K:ro"], ID:GPA:SIZE, not ${shown(slots)}` };
  if (typeof vcpus !== 'number' || !Number.isInteger(vcpus) || vcpus < 1 || vcpus > MOST_VCPUS)
    return { error: `"vcpus" must be a whole number from 1 to ${MOST_VCPUS}, not ${shown(vcpus)}` };
  if (dirtyRing !== undefined && !(typeof dirtyRing === 'number' && Number.isInteger(dirtyRing) && dirtyRing > 0))
    return { error: `"dirtyRing" must be a number of entries, a power of two, not ${shown(dirtyRing)}` };
  if (helper !== undefined && !isText(helper))
    return { error: `"helper" must be the path of kvm-mmu-helper, not ${shown(helper)}` };
  if (pageFaultHandler !== undefined && !isText(pageFaultHandler))
    return {
      error: `"pageFaultHandler" must be a symbol or an address such as "0x100120", not ${shown(pageFaultHandler)}`,
    };
  if (helper !== undefined && given.lab !== undefined)
    return { error: '"helper" is for this machine: a lab has the helper that was built here' };
  const lab = given.lab === undefined ? undefined : parseLab(given.lab);
  if (lab && 'error' in lab) return lab;
  const wanted = parseWanted(given);
  if ('error' in wanted) return wanted;
  const args = ['--memory', isText(memory) ? memory : '64M', '--vcpus', `${vcpus}`];
  if (isTexts(slots)) args.push(...slots.flatMap((slot) => ['--slot', slot]));
  if (dirtyRing !== undefined) args.push('--dirty-ring', `${dirtyRing}`);
  return {
    args,
    ...(isText(guest) ? { guest } : {}),
    ...(isText(helper) ? { helper } : {}),
    ...(lab ? { lab } : {}),
    ...wanted,
    ...(isText(connect) || isTexts(connect) ? { connect } : {}),
    ...(isText(pageFaultHandler) ? { pageFaultHandler } : {}),
  };
}
