import { PFERR_RSVD } from '../../engine/guest/permission.ts';
import { frameToAddress } from '../../engine/memory/words.ts';
import { RspError } from '../rsp/packet.ts';
import { type ConformCase, type Host, indexAt } from './cases.ts';
import { observed, outcomeWords } from './compare.ts';
import { decodeResult } from './encode.ts';
import type { Outcome } from './engine.ts';
import type { ConformGuest } from './guest.ts';
import { DATA_FRAME, TABLE_FRAMES } from './layout.ts';

/** Something of x86's paging that is not compared here, and why. */
export interface NotTested {
  readonly name: string;
  readonly reason: string;
}

const CR4_PCIDE = 1n << 17n;
const CR4_PKE = 1n << 22n;
const PRESENT = 0x63n;

/** A read that succeeds on every machine: supervisor tables and page, A and D set. */
const PLAIN: ConformCase = {
  wp: false,
  nxe: false,
  smep: false,
  smap: false,
  ac: false,
  user: false,
  kind: 'read',
  size: 8,
  gva: 1n << 39n,
  entries: [
    frameToAddress(TABLE_FRAMES[3]!) | PRESENT,
    frameToAddress(TABLE_FRAMES[2]!) | PRESENT,
    frameToAddress(TABLE_FRAMES[1]!) | PRESENT,
    frameToAddress(DATA_FRAME) | PRESENT,
  ],
};

const PRESENT_USER = 0x67n;

/** Reads of a user page through each root entry but the program's own. */
const ROOTS: readonly ConformCase[] = Array.from({ length: 511 }, (_, at) => ({
  ...PLAIN,
  user: true,
  gva: BigInt.asUintN(64, BigInt.asIntN(48, BigInt(at + 1) << 39n)),
  entries: PLAIN.entries.map((entry) => entry | PRESENT_USER),
}));

/** Finds out by trying what the machine has. What KVM says in CPUID need not be all of it. @throws when nothing runs */
export async function probe(
  guest: ConformGuest,
  maxPhyAddr: number,
): Promise<{ readonly host: Host; readonly notTested: readonly NotTested[] }> {
  const ask = async (change: Partial<ConformCase>, cr4 = 0n): Promise<Outcome> => {
    const tried = { ...PLAIN, ...change };
    return observed(tried, decodeResult(await guest.run([tried], { cr4 }), 0));
  };
  const works = async (change: Partial<ConformCase>, cr4?: bigint): Promise<boolean> =>
    (await ask(change, cr4)).kind === 'ok';
  const plain = await ask({});
  if (plain.kind !== 'ok') throw new RspError(`a plain read through four levels ends with ${outcomeWords(plain)}`);
  const large = PLAIN.entries.with(1, PRESENT | 0x80n);
  const globalRoot = await ask({ entries: PLAIN.entries.with(0, PLAIN.entries[0]! | 0x100n) });
  const roots = await guest.run(ROOTS);
  const refused = ROOTS.flatMap((each, at) => {
    const outcome = observed(each, decodeResult(roots, at));
    return outcome.kind === 'ok' ? [] : [{ root: indexAt(each.gva, 4), outcome }];
  });
  const host: Host = {
    maxPhyAddr,
    nx: await works({ nxe: true }),
    smep: await works({ smep: true }),
    smap: await works({ smap: true }),
    oneGigPages: await works({ entries: large, gva: PLAIN.gva | frameToAddress(DATA_FRAME) }),
    userRoots: ROOTS.map(({ gva }) => indexAt(gva, 4)).filter((root) => !refused.some((each) => each.root === root)),
    amd: globalRoot.kind === '#PF' && (globalRoot.error & PFERR_RSVD) !== 0,
  };
  const notTested: NotTested[] = [];
  const lacks = (missing: boolean, name: string, reason: string): void => {
    if (missing) notTested.push({ name, reason });
  };
  lacks(!host.nx, 'no-execute', 'the guest may not set EFER.NXE');
  lacks(!host.smep, 'SMEP', 'the guest may not set CR4.SMEP');
  lacks(!host.smap, 'SMAP and RFLAGS.AC', 'the guest may not set CR4.SMAP');
  lacks(!host.oneGigPages, '1G pages', 'PS in a PDPTE is a reserved bit for this guest; that it is refused is tested');
  lacks(maxPhyAddr === 52, 'reserved physical-address bits', 'MAXPHYADDR is 52: there are none');
  if (refused.length > 0)
    notTested.push({
      name: `accesses at CPL3 through root entries ${ranges(refused.map(({ root }) => root))}`,
      reason: `KVM keeps these addresses to itself: a read of a user page there ends with ${[...new Set(refused.map(({ outcome }) => outcomeWords({ ...outcome, cr2: 0n })))].join(' or ')}`,
    });
  const keys = await works({}, CR4_PKE);
  lacks(true, 'protection keys', keys ? 'the cases do not set PKRU' : 'the guest may not set CR4.PKE');
  const pcid = await works({}, CR4_PCIDE);
  lacks(
    true,
    'process-context identifiers',
    pcid ? 'the engine does not model them' : 'the guest may not set CR4.PCIDE',
  );
  lacks(true, '32-bit, PAE and 5-level paging', 'the guest program stays in 64-bit mode with four levels');
  lacks(true, 'implicit supervisor accesses', 'the cases make no access to a descriptor table');
  lacks(true, 'accesses that cross a page', 'a case has one page');
  return { host, notTested };
}

/** `1, 5–7`: numbers in ascending order. */
function ranges(numbers: readonly number[]): string {
  const found: [number, number][] = [];
  for (const number of numbers) {
    const last = found.at(-1);
    if (last?.[1] === number - 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(', ');
}
