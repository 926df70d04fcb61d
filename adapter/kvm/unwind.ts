import type { Machine } from '../../engine/machine.ts';
import type { ElfProgram } from '../elf/program.ts';
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
  let [rip, rsp, rbp] = [value('rip'), value('rsp'), value('rbp')];
  if (event.stop.reason === 'guest-pf') {
    // Error code, RIP, CS, RFLAGS, RSP.
    const [interrupted, stack] = [readWord(machine, vcpu, rsp + 8n), readWord(machine, vcpu, rsp + 32n)];
    if (interrupted === undefined || stack === undefined) return chain;
    chain.push({ address: interrupted, isCall: false });
    [rip, rsp] = [interrupted, stack];
  }
  const entry = program?.symbolAt(rip)?.address;
  if (entry === rip) rbp = push(chain, machine, vcpu, rsp) ? rbp : 0n;
  else if (entry !== undefined && rip === entry + 1n && readVirtual(machine, vcpu, entry, 1)[0] === PUSH_RBP)
    rbp = push(chain, machine, vcpu, rsp + 8n) ? rbp : 0n;
  while (rbp !== 0n && chain.length < MOST_FRAMES) {
    const next = readWord(machine, vcpu, rbp);
    if (next === undefined || !push(chain, machine, vcpu, rbp + 8n)) break;
    // Frames lie one above the other.
    if (next <= rbp) break;
    rbp = next;
  }
  return chain;
}

/** Takes a return address from the stack, if it is one. */
function push(chain: Caller[], machine: Machine, vcpu: number, at: bigint): boolean {
  const address = readWord(machine, vcpu, at);
  if (address === undefined || !isBehindCall(machine, vcpu, address)) return false;
  chain.push({ address, isCall: true });
  return true;
}

/** E8 with a displacement, or FF /2 with any operand. */
function isBehindCall(machine: Machine, vcpu: number, address: bigint): boolean {
  if (address < 8n) return false;
  const bytes = readVirtual(machine, vcpu, address - 7n, 7);
  if (bytes.length < 7) return false;
  if (bytes[2] === 0xe8) return true;
  return [2, 3, 4, 6, 7].some((length) => bytes[7 - length] === 0xff && ((bytes[8 - length]! >> 3) & 7) === 2);
}
