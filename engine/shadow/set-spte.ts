import { TABLE } from '../formats/compile.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { type PageFault, PFN_NOSLOT, RET_PF } from '../tdp/fault.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { isPresent } from '../tdp/spte.ts';
import { childOf, dropParentPte, indexOf, setTranslation, shadowPage, tableOf } from './pages.ts';
import { dropSpte, rmapAdd } from './rmap.ts';
import { losesRights, makeSpte } from './spte.ts';
import type { SpteAddress } from './state.ts';
import { markMmio } from './sync.ts';

/**
 * mmu_set_spte: installs a leaf.
 * @param fault absent where it is only prefetched
 * @returns RET_PF_*
 */
export function setShadowSpte(
  machine: Machine,
  spte: SpteAddress,
  access: number,
  gfn: Gfn,
  pfn: Pfn,
  fault: PageFault | undefined,
): number {
  const [table, index] = [tableOf(spte), indexOf(spte)];
  const page = shadowPage(machine, table);
  if (pfn === PFN_NOSLOT) {
    markMmio(machine, spte, gfn, access);
    machine.count('faults.mmio');
    return RET_PF.EMULATE;
  }
  const format = machine.tableFormat(table);
  let [lo, hi] = machine.entryWords(table, index);
  let wasMapped = false;
  let flush = false;
  if (isPresent(lo)) {
    if (page.level > 1 && format.classify(page.level, lo) === TABLE) {
      dropParentPte(machine, childOf(machine, spte), spte);
      flush = true;
    } else if (format.frame(page.level, lo, hi) !== pfn) {
      dropSpte(machine, spte);
      flush = true;
    } else wasMapped = true;
    [lo, hi] = machine.entryWords(table, index);
  }
  const made = makeSpte(machine, page, {
    level: page.level,
    gfn,
    pfn,
    access,
    old: { lo, hi },
    isPrefetch: fault === undefined || fault.prefetch,
    isSync: false,
    hostWritable: fault === undefined || fault.mapWritable,
  });
  let result: number = RET_PF.FIXED;
  if (made.lo === lo && made.hi === hi) result = RET_PF.SPURIOUS;
  else {
    if (isPresent(lo) && losesRights(format, { lo, hi }, made)) flush = true;
    machine.setSpte(table, index, made.lo, made.hi, false);
    machine.trace('kvm_mmu_set_spte', {
      gfn,
      spte: { lo: made.lo, hi: made.hi },
      level: page.level,
      sptep: table * 4096 + index * 8,
    });
  }
  if (made.wrprot && fault?.write) result = RET_PF.WRITE_PROTECTED;
  if (flush) flushRemoteTlbs(machine);
  setTranslation(machine, page, index, gfn, access);
  if (!wasMapped) rmapAdd(machine, spte, gfn);
  return result;
}
