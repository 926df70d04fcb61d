import type { Instruction } from '../../engine/code.ts';
import { evaluateInteger } from '../../engine/expression.ts';
import { addressToFrame, hex } from '../../engine/memory/words.ts';
import { runTopStep, type Task } from '../../engine/operation.ts';
import type { Statement } from '../../engine/program.ts';
import { programScope } from '../../engine/queries/scope.ts';
import { runInstruction } from '../../engine/statements.ts';
import { rangeStart } from './private-memory.ts';
import type { RealMachine } from './real-machine.ts';

/** What the host does to its side of the machine: slots, notifiers, guest_memfd. @throws with words when KVM refuses it */
export async function changeHost(
  real: RealMachine,
  task: Task,
  instruction: Instruction,
  statement: Statement,
): Promise<void> {
  const { machine, client } = real;
  const number = (value: bigint): string => value.toString(16);
  let packet: string;
  let isSlot = true;
  switch (statement.kind) {
    case 'slot-add': {
      const { id, base, size, readonly, gmemLevel } = statement.slot;
      const flag = readonly ? ',ro' : gmemLevel === undefined ? '' : ',private';
      packet = `vKvm.Slot:add,${id.toString(16)},${number(base)},${number(size)}${flag}`;
      break;
    }
    case 'punch':
      packet = `vKvm.Punch:${number(await rangeStart(real, task, statement))},${number(statement.size)}`;
      isSlot = false;
      break;
    case 'slot-delete':
      packet = `vKvm.Slot:delete,${statement.id.toString(16)}`;
      break;
    case 'slot-move':
      packet = `vKvm.Slot:move,${statement.id.toString(16)},${number(statement.base)}`;
      break;
    case 'slot-log':
      packet = `vKvm.Slot:flags,${statement.id.toString(16)},${statement.enable ? 'log' : ''}`;
      break;
    case 'zap':
      packet = 'vKvm.Refresh';
      isSlot = false;
      break;
    case 'notifier':
      packet = `vKvm.${statement.how === 'migrate' ? 'Migrate' : 'Unmap'}:${number(statement.base)},${number(statement.size)}`;
      isSlot = false;
      break;
    default:
      throw new Error(`${statement.kind} cannot be done on KVM`);
  }
  await client.vendor(packet);
  if (!isSlot) {
    task.pc++;
    return;
  }
  // The engine's own slots follow: expressions and views ask them.
  runInstruction(machine, task, instruction);
  while (task.stack.length > 0) runTopStep(machine, task);
  await real.askInfo();
}

/** An access of the host's own to what it shares with the guest. @throws with words where it has no mapping */
export async function hostAccess(
  real: RealMachine,
  task: Task,
  statement: Extract<Statement, { kind: 'access' }>,
): Promise<void> {
  const { machine, client, memory } = real;
  const { size } = statement;
  const scope = programScope(machine, task);
  const gpa = await real.withFrames(() => evaluateInteger(statement.address, scope, statement.access));
  if (statement.access === 'read') {
    const bytes = await client.readPhysical(gpa, size);
    if (bytes.length < size) throw new Error(`read ${hex(gpa)}: ${nowhere(real, gpa)}`);
    task.loaded = bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
  } else {
    if (!memory.has(addressToFrame(gpa))) throw new Error(`write ${hex(gpa)}: ${nowhere(real, gpa)}`);
    const value = await real.withFrames(() =>
      statement.value ? evaluateInteger(statement.value, scope, 'write') : BigInt(machine.steps),
    );
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, value), true);
    await client.writePhysical(gpa, bytes.subarray(0, size));
  }
  task.pc++;
}

function nowhere({ machine }: RealMachine, gpa: bigint): string {
  return machine.attributes.store.isPrivate(addressToFrame(gpa))
    ? 'it is private memory, of which the host has no mapping'
    : 'no memslot holds it';
}
