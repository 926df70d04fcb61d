import { Format } from '../formats/compile.ts';
import { EPT, EPT_5 } from '../formats/ept.ts';
import type { FormatSpec } from '../formats/format.ts';
import { NPT, NPT_5 } from '../formats/npt.ts';
import { SHADOW, SHADOW_5, SHADOW_PAE } from '../formats/shadow.ts';
import type { Stage } from '../guest/regime.ts';
import { frameToAddress } from '../memory/words.ts';
import type { Tables } from '../pgtable/tables.ts';
import type { Certainty } from '../queries/answers.ts';
import { roleField } from './role.ts';

/** What KVM translates guest-physical addresses with. */
export type SecondStageKind = 'ept' | 'npt' | 'shadow';

/** A table that KVM has built. */
export interface KvmTable {
  /** Host frame of its entries. */
  readonly frame: number;
  /** The frame was not told: this one stands for it. */
  readonly untold?: boolean;
  /** The gfn that its `kvm_mmu_page` is for: of a shadow page, of the guest's table. */
  readonly gfn: number;
  /** In today's layout (role.ts), and which of its bits are known. */
  readonly role: number;
  readonly roleKnown: number;
  /** Two words an entry, 512 entries. */
  readonly entries: Uint32Array;
  readonly certainty: Certainty;
  /** Entries that are less certain than the table, by index. */
  readonly doubtful?: ReadonlyMap<number, Certainty>;
  /** What only the kernel itself tells. */
  readonly counts?: KvmPageCounts;
}

export interface KvmPageCounts {
  readonly roots: number;
  readonly unsync: boolean;
  readonly unsyncChildren: number;
  readonly writeFlooding: number;
  /** Huge pages are not allowed here, because of executable memory below. */
  readonly nxDisallowed: boolean;
  readonly validGen: number;
}

/** A root that a vCPU has or had. */
export interface KvmRoot {
  readonly vcpu: number;
  /** `guest`: of its `guest_mmu`, which shadows L1's tables for guests of its own. Absent: of its `root_mmu`. */
  readonly mmu?: 'guest';
  /** Of another MMU than the one that the processor walks now. */
  readonly inactive?: true;
  /** `current`, or the place among those before it: 0 is the last. `untold` is whether it is any of these, and of which vCPU. */
  readonly which: 'current' | 0 | 1 | 2 | 'untold';
  /** Frame of the root's table, of `pae_root` for 32-bit and PAE guests. */
  readonly frame: number;
  /** What it was loaded for: the guest's CR3, or nCR3 of a nested guest. */
  readonly pgd?: bigint;
  /** Levels of the tables below it. */
  readonly levels: number;
  /** Whether KVM has given it up: its tables are being taken down. */
  readonly invalid: boolean;
}

/** What KVM has built for a machine, as of one moment. */
export interface KvmTables {
  readonly kind: SecondStageKind;
  /** Who told: the kernel's own memory, or tracepoints from which it was worked out. */
  readonly source: 'kernel' | 'events';
  /** The least certain of what is in it. */
  readonly certainty: Certainty;
  /** Why it is not exact, in words; empty when it is. */
  readonly why: string;
  readonly tables: ReadonlyMap<number, KvmTable>;
  readonly roots: readonly KvmRoot[];
  /** The roles of each vCPU's MMUs, where the kernel's memory told them. */
  readonly roles?: readonly KvmRoles[];
}

/** Of a `kvm_mmu`: the role that its root must have, and that of the processor whose tables it reads. */
export interface KvmRoles {
  readonly vcpu: number;
  readonly mmu: 'root' | 'guest' | 'nested';
  readonly rootRole: number;
  readonly cpuRole: { readonly base: number; readonly ext: number };
}

const SPECS: Readonly<Record<SecondStageKind, Readonly<Record<number, FormatSpec>>>> = {
  ept: { 4: EPT, 5: EPT_5 },
  npt: { 4: NPT, 5: NPT_5, 3: SHADOW_PAE },
  shadow: { 3: SHADOW_PAE, 4: SHADOW, 5: SHADOW_5 },
};
const formats = new Map<string, Format>();

/** How the entries below a root are read; `maxPhyAddr` is the host's. @throws Error where there is no such format */
export function kvmFormat(kind: SecondStageKind, levels: number, maxPhyAddr: number): Format {
  const key = `${kind} ${levels} ${maxPhyAddr}`;
  let format = formats.get(key);
  if (!format) {
    const spec = SPECS[kind][levels];
    if (!spec) throw new Error(`KVM's tables have ${levels} levels: no format of ${kind} has so many`);
    format = new Format(spec, { maxPhyAddr, features: new Set(['nx', '1g-pages', 'execute-only']) });
    formats.set(key, format);
  }
  return format;
}

/** Whether there is a format for the tables below a root. */
export function isReadable(kind: SecondStageKind, { levels }: KvmRoot): boolean {
  return SPECS[kind][levels] !== undefined;
}

/** A root of KVM's as the stage of a translation: of gpas with EPT and NPT, of gvas with shadow tables. */
export function kvmStage(built: KvmTables, root: KvmRoot, maxPhyAddr: number): Stage {
  return {
    register: built.kind === 'ept' ? 'EPTP' : built.kind === 'npt' ? 'nCR3' : 'shadow root',
    value: frameToAddress(Math.max(root.frame, 0)),
    tree: { format: kvmFormat(built.kind, root.levels, maxPhyAddr), root: root.frame },
    base: 0,
  };
}

/** KVM's tables as memory: their frames, and no other. */
export function kvmMemory(built: KvmTables): Required<Tables> {
  return {
    has: (frame) => built.tables.has(frame),
    page(frame) {
      const table = built.tables.get(frame);
      if (!table) throw new Error(`KVM has no table at frame ${frame}`);
      return table.entries;
    },
  };
}

/** The root that a vCPU translates with now. */
export function currentRoot(built: KvmTables, vcpu: number): KvmRoot | undefined {
  return built.roots.find((root) => root.vcpu === vcpu && root.which === 'current' && !root.inactive);
}

/** What KVM calls a table's level, whatever is known of its role. */
export function kvmLevel(table: KvmTable): number {
  return roleField(table.role, 'level');
}
