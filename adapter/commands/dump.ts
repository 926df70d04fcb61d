import { writeSync } from 'node:fs';
import { rightsWords, rwx } from '../../engine/formats/decode.ts';
import { USER } from '../../engine/formats/format.ts';
import type { Stage } from '../../engine/guest/regime.ts';
import { inputFrame, tableFrame } from '../../engine/guest/regime.ts';
import { formatSize, frameToAddress, hex, hexWords } from '../../engine/memory/words.ts';
import type { Tables } from '../../engine/pgtable/tables.ts';
import { Leaves } from '../../engine/queries/leaves.ts';
import { compareRows } from './dump-diff.ts';
import { qemuRow } from './dump-qemu.ts';
import { hexFrame } from './hex-frame.ts';
import { IMAGE_OPTIONS, openMachine, readSize } from './image-options.ts';
import { readOptions, UsageError } from './usage.ts';

/** A mapping as `dump` lists it: a leaf, or a run of leaves that `--merge` joins. */
export interface Row {
  /** First frame of the 64-bit input space, and the frame it maps to. */
  frame: number;
  target: number;
  /** Frames. */
  span: number;
  rights: number;
  /** Of the leaf; 0 for joined leaves of several levels. */
  level: number;
  lo: number;
  hi: number;
}

/** What of the mappings is wanted. */
interface Filter {
  /** Frames [start, end) of the input space. */
  readonly start: number;
  readonly end: number;
  /** Rights that a mapping must all have, and those of which it must have none. */
  readonly wanted: readonly number[];
  readonly unwanted: number;
  /** Frames [first, end) of which a mapping must contain some. */
  readonly physical: { readonly first: number; readonly end: number } | undefined;
}

/** `kvm-mmu dump`: what an image's tables map. The exit status: 1 where a comparison finds differences. */
export function dump(args: string[]): number {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: {
      ...IMAGE_OPTIONS,
      stage: { type: 'string' },
      range: { type: 'string' },
      perm: { type: 'string' },
      phys: { type: 'string' },
      merge: { type: 'boolean' },
      diff: { type: 'string' },
      json: { type: 'boolean' },
      format: { type: 'string' },
    },
  });
  if (positionals.length > 0) throw new UsageError(`dump takes options only, not ${positionals.join(' ')}`);
  const format = values.format ?? (values.json ? 'json' : 'text');
  if (format !== 'text' && format !== 'json' && format !== 'qemu')
    throw new UsageError(`--format must be text, json or qemu, not ${format}`);
  if (format === 'qemu' && (values.merge || values.diff))
    throw new UsageError('--format qemu is for single leaves: without --merge and --diff');
  const filter = readFilter(values);
  const opened = openMachine(values);
  const listed = stagesOf(opened, values.stage);
  if (format === 'qemu' && opened.regime.arch !== 'x86')
    throw new UsageError('--format qemu is the layout of x86 machines');
  const out = new Output();
  const print = format === 'json' ? jsonRow : format === 'qemu' ? qemuRow : textRow;
  const problems = new Problems();
  const rows = rowsOf(listed, filter, values.merge ?? false, problems);
  let differences = 0;
  if (values.diff === undefined) for (const { row, stage } of rows) out.line(print(row, stage));
  else {
    const other = openMachine({ ...values }, values.diff);
    const others = rowsOf(stagesOf(other, values.stage), filter, values.merge ?? false, problems);
    for (const { sign, row, stage } of compareRows(rows, others)) {
      differences++;
      out.line(
        format === 'json'
          ? `{"change":"${sign === '-' ? 'removed' : 'added'}",${print(row, stage).slice(1)}`
          : `${sign} ${print(row, stage)}`,
      );
    }
  }
  out.flush();
  problems.report();
  return differences > 0 ? 1 : 0;
}

interface Listed {
  readonly memory: Tables;
  readonly stages: readonly Stage[];
}

