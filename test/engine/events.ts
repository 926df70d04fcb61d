import { Inference, type InferredMachine } from '../../engine/history/infer.ts';
import { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS, traceKind } from '../../engine/history/tracepoints.ts';

/** Entries as KVM makes them on a processor with NPT. */
export const LINK = 0x827n;
export const LEAF = 0x867n;
export const FROZEN = 0x5a0n;
/** The role of a root of the second stage: level 4, direct, with all rights. */
export const ROOT = 0x3784;
/** Roles of shadow pages without a level: of tables with entries of 8 bytes, and of 4. */
export const SHADOW = 0x3700;
export const SHADOW_32 = SHADOW | 16;
export const DIRECT = 0x80;
export const GUEST_MODE = 1 << 17;

/** Events as KVM would have left them, one after the other. */
export class Events {
  readonly recording = new Recording('pages');
  #time = 0;

  tell(pid: number, name: string, fields: Readonly<Record<string, bigint | number>> = {}): this {
    const kind = traceKind(name);
    const known = TRACEPOINTS[kind]!.fields.map((field, index) => [field, index] as const).filter(
      ([field]) => field.name in fields,
    );
    const shape = this.recording.shapeOf(
      kind,
      known.reduce((bits, [, index]) => bits | (1 << index), 0),
    );
    this.recording.append(this.#time++, 0, pid, shape);
    const { words, wordAt } = this.recording;
    for (const [field, index] of known) {
      const value = BigInt.asUintN(64, BigInt(fields[field.name]!));
      words[wordAt + shape.slots[index]!] = Number(value & 0xffff_ffffn);
      if ((shape.wide >>> index) & 1) words[wordAt + shape.slots[index]! + 1] = Number(value >> 32n);
    }
    return this;
  }

  page(pid: number, gfn: number, role: number, created = 1): this {
    return this.tell(pid, 'kvm_mmu_get_page', { mmu_valid_gen: 0, gfn, role, root_count: 0, unsync: 0, created });
  }

  zapPage(pid: number, gfn: number, role: number): this {
    return this.tell(pid, 'kvm_mmu_prepare_zap_page', { mmu_valid_gen: 0, gfn, role, root_count: 0, unsync: 0 });
  }

  /** A shadow page may differ from the guest's table from now on, or is made to agree with it. */
  sync(pid: number, gfn: number, role: number, word: 'sync' | 'unsync'): this {
    const unsync = word === 'sync' ? 1 : 0;
    return this.tell(pid, `kvm_mmu_${word}_page`, { mmu_valid_gen: 0, gfn, role, root_count: 0, unsync });
  }

  zapAll(pid: number): this {
    return this.tell(pid, 'kvm_mmu_zap_all_fast', { mmu_valid_gen: 1, mmu_used_pages: 0 });
  }

  unmap(pid: number): this {
    return this.tell(pid, 'kvm_unmap_hva_range', { start: 0, end: 4096 });
  }

  entry(pid: number, vcpu: number): this {
    return this.tell(pid, 'kvm_entry', { vcpu_id: vcpu, rip: 0 });
  }

  fault(pid: number, vcpu: number, address: number | bigint, code = 4): this {
    return this.tell(pid, 'kvm_page_fault', {
      vcpu_id: vcpu,
      guest_rip: 0,
      fault_address: address,
      error_code: code,
    });
  }

  change(pid: number, level: number, gfn: number, before: bigint, after: bigint, asId = 0): this {
    return this.tell(pid, 'kvm_tdp_mmu_spte_changed', {
      gfn,
      old_spte: before,
      new_spte: after,
      level,
      as_id: asId,
    });
  }

  spte(pid: number, gfn: number, spte: bigint, sptep: bigint, level = 1): this {
    return this.tell(pid, 'kvm_mmu_set_spte', { gfn, spte, sptep, level, r: 1, x: 1, u: 1 });
  }

  /** A fault at a gfn of the first 2M, in a tree that is empty: three tables from a frame on, and a page. */
  map(pid: number, vcpu: number, tables: bigint, gfn: number, page: bigint): this {
    this.fault(pid, vcpu, gfn * 4096);
    for (const [index, level] of [4, 3, 2].entries())
      this.change(pid, level, 0, 0n, ((tables + BigInt(index)) << 12n) | LINK);
    return this.change(pid, 1, gfn, 0n, leaf(page));
  }

  machines(own?: ReadonlyMap<number, number | undefined>, kind?: 'ept' | 'npt' | 'shadow'): InferredMachine[] {
    this.recording.settle();
    const inference = new Inference(this.recording, own, kind);
    inference.goTo(this.recording.length);
    return inference.machines();
  }
}

export const leaf = (page: bigint): bigint => (page << 12n) | LEAF;

/** What a tree maps, by gfn or frame of a virtual address: `GFN=FRAME`, with a `?` where that is in doubt. */
export function leaves({ tables }: InferredMachine, root: number): string[] {
  const found: string[] = [];
  const visit = (frame: number, level: number, first: number): void => {
    const table = tables.tables.get(frame);
    if (!table) return;
    for (let index = 0; index < 512; index++) {
      const lo = table.entries[2 * index]!;
      const target = (table.entries[2 * index + 1]! & 0xf_ffff) * 2 ** 20 + (lo >>> 12);
      const at = first + index * 512 ** (level - 1);
      if ((lo & 1) === 0) continue;
      if (level > 1 && (lo & 0x80) === 0) visit(target, level - 1, at);
      else found.push(`${at.toString(16)}=${target.toString(16)}${table.doubtful?.get(index) === 'stale' ? '?' : ''}`);
    }
  };
  visit(root, tables.roots.find(({ frame }) => frame === root)!.levels, 0);
  return found;
}

/** Those of the trees that are in use, and of those that are being taken down. */
export function mapped(machine: InferredMachine): { live: string[][]; dying: string[][] } {
  const roots = [...new Map(machine.tables.roots.map((root) => [root.frame, root])).values()];
  const of = (invalid: boolean): string[][] =>
    roots.filter((root) => root.invalid === invalid).map(({ frame }) => leaves(machine, frame));
  return { live: of(false), dying: of(true) };
}
