import { vmplOf } from '../attributes/vmpl.ts';
import { COUNTERS, type CounterName } from '../counters.ts';
import { ExpressionError, type Scope, type Value } from '../expression.ts';
import { ABSENT, LEAF } from '../formats/compile.ts';
import { REGISTER_BITS, REGISTERS, type RegisterName } from '../guest/registers.ts';
import type { Machine } from '../machine.ts';
import { backingPfn } from '../memory/memslots.ts';
import { addressToFrame, frameToAddress, hex, pageOffset, toBigint } from '../memory/words.ts';
import type { Task } from '../operation.ts';
import { findEntry } from '../tdp/iterate.ts';
import type { Vcpu } from '../vcpu.ts';
import { softTranslate } from './translate.ts';

const counters = new Set<string>(COUNTERS);
const registers = new Set<string>(REGISTERS);

/** What is a vCPU's own: a register, a bit of one, its VMPL. */
function vcpuValue(machine: Machine, vcpu: Vcpu, path: readonly (string | bigint)[]): Value | undefined {
  const [name, bit] = path;
  if (name === 'vmpl' && path.length === 1) return BigInt(vmplOf(machine, vcpu.id));
  if (typeof name !== 'string' || !registers.has(name)) return undefined;
  const register = name as RegisterName;
  const value = vcpu.registers[register];
  if (path.length === 1) return value;
  const number = typeof bit === 'string' && path.length === 2 ? REGISTER_BITS[register]?.[bit] : undefined;
  return number === undefined ? undefined : ((value >> BigInt(number)) & 1n) !== 0n;
}

/**
 * Names and functions that expressions know everywhere: registers (of the task's vCPU, or `vcpu[N].…`), counters,
 * guests, loop variables, and `u8/u16/u32/u64(gpa)`, `pte(gva)`, `gpa(gva)`, `hpa(gpa)`, `spte(gpa)`, `level(gpa)`.
 */
export function programScope(machine: Machine, task?: Task): Scope {
  const own = task !== undefined && task.vcpu >= 0 ? task.vcpu : 0;
  return {
    name(path) {
      const [first] = path;
      if (typeof first !== 'string') return undefined;
      if (path.length === 1) {
        const variable = task && loopVariable(machine, task, first);
        if (variable !== undefined) return variable;
        const root = machine.guestRoots.get(first);
        if (root !== undefined) return BigInt(root) << 12n;
        if (first === 'step') return BigInt(machine.steps);
        if (first === 'cr2' && task) return task.cr2;
        if (first === 'error_code' && task && !machine.mirror) return BigInt(task.errorCode);
        if (first === 'loaded' && task) {
          // A guest that is looked at has no accesses of a scenario's.
          if (machine.mirror && !machine.mirror.counted)
            throw new ExpressionError('this machine does not tell what a read found');
          return task.loaded;
        }
      }
      if (first === 'vcpu' && typeof path[1] === 'bigint') {
        const vcpu = machine.vcpus[Number(path[1])];
        return vcpu && vcpuValue(machine, vcpu, path.slice(2));
      }
      const dotted = path.join('.');
      if (counters.has(dotted)) {
        if (machine.mirror && !machine.mirror.counted?.has(dotted))
          throw new ExpressionError(`this machine does not tell ${dotted}`);
        return BigInt(machine.counter(dotted as CounterName));
      }
      if (dotted === 'mmu_invalidate_seq') return BigInt(machine.invalidation.seq);
      if (dotted === 'slots.generation') return BigInt(machine.slots.generation);
      if (dotted === 'tlb.entries') return BigInt(machine.vcpus[own]?.tlb.count ?? 0);
      const vcpu = machine.vcpus[own];
      return vcpu && vcpuValue(machine, vcpu, path);
    },
    call: (name, values) => callFunction(machine, own, name, values),
    known: 'registers (cr0.wp), vcpu[N].…, counters (faults.second), guests, loop variables and step',
    knownFunctions: 'u8, u16, u32 and u64(gpa), pte and gpa(gva), hpa, spte, level and is_private(gpa)',
  };
}

function loopVariable(machine: Machine, task: Task, name: string): bigint | undefined {
  const depth = machine.code[task.id]![task.pc]?.variables.lastIndexOf(name) ?? -1;
  return depth < 0 ? undefined : BigInt(task.loops[depth]?.index ?? 0);
}

const SIZES: Readonly<Record<string, number>> = { u8: 1, u16: 2, u32: 4, u64: 8 };

function callFunction(machine: Machine, vcpu: number, name: string, values: readonly Value[]): Value | undefined {
  const [address] = values;
  if (typeof address !== 'bigint' || values.length !== 1) return undefined;
  const gfn = addressToFrame(address);
  const size = SIZES[name];
  if (size !== undefined) {
    const pfn = machine.resolve(gfn);
    if (pfn < 0)
      throw new ExpressionError(
        `${name}(${hex(address)}): ${machine.attributes.store.isPrivate(gfn) ? 'it is private memory, which the host does not see' : 'no memory slot holds this gpa'}`,
      );
    if (pageOffset(address) + size > 4096) throw new ExpressionError(`${name}(${hex(address)}) crosses a page`);
    return machine.readBytes(pfn, pageOffset(address), size);
  }
  switch (name) {
    case 'hpa': {
      const slot = machine.slots.find(gfn);
      if (!slot) throw new ExpressionError(`hpa(${hex(address)}): no memory slot holds this gpa`);
      return frameToAddress(backingPfn(slot, gfn), pageOffset(address));
    }
    case 'is_private':
      return machine.attributes.store.isPrivate(gfn);
    case 'gpa':
    case 'pte': {
      const walk = softTranslate(machine, vcpu, address);
      if (name === 'pte') return toBigint(walk.lo, walk.hi);
      if (walk.status !== 'done')
        throw new ExpressionError(`gpa(${hex(address)}): the guest does not map this address`);
      return frameToAddress(walk.gfn, pageOffset(address));
    }
    case 'spte':
    case 'level': {
      const own = machine.vcpus[vcpu];
      if (!own || own.root < 0) return 0n;
      const format = machine.isTdp ? machine.shadowFormat(own.mmu) : machine.secondFormat;
      const entry = findEntry(machine, own.root, gfn, 1, format);
      if (name === 'spte') return toBigint(entry.lo, entry.hi);
      return machine.secondFormat.classify(entry.level, entry.lo) === LEAF ? BigInt(entry.level) : BigInt(ABSENT);
    }
    default:
      return undefined;
  }
}