/** The tables that are listed: the guest's, or else those of the second stage. */
function stagesOf({ image, regime, guestMemory }: ReturnType<typeof openMachine>, stage: string | undefined): Listed {
  if (stage !== undefined && stage !== 'first' && stage !== 'second')
    throw new UsageError(`--stage must be first or second, not ${stage}`);
  if (stage === 'second' && !regime.second) throw new UsageError('--stage second: no second-stage register is given');
  if (stage === 'first' && regime.stages.length === 0)
    throw new UsageError('--stage first: paging is off, or no register is given');
  if (stage !== 'second' && regime.stages.length > 0) return { memory: guestMemory, stages: regime.stages };
  if (!regime.second) throw new UsageError('paging is off: the registers name no tables');
  return { memory: image, stages: [regime.second] };
}

function readFilter(values: { range?: string; perm?: string; phys?: string }): Filter {
  const range = values.range === undefined ? { first: 0, end: 2 ** 52 } : readRange(values.range, '--range');
  const wanted: number[] = [];
  let unwanted = 0;
  const letters = values.perm ?? '';
  if (!/^(!?[rwxus])*$/.test(letters))
    throw new UsageError(
      `--perm must be letters of r, w, x, u (user) and s (supervisor only), with ! before those that must lack, not ${letters}`,
    );
  const user = /(^|[^!])u/.test(letters);
  for (const [, not, letter] of letters.matchAll(/(!?)([rwxus])/g)) {
    const both = letter === 'r' ? 9 : letter === 'w' ? 18 : letter === 'x' ? 36 : USER;
    const mask = user && both !== USER ? both & USER : both;
    if ((not !== '') !== (letter === 's')) unwanted |= mask;
    else wanted.push(mask);
  }
  const physical = values.phys === undefined ? undefined : readRange(values.phys, '--phys');
  return { start: range.first, end: range.end, wanted, unwanted, physical };
}

/** `START..END`, `START+SIZE`, or one address: the frames that it touches. */
function readRange(written: string, what: string): { first: number; end: number } {
  const parts = /^(.+?)(?:(\.\.|\+)(.+))?$/.exec(written)!;
  const start = readSize(parts[1]!, what);
  const second = parts[3] === undefined ? undefined : readSize(parts[3], what);
  const end = second === undefined ? start + 1n : parts[2] === '+' ? start + second : second;
  if (end <= start) throw new UsageError(`${what} ${written} is empty`);
  if (end > 1n << 64n) throw new UsageError(`${what} ${written} goes beyond 64 bits`);
  return { first: Number(start >> 12n), end: Number((end + 4095n) >> 12n) };
}

interface StageRow {
  readonly row: Row;
  readonly stage: Stage;
}

function* rowsOf({ memory, stages }: Listed, filter: Filter, merge: boolean, problems: Problems): Generator<StageRow> {
  for (const stage of stages) {
    for (const [start, end] of windows(stage, filter)) {
      const leaves = new Leaves(memory, stage, start, end, (problem) => problems.add(problem.message));
      let run: Row | undefined;
      while (leaves.next()) {
        if (!accepts(filter, leaves)) continue;
        const { frame, target, span, rights, level, lo, hi } = leaves;
        if (
          run &&
          merge &&
          run.frame + run.span === frame &&
          run.target + run.span === target &&
          run.rights === rights
        ) {
          run.span += span;
          if (run.level !== level) run.level = 0;
          continue;
        }
        if (run) yield { row: run, stage };
        run = { frame, target, span, rights, level, lo, hi };
      }
      if (run) yield { row: run, stage };
    }
  }
}

/** The parts of a stage's own space that lie in the range; those of a canonical space are two. */
function windows(stage: Stage, { start, end }: Filter): [number, number][] {
  const { inputFrames, spec } = stage.tree.format;
  const halves = spec.canonical
    ? [
        [0, inputFrames / 2],
        [inputFrames / 2, inputFrames],
      ]
    : [[0, inputFrames]];
  return halves.flatMap(([low, high]): [number, number][] => {
    const first = inputFrame(stage, low!);
    const from = Math.max(start, first);
    const to = Math.min(end, first + high! - low!);
    return from < to ? [[tableFrame(stage, from)!, tableFrame(stage, to - 1)! + 1]] : [];
  });
}

