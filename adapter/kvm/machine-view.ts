import { ExpressionError, type Scope, type Value } from '../../engine/expression.ts';
import type { Feature } from '../../engine/formats/format.ts';
import { type Regime, RegimeError } from '../../engine/guest/regime.ts';
import { type GuestCpu, UNPAGED } from '../../engine/guest/registers.ts';
import { x86Regime } from '../../engine/guest/x86-regime.ts';
import type { Machine } from '../../engine/machine.ts';
import { addressToFrame, hex, pageOffset, toBigint } from '../../engine/memory/words.ts';
import { type Mirror, makeMirror, mirrorMachine } from '../../engine/mirror.ts';
import { toHost } from '../addresses.ts';
import type { ElfProgram } from '../elf/program.ts';
import type { KvmInfo } from '../rsp/info.ts';
import type { KvmEvent } from './event.ts';
import type { GuestMemory } from './memory.ts';
import { type RegisterValues, registerByPath, translationRegisters } from './registers.ts';

/** The guest's processor, as its CPUID has it. */
export function guestCpu(info: KvmInfo): GuestCpu {
  const features = new Set<Feature>();
  if (info.pages1g) features.add('1g-pages');
  if (info.vendor === 'AuthenticAMD' || info.vendor === 'HygonGenuine') features.add('amd');
  return { maxPhyAddr: info.maxphyaddr, features };
}

/** The machine as the views see it: the guest's memory, and what each vCPU's registers make of it. */
export function viewMachine(
  info: KvmInfo,
  memory: GuestMemory,
  registers: readonly RegisterValues[],
  built: NonNullable<Mirror['built']>,
): Machine {
  const cpu = guestCpu(info);
  const regimes = registers.map((values): Regime => {
    const wanted = translationRegisters(values);
    try {
      return x86Regime(wanted, cpu, undefined);
    } catch (error) {
      if (!(error instanceof RegimeError)) throw error;
      // What the engine does not model is said where somebody asks for a translation.
      const words = error.message;
      const unpaged = x86Regime(UNPAGED, cpu, undefined);
      return { ...unpaged, walk: () => ({ references: [], end: 'untranslatable', reason: words }) };
    }
  });
  return mirrorMachine({ ...makeMirror(memory, regimes, 'memslots'), built }, info.memory.slots);
}

const SIZES: Readonly<Record<string, number>> = { u8: 1, u16: 2, u32: 4, u64: 8 };

/** Names and functions of expressions on a real machine. */
export function guestScope(
  machine: Machine,
  vcpu: number,
  registers: RegisterValues,
  program: ElfProgram | undefined,
  event: KvmEvent | undefined,
): Scope {
  return {
    name(path) {
      const found = path.length === 1 && typeof path[0] === 'string' ? eventName(path[0], vcpu, event) : undefined;
      if (found !== undefined) return found;
      const register = registerByPath(registers, path);
      if (register !== undefined) return register;
      return path.length === 1 && typeof path[0] === 'string' ? program?.address(path[0]) : undefined;
    },
    call: (name, values) => callFunction(machine, vcpu, name, values),
    known:
      'registers (rax, cr0.wp), symbols, and at a stop gva, gpa, rip, error_code, cpl, read, write, fetch, size and data',
    knownFunctions: 'u8, u16, u32 and u64(gpa), pte and gpa(gva)',
  };
}

function eventName(name: string, vcpu: number, event: KvmEvent | undefined): Value | undefined {
  if (name === 'vcpu') return BigInt(vcpu);
  const stop = event?.stop;
  if (!stop) return undefined;
  switch (name) {
    case 'gva':
    case 'gpa':
    case 'data':
      return stop[name];
    case 'rip':
      // What was interrupted; at other stops it is the register.
      return stop.reason === 'guest-pf' ? stop.rip : undefined;
    case 'gfn':
      return stop.gpa === undefined ? undefined : stop.gpa >> 12n;
    case 'error_code':
      return stop.error === undefined ? undefined : BigInt(stop.error);
    case 'cpl':
      return stop.cpl === undefined ? undefined : BigInt(stop.cpl);
    case 'user':
      return stop.cpl === undefined ? undefined : stop.cpl === 3;
    case 'read':
    case 'write':
    case 'fetch':
      return stop.access === undefined ? undefined : stop.access === name;
    case 'access':
    case 'trap':
    case 'reason':
      return stop[name];
    case 'size':
      return stop.size === undefined ? undefined : BigInt(stop.size);
    case 'completed':
      return stop.completed;
    case 'level':
    case 'guest_level':
      return event.fault && BigInt(event.fault.level);
    default:
      return undefined;
  }
}

function callFunction(machine: Machine, vcpu: number, name: string, values: readonly Value[]): Value | undefined {
  const [address] = values;
  if (typeof address !== 'bigint' || values.length !== 1) return undefined;
  const size = SIZES[name];
  if (size !== undefined) {
    const pfn = machine.resolve(addressToFrame(address));
    if (pfn < 0) throw new ExpressionError(`${name}(${hex(address)}): no memory slot holds this gpa`);
    if (pageOffset(address) + size > 4096) throw new ExpressionError(`${name}(${hex(address)}) crosses a page`);
    return machine.readBytes(pfn, pageOffset(address), size);
  }
  const { memory, regimes } = machine.mirror!;
  if (name === 'pte') {
    const walk = regimes[vcpu]!.walk(memory, address, { kind: 'read', user: false, look: true });
    const last = walk.references.at(-1);
    return last ? toBigint(last.lo, last.hi) : 0n;
  }
  if (name !== 'gpa') return undefined;
  const host = toHost(machine, { space: 'gva', vcpu, address });
  if (!host) throw new ExpressionError(`gpa(${hex(address)}): the guest does not map this address`);
  return BigInt(host.pfn) * 4096n + BigInt(host.offset);
}
