import type { Machine } from '../../engine/machine.ts';
import type { ElfProgram } from '../elf/program.ts';
import { codeWidth, isLongMode } from './code-width.ts';
import type { KvmEvent } from './event.ts';
import type { RegisterValues } from './registers.ts';
import { readVirtual, readWord } from './virtual.ts';

export interface Caller {
  readonly address: bigint;
  /** It is the address behind a call; else that of an instruction which has not run. */
  readonly isCall: boolean;
}

const MOST_FRAMES = 64;
const PUSH_RBP = 0x55;

/**
 * Where a vCPU stands and who called: through the frame of the exception that it stopped at, and then along frame pointers
 * (code built with -fno-omit-frame-pointer). A return address counts only if a call stands before it.
 */
export function callers(
  machine: Machine,
  vcpu: number,
  registers: RegisterValues,
  program: ElfProgram | undefined,
  event: KvmEvent,
): Caller[] {
  const value = (name: string): bigint => registers.get(name) ?? 0n;
  const chain: Caller[] = [{ address: value('rip'), isCall: false }];
  let [rip, rsp, rbp, cs] = [value('rip'), value('rsp'), value('rbp'), value('cs')];
  if (event.stop.reason === 'guest-pf') {
    // Error code, RIP, CS, RFLAGS and RSP, which in protected mode is there only for who comes from another privilege level.
    const word = isLongMode(registers) ? 8 : 4;
    const pushed = (index: number): bigint | undefined => readWord(machine, vcpu, rsp + BigInt(index * word), word);
    const [interrupted, selector] = [pushed(1), pushed(2)];
    if (interrupted === undefined || selector === undefined) return chain;
    const switched = word === 8 || (selector & 3n) !== (cs & 3n);
    const stack = switched ? pushed(4) : rsp + 16n;
    if (stack === undefined) return chain;
    chain.push({ address: interrupted, isCall: false });
    [rip, rsp, cs] = [interrupted, stack, selector];
  }
  const word = codeWidth(machine, vcpu, registers, cs) / 8;
  /** Takes a return address from the stack, if it is one. */
  const push = (at: bigint): boolean => {
    const address = readWord(machine, vcpu, at, word);
    if (address === undefined || !isBehindCall(machine, vcpu, address)) return false;
    chain.push({ address, isCall: true });
    return true;
  };
  const entry = program?.symbolAt(rip)?.address;
  if (entry === rip) rbp = push(rsp) ? rbp : 0n;
  else if (entry !== undefined && rip === entry + 1n && readVirtual(machine, vcpu, entry, 1)[0] === PUSH_RBP)
    rbp = push(rsp + BigInt(word)) ? rbp : 0n;
  while (rbp !== 0n && chain.length < MOST_FRAMES) {
    const next = readWord(machine, vcpu, rbp, word);
    if (next === undefined || !push(rbp + BigInt(word))) break;
    // Frames lie one above the other.
    if (next <= rbp) break;
    rbp = next;
  }
  return chain;
}

/** E8 with a displacement, or FF /2 with any operand. */
function isBehindCall(machine: Machine, vcpu: number, address: bigint): boolean {
  if (address < 8n) return false;
  const bytes = readVirtual(machine, vcpu, address - 7n, 7);
  if (bytes.length < 7) return false;
  if (bytes[2] === 0xe8) return true;
  return [2, 3, 4, 6, 7].some((length) => bytes[7 - length] === 0xff && ((bytes[8 - length]! >> 3) & 7) === 2);
}
