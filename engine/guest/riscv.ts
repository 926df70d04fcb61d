import { Format } from '../formats/compile.ts';
import { entryProblems } from '../formats/decode.ts';
import { SUPER_EXEC, SUPER_READ, SUPER_WRITE, USER_EXEC, USER_READ, USER_WRITE } from '../formats/format.ts';
import { SV39, SV39X4, SV48, SV48X4, SV57, SV57X4 } from '../formats/riscv.ts';
import { hex } from '../memory/words.ts';
import type { Descent } from '../pgtable/descend.ts';
import { entryName, outsideWords, type Regime, type RegimeAccess, RegimeError, type Stage } from './regime.ts';
import { beyondWords, rangesWords, twoStageWalk, type WalkRules } from './two-stage.ts';

/** Registers of RISC-V translation. */
export interface RiscvRegisters {
  /** satp, or vsatp where there is a G-stage. */
  readonly satp?: bigint;
  readonly hgatp?: bigint;
  /** sstatus.SUM: the supervisor may access user pages. */
  readonly sum?: boolean;
  /** sstatus.MXR: executable pages may be read. */
  readonly mxr?: boolean;
  /** Hardware sets A and D (Svadu); without, their lack faults (Svade). */
  readonly svadu?: boolean;
}

const FIRST = { 8: SV39, 9: SV48, 10: SV57 } as const;
const G_STAGE = { 8: SV39X4, 9: SV48X4, 10: SV57X4 } as const;

/** The tables that satp or hgatp names; undefined in Bare mode. */
function stageOf(register: string, value: bigint, gStage: boolean): Stage | undefined {
  const mode = Number(value >> 60n);
  if (mode === 0) {
    if (value !== 0n) throw new RegimeError(`${register} ${hex(value)}: mode 0 is Bare, in which the other bits are 0`);
    return undefined;
  }
  const spec = (gStage ? G_STAGE : FIRST)[mode as keyof typeof FIRST];
  if (!spec) throw new RegimeError(`${register} ${hex(value)}: mode ${mode} is not Sv39 (8), Sv48 (9) or Sv57 (10)`);
  const root = Number(value & ((1n << 44n) - 1n));
  if (gStage && root % 4 !== 0)
    throw new RegimeError(`${register} ${hex(value)}: the root of a G-stage is aligned to 16K`);
  const format = new Format(spec, { maxPhyAddr: 56, features: new Set(['svpbmt']) });
  return { register, value, tree: { format, root }, base: 0 };
}

const CAUSES = { read: [13, 21, 5], write: [15, 23, 7], fetch: [12, 20, 1] } as const;
const WORDS = { read: 'load', write: 'store', fetch: 'instruction' } as const;
type FaultKind = 'page fault' | 'guest-page fault' | 'access fault';
const KINDS: readonly FaultKind[] = ['page fault', 'guest-page fault', 'access fault'];

function code(kind: FaultKind, access: RegimeAccess): string {
  return `${WORDS[access.kind]} ${kind} (cause ${CAUSES[access.kind][KINDS.indexOf(kind)]})`;
}

const NEEDS = { read: [SUPER_READ, USER_READ], write: [SUPER_WRITE, USER_WRITE], fetch: [SUPER_EXEC, USER_EXEC] };

/** Why a descent does not end in a page that the access may use; `rights` as the mode leaves them. */
function problemOf(
  format: Format,
  found: Descent,
  access: RegimeAccess,
  rights: number,
  svadu: boolean,
): string | undefined {
  const entry = entryName(format, found.level, found.index);
  if (found.end === 'absent') return `${entry} is not valid (V=0)`;
  if (found.end === 'malformed')
    return `${entry} is malformed: ${entryProblems(format, found.level, found.lo, found.hi).join(', ')}`;
  const who = access.user ? 'U-mode' : 'S-mode';
  if ((rights & NEEDS[access.kind][access.user ? 1 : 0]!) === 0)
    return `${entry} does not let ${who} ${access.kind === 'fetch' ? 'execute' : access.kind}`;
  if (svadu) return undefined;
  if ((found.lo & format.accessedLo) === 0) return `${entry} has A clear`;
  if (access.kind === 'write' && (found.lo & format.dirtyLo) === 0) return `${entry} has D clear`;
  return undefined;
}

/** RISC-V translation by its registers. @throws RegimeError */
export function riscvRegime(registers: RiscvRegisters): Regime {
  const { satp, hgatp, svadu = false } = registers;
  const firstName = hgatp === undefined ? 'satp' : 'vsatp';
  const first = satp === undefined ? undefined : stageOf(firstName, satp, false);
  const second = hgatp === undefined ? undefined : stageOf('hgatp', hgatp, true);
  const stages = first ? [first] : [];

  /** MXR makes what is executable readable, SUM lets the supervisor read and write user pages. */
  const effective = (rights: number, look: boolean): number => {
    let left = rights;
    if (registers.mxr) {
      if (left & USER_EXEC) left |= USER_READ;
      if (left & (SUPER_EXEC | USER_EXEC)) left |= SUPER_READ;
    }
    if (left & (USER_READ | USER_WRITE | USER_EXEC) && !registers.sum && !look) left &= ~(SUPER_READ | SUPER_WRITE);
    return left;
  };

  const rules: WalkRules = {
    noRange: (address) => ({
      code: 'page fault',
      reason: `${hex(address)} is not sign-extended from the ${Math.log2(first!.tree.format.inputFrames) + 12} bits of ${first!.tree.format.spec.title} addresses: ${rangesWords(stages)}`,
    }),
    first(format, found, access) {
      if (found.end === 'outside')
        return { code: code('access fault', access), reason: outsideWords(format, found.level, found.table) };
      const reason = problemOf(format, found, access, effective(found.rights, access.look ?? false), svadu);
      return reason === undefined ? undefined : { code: code('page fault', access), reason };
    },
    // The G-stage reports the access that began the walk, and makes every access as a user.
    second(format, found, access, forTable) {
      const asked: RegimeAccess = { kind: forTable ? 'read' : access.kind, user: true };
      if (found.end === 'outside')
        return { code: code('access fault', access), reason: outsideWords(format, found.level, found.table) };
      const reason = problemOf(format, found, asked, found.rights, svadu);
      return reason === undefined ? undefined : { code: code('guest-page fault', access), reason };
    },
    beyond: (format, access) => ({
      code: code('guest-page fault', access),
      reason: beyondWords(format),
    }),
    outside: (_format, _level, access) => code('access fault', access),
    rights: (_format, { rights }) => effective(rights, false),
  };
  return {
    arch: 'riscv',
    stages,
    second,
    registers: [
      ...(satp === undefined ? [] : [{ name: firstName, value: satp }]),
      ...(hgatp === undefined ? [] : [{ name: 'hgatp', value: hgatp }]),
    ],
    walk: (memory, address, access) => twoStageWalk(memory, stages, second, rules, address, access),
    walkSecond: (memory, gpa) => twoStageWalk(memory, [], second, rules, gpa, { kind: 'read', user: true }),
  };
}
