import { decodeEntry } from '../formats/decode.ts';
import type { Stage } from '../guest/regime.ts';
import { roleWords } from '../kernel/role.ts';
import {
  currentRoot,
  isReadable,
  type KvmRoot,
  type KvmTable,
  type KvmTables,
  kvmMemory,
  kvmStage,
} from '../kernel/tables.ts';
import { addressToFrame, frameToAddress, hex, pageOffset } from '../memory/words.ts';
import type { Mirror } from '../mirror.ts';
import { type Descent, type DescentStep, descend } from '../pgtable/descend.ts';
import { spteFormat, spteNote } from '../tdp/spte.ts';
import type { Certainty, ReferenceAnswer, RootAnswer, WalkAnswer } from './answers.ts';
import { countPresent, levelShapes } from './shapes.ts';

// Answers about what KVM itself has built for a machine that is mirrored: second-stage tables, or shadow tables.

type Built = NonNullable<ReturnType<NonNullable<Mirror['built']>>>;

export function builtCertainty(built: Built | undefined): { certainty?: Certainty; why?: string } {
  if (!built) return {};
  const { certainty, why, kind, roots } = built.tables;
  const skipped = roots
    .filter((root) => !isReadable(kind, root))
    .map(
      ({ frame, levels }) =>
        `the root at hpa ${hex(frameToAddress(frame))} has ${levels} levels, which ${kind} has not`,
    );
  const words = [...(why === '' ? [] : [why]), ...new Set(skipped)].join('; ');
  return { certainty, ...(words === '' ? {} : { why: words }) };
}

export function builtTable({ tables }: Built, frame: number): KvmTable | undefined {
  return tables.tables.get(frame);
}

/** A table of KVM's in words: its gfn, role and counts. */
export function builtPage({ gfn, role, roleKnown, counts }: KvmTable): string {
  const words = roleKnown === 0 ? [] : [`gfn 0x${gfn.toString(16)}`, roleWords(role, roleKnown)];
  if (counts) {
    if (counts.roots > 0) words.push(`root of ${counts.roots}`);
    if (counts.unsync) words.push('unsync');
    if (counts.unsyncChildren > 0) words.push(`${counts.unsyncChildren} unsync below`);
    if (counts.writeFlooding > 0) words.push(`write-flooding ${counts.writeFlooding}`);
    if (counts.nxDisallowed) words.push('NX huge page disallowed');
  }
  return words.join(', ');
}

/** How the tables of a vCPU are read: from its current root down, or the first that is known. */
export function builtStage({ tables, maxPhyAddr }: Built, vcpu: number): Stage | undefined {
  const roots = tables.roots.filter((root) => isReadable(tables.kind, root));
  const root = roots.find((each) => each === currentRoot(tables, vcpu)) ?? firstOf(roots, vcpu);
  return root && kvmStage(tables, root, maxPhyAddr);
}

function firstOf(roots: readonly KvmRoot[], vcpu: number): KvmRoot | undefined {
  const told = roots.filter(({ which }) => which !== 'untold');
  return told.find((each) => each.vcpu === vcpu) ?? roots.find(({ invalid }) => !invalid) ?? roots[0];
}

/** Every root that vCPUs have: the current ones first. What cannot be read is not among them, and builtCertainty says so. */
export function builtRoots({ tables, maxPhyAddr }: Built): RootAnswer[] {
  const answers = new Map<number, RootAnswer>();
  const memory = kvmMemory(tables);
  const ordered = tables.roots.filter((root) => isReadable(tables.kind, root)).sort((a, b) => rank(a) - rank(b));
  for (const root of ordered) {
    const known = answers.get(root.frame);
    if (known) {
      if (root.which !== 'untold' && !known.vcpus.includes(root.vcpu))
        answers.set(root.frame, { ...known, vcpus: [...known.vcpus, root.vcpu] });
      continue;
    }
    const stage = kvmStage(tables, root, maxPhyAddr);
    const { format } = stage.tree;
    const there = memory.has(root.frame);
    const table = tables.tables.get(root.frame);
    answers.set(root.frame, {
      id: `second ${root.frame}`,
      title: titleOf(tables, root),
      space: 'second',
      vcpus: root.which === 'untold' ? [] : [root.vcpu],
      table: {
        kind: 'table',
        space: 'second',
        vcpu: root.vcpu,
        table: hex(frameToAddress(root.frame)),
        level: format.rootLevel,
        base: '0x0',
      },
      format: format.spec.title,
      levels: levelShapes(format),
      canonical: format.spec.canonical === true,
      present: there ? countPresent(memory, format, root.frame, 0) : 0,
      invalid: !there || root.invalid,
      certainty: worse(tables.certainty, table?.certainty ?? 'unknown'),
    });
  }
  return [...answers.values()];
}

const rank = ({ which }: KvmRoot): number => (which === 'current' ? -1 : which === 'untold' ? 3 : which);

function titleOf({ kind, tables }: KvmTables, { which, frame, pgd, invalid, mmu }: KvmRoot): string {
  const stage = kind.toUpperCase();
  const what = kind === 'shadow' ? 'Shadow root' : mmu ? `Shadow ${stage} root` : `KVM's ${stage} root`;
  const where = tables.get(frame)?.untold ? '' : ` at hpa ${hex(frameToAddress(frame))}`;
  const name = mmu ? (kind === 'ept' ? 'EPTP' : 'nCR3') : 'CR3';
  const of = (kind === 'shadow' || mmu) && pgd !== undefined ? ` of ${name} ${hex(pgd)}` : '';
  return `${what}${where}${of}${stateOf(which, invalid)}`;
}