function accepts({ wanted, unwanted, physical }: Filter, { rights, target, span }: Leaves): boolean {
  if ((rights & unwanted) !== 0) return false;
  for (const mask of wanted) if ((rights & mask) === 0) return false;
  return !physical || (target < physical.end && target + span > physical.first);
}

function textRow(row: Row, stage: Stage): string {
  const { format } = stage.tree;
  const what = row.level === 0 ? '' : `  ${format.level(row.level).entry}${flagWords(stage, row)}`;
  return `0x${hexFrame(row.frame)} 0x${hexFrame(row.target)} ${formatSize(row.span * 4096).padStart(6)} ${rightsWords(format, row.rights)}${what}`;
}

/** Names of the single bits that are set, by format: the rights and the address are said already. */
const flagCaches = new WeakMap<object, Map<number, string>>();

function flagWords(stage: Stage, { level, lo, hi }: Row): string {
  const { format } = stage.tree;
  let known = flagCaches.get(format);
  if (!known) {
    known = new Map();
    flagCaches.set(format, known);
  }
  const slot = 2 * level + 1;
  const rest = (lo & ~format.anyAddressLo[slot]!) >>> 0;
  const restHi = (hi & ~format.addressHi[slot]!) >>> 0;
  const key = (level * 2 ** 13 + (restHi >>> 20)) * 2 ** 32 + rest;
  let words = known.get(key);
  if (words === undefined) {
    const flags = format
      .fields(level, 'leaf')
      .filter(
        ({ bits: [high, low], withholds, ignored }) =>
          high === low && !withholds && !ignored && isSet(rest, restHi, low),
      )
      .map(({ name }) => name)
      .filter((name) => !format.spec.roles.present.includes(name) && !format.spec.leaf.fields.includes(name))
      .reverse();
    const malformed = format.isMalformed(level, lo, hi) ? ' malformed' : '';
    words = `${flags.length > 0 ? ` ${flags.join(' ')}` : ''}${malformed}`;
    known.set(key, words);
  }
  return words;
}

function isSet(lo: number, hi: number, bit: number): boolean {
  return bit < 32 ? (lo & (1 << bit)) !== 0 : (hi & (1 << (bit - 32))) !== 0;
}

function jsonRow({ frame, target, span, rights, level, lo, hi }: Row, stage: Stage): string {
  const { format } = stage.tree;
  const leaf = level === 0 ? {} : { level: format.number(level), entry: hexWords(lo, hi) };
  return JSON.stringify({
    input: hex(frameToAddress(frame)),
    output: hex(frameToAddress(target)),
    size: span * 4096,
    rights: rightsWords(format, rights),
    supervisor: rwx(rights),
    user: rwx(rights >>> 3),
    ...leaf,
    register: stage.register,
  });
}

/** Lines in blocks: one write for many of them. */
class Output {
  #lines: string[] = [];
  #size = 0;

  line(text: string): void {
    this.#lines.push(text);
    this.#size += text.length;
    if (this.#size > 1 << 16) this.flush();
  }

  flush(): void {
    if (this.#lines.length === 0) return;
    const bytes = Buffer.from(`${this.#lines.join('\n')}\n`, 'latin1');
    this.#lines = [];
    this.#size = 0;
    for (let done = 0; done < bytes.length; ) {
      try {
        done += writeSync(1, bytes, done);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === 'EAGAIN') continue;
        // Whoever read has read enough.
        if (code === 'EPIPE') process.exit(0);
        throw error;
      }
    }
  }
}

/** What was passed over while listing: each once, and not more than can be read. */
class Problems {
  readonly #seen = new Set<string>();
  #more = 0;

  add(words: string): void {
    if (this.#seen.size < 20) this.#seen.add(words);
    else if (!this.#seen.has(words)) this.#more++;
  }

  report(): void {
    for (const words of this.#seen) console.error(`kvm-mmu: passed over: ${words}`);
    if (this.#more > 0) console.error(`kvm-mmu: passed over ${this.#more} more such entries`);
  }
}
