import type { Machine } from '../machine.ts';
import { backingPfn } from '../memory/memslots.ts';
import type { Vfn } from '../memory/words.ts';
import type { Vcpu } from '../vcpu.ts';
import { isConverting } from './check.ts';

/**
 * Whether an access, which the TLB allows, reaches the frame that its page has now. While a conversion is under way the old one will do: the
 * guest may have been first.
 */
export function checkFresh(machine: Machine, vcpu: Vcpu, vfn: Vfn): void {
  const entry = vcpu.tlb.find(vfn, vcpu.hardware.pcid)!;
  const gfn = entry.gfn - (entry.gfn % 512 ** (entry.level - 1)) + (vfn % 512 ** (entry.level - 1));
  const slot = machine.slots.find(gfn);
  if (!slot?.gmem || isConverting(machine, gfn, gfn + 1)) return;
  const isPrivate = machine.attributes.store.isPrivate(gfn);
  const span = 512 ** (entry.level - 1);
  const pfn = entry.pfn - (entry.pfn % span) + (vfn % span);
  // What a shared access to the right page reads of a private one is ciphertext, which nobody prevents.
  if (pfn === backingPfn(slot, gfn, isPrivate ? slot.gmem : slot.backing)) return;
  const was = isPrivate ? 'shared' : 'private';
  machine.hazard(
    'stale-translation',
    `vCPU ${vcpu.id} reaches gpa 0x${(gfn * 4096).toString(16)} through a ${was} translation, though it is ${isPrivate ? 'private' : 'shared'} by now`,
    gfn,
  );
}
