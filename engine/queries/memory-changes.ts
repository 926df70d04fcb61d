import { LEAF } from '../formats/compile.ts';
import { Kind } from '../history/log.ts';
import { roleField } from '../kernel/role.ts';
import type { IndexChange } from '../logged-map.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import type { MmuPage } from '../tdp/mmu-page.ts';
import { isPresent } from '../tdp/spte.ts';
import type { Change } from './answers.ts';
import { stageOffset } from './memory-stages.ts';
import type { MemoryState } from './memory-state.ts';

/** Guest frames [start, end) of which something has changed. */
export interface ChangedRange {
  readonly change: Change;
  readonly start: Gfn;
  readonly end: Gfn;
}

/** The guest frames that host frames are behind. */
export function guestRanges(machine: Machine, pfn: Pfn, pages: number): { readonly start: Gfn; readonly end: Gfn }[] {
  const ranges: { start: Gfn; end: Gfn }[] = [];
  for (const { base, gmem, backing } of machine.slots.list)
    for (const { pfn: first, pages: count } of new Set([gmem ?? backing, backing])) {
      const [from, to] = [Math.max(first, pfn), Math.min(first + count, pfn + pages)];
      if (from < to) ranges.push({ start: base + (from - first), end: base + (to - first) });
    }
  return ranges;
}

/** What an entry of the log changed of the machine’s maps of private memory. */
export function indexRanges(machine: Machine, { map, key, before, after }: IndexChange): ChangedRange[] {
  const { rmp, folios, split, holes } = machine.attributes;
  const of = (change: Change, pfn: Pfn, pages: number): ChangedRange[] =>
    guestRanges(machine, pfn, pages).map((range) => ({ change, ...range }));
  if (map === rmp) {
    const levels = [before, after].map((entry) => (entry as { level: number } | undefined)?.level);
    return of('private-page', key, levels.includes(2) && !levels.includes(1) ? 512 : 1);
  }
  if (map === folios) return of('private-page', key, 1);
  if (map === split) return of('direct-map', key * 512, 512);
  return map === holes ? of('direct-map', key, 1) : [];
}

/** Whether a shadow page translates the guest's own addresses: without the TDP MMU direct ones do. */
const isSecondStage = ({ isTdp, hasTdpMmu }: Machine, { role }: MmuPage): boolean =>
  isTdp && !hasTdpMmu && roleField(role, 'direct') === 1 && roleField(role, 'guest_mode') === 0;

/** What has changed from a position of the log to the state's, the last first. */
export function* changedRanges(state: MemoryState, since: number): Generator<ChangedRange> {
  const { machine, at } = state;
  const { log, secondFormat } = machine;
  const until = at ?? log.length;
  // Backwards, because a frame may have held another table before.
  const tables = new Map<Pfn, MmuPage | undefined>();
  // The TDX module's tables, by those of KVM's that mirror them.
  const externals = new Map<Pfn, MmuPage>();
  if (machine.vm === 'tdx')
    for (const page of machine.pages.values()) if (page.external !== undefined) externals.set(page.external, page);
  for (let position = log.length - 1; position >= Math.max(since, log.first); position--) {
    const kind = log.kindAt(position);
    if (kind === Kind.TABLE_FREE) {
      const { address, object } = log.at(position);
      tables.set(address, (object as { page: MmuPage }).page);
    } else if (kind === Kind.TABLE_ALLOC) tables.set(log.at(position).address, undefined);
    if (position >= until) continue;
    if (kind === Kind.ATTRIBUTES) {
      const { before, isPrivate } = log.at(position).object as {
        before: readonly { start: Gfn; end: Gfn; isPrivate: boolean }[];
        isPrivate: boolean;
      };
      for (const run of before)
        if (run.isPrivate !== isPrivate) yield { change: 'attribute', start: run.start, end: run.end };
    } else if (kind === Kind.INDEX) yield* indexRanges(machine, log.at(position).object as IndexChange);
    else if (kind === Kind.SPTE || kind === Kind.SPTE_UNTRACED) {
      const { address, oldLo, newLo } = log.at(position);
      const frame = Math.floor(address / 512);
      const page = tables.has(frame) ? tables.get(frame) : machine.pages.get(frame);
      if (!page) {
        const mirror = externals.get(frame);
        if (mirror?.level === 1)
          yield { change: 'mirror', start: mirror.gfn + (address % 512), end: mirror.gfn + (address % 512) + 1 };
        continue;
      }
      if (page.shadow && !isSecondStage(machine, page)) continue;
      // A table that comes or goes maps nothing by itself.
      const isLeaf = (lo: number): boolean => isPresent(lo) && secondFormat.classify(page.level, lo) === LEAF;
      if (!isLeaf(oldLo) && !isLeaf(newLo)) continue;
      const span = secondFormat.span[page.level]!;
      const isMirror = roleField(page.role, 'is_mirror') === 1;
      const start = page.gfn + (address % 512) * span - stageOffset(machine, isMirror);
      yield { change: isMirror ? 'mirror' : 'second-stage', start, end: start + span };
    }
  }
}
