import { roleField } from '../kernel/role.ts';
import type { Machine } from '../machine.ts';
import { addressToFrame, type Pfn, pageOffset } from '../memory/words.ts';
import { flushRemoteTlbs } from '../tdp/flush.ts';
import { isObsolete, pagesOf, type ShadowPage, updateShadow } from './pages.ts';
import type { SpteAddress } from './state.ts';
import { commitZap, prepareZap, zapPte } from './zap.ts';

/** Writes to a table without a walk between them, from which on it passes for no table any more. */
const FLOODED = 3;

/** detect_write_flooding: of last-level tables nothing is seen once they are unsync, so they do not count. */
function isFlooded(machine: Machine, page: ShadowPage): boolean {
  if (page.level === 1) return false;
  const writeFlooding = page.shadow.writeFlooding + 1;
  updateShadow(machine, page.pfn, { writeFlooding });
  return writeFlooding >= FLOODED;
}

/** detect_write_misaligned: no kernel writes its tables so; one byte at the beginning of an entry may be its flags. */
function isMisaligned({ role }: ShadowPage, offset: number, bytes: number): boolean {
  const size = roleField(role, 'has_4_byte_gpte') ? 4 : 8;
  if (offset % size === 0 && bytes === 1) return false;
  return Math.floor(offset / size) !== Math.floor((offset + bytes - 1) / size) || bytes < 4;
}

/** get_written_sptes: entries that shadow what was written; none when the page shadows another part of the table. */
function writtenSptes({ pfn, role, level }: ShadowPage, offset: number): SpteAddress[] {
  if (!roleField(role, 'has_4_byte_gpte')) return [pfn * 512 + Math.floor(offset / 8)];
  // 4 bytes of the guest's are 8 here; an entry of its directory, which covers 4M, is two.
  const wide = level === 2 ? Math.floor(offset / 4) * 16 : Math.floor(offset / 4) * 8;
  if (Math.floor(wide / 4096) !== roleField(role, 'quadrant')) return [];
  const first = pfn * 512 + (wide % 4096) / 8;
  return level === 2 ? [first, first + 1] : [first];
}

/** kvm_mmu_track_write: KVM itself has written to guest memory, which may be a table. */
export function trackWrite(machine: Machine, gpa: bigint, bytes: number): void {
  const gfn = addressToFrame(gpa);
  const offset = pageOffset(gpa);
  const invalid: Pfn[] = [];
  let flush = false;
  for (const { pfn } of pagesOf(machine, gfn)) {
    const page = machine.pages.get(pfn) as ShadowPage | undefined;
    // One that was nested may have gone with a page above it.
    if (!page || isObsolete(machine, page)) continue;
    if (isMisaligned(page, offset, bytes) || isFlooded(machine, page)) {
      prepareZap(machine, pfn, invalid);
      machine.count('tables.flooded');
      continue;
    }
    for (const spte of writtenSptes(page, offset)) if (zapPte(machine, spte)) flush = true;
  }
  if (invalid.length > 0) commitZap(machine, invalid);
  else if (flush) flushRemoteTlbs(machine);
}
