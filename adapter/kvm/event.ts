import { errorCodeWords } from '../../engine/guest/permission.ts';
import type { RegimeWalk } from '../../engine/guest/regime.ts';
import { hex } from '../../engine/memory/words.ts';
import type { Mirror } from '../../engine/mirror.ts';
import type { Query } from '../../engine/queries/answers.ts';
import { faultSentence } from '../../engine/queries/words.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import type { KvmStop } from '../rsp/stop.ts';
import type { Node } from '../variables.ts';

/** What KVM stopped a vCPU for, as it is told. */
export interface KvmEvent {
  readonly vcpu: number;
  readonly stop: KvmStop;
  /** Of a guest #PF: the error code that KVM delivered, explained by the tables in memory. */
  readonly fault?: FaultInfo;
  /** Of a second-stage fault: the level of the guest's table that was read, when it was not the page itself. */
  readonly tableLevel?: number;
}

const TRAP_WORDS = {
  missing: 'the host has no page behind it yet',
  minor: 'the host has the page, but KVM’s process does not map it yet',
  'write-protected': 'the host has write-protected the page',
} as const;
const DID = { read: 'read', write: 'wrote', fetch: 'fetched from' } as const;

/** Explains a guest's #PF: what KVM delivered is taken as it is, and why is read from the guest's tables. */
export function guestFault(mirror: Mirror, vcpu: number, stop: KvmStop): FaultInfo | undefined {
  const { gva, error, access, cpl = 0 } = stop;
  if (stop.reason !== 'guest-pf' || gva === undefined || error === undefined || access === undefined) return undefined;
  const walk = mirror.regimes[vcpu]!.walk(mirror.memory, gva, { kind: access, user: cpl === 3 });
  const last = walk.references.at(-1);
  return {
    vcpu,
    kind: 'guest',
    access,
    cpl,
    // What the error code says of the privilege is not what the code had: a descriptor table was read, say.
    implicit: cpl === 3 && (error & 4) === 0,
    gva,
    gpa: undefined,
    target: 'page',
    guestLevel: last?.level ?? 0,
    level: last?.level ?? 0,
    index: last?.index ?? 0,
    lo: last?.lo ?? 0,
    hi: last?.hi ?? 0,
    table: last?.table ?? 0,
    errorCode: error,
    exitInfo: 0,
    reason: reasonWords(walk, error),
  };
}

/** Why, if the tables agree with the error code; else what both say: a translation was stale, or the tables have changed. */
function reasonWords(walk: RegimeWalk, error: number): string {
  const code = `#PF, error code ${errorCodeWords(error)}`;
  if (walk.end === 'guest-fault' && walk.code === code) return walk.reason;
  const tables = walk.end === 'done' ? 'allow it' : `say ${walk.code ?? 'otherwise'}: ${walk.reason}`;
  return `KVM delivered error code ${errorCodeWords(error)}, while the tables in memory ${tables}`;
}

/** Whether the instruction has run, as the end of a sentence. */
function completionWords({ completed, rip }: KvmStop): string {
  const at = rip === undefined ? '' : ` at ${hex(rip)}`;
  if (completed === undefined) return '.';
  return completed ? '. The instruction has completed.' : `. The instruction${at} has not run yet.`;
}

