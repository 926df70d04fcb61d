import { accessSync, constants, existsSync } from 'node:fs';
import { hex, highWord, lowWord } from '../../engine/memory/words.ts';
import { type ConformCase, indexAt, LEVELS } from '../conform/cases.ts';
import { differenceWords, ENTRY_NAMES, outcomeWords } from '../conform/compare.ts';
import { EngineVerdict, type Outcome } from '../conform/engine.ts';
import { ConformGuest } from '../conform/guest.ts';
import { MEMORY_SIZE, PROGRAM } from '../conform/layout.ts';
import { LEGACY_MODES, type LegacyMode } from '../conform/legacy.ts';
import { type NotTested, probe } from '../conform/probe.ts';
import { type Agreement, conform as compare, type Difference, type Mismatch } from '../conform/run.ts';
import { built } from '../kvm/built.ts';
import { type HelperPlace, thisMachine } from '../kvm/place.ts';
import { RspClient } from '../rsp/client.ts';
import { RspError } from '../rsp/packet.ts';
import { compareLegacy } from './conform-legacy.ts';
import { entryWords } from './entry-words.ts';
import { readNumber, readOptions, UsageError } from './usage.ts';

/** Cases without `--cases`: some seconds. */
const CASES = 20_000;

/** Exit statuses. */
const AGREEMENT = 0;
const MISMATCH = 1;
const CANNOT_RUN = 3;

/** `kvm-mmu conform`: random accesses through random tables, on the engine and on KVM. The exit status. */
export async function conform(args: string[]): Promise<number> {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: {
      seed: { type: 'string' },
      cases: { type: 'string' },
      case: { type: 'string' },
      paging: { type: 'string' },
      helper: { type: 'string' },
      guest: { type: 'string' },
      json: { type: 'boolean' },
    },
  });
  if (positionals.length > 0) throw new UsageError(`conform takes no ${positionals[0]}`);
  const helper = values.helper ?? built('kvm-mmu-helper');
  const wanted = readConform(values);
  const why = cannotRun(helper, values.guest);
  if (why !== undefined) return tellCannotRun(why);
  return conformAt(thisMachine(helper), wanted, values.json === true);
}

/** Which cases are wanted. */
interface ConformWanted {
  readonly seed: number;
  readonly first: number;
  readonly cases: number;
  /** How the guest's addresses are translated; undefined: by tables of four levels. */
  readonly legacy: LegacyMode | undefined;
  /** The guest program, where it is not the one that was built here. */
  readonly guest: string | undefined;
}

/** @throws UsageError */
export function readConform(
  values: {
    readonly [name in 'seed' | 'cases' | 'case' | 'guest' | 'paging']?: string | undefined;
  },
): ConformWanted {
  if (values.case !== undefined && values.cases !== undefined)
    throw new UsageError('--case runs one case, --cases says how many: give one of them');
  const seed = whole(values.seed, '--seed') ?? Math.floor(Math.random() * 2 ** 32);
  const only = whole(values.case, '--case');
  const cases = only === undefined ? (whole(values.cases, '--cases') ?? CASES) : 1;
  const legacy = LEGACY_MODES.find((mode) => mode === values.paging);
  if (values.paging !== undefined && values.paging !== '4-level' && !legacy)
    throw new UsageError(`--paging takes 4-level, ${LEGACY_MODES.join(' or ')}, not ${values.paging}`);
  if (legacy && values.guest !== undefined) throw new UsageError('--guest is for --paging 4-level');
  return { seed, first: only ?? 0, cases, legacy, guest: values.guest };
}

/** Compares engine and KVM there, and tells. The exit status. */
export async function conformAt(
  place: HelperPlace,
  { guest: program, legacy, ...wanted }: ConformWanted,
  json: boolean,
): Promise<number> {
  try {
    if (legacy) return (await compareLegacy(place, legacy, wanted, json)) ? AGREEMENT : MISMATCH;
  } catch (error) {
    if (error instanceof RspError) return tellCannotRun(error.message);
    throw error;
  }
  const image = { path: program ?? built('conform.bin'), at: hex(PROGRAM) };
  const client = new RspClient(await place.start(['--memory', `${MEMORY_SIZE >> 20}M`], image));
  try {
    await client.handshake();
    const { maxphyaddr } = await client.info();
    const guest = new ConformGuest(client);
    await guest.setUp();
    const { host, notTested } = await probe(guest, maxphyaddr);
    const progress = (done: number): void => {
      if (process.stderr.isTTY) process.stderr.write(`\r${done} of ${wanted.cases} cases`);
    };
    const result = await compare(guest, host, wanted, progress);
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
    const engine = new EngineVerdict(host);
    console.log(
      json
        ? JSON.stringify({ seed: wanted.seed, host, ...agreementJson(result, engine), notTested })
        : agreementText(wanted.seed, result, engine, notTested),
    );
    return result.differing === 0 ? AGREEMENT : MISMATCH;
  } catch (error) {
    if (error instanceof RspError) return tellCannotRun(error.message);
    throw error;
  } finally {
    client.kill();
  }
}

function tellCannotRun(why: string): number {
  console.error(`kvm-mmu: conform cannot run here: ${why}`);
  return CANNOT_RUN;
}

function whole(written: string | undefined, what: string): number | undefined {
  if (written === undefined) return undefined;
  const value = readNumber(written, what);
  if (value >= 1n << 32n) throw new UsageError(`${what} must be below 2³², not ${written}`);
  return Number(value);
}

