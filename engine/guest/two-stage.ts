import type { Format } from '../formats/compile.ts';
import { addressToFrame, frameToAddress, hex, pageOffset } from '../memory/words.ts';
import { type Descent, descend } from '../pgtable/descend.ts';
import type { Tables } from '../pgtable/tables.ts';
import {
  leafSize,
  outsideWords,
  type RegimeAccess,
  type RegimeReference,
  type RegimeWalk,
  type Stage,
  tableFrame,
} from './regime.ts';

/** A fault in the architecture's own words. */
export interface RuleFault {
  readonly code: string;
  readonly reason: string;
}

/** What an architecture says of a walk whose tables are found. */
export interface WalkRules {
  /** Why an address is in none of the guest's ranges. */
  noRange(address: bigint): RuleFault;
  /** How the guest's part fails, if it does. */
  first(format: Format, found: Descent, access: RegimeAccess): RuleFault | undefined;
  /** How the second stage fails for an access: for its page, or for a table of the guest's on the way. */
  second(format: Format, found: Descent, access: RegimeAccess, forTable: boolean): RuleFault | undefined;
  /** The input address is more than the second stage translates. */
  beyond(format: Format, access: RegimeAccess, forTable: boolean): RuleFault;
  /** A table of the guest's lies where there is no memory. */
  outside(format: Format, level: number, access: RegimeAccess): string;
  /** The rights that a guest's leaf comes to. */
  rights(format: Format, found: Descent): number;
}

const NOTHING = new Uint32Array(1024);

/** A walk by an architecture's rules: the guest's tables, each found through the second stage, then the page. */
export function twoStageWalk(
  memory: Tables,
  stages: readonly Stage[],
  second: Stage | undefined,
  rules: WalkRules,
  address: bigint,
  access: RegimeAccess,
): RegimeWalk {
  const references: RegimeReference[] = [];
  const frame = addressToFrame(address);
  if (stages.length === 0) return locate(frame, address, 0, undefined);
  const found = stages
    .map((stage) => ({ stage, frame: tableFrame(stage, frame) }))
    .find((candidate) => candidate.frame !== undefined);
  if (!found) return { references, end: 'untranslatable', ...rules.noRange(address) };
  const { format } = found.stage.tree;
  let next = format.rootLevel;
  let blocked: RegimeWalk | undefined;
  const page = (table: number): Uint32Array => {
    const at = locate(table, frameToAddress(table), next, format);
    if (at.end === 'done') {
      const pfn = addressToFrame(at.hpa!);
      if (memory.has?.(pfn) !== false) return memory.page(pfn);
      const reason = outsideWords(format, next, pfn);
      blocked = { references, end: 'guest-fault', code: rules.outside(format, next, access), reason };
    } else blocked = at;
    return NOTHING;
  };
  const descent = descend({ page }, found.stage.tree, found.frame!, {
    push(step) {
      if (!blocked) references.push({ stage: 'guest', format, forLevel: step.level, ...step });
      next = step.level - 1;
    },
  });
  if (blocked) return blocked;
  const fault = rules.first(format, descent, access);
  if (fault) return { references, end: 'guest-fault', ...fault };
  const guestSize = leafSize(references.at(-1));
  const gpa = frameToAddress(descent.target, pageOffset(address));
  const guest = { rights: rules.rights(format, descent), ...(guestSize === undefined ? {} : { guestSize }) };
  return { ...guest, ...locate(descent.target, gpa, 0, format) };

  /** The second stage, of a guest's table of a level, or (0) of the page. */
  function locate(gfn: number, gpa: bigint, forLevel: number, guest: Format | undefined): RegimeWalk {
    if (!second) return ended(gpa, gpa, undefined);
    const inner = second.tree.format;
    const what = forLevel === 0 ? `gpa ${hex(gpa)}` : `gpa ${hex(gpa)} of the ${guest!.level(forLevel).table}`;
    const fail = ({ code, reason }: RuleFault): RegimeWalk => ({
      references,
      end: 'second-fault',
      gpa,
      code,
      reason: `${what}: ${reason}`,
    });
    if (gfn >= inner.inputFrames) return fail(rules.beyond(inner, access, forLevel > 0));
    const down = descend(memory, second.tree, gfn, {
      push: (step) => references.push({ stage: 'second', format: inner, forLevel, ...step }),
    });
    const refused = rules.second(inner, down, access, forLevel > 0);
    if (refused) return fail(refused);
    return ended(gpa, frameToAddress(down.target, pageOffset(gpa)), leafSize(references.at(-1)));
  }

  function ended(gpa: bigint, hpa: bigint, secondSize: number | undefined): RegimeWalk {
    const there = memory.has?.(addressToFrame(hpa)) !== false;
    const reason = `the translation succeeds${there ? '' : ', to where there is no memory'}`;
    return { references, end: 'done', gpa, hpa, ...(secondSize === undefined ? {} : { secondSize }), reason };
  }
}

/** Says that an address is beyond what tables translate. */
export function beyondWords(format: Format): string {
  return `it is beyond the ${Math.log2(format.inputFrames) + 12} bits that these tables translate`;
}

/** The ranges of stages, in words. */
export function rangesWords(stages: readonly Stage[]): string {
  return stages
    .map(({ register, base, tree }) => {
      const from = frameToAddress(base);
      return `${register} translates ${hex(from)} … ${hex(from + frameToAddress(tree.format.inputFrames) - 1n)}`;
    })
    .join('; ');
}
