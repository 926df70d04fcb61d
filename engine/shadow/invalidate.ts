import { TABLE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import type { Pfn } from '../memory/words.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import type { Vcpu } from '../vcpu.ts';
import type { ShadowPage } from './pages.ts';
import { syncSpte } from './sync.ts';
import { zapPte } from './zap.ts';

/** __kvm_mmu_invalidate_addr, below one root. */
export function invalidateAddress(machine: Machine, vcpu: Vcpu, root: Pfn, address: bigint): void {
  const format = machine.shadowFormat(vcpu.mmu);
  const frame = Number((address >> 12n) & ((1n << 45n) - 1n)) % format.inputFrames;
  let table = root;
  for (let level = format.rootLevel; level > 0; level--) {
    const index = format.indexOf(frame, level);
    const page = machine.pages.get(table) as ShadowPage | undefined;
    if (page?.shadow?.unsync) {
      const result = syncSpte(machine, vcpu, page, index);
      if (result < 0) zapPte(machine, table * 512 + index);
      if (result !== 0) flushRemoteTlbs(machine);
    }
    // Special roots know nothing of what is below them.
    if (page?.shadow && page.shadow.unsyncChildren.length === 0) return;
    const [lo, hi] = machine.entryWords(table, index);
    if (format.classify(level, lo) !== TABLE) return;
    table = format.frame(level, lo, hi);
  }
}