/** What is missing, and what to do about it. */
function cannotRun(helper: string, program: string | undefined): string | undefined {
  if (!existsSync('/dev/kvm')) return 'there is no /dev/kvm: this needs Linux with KVM (modprobe kvm_intel or kvm_amd)';
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return '/dev/kvm may not be opened: join the group that owns it (usually kvm), or ask for access';
  }
  for (const [what, path] of [
    ['helper', helper],
    ['guest program', program],
  ] as const)
    if (path !== undefined && !existsSync(path)) return `the ${what} ${path} is not built: make -C native`;
  return undefined;
}

function agreementText(
  seed: number,
  result: Agreement,
  engine: EngineVerdict,
  notTested: readonly NotTested[],
): string {
  const { cases, seconds, outcomes, differing, mismatches } = result;
  const lines = mismatches.flatMap((mismatch) => [...mismatchText(seed, mismatch, engine), '']);
  lines.push(`seed ${seed}: ${cases} cases in ${seconds.toFixed(1)} s, ${Math.round(cases / seconds)} a second`);
  for (const [name, count] of byCount(outcomes)) lines.push(`  ${String(count).padStart(9)}  ${name}`);
  lines.push('not tested:');
  for (const { name, reason } of notTested) lines.push(`  ${name}: ${reason}`);
  const told = differing > mismatches.length ? `, of which ${mismatches.length} are told` : '';
  lines.push(differing === 0 ? 'engine and KVM agree' : `engine and KVM differ in ${differing} cases${told}`);
  return lines.join('\n');
}

function byCount(outcomes: ReadonlyMap<string, number>): [string, number][] {
  return [...outcomes].sort(([, a], [, b]) => b - a);
}

function mismatchText(seed: number, { number, shrunk, ...whole }: Mismatch, engine: EngineVerdict): string[] {
  const lines = [`mismatch: --seed ${seed} --case ${number}`, ...differenceText(whole, engine)];
  if (!shrunk) lines.push('  alone it does not differ: something of the cases before it counts');
  else lines.push('  shrunk to', ...differenceText(shrunk, engine));
  return lines;
}

function differenceText(difference: Difference, engine: EngineVerdict): string[] {
  const { case: of, engine: verdict, kvm } = difference;
  const { registers, access, entries } = caseWords(of, engine);
  return [
    `    ${registers}`,
    `    ${access}`,
    ...entries.map((line) => `      ${line}`),
    `    engine: ${outcomeWords(verdict)}`,
    ...[engine.explain(of), ...changedEntries(of, verdict)].map((line) => `      ${line}`),
    `    KVM:    ${outcomeWords(kvm)}`,
    ...changedEntries(of, kvm).map((line) => `      ${line}`),
    `    they differ in ${differenceWords(verdict, kvm)}`,
  ];
}

/** A case in words: registers, the access, an entry a line. */
function caseWords(of: ConformCase, engine: EngineVerdict) {
  const flags = { 'CR0.WP': of.wp, 'EFER.NXE': of.nxe, 'CR4.SMEP': of.smep, 'CR4.SMAP': of.smap, 'RFLAGS.AC': of.ac };
  const { format } = engine.mode(of);
  return {
    registers: Object.entries(flags)
      .map(([name, on]) => `${name} ${on ? 1 : 0}`)
      .join(', '),
    access: `CPL${of.user ? 3 : 0} ${of.kind} of ${of.size} at ${hex(of.gva)}`,
    entries: LEVELS.map((level, at) => {
      const value = of.entries[at]!;
      const index = indexAt(of.gva, level);
      const words = entryWords({ format, level, index, lo: lowWord(value), hi: highWord(value) });
      return `${words.name.padEnd(9)} ${words.value.padStart(18)}  ${words.says}`;
    }),
  };
}

/** What an access did to the entries. */
function changedEntries(of: ConformCase, { entries }: Outcome): string[] {
  const changed = LEVELS.flatMap((level, at) => {
    const before = of.entries[at]!;
    const after = entries[at]!;
    if (before === after) return [];
    const bits = [...bitWords(after & ~before, 'set'), ...bitWords(before & ~after, 'cleared')];
    return [`${ENTRY_NAMES[level]} becomes ${hex(after)}: ${bits.join(', ')}`];
  });
  return changed.length === 0 ? ['no entry changes'] : changed;
}

/** `A and D set`, of the bits that a processor may change; others by their numbers. */
function bitWords(bits: bigint, how: string): string[] {
  const names = Array.from({ length: 64 }, (_, at) => at)
    .filter((at) => ((bits >> BigInt(at)) & 1n) !== 0n)
    .map((at) => (at === 5 ? 'A' : at === 6 ? 'D' : `bit ${at}`));
  return names.length === 0 ? [] : [`${names.join(' and ')} ${how}`];
}

function agreementJson({ cases, seconds, outcomes, differing, mismatches }: Agreement, engine: EngineVerdict) {
  return {
    ok: differing === 0,
    cases,
    seconds,
    outcomes: Object.fromEntries(byCount(outcomes)),
    differing,
    mismatches: mismatches.map(({ number, shrunk, ...whole }) => ({
      case: number,
      ...differenceJson(whole, engine),
      shrunk: shrunk === undefined ? null : differenceJson(shrunk, engine),
    })),
  };
}

function differenceJson({ case: of, engine: verdict, kvm }: Difference, engine: EngineVerdict) {
  const outcomeJson = ({ kind, error, cr2, value, entries, words }: Outcome) => ({
    kind,
    error: hex(error),
    cr2: hex(cr2),
    value: hex(value),
    entries: entries.map(hex),
    ...(words === undefined ? {} : { words }),
  });
  return {
    registers: { wp: of.wp, nxe: of.nxe, smep: of.smep, smap: of.smap, ac: of.ac },
    access: { kind: of.kind, user: of.user, size: of.size, gva: hex(of.gva) },
    entries: of.entries.map(hex),
    engine: { ...outcomeJson(verdict), reason: engine.explain(of) },
    kvm: outcomeJson(kvm),
  };
}
