import { type ConformCase, LEVELS, slotOf } from './cases.ts';
import { CASE_BYTES, CASE_FIELDS, RESULT_BYTES, RESULT_FIELDS, snippet } from './layout.ts';

/** CR0 with PG, ET and PE, without AM: alignment is none of the page tables' business. */
const CR0 = 0x8000_0011n;
const CR4_PAE = 1n << 5n;
const CR4_PGE = 1n << 7n;
/** LMA and LME. */
const EFER = 0x500n;
const RFLAGS = 2n;

const when = (on: boolean, at: number): bigint => (on ? 1n << BigInt(at) : 0n);

/** The registers of a case, as they are loaded. */
export function registersOf({ wp, nxe, smep, smap, ac }: ConformCase) {
  return {
    cr0: CR0 | when(wp, 16),
    cr4: CR4_PAE | CR4_PGE | when(smep, 20) | when(smap, 21),
    efer: EFER | when(nxe, 11),
    rflags: RFLAGS | when(ac, 18),
  };
}

/** Control bits beyond those of a case, for probing what the machine takes. */
export interface ExtraBits {
  readonly cr4: bigint;
}

/** Cases as the guest reads them (`layout.ts`). */
export function encodeCases(cases: readonly ConformCase[], extra?: ExtraBits): Uint8Array {
  const bytes = new Uint8Array(cases.length * CASE_BYTES);
  const view = new DataView(bytes.buffer);
  cases.forEach((each, number) => {
    const put = (offset: number, value: bigint): void => view.setBigUint64(number * CASE_BYTES + offset, value, true);
    const { cr0, cr4, efer, rflags } = registersOf(each);
    put(CASE_FIELDS.cr0, cr0);
    put(CASE_FIELDS.cr4, cr4 | (extra?.cr4 ?? 0n));
    put(CASE_FIELDS.efer, efer);
    put(CASE_FIELDS.rflags, rflags);
    put(CASE_FIELDS.gva, each.gva);
    put(CASE_FIELDS.action, snippet(each.kind, each.size, each.user));
    put(CASE_FIELDS.user, each.user ? 1n : 0n);
    LEVELS.forEach((level, at) => {
      put(CASE_FIELDS.slots + 8 * at, slotOf(each.gva, level));
      put(CASE_FIELDS.entries + 8 * at, each.entries[at]!);
    });
  });
  return bytes;
}

/** What the guest has written down of a case. */
export interface RawResult {
  readonly vector: number;
  readonly error: number;
  readonly cr2: bigint;
  readonly rip: bigint;
  readonly value: bigint;
  readonly entries: readonly bigint[];
}

/** A result of many. */
export function decodeResult(view: DataView, number: number): RawResult {
  const base = number * RESULT_BYTES;
  const big = (offset: number): bigint => view.getBigUint64(base + offset, true);
  return {
    vector: view.getUint32(base + RESULT_FIELDS.vector, true),
    error: view.getUint32(base + RESULT_FIELDS.error, true),
    cr2: big(RESULT_FIELDS.cr2),
    rip: big(RESULT_FIELDS.rip),
    value: big(RESULT_FIELDS.value),
    entries: LEVELS.map((_, at) => big(RESULT_FIELDS.entries + 8 * at)),
  };
}
