import type { FilterName } from '../breakpoints.ts';
import type { RspClient } from '../rsp/client.ts';
import { KVM_FILTERS } from './filters.ts';
import type { ViolationsAfter } from './violations.ts';

/** A command of the debug console could not be carried out; the message is for people. */
export class GuestCommandError extends Error {}

export const GUEST_HELP = `trap GPA SIZE touch|write — stop at the next access to memory, or at the next write
untrap GPA SIZE — no longer
slot add ID GPA SIZE [ro+log+private] | slot delete ID | slot move ID GPA | slot flags ID [FLAGS]
discard GPA SIZE — give memory back to the host: it reads as zeros
refresh — delete and add every slot: KVM forgets all that it built
dirty SLOT — pages written since the last time; dirty ring VCPU
attributes GPA SIZE private|shared · prefault VCPU GPA SIZE
stats — KVM’s statistics
violations — second-stage faults up to this stop that tracepoints told of
Addresses are guest-physical; numbers may begin with 0x and end in K, M or G.`;

function number(text: string | undefined, what: string): string {
  const match = /^(0x[0-9a-f]+|\d+)([KMG]?)$/i.exec((text ?? '').replace(/^gpa:/, '').replaceAll('_', ''));
  if (!match) throw new GuestCommandError(`${what} must be a number, not ${text ?? 'missing'}`);
  const shift = { '': 0n, K: 10n, M: 20n, G: 30n }[match[2]!.toUpperCase()]!;
  return (BigInt(match[1]!) << shift).toString(16);
}

/** The packet that a command means; undefined for other text. @throws GuestCommandError */
function packetOf(words: readonly string[]): string | undefined {
  const [name, ...rest] = words;
  switch (name) {
    case 'trap':
      return `vKvm.Trap:${number(rest[0], 'GPA')},${number(rest[1], 'SIZE')},${rest[2] ?? 'touch'}`;
    case 'untrap':
    case 'discard':
      return `vKvm.${name === 'untrap' ? 'Untrap' : 'Discard'}:${number(rest[0], 'GPA')},${number(rest[1], 'SIZE')}`;
    case 'refresh':
      return 'vKvm.Refresh';
    case 'dirty':
      return rest[0] === 'ring' ? `qKvm.DirtyRing:${number(rest[1], 'VCPU')}` : `qKvm.Dirty:${number(rest[0], 'SLOT')}`;
    case 'attributes':
      return `vKvm.Attributes:${number(rest[0], 'GPA')},${number(rest[1], 'SIZE')},${rest[2] ?? ''}`;
    case 'prefault':
      return `vKvm.PreFault:${number(rest[0], 'VCPU')},${number(rest[1], 'GPA')},${number(rest[2], 'SIZE')}`;
    case 'stats':
      return 'qKvm.Stats';
    case 'slot':
      return slotPacket(rest);
    default:
      return undefined;
  }
}

function slotPacket([what, id, ...rest]: readonly string[]): string {
  const slot = number(id, 'ID');
  switch (what) {
    case 'add':
      return `vKvm.Slot:add,${slot},${number(rest[0], 'GPA')},${number(rest[1], 'SIZE')}${rest[2] ? `,${rest[2]}` : ''}`;
    case 'delete':
      return `vKvm.Slot:delete,${slot}`;
    case 'move':
      return `vKvm.Slot:move,${slot},${number(rest[0], 'GPA')}`;
    case 'flags':
      return `vKvm.Slot:flags,${slot},${rest[0] ?? ''}`;
    default:
      throw new GuestCommandError(`slot ${what ?? ''}: add, delete, move and flags are possible`);
  }
}

/**
 * Carries out a command on the helper's machine. `wants`: whether a filter is on. @returns its answer, and whether the machine
 * was changed; undefined for other text
 */
export async function runGuestCommand(
  client: RspClient,
  violations: ViolationsAfter,
  wants: (filter: FilterName) => boolean,
  text: string,
): Promise<{ readonly answer: string; readonly changes: boolean } | undefined> {
  if (text.trim() === 'violations') return { answer: violations.listing(), changes: false };
  const packet = packetOf(text.trim().split(/\s+/));
  if (packet === undefined) return undefined;
  const reply = await client.vendor(packet);
  const { label } = KVM_FILTERS.find(({ filter }) => filter === 'second-stage')!;
  const idle = packet.startsWith('vKvm.Trap') && !wants('second-stage');
  const done = idle ? `done; nothing stops there until the filter “${label}” is on` : 'done';
  return { answer: reply === 'OK' ? done : readable(packet, reply), changes: packet.startsWith('v') };
}

function readable(packet: string, reply: string): string {
  const value: unknown = JSON.parse(reply);
  if (packet === 'qKvm.Stats') return statistics(value).join('\n');
  if (Array.isArray(value) && value.length === 0) return 'no page was written';
  if (Array.isArray(value) && Array.isArray(value[0]))
    return value.map(([slot, gfn]: [number, number]) => `slot ${slot}, gfn 0x${gfn.toString(16)}`).join('\n');
  if (Array.isArray(value)) return value.map((gfn: number) => `gfn 0x${gfn.toString(16)}`).join('\n');
  return reply;
}

/** Counters that are not zero, those of the machine and of each vCPU. */
function statistics(value: unknown): string[] {
  if (typeof value !== 'object' || value === null) return [];
  const { vm = {}, vcpus = [] } = value as { vm?: Record<string, unknown>; vcpus?: Record<string, unknown>[] };
  const lines = (title: string, counters: Record<string, unknown>): string[] =>
    Object.entries(counters)
      .filter(([, count]) => typeof count === 'number' && count !== 0)
      .map(([name, count]) => `${title} ${name.padEnd(32)} ${count}`);
  return [...lines('vm    ', vm), ...vcpus.flatMap((counters, vcpu) => lines(`vcpu ${vcpu}`, counters))];
}
