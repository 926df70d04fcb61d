import type { Machine } from '../machine.ts';
import type { Gfn } from '../memory/words.ts';

/**
 * kvm_mmu_invalidate_begin with its range: faults on these gfns retry from now on. Needs mmu_lock for writing.
 * @param start −1 for a caller that adds no range, which is a mistake: every fault retries then
 */
export function invalidateBegin(machine: Machine, start: Gfn, end: Gfn): void {
  const { seq, inProgress, start: oldStart, end: oldEnd } = machine.invalidation;
  const first = inProgress === 0;
  machine.setInvalidation({
    seq,
    inProgress: inProgress + 1,
    // With several under way the range is their hull, reset only once all have ended.
    start: first ? start : Math.min(start, oldStart),
    end: first ? end : Math.max(end, oldEnd),
  });
}

/** kvm_mmu_invalidate_range_add: of an invalidation that has begun. */
export function invalidateAdd(machine: Machine, start: Gfn, end: Gfn): void {
  const { invalidation } = machine;
  if (start >= invalidation.start && end <= invalidation.end) return;
  machine.setInvalidation({
    ...invalidation,
    start: Math.min(start, invalidation.start),
    end: Math.max(end, invalidation.end),
  });
}

/** kvm_mmu_invalidate_end: the sequence moves before the count drops, so that a fault sees one or the other. */
export function invalidateEnd(machine: Machine): void {
  const { seq, inProgress, start, end } = machine.invalidation;
  if (start < 0) machine.warn('kvm_mmu_invalidate_end: the invalidation was begun without a range');
  machine.setInvalidation({ seq: seq + 1, inProgress: inProgress - 1, start, end });
}
