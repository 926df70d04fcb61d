import type { Machine } from '../../engine/machine.ts';
import { codeWidth } from './code-width.ts';
import type { MemoryOperands } from './disassembly.ts';
import type { KvmEvent } from './event.ts';
import type { RegisterValues } from './registers.ts';
import { readVirtual } from './virtual.ts';

const LONGEST = 15;

/**
 * KVM tells of a second-stage fault the guest-physical address alone. Where the instruction has not run, the virtual one is
 * among those that it will access: the one that leads to that page, or whose walk reads it.
 */
export function withAddress(
  event: KvmEvent,
  machine: Machine,
  registers: RegisterValues,
  memoryOperands: MemoryOperands,
): KvmEvent {
  const { vcpu, stop } = event;
  const { gpa, rip, completed } = stop;
  if (gpa === undefined || completed !== false || stop.gva !== undefined) return event;
  const at = rip ?? registers.get('rip') ?? 0n;
  const code = readVirtual(machine, vcpu, at, LONGEST);
  const operands =
    code.length === 0
      ? []
      : memoryOperands(code, at, (name) => registers.get(name) ?? 0n, codeWidth(machine, vcpu, registers));
  const { regimes, memory } = machine.mirror!;
  const frame = gpa >> 12n;
  for (const address of [...operands, at]) {
    const walk = regimes[vcpu]!.walk(memory, address, { kind: 'read', user: false, look: true });
    const isPage = walk.gpa !== undefined && walk.gpa >> 12n === frame;
    const table = walk.references.find((reference) => BigInt(reference.table) === frame);
    if (!isPage && !table) continue;
    const derived = [...stop.derived, 'gva'];
    return { ...event, stop: { ...stop, gva: address, derived }, ...(isPage ? {} : { tableLevel: table!.level }) };
  }
  return event;
}
