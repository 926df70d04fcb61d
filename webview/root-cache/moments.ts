import type { RootCacheMoment } from '../../engine/queries/answers.ts';
import { formatAddress } from '../kit/format.ts';
import type { TimelineMoment } from '../kit/timeline.ts';

type Root = RootCacheMoment['roots'][number];

const same = (a: Root, b: Root): boolean => a?.hpa === b?.hpa && a?.pgd === b?.pgd;
/** Where a root stands among a vCPU's: 0 is the current one. */
const placeOf = (root: Root, roots: readonly Root[]): number =>
  root === null ? -1 : roots.findIndex((each) => same(each, root));
export const placeName = (place: number): string => (place === 0 ? 'Current' : `Previous ${place}`);

/** The moments of one of a vCPU's MMUs, the oldest first. */
export function momentsOf(
  moments: readonly RootCacheMoment[],
  { vcpu, mmu }: Pick<RootCacheMoment, 'vcpu' | 'mmu'>,
): readonly RootCacheMoment[] {
  return moments.filter((moment) => moment.vcpu === vcpu && moment.mmu === mmu);
}

/** Moments as the timeline shows them. */
export function timelineMoments(moments: readonly RootCacheMoment[]): readonly TimelineMoment[] {
  return moments.map((moment, index) => {
    const before = moments[index - 1];
    return {
      step: moment.step,
      // Another register write led to it than to the one before.
      begins: !before || before.cause !== moment.cause,
      sentence: momentSentence(moment, before),
      note: `wanted role ${moment.rootRole}`,
    };
  });
}

/** The register write before a moment, its values grouped: `cr0 8005_0033 → 8004_0033`. */
export function causeWords({ cause }: RootCacheMoment): string | undefined {
  return cause?.replaceAll(/0x[0-9a-f]+/gi, (value) => formatAddress(value));
}

/** What a moment changed, against the one before. */
export function changeWords(moment: RootCacheMoment, before: RootCacheMoment | undefined): string {
  const old = before?.roots ?? [];
  const { roots } = moment;
  const words: string[] = [];
  const current = roots[0] ?? null;
  const wasCurrent = old[0] ?? null;
  const isMoved = !same(current, wasCurrent);
  if (isMoved && current) {
    const from = placeOf(current, old);
    words.push(
      from > 0 ? `previous ${from} becomes the current root` : `a root is taken at hpa ${formatAddress(current.hpa)}`,
    );
  }
  if (isMoved && wasCurrent) {
    const to = placeOf(wasCurrent, roots);
    words.push(to > 0 ? `the current root becomes previous ${to}` : 'the current root is given up');
  }
  const lost = old.slice(1).filter((root) => root !== null && placeOf(root, roots) < 0).length;
  if (lost > 0) words.push(lost === 1 ? 'a previous root is given up' : `${lost} previous roots are given up`);
  if (isMoved && !current) words.push('there is no current root until the vCPU enters the guest');
  if (before && before.rootRole !== moment.rootRole)
    words.push(`the wanted role changes from ${before.rootRole} to ${moment.rootRole}`);
  if (words.length > 0) return words.join('; ');
  if (!before) return current ? 'this is the first that is remembered' : 'the vCPU gets its role; there is no root yet';
  return roots.every((root, place) => same(root, old[place] ?? null))
    ? 'the processor’s role changes; the roots stay'
    : 'the previous roots change places';
}

/** A moment in one sentence: the register write that led to it, what changed, who did it and when. */
export function momentSentence(moment: RootCacheMoment, before: RootCacheMoment | undefined): string {
  const cause = causeWords(moment);
  const change = changeWords(moment, before);
  const what = cause === undefined ? `${change[0]!.toUpperCase()}${change.slice(1)}` : `After ${cause}: ${change}`;
  return `${what} (${moment.by}, step ${moment.step}).`;
}
