import type { DebugProtocol } from '@vscode/debugprotocol';
import type { Scope } from '../../engine/expression.ts';
import type { StopAnswer } from '../../engine/queries/answers.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import type { Located } from '../addresses.ts';
import type { ScopeNodes } from '../variables.ts';
import type { Halt, Watcher } from './target.ts';

/** A frame of guest code. */
export interface GuestFrame {
  readonly name: string;
  readonly address: bigint;
  readonly path?: string;
  readonly line?: number;
  /** Of a text that no file has. */
  readonly sourceReference?: number;
}

/** What a target whose vCPUs run real code can tell of that code, and do to it, while the machine stands still. */
export interface GuestSide {
  /** What is shown has been recorded: there is no code to look at, nor anything to change. */
  readonly recorded?: true;
  /** A text that no file has. */
  text?(sourceReference: number): string | undefined;
  /** Why it stopped. */
  describe(
    halt: Halt | { readonly kind: 'entry' },
    vcpu: number,
  ): { readonly stop: StopAnswer; readonly fault: FaultInfo | undefined };
  /** Frames of a vCPU, the innermost first. */
  frames(vcpu: number): readonly GuestFrame[];
  scopes(vcpu: number): readonly ScopeNodes[];
  /** Names for expressions: registers, symbols, and what the vCPU stopped for. */
  scope(vcpu: number): Scope;
  setRegister(vcpu: number, name: string, value: bigint): Promise<void>;
  write(at: Located, bytes: Uint8Array): Promise<void>;
  /** @throws with a message for people */
  disassemble(vcpu: number, args: DebugProtocol.DisassembleArguments): DebugProtocol.DisassembledInstruction[];
  /** Source files that the guest's debugging information names. */
  sources(): readonly string[];
  breakableLines(path: string): readonly number[];
  setLines(path: string, wanted: readonly DebugProtocol.SourceBreakpoint[]): Promise<DebugProtocol.Breakpoint[]>;
  setFunctions(wanted: readonly DebugProtocol.FunctionBreakpoint[]): Promise<DebugProtocol.Breakpoint[]>;
  setInstructions(wanted: readonly DebugProtocol.InstructionBreakpoint[]): Promise<DebugProtocol.Breakpoint[]>;
  /** Runs a command of the debug console; `watcher`: what is stopped at now. @returns undefined when it is none */
  command(text: string, watcher: Watcher): Promise<string | undefined>;
}