/** Why a vCPU stopped, in one sentence and what became of the instruction. */
export function eventSentence({ vcpu, stop, fault, tableLevel }: KvmEvent, where: string): string {
  const who = `vCPU ${vcpu}`;
  const level = stop.cpl === 3 ? ' at CPL 3' : '';
  const gpa = stop.gpa === undefined ? 'memory' : `gpa ${hex(stop.gpa)}`;
  const did = stop.access === undefined ? 'accessed' : DID[stop.access];
  const value = stop.data === undefined ? '' : ` (${hex(stop.data)})`;
  const bytes = stop.size === undefined ? '' : `${stop.size} byte${stop.size === 1 ? '' : 's'} of `;
  switch (stop.reason) {
    case 'start':
      return `${who} has not begun: ${where} is next.`;
    case 'pause':
      return `${who} is paused at ${where}.`;
    case 'step':
      return `${who}: ${where} is next.`;
    case 'breakpoint':
      return `${who}: breakpoint at ${where}.`;
    case 'guest-pf':
      return fault
        ? `${faultSentence(fault)}; the guest gets #PF with error code ${errorCodeWords(fault.errorCode)}, its handler is next.`
        : `${who} page-faulted at gva ${hex(stop.gva ?? 0n)}; the frame on the handler’s stack cannot be read.`;
    case 'second-stage': {
      const gva = stop.gva === undefined ? '' : ` (gva ${hex(stop.gva)})`;
      const what =
        tableLevel === undefined
          ? `${did} ${gpa}${gva}${level}`
          : `needed its level-${tableLevel} table at ${gpa} to reach gva ${hex(stop.gva ?? 0n)}${level}`;
      return `${who} ${what}: ${stop.trap ? TRAP_WORDS[stop.trap] : 'the host does not map it'}${completionWords(stop)}`;
    }
    case 'mmio':
      return `${who} ${did} ${bytes}${gpa}${value}: no memslot holds it${completionWords(stop)}`;
    case 'read-only':
      return `${who} ${did} ${bytes}${gpa}${value}: its memslot is read-only${completionWords(stop)}`;
    case 'port':
      return `${who} wrote ${hex(stop.data ?? 0n)} to port ${hex(BigInt(stop.port ?? 0))}: ${where} is next.`;
    case 'halt':
      return `${who} has halted at ${where}: no interrupt will come.`;
    case 'shutdown':
      // Some hosts reset the vCPU at once, and where it stood is gone.
      return stop.rip === undefined
        ? `${who} has shut down: a triple fault. This KVM has reset it, so that where it was is not known.`
        : `${who} has shut down at ${where}: a triple fault${stop.gva === undefined ? '' : `; CR2 is ${hex(stop.gva)}`}.`;
    case 'memory-fault':
      return `${who} ${did} ${gpa}: KVM_EXIT_MEMORY_FAULT, private and shared do not match${completionWords(stop)}`;
    case 'hypercall':
      return `${who} asks that ${hex(BigInt(stop.size ?? 0))} bytes at ${gpa} become ${((stop.data ?? 0n) & 0x10n) !== 0n ? 'private' : 'shared'} (KVM_HC_MAP_GPA_RANGE).`;
    case 'emulation':
      return `${who}: KVM’s emulator does not know the instruction at ${where}.`;
    case 'error':
      return `${who}: ${stop.words ?? `error ${stop.errno ?? 0}`}.`;
  }
}

/** The walk that a stop is about: of the address that faulted. */
export function eventWalk({ vcpu, stop }: KvmEvent): Extract<Query, { kind: 'walk' }> | undefined {
  const cpl = stop.cpl === 3 ? 3 : 0;
  if ((stop.reason === 'guest-pf' || stop.reason === 'second-stage') && stop.gva !== undefined)
    return { kind: 'walk', vcpu, space: 'gva', address: hex(stop.gva), access: stop.access ?? 'read', cpl };
  if (stop.gpa !== undefined) return { kind: 'walk', vcpu, space: 'gpa', address: hex(stop.gpa) };
  if (stop.rip !== undefined) return { kind: 'walk', vcpu, space: 'gva', address: hex(stop.rip), access: 'fetch', cpl };
  return undefined;
}

/** What was said of a stop, and of each value whether it is exact or derived. */
export function stopNodes({ stop }: KvmEvent): Node[] {
  const certainty = (name: string): string =>
    stop.exact.includes(name) ? 'exact' : stop.derived.includes(name) ? 'derived' : '';
  const node = (name: string, value: string, extra: Partial<Node> = {}): Node => {
    const how = certainty(name);
    return { name, value: how === '' ? value : `${value} (${how})`, ...(how ? { type: how } : {}), ...extra };
  };
  const address = (name: 'gva' | 'gpa' | 'rip', value: bigint | undefined): Node[] =>
    value === undefined
      ? []
      : [
          node(name, hex(value), {
            memoryReference: name === 'gpa' ? `gpa:${hex(value)}` : hex(value),
            evaluateName: `${name === 'gpa' ? 'gpa' : 'gva'}:${hex(value)}`,
          }),
        ];
  return [
    node('reason', stop.reason),
    ...(stop.access ? [node('access', stop.access)] : []),
    ...address('gva', stop.gva),
    ...address('gpa', stop.gpa),
    ...address('rip', stop.rip),
    ...(stop.error === undefined ? [] : [node('error', errorCodeWords(stop.error))]),
    ...(stop.cpl === undefined ? [] : [node('cpl', `${stop.cpl}`)]),
    ...(stop.size === undefined ? [] : [node('size', `${stop.size}`)]),
    ...(stop.data === undefined ? [] : [node('data', hex(stop.data))]),
    ...(stop.trap === undefined ? [] : [node('trap', stop.trap)]),
    ...(stop.completed === undefined ? [] : [node('completed', stop.completed ? 'yes' : 'no')]),
    ...(stop.words === undefined ? [] : [node('words', stop.words)]),
  ];
}
