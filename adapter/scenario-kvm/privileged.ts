import type { Instruction } from '../../engine/code.ts';
import { evaluateInteger } from '../../engine/expression.ts';
import { untranslatable } from '../../engine/guest/access.ts';
import { pagingName } from '../../engine/guest/registers.ts';
import { isMemoryKind, type LogEntry } from '../../engine/history/log.ts';
import { frameToAddress, hex, toBigint } from '../../engine/memory/words.ts';
import type { Task } from '../../engine/operation.ts';
import type { Statement } from '../../engine/program.ts';
import { programScope } from '../../engine/queries/scope.ts';
import { runInstruction } from '../../engine/statements.ts';
import { giveStubs } from './fill.ts';
import { control0, l1Address, ownAddress } from './nested-guests.ts';
import type { RealMachine } from './real-machine.ts';
import { directAddress } from './stubs.ts';
import { SVME } from './vmcb.ts';

/** INVLPG, which does nothing for an address that is none. @throws with words when the processor refuses it */
export async function invalidatePage(
  real: RealMachine,
  task: Task,
  statement: Extract<Statement, { kind: 'invlpg' }>,
): Promise<void> {
  const { machine } = real;
  const address = evaluateInteger(statement.address, programScope(machine, task), 'invlpg');
  if (untranslatable(machine.vcpu(task.vcpu).mode, address) === undefined)
    await control0(real, task, 'invlpg', address);
  task.pc++;
}

/** The guest's kernel writes a register. @throws with words when the stubs or the processor cannot go on with its value */
export async function writeRegister(
  real: RealMachine,
  task: Task,
  instruction: Instruction,
  { register }: Extract<Statement, { kind: 'register' }>,
): Promise<void> {
  const { machine, client } = real;
  const vcpu = machine.vcpu(task.vcpu);
  const failures = machine.small.failures.length;
  const { pc } = task;
  const stubs = real.stubsOf(task.vcpu);
  await real.withFrames(() => runInstruction(machine, task, instruction));
  const value = vcpu.registers[register];
  // What the engine refused has ended the task; flags and CPL are an access's own.
  if (machine.small.failures.length > failures) return;
  if (register === 'rflags' || register === 'cpl') return;
  await atStatement(task, pc, async () => {
    const { paging, rootGfn, rootEntry } = vcpu.mode;
    const now = pagingName(vcpu.registers);
    if (!paging || now !== stubs.paging)
      throw new Error(
        `${register} ${hex(value)} is for ${paging ? `${now} paging` : 'a processor without paging'}: the code that makes the accesses on KVM stays with ${stubs.paging} paging`,
      );
    if (register === 'cr3') {
      const root = await l1Address(real, vcpu.guestMode?.guest, frameToAddress(rootGfn, rootEntry * 8));
      await giveStubs(client, stubs, root);
    }
    await control0(real, task, register, register === 'efer' && stubs.nested ? value | SVME : value);
  });
}

/** The engine says which entries of the guest's tables to write; the guest writes them. @throws with words when it cannot */
export async function editTables(real: RealMachine, task: Task, instruction: Instruction): Promise<void> {
  const { machine } = real;
  const { log, memory } = machine;
  const from = log.length;
  const changed = (): number[] => {
    const positions: number[] = [];
    for (let at = from; at < log.length; at++) if (isMemoryKind(log.kindAt(at))) positions.push(at);
    return positions;
  };
  const forget = (): void => {
    for (const frame of new Set(changed().map((at) => Math.floor(log.at(at).address / 512)))) memory.drop(frame);
  };
  const { pc } = task;
  const pools = structuredClone(machine.small.tablePools);
  await real.withFrames(() => {
    try {
      runInstruction(machine, task, instruction);
    } catch (error) {
      // It is tried again from the beginning.
      forget();
      machine.small.tablePools = structuredClone(pools);
      log.truncate(from);
      task.pc = pc;
      throw error;
    }
  });
  const stores = changed().map((at) => log.at(at));
  forget();
  await atStatement(task, pc, async () => {
    const stubs = real.stubsOf(task.vcpu);
    for (const entry of stores) {
      const address = frameToAddress(Math.floor(entry.address / 512), (entry.address % 512) * 8);
      const gpa = await ownAddress(real, task, address);
      for (const { offset, value, size } of storesOf(entry, stubs.entryBytes))
        await control0(real, task, 'write', directAddress(stubs, gpa + offset), value, size);
    }
  });
}

/** What the engine has done already the real machine does too: should that fail, it is this statement's failure. */
async function atStatement(task: Task, pc: number, work: () => Promise<void>): Promise<void> {
  const next = task.pc;
  task.pc = pc;
  await work();
  task.pc = next;
}

/** How the guest stores 8 bytes of its tables: one entry of 4, or both where a table is cleared, as far as it changes. */
function storesOf(
  { oldLo, oldHi, newLo, newHi, object }: LogEntry,
  entryBytes: 4 | 8,
): { offset: bigint; value: bigint; size: 4 | 8 }[] {
  if (entryBytes === 8) return [{ offset: 0n, value: toBigint(newLo, newHi), size: 8 }];
  const isStored = (half: 0 | 1, changes: boolean): boolean => (object === undefined ? changes : object === half);
  return [
    ...(isStored(0, oldLo !== newLo) ? [{ offset: 0n, value: BigInt(newLo), size: 4 } as const] : []),
    ...(isStored(1, oldHi !== newHi) ? [{ offset: 4n, value: BigInt(newHi), size: 4 } as const] : []),
  ];
}
