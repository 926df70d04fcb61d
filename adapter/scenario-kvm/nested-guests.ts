import { guestModeOf, l1Frame, nestedStage } from '../../engine/guest/nested.ts';
import { addressToFrame, frameToAddress, hex, pageOffset } from '../../engine/memory/words.ts';
import type { Task } from '../../engine/operation.ts';
import { firstVmcb } from './actions.ts';
import { PAGE } from './layout.ts';
import type { RealMachine } from './real-machine.ts';
import { nestedMappings } from './stubs.ts';
import type { StubVcpu } from './vcpu.ts';
import { EXIT_NPF, EXIT_VMMCALL, VM_EXIT, vmExitOf } from './vmcb.ts';

/** L1 runs a guest of its own: VMRUN, with registers as the guest had them when it came out. */
export async function enterNested(real: RealMachine, task: Task, guest: string): Promise<void> {
  const { machine, client } = real;
  const vcpu = machine.vcpu(task.vcpu);
  const stubs = real.stubsOf(task.vcpu);
  const { mode, registers } = await real.withFrames(() => guestModeOf(machine, vcpu, guest));
  const vmcb = vmcbAddress(real, task);
  await client.writePhysical(vmcb, firstVmcb(stubs, task.vcpu, { registers, nestedCr3: mode.nested?.pgd }));
  machine.count('nested.entries');
  machine.setGuestMode(vcpu, mode, registers, vcpu.saved);
  await control0(real, task, 'vmrun', vmcb, stubs.gpa + stubs.nested!.hostSave);
}

/** A guest of L1's that still runs comes out, by VMMCALL. */
export async function leaveNested(real: RealMachine, task: Task): Promise<void> {
  if (real.machine.vcpu(task.vcpu).guestMode) await control0(real, task, 'vmmcall', 0n);
}

/** An action at CPL0 that is no access of the scenario; a nested guest may come out of it. @throws with words when it cannot be done */
export async function control0(
  real: RealMachine,
  task: Task,
  ...action: Parameters<StubVcpu['control']>
): Promise<void> {
  if ((await real.vcpus[task.vcpu]!.control(...action)) === 'exited') await nestedExit(real, task);
}

/** L1 has the processor again. @throws with words when no statement of the scenario's has led to it */
export async function nestedExit(real: RealMachine, task: Task): Promise<void> {
  const { machine, client, print } = real;
  const vcpu = machine.vcpu(task.vcpu);
  const { guest, l1 } = vcpu.guestMode!;
  const { code, info } = vmExitOf(await client.readPhysical(vmcbAddress(real, task) + VM_EXIT.at, VM_EXIT.size));
  machine.count('nested.exits');
  machine.setGuestMode(vcpu, undefined, l1, { ...vcpu.saved, [guest]: vcpu.registers });
  if (code === EXIT_VMMCALL) return;
  if (code !== EXIT_NPF) throw new Error(`${guest} cannot go on: VMRUN ends with exit code ${hex(code)}`);
  print(`${task.name}: ${guest} exits to L1: nested page fault at gpa ${hex(info[1])}, error code ${hex(info[0])}\n`);
}

function vmcbAddress(real: RealMachine, task: Task): bigint {
  const { gpa, nested } = real.stubsOf(task.vcpu);
  return gpa + nested!.vmcbs + PAGE * BigInt(task.vcpu);
}

/** Where a guest's own physical address lies: of a nested guest where L1's tables say. @throws with words where they map nothing */
export async function l1Address(real: RealMachine, name: string | undefined, gpa: bigint): Promise<bigint> {
  const { machine } = real;
  const within = machine.program.guests.find((guest) => guest.name === name)?.within;
  if (within === undefined) return gpa;
  const frame = await real.withFrames(() => l1Frame(machine, nestedStage(machine, within).mode, addressToFrame(gpa)));
  if (frame < 0) throw new Error(`${within} maps nothing at gpa ${hex(gpa)} of ${name}, where it has tables`);
  return frameToAddress(frame, pageOffset(gpa));
}

/** How the guest that runs knows an address of the machine's: a nested one by what L1 maps there. @throws with words where it maps nothing */
export async function ownAddress(real: RealMachine, task: Task, gpa: bigint): Promise<bigint> {
  const { machine } = real;
  const { program } = machine;
  const guest = machine.vcpu(task.vcpu).guestMode?.guest;
  const within = program.guests.find(({ name }) => name === guest)?.within;
  if (within === undefined) return gpa;
  for (const mapping of nestedMappings(program)) {
    const own = mapping.gva + gpa - mapping.gpa;
    const isIn = gpa >= mapping.gpa && gpa < mapping.gpa + mapping.size;
    if (isIn && (await l1Address(real, guest, own)) === gpa) return own;
  }
  throw new Error(`${within} maps nothing to gpa ${hex(gpa)}, where ${guest} has tables`);
}
