import { memoryFaultWords } from '../../engine/attributes/vmm.ts';
import { addressToFrame, frameToAddress } from '../../engine/memory/words.ts';
import type { Task } from '../../engine/operation.ts';
import type { Statement } from '../../engine/program.ts';
import { rangeOf } from '../../engine/statements.ts';
import type { KvmStop } from '../rsp/stop.ts';
import { PAGE } from './layout.ts';
import type { RealMachine } from './real-machine.ts';

/** KVM_MEMORY_EXIT_FLAG_PRIVATE */
const MEMORY_EXIT_PRIVATE = 8n;
/** KVM_MAP_GPA_RANGE_ENCRYPTED */
const MAP_GPA_PRIVATE = 0x10n;

/** Whether an access for which KVM has no memory was to private memory. */
export const isPrivateFault = ({ data = 0n }: KvmStop): boolean => (data & MEMORY_EXIT_PRIVATE) !== 0n;

/** KVM_SET_MEMORY_ATTRIBUTES. KVM tells nobody what is private: the engine's machine keeps it. */
export async function setAttributes(real: RealMachine, base: bigint, size: bigint, isPrivate: boolean): Promise<void> {
  const { machine, client } = real;
  await client.vendor(`vKvm.Attributes:${base.toString(16)},${size.toString(16)},${isPrivate ? 'private' : 'shared'}`);
  machine.setAttributes(addressToFrame(base), addressToFrame(base + size), isPrivate);
  await real.askInfo();
}

/** Where the range of a statement starts, gpa. @throws with words where that cannot be */
export function rangeStart(
  real: RealMachine,
  task: Task,
  statement: Extract<Statement, { kind: 'convert' | 'punch' }>,
): Promise<bigint> {
  return real.withFrames(() => frameToAddress(rangeOf(real.machine, task, statement).base));
}

/** A conversion, by the host itself or by a guest that asks for it. @throws with words when it is refused */
export async function convert(
  real: RealMachine,
  task: Task,
  statement: Extract<Statement, { kind: 'convert' }>,
): Promise<void> {
  if (task.vcpu >= 0) return pageStateChange(real, task, statement);
  const base = await rangeStart(real, task, statement);
  await setAttributes(real, base, statement.size, statement.isPrivate);
  real.machine.count('conversions');
}

/** The guest asks for a conversion, by a hypercall that KVM leaves to userspace. */
async function pageStateChange(
  real: RealMachine,
  task: Task,
  statement: Extract<Statement, { kind: 'convert' }>,
): Promise<void> {
  const { size, isPrivate } = statement;
  const base = await rangeStart(real, task, statement);
  const vcpu = real.vcpus[task.vcpu]!;
  const name = real.info.vendor === 'AuthenticAMD' ? 'map-gpa-range' : 'map-gpa-range by vmcall';
  const value = isPrivate ? MAP_GPA_PRIVATE : 0n;
  let outcome = await vcpu.act({ name, size: 8, address: base, value, pages: size / PAGE, user: false, rflags: 2n });
  while (outcome.kind === 'stop') {
    const { reason, gpa, size: bytes, data } = outcome.stop;
    if (reason === 'hypercall') {
      await setAttributes(real, gpa!, BigInt(bytes!), ((data ?? 0n) & MAP_GPA_PRIVATE) !== 0n);
      real.machine.count('conversions');
    }
    outcome = await vcpu.goOn();
  }
  if (outcome.kind === 'lost') throw new Error(outcome.words);
  const answer = outcome.kind === 'done' ? BigInt.asIntN(64, outcome.value) : undefined;
  if (answer !== 0n)
    throw new Error(
      `convert: the hypercall KVM_HC_MAP_GPA_RANGE ${answer === undefined ? 'does not come back' : `answers ${answer}`}; it needs KVM_CAP_EXIT_HYPERCALL (Linux 5.14)`,
    );
}

/** After KVM_EXIT_MEMORY_FAULT userspace converts the page. @returns why it cannot, in words */
export async function convertFaulted(real: RealMachine, stop: KvmStop): Promise<string | undefined> {
  const { machine } = real;
  const gpa = stop.gpa!;
  const isPrivate = isPrivateFault(stop);
  const words = memoryFaultWords(machine, gpa, isPrivate);
  if (words !== undefined) return words;
  await setAttributes(real, gpa & ~0xfffn, 4096n, isPrivate);
  machine.count('conversions');
  return undefined;
}
