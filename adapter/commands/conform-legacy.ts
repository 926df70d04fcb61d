import type { Format } from '../../engine/formats/compile.ts';
import { hex, highWord, lowWord } from '../../engine/memory/words.ts';
import { MEMORY_SIZE, PROGRAM } from '../conform/layout.ts';
import {
  conformLegacy,
  type LegacyCase,
  type LegacyHost,
  type LegacyMismatch,
  type LegacyMode,
  type LegacyOutcome,
  legacyPaging,
  MOST_LEGACY_CASES,
} from '../conform/legacy.ts';
import { legacyRow } from '../conform/legacy-rows.ts';
import { built } from '../kvm/built.ts';
import type { HelperPlace } from '../kvm/place.ts';
import { RspClient } from '../rsp/client.ts';
import { RspError } from '../rsp/packet.ts';
import { entryWords } from './entry-words.ts';

/** How many differences are told in full. */
const MOST_TOLD = 5;
/** So many cases that all end as no access does are no accident. */
const FEW = 16;

/**
 * Compares engine and KVM in 32-bit or PAE paging, and tells. @returns whether they agree, but for what is known of KVM
 * @throws RspError where KVM does not run such guests
 */
export async function compareLegacy(
  place: HelperPlace,
  mode: LegacyMode,
  { seed, first, cases }: { readonly seed: number; readonly first: number; readonly cases: number },
  json: boolean,
): Promise<boolean> {
  const image = { path: built('conform32.bin'), at: hex(PROGRAM) };
  const outcomes = new Map<string, number>();
  const mismatches: (LegacyMismatch & { readonly host: LegacyHost })[] = [];
  const from = Date.now();
  for (let done = 0; done < cases; done += MOST_LEGACY_CASES) {
    const client = new RspClient(await place.start(['--memory', `${MEMORY_SIZE >> 20}M`], image));
    try {
      await client.handshake();
      const { maxphyaddr, vendor } = await client.info();
      const host = { maxPhyAddr: maxphyaddr, amd: vendor === 'AuthenticAMD' };
      const batch = { first: first + done, count: Math.min(MOST_LEGACY_CASES, cases - done) };
      const found = await conformLegacy(client, host, mode, seed, batch);
      const strays = found.outcomes.get('stray') ?? 0;
      if (strays === batch.count && strays > FEW)
        throw new RspError(
          `this KVM does not run guests in ${mode} paging: every case ends with ${found.mismatches[0]!.kvm.words}`,
        );
      for (const [name, count] of found.outcomes) outcomes.set(name, (outcomes.get(name) ?? 0) + count);
      mismatches.push(...found.mismatches.map((each) => ({ ...each, host })));
    } finally {
      client.kill();
    }
  }
  const known = new Map<string, number>();
  const wrong: typeof mismatches = [];
  for (const each of mismatches) {
    const row = legacyRow(each);
    if (!row) wrong.push(each);
    else known.set(`${row.name}: ${row.why}`, (known.get(`${row.name}: ${row.why}`) ?? 0) + 1);
  }
  const byCount = [...outcomes].sort(([, a], [, b]) => b - a);
  if (json) {
    const text = (_: string, value: unknown) => (typeof value === 'bigint' ? hex(value) : value);
    const counted = { outcomes: Object.fromEntries(byCount), known: Object.fromEntries(known) };
    console.log(JSON.stringify({ seed, mode, ok: wrong.length === 0, cases, ...counted, mismatches: wrong }, text));
    return wrong.length === 0;
  }
  for (const each of wrong.slice(0, MOST_TOLD)) console.log(`${mismatchText(seed, each).join('\n')}\n`);
  const seconds = (Date.now() - from) / 1000;
  console.log(`seed ${seed}, ${mode}: ${cases} cases in ${seconds.toFixed(1)} s`);
  for (const [name, count] of byCount) console.log(`  ${String(count).padStart(9)}  ${name}`);
  for (const [words, count] of known) console.log(`known of KVM, ${count} times: ${words}`);
  console.log(wrong.length === 0 ? 'engine and KVM agree' : `engine and KVM differ in ${wrong.length} cases`);
  return wrong.length === 0;
}

function mismatchText(
  seed: number,
  { number, case: of, engine, kvm, host }: LegacyMismatch & { readonly host: LegacyHost },
): string[] {
  const { format } = legacyPaging(of, host);
  const flags = { 'CR0.WP': of.wp, 'EFER.NXE': of.nxe, 'CR4.SMEP': of.smep, 'CR4.SMAP': of.smap, 'RFLAGS.AC': of.ac };
  return [
    `mismatch: --paging ${of.mode} --seed ${seed} --case ${number}`,
    `    ${Object.entries(flags)
      .map(([name, on]) => `${name} ${on ? 1 : 0}`)
      .join(', ')}`,
    `    CPL${of.user ? 3 : 0} ${of.kind} of ${of.size} at ${hex(of.gva)}`,
    ...entriesText(format, of.entries),
    `    engine: ${outcomeText(engine)}`,
    ...(isChanged(of, engine) ? entriesText(format, engine.entries) : []),
    `    KVM:    ${outcomeText(kvm)}`,
    ...(isChanged(of, kvm) ? entriesText(format, kvm.entries) : []),
  ];
}

const isChanged = (of: LegacyCase, { entries }: LegacyOutcome): boolean =>
  entries.some((entry, at) => entry !== of.entries[at]);

function entriesText(format: Format, entries: readonly [bigint, bigint]): string[] {
  return entries.map((value, at) => {
    const words = entryWords({ format, level: 2 - at, index: 0, lo: lowWord(value), hi: highWord(value) });
    return `      ${at === 0 ? 'PDE' : 'PTE'} ${words.value.padStart(18)}  ${words.says}`;
  });
}

function outcomeText({ kind, error, cr2, value, words }: LegacyOutcome): string {
  if (kind === '#PF') return `#PF, error code ${hex(error)}, CR2 ${hex(cr2)}`;
  return kind === 'ok' ? `no fault, value ${hex(value)}` : (words ?? kind);
}
