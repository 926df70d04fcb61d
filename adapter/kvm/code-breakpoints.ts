import type { DebugProtocol } from '@vscode/debugprotocol';
import { hex } from '../../engine/memory/words.ts';
import type { PlacedBreakpoint } from '../breakpoints.ts';
import type { ElfProgram } from '../elf/program.ts';
import { compileCondition } from '../wanted-breakpoints.ts';

interface CodePoint extends PlacedBreakpoint {
  readonly addresses: readonly bigint[];
}

type Wanted = Pick<DebugProtocol.SourceBreakpoint, 'condition' | 'hitCondition' | 'logMessage'>;

/** Breakpoints in guest code, as a client asks for them. */
export class CodeBreakpoints {
  /** By source path, or by the kind of request that sets them all. */
  readonly #points = new Map<string, readonly CodePoint[]>();
  #program: ElfProgram | undefined;
  #next = 1;

  useProgram(program: ElfProgram | undefined): void {
    this.#program = program;
  }

  /** Addresses where one stands. */
  get addresses(): Set<bigint> {
    return new Set([...this.#points.values()].flat().flatMap((point) => point.addresses));
  }

  at(address: bigint): PlacedBreakpoint[] {
    return [...this.#points.values()].flat().filter((point) => point.addresses.includes(address));
  }

  /** The file of the debugging information that a path means: the same, or the only one of that name. */
  fileOf(path: string): string | undefined {
    const files = this.#program?.files ?? [];
    if (files.includes(path)) return path;
    const name = path.replace(/^.*[/\\]/, '');
    const alike = files.filter((file) => file.replace(/^.*\//, '') === name);
    return alike.length === 1 ? alike[0] : undefined;
  }

  /** A line without code means the next that has some. */
  setLines(path: string, wanted: readonly DebugProtocol.SourceBreakpoint[]): DebugProtocol.Breakpoint[] {
    const file = this.fileOf(path);
    const lines = file === undefined ? [] : this.#program!.breakableLines(file);
    return this.#set(path, wanted, (point) => {
      const line = lines.find((candidate) => candidate >= point.line);
      if (file === undefined) return 'the guest’s debugging information does not name this file';
      if (line === undefined) return 'no code stands here or below';
      return { addresses: this.#program!.addressesOf(file, line), line };
    });
  }

  setFunctions(wanted: readonly DebugProtocol.FunctionBreakpoint[]): DebugProtocol.Breakpoint[] {
    return this.#set('functions', wanted, ({ name }) => {
      const address = this.#program?.address(name.trim());
      return address === undefined ? `the guest has no symbol ${name}` : { addresses: [address] };
    });
  }

  setInstructions(wanted: readonly DebugProtocol.InstructionBreakpoint[]): DebugProtocol.Breakpoint[] {
    return this.#set('instructions', wanted, ({ instructionReference, offset = 0 }) => {
      if (!/^(gva:(\d+:)?)?0x[0-9a-f]+$/i.test(instructionReference))
        return `${instructionReference} is no address of an instruction`;
      const base = BigInt(instructionReference.replace(/^gva:(\d+:)?/, ''));
      return { addresses: [BigInt.asUintN(64, base + BigInt(offset))] };
    });
  }

  #set<W extends Wanted>(
    key: string,
    wanted: readonly W[],
    place: (point: W) => string | { readonly addresses: readonly bigint[]; readonly line?: number },
  ): DebugProtocol.Breakpoint[] {
    const points: CodePoint[] = [];
    const answers = wanted.map((point): DebugProtocol.Breakpoint => {
      const id = this.#next++;
      const condition = compileCondition(point);
      const placed = place(point);
      if (typeof condition === 'string') return { id, verified: false, message: condition };
      if (typeof placed === 'string') return { id, verified: false, message: placed };
      points.push({ id, condition, logMessage: point.logMessage, addresses: placed.addresses });
      const first = placed.addresses[0];
      return {
        id,
        verified: true,
        ...(placed.line === undefined ? {} : { line: placed.line }),
        ...(first === undefined ? {} : { instructionReference: hex(first) }),
      };
    });
    this.#points.set(key, points);
    return answers;
  }
}
