import { Format } from '../formats/compile.ts';
import { EPT, EPT_5 } from '../formats/ept.ts';
import { NPT, NPT_5 } from '../formats/npt.ts';
import { addressToFrame, frameToAddress, hex, pageOffset } from '../memory/words.ts';
import type { Tables } from '../pgtable/tables.ts';
import { describeWalkFault } from '../tdp/explain-fault.ts';
import { untranslatable } from './access.ts';
import { errorCodeWords, PFERR_FETCH, PFERR_USER, PFERR_WRITE } from './permission.ts';
import {
  type Regime,
  type RegimeAccess,
  RegimeError,
  type RegimeReference,
  type RegimeWalk,
  type Stage,
} from './regime.ts';
import { type GuestCpu, type PagingMode, pagingMode, type Registers, registerProblem, UNPAGED } from './registers.ts';
import { finishWalk, type Reference, type SecondStage, startWalk } from './walk.ts';

/** Second-stage tables of x86. The root's kind says how its entries are read. */
export interface X86Second {
  readonly kind: 'ept' | 'npt';
  /** EPTP or nCR3. */
  readonly root: bigint;
  /** Levels of nested tables. An EPTP says itself how many, unless its low bits are all clear. */
  readonly levels: 4 | 5;
}

/** Second-stage tables as their register says. @throws RegimeError */
export function x86SecondStage({ kind, root, levels }: X86Second, cpu: GuestCpu): Stage {
  const register = kind === 'ept' ? 'EPTP' : 'nCR3';
  let depth: number = levels;
  if (kind === 'ept' && (root & 0xfffn) !== 0n) {
    const length = Number((root >> 3n) & 7n) + 1;
    if (length !== 4 && length !== 5)
      throw new RegimeError(`EPTP ${hex(root)} says a walk of ${length} levels (bits 5:3): 4 or 5 are possible`);
    depth = length;
  }
  if (root >> BigInt(cpu.maxPhyAddr) !== 0n)
    throw new RegimeError(`${register} ${hex(root)} has bits beyond MAXPHYADDR ${cpu.maxPhyAddr}`);
  const spec = kind === 'ept' ? (depth === 5 ? EPT_5 : EPT) : depth === 5 ? NPT_5 : NPT;
  const features = new Set([...cpu.features, 'nx', 'execute-only'] as const);
  const format = new Format(spec, { maxPhyAddr: cpu.maxPhyAddr, features });
  return { register, value: root, tree: { format, root: addressToFrame(root & ~0xfffn) }, base: 0 };
}

/**
 * What x86 registers and second-stage tables make of memory. Without `registers` only the second stage is known.
 * @throws RegimeError for registers that make no sense
 */
export function x86Regime(registers: Registers | undefined, cpu: GuestCpu, second: X86Second | undefined): Regime {
  const problem = registers && registerProblem(registers, cpu.maxPhyAddr);
  if (problem !== undefined) throw new RegimeError(problem);
  const secondStage = second && x86SecondStage(second, cpu);
  const mode = registers && pagingMode(registers, cpu);
  const unpaged = (): PagingMode => pagingMode(UNPAGED, cpu);
  const stages: Stage[] = mode?.paging
    ? [
        {
          register: 'CR3',
          value: registers!.cr3,
          tree: { format: mode.format, root: mode.rootGfn, rootEntry: mode.rootEntry },
          base: 0,
        },
      ]
    : [];
  const shown = (['cr0', 'cr3', 'cr4', 'efer'] as const).map((name) => ({
    name: name.toUpperCase(),
    value: registers?.[name] ?? 0n,
  }));
  return {
    arch: 'x86',
    stages,
    second: secondStage,
    registers: [
      ...(registers ? shown : []),
      ...(secondStage ? [{ name: secondStage.register, value: secondStage.value }] : []),
    ],
    walk: (memory, address, access) => walk(mode ?? unpaged(), memory, address, access),
    walkSecond: (memory, gpa) => walk(unpaged(), memory, gpa, { kind: 'read', user: false }),
  };

  function walk(selected: PagingMode, memory: Tables, address: bigint, { kind, user, look }: RegimeAccess): RegimeWalk {
    const asked = look ? { ...selected, ac: true } : selected;
    const why = selected === mode ? untranslatable(asked, address) : undefined;
    if (why !== undefined) return { references: [], end: 'untranslatable', reason: why };
    const hardware: SecondStage | undefined = secondStage && {
      kind: second!.kind,
      format: secondStage.tree.format,
      root: secondStage.tree.root,
    };
    const bits = (kind === 'write' ? PFERR_WRITE : kind === 'fetch' ? PFERR_FETCH : 0) | (user ? PFERR_USER : 0);
    const trace: Reference[] = [];
    const walked = startWalk(asked, hardware, addressToFrame(address), { bits, implicit: false });
    finishWalk(
      walked,
      asked,
      hardware,
      {
        page: (pfn) => memory.page(pfn),
        // A look changes nothing.
        setBits() {},
        resolve: (gfn) => (memory.has?.(gfn) === false ? -1 : Number(gfn)),
        mayUpdate: () => false,
      },
      trace,
    );
    const references = trace.map(
      ({ stage, level, forLevel, table, index, offset, pfn, lo, hi }): RegimeReference => ({
        stage,
        format: stage === 'guest' ? asked.format : hardware!.format,
        forLevel,
        level,
        table,
        index,
        frame: pfn,
        offset,
        lo,
        hi,
      }),
    );
    if (walked.status === 'done') {
      const offset = pageOffset(address);
      const inMemory = walked.pfn >= 0 && memory.has?.(walked.pfn) !== false;
      const guestSize = asked.paging ? asked.format.span[walked.leafLevel]! * 4096 : undefined;
      return {
        references,
        end: 'done',
        gpa: frameToAddress(walked.gfn, offset),
        ...(walked.pfn >= 0 ? { hpa: frameToAddress(walked.pfn, offset) } : {}),
        ...(guestSize === undefined ? {} : { guestSize, rights: accessRights(walked.access) }),
        ...(hardware ? { secondSize: hardware.format.span[walked.secondLeafLevel]! * 4096 } : {}),
        reason: inMemory ? 'the translation succeeds' : 'the translation succeeds, to where there is no memory',
      };
    }
    const fault = describeWalkFault(0, walked, asked, hardware, {
      kind,
      address,
      size: 1,
      value: 0n,
      cpl: user ? 3 : 0,
      implicit: false,
    });
    const guest = fault.kind === 'guest';
    const exit = second?.kind === 'ept' ? 'exit qualification' : 'EXITINFO1';
    const code = guest
      ? `#PF, error code ${errorCodeWords(fault.errorCode)}`
      : fault.kind === 'misconfiguration'
        ? 'EPT misconfiguration'
        : `${second?.kind === 'ept' ? 'EPT violation' : 'nested page fault'}, ${exit} ${hex(fault.exitInfo)}`;
    return {
      references,
      end: guest ? 'guest-fault' : 'second-fault',
      ...(fault.gpa === undefined ? {} : { gpa: fault.gpa }),
      code,
      reason: fault.reason,
    };
  }
}

/** ACC_* bits as rights of supervisor and user. */
function accessRights(access: number): number {
  const rwx = 1 | (access & 2) | (access & 1 ? 4 : 0);
  return access & 4 ? rwx | (rwx << 3) : rwx;
}