function stateOf(which: KvmRoot['which'], invalid: boolean): string {
  if (invalid) return ' (being taken down)';
  if (which === 'untold') return ' (no event tells which vCPU uses it)';
  return which === 'current' ? '' : ` (previous, ${which + 1} back)`;
}

const ORDER: readonly Certainty[] = ['exact', 'inferred', 'stale', 'unknown'];
const worse = (a: Certainty, b: Certainty): Certainty => (ORDER.indexOf(a) >= ORDER.indexOf(b) ? a : b);

/**
 * A walk of the guest's tables, with what KVM has for each address of it. The guest's own tables say where it ends: where KVM
 * has nothing yet, that is said, and the next access will make it.
 */
export function withBuilt(built: Built, walk: WalkAnswer): WalkAnswer {
  const root = currentRoot(built.tables, walk.vcpu);
  const base = { ...walk, certainty: worse(walk.certainty, root ? built.tables.certainty : 'exact') };
  if (!root || !isReadable(built.tables.kind, root) || !built.tables.tables.has(root.frame)) {
    const isUntold = built.tables.roots.some(({ which, invalid }) => which === 'untold' && !invalid);
    const reason = root
      ? 'the tables below this vCPU’s root cannot be read'
      : isUntold
        ? 'no event tells which of KVM’s roots this vCPU uses'
        : 'KVM has no root for this vCPU yet: the next entry into the guest makes one';
    return { ...base, sentence: `${walk.sentence}; ${reason}` };
  }
  const stage = kvmStage(built.tables, root, built.maxPhyAddr);
  const { format } = stage.tree;
  const shadow = built.tables.kind === 'shadow';
  const references: ReferenceAnswer[] = [];
  let last: Descent | undefined;
  const below = (address: bigint, forLevel: number, purpose: string): void => {
    const steps: DescentStep[] = [];
    last = descend(kvmMemory(built.tables), stage.tree, inputFrameOf(stage, address), steps);
    for (const { level, table, index, frame, offset, lo, hi } of steps) {
      const own = built.tables.tables.get(table);
      const note = spteNote(spteFormat(format), lo, hi);
      const told = own?.doubtful?.get(index) ?? own?.certainty;
      // One entry is no better than the whole.
      const doubt = told && worse(told, built.tables.certainty);
      references.push({
        number: 0,
        stage: 'second',
        level,
        purpose,
        forLevel,
        table: hex(frameToAddress(table)),
        index,
        address: hex(frameToAddress(frame, offset)),
        entry: decodeEntry(format, level, lo, hi),
        ...(note === undefined ? {} : { note }),
        ...(doubt === undefined || doubt === base.certainty ? {} : { certainty: doubt }),
        decides: false,
      });
    }
  };
  for (const reference of walk.references) {
    // Shadow tables translate the address as a whole: the guest's own are read by KVM, not by the processor.
    if (!shadow && reference.stage === 'guest') below(BigInt(reference.address), reference.forLevel, reference.purpose);
    // The guest's entry lies where KVM has put the frame that it is in.
    const host = !shadow && last?.end === 'leaf' ? last.target : undefined;
    const offset = pageOffset(BigInt(reference.address));
    references.push(host === undefined ? reference : { ...reference, address: hex(frameToAddress(host, offset)) });
  }
  // Without KVM's tables the guest's memory is all that there is, and its address stands for the host's.
  const { hpa: _gpa, ...withoutHpa } = walk.outcome;
  const { outcome } = walk;
  if (outcome.status === 'done' && outcome.gpa !== undefined)
    below(shadow && walk.space === 'gva' ? BigInt(walk.address) : BigInt(outcome.gpa), 0, 'page');
  // Of a guest-physical address shadow tables say nothing.
  if (shadow && walk.space === 'gpa')
    return { ...base, sentence: `${walk.sentence}; shadow tables translate virtual addresses: ask for one` };
  const asked = outcome.status === 'done' ? last : undefined;
  const hpa = asked?.end === 'leaf' ? frameToAddress(asked.target, pageOffset(BigInt(walk.address))) : undefined;
  const words =
    asked === undefined
      ? ''
      : hpa === undefined
        ? `; KVM has not mapped it: the next access is ${built.tables.kind === 'ept' ? 'an EPT violation' : built.tables.kind === 'npt' ? 'a nested page fault' : 'a fault that KVM handles'}`
        : `; KVM maps it to hpa ${hex(hpa)}`;
  return {
    ...base,
    second: built.tables.kind,
    secondName: format.spec.stage ?? '',
    secondLevels: levelShapes(format),
    references: references.map((reference, index) => ({ ...reference, number: index + 1 })),
    outcome: {
      ...withoutHpa,
      ...(hpa === undefined ? {} : { hpa: hex(hpa), secondSize: format.span[asked!.level]! * 4096 }),
    },
    sentence: `${walk.sentence}${words}`,
  };
}

/** The frame by which a root's tables know an address. */
function inputFrameOf(stage: Stage, address: bigint): number {
  const { inputFrames } = stage.tree.format;
  return addressToFrame(address) % inputFrames;
}
