import type { Stage } from '../../engine/guest/regime.ts';
import type { Tables } from '../../engine/pgtable/tables.ts';
import { IMAGE_OPTIONS, openMachine, readSize } from './image-options.ts';
import { Output } from './output.ts';
import { printJson, printQemu, printText } from './print-rows.ts';
import { type Filter, Rows, readRights } from './rows.ts';
import { readOptions, UsageError } from './usage.ts';

const PRINTERS = { text: printText, json: printJson, qemu: printQemu } as const;

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
  if (format === 'qemu' && opened.regime.arch !== 'x86')
    throw new UsageError('--format qemu is the layout of x86 machines');
  const print = PRINTERS[format];
  const problems = new Problems();
  const rowsOf = (machine: ReturnType<typeof openMachine>): Rows => {
    const { memory, stages } = stagesOf(machine, values.stage);
    return new Rows(memory, stages, filter, values.merge ?? false, ({ message }) => problems.add(message));
  };
  const out = new Output();
  const rows = rowsOf(opened);
  let differences = 0;
  if (values.diff === undefined) {
    while (rows.next()) {
      print(out, rows);
      out.endRow();
    }
  } else {
    compare(rows, rowsOf(openMachine(values, values.diff)), (removed, row) => {
      differences++;
      out.text(format === 'json' ? `{"change":"${removed ? 'removed' : 'added'}","row":` : removed ? '- ' : '+ ');
      print(out, row);
      if (format === 'json') out.text('}');
      out.endRow();
    });
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
  const rights = readRights(values.perm ?? '');
  if (!rights)
    throw new UsageError(
      `--perm must be letters of r, w, x, u (user) and s (supervisor only), with ! before those that must lack, not ${values.perm}`,
    );
  const physical = values.phys === undefined ? undefined : readRange(values.phys, '--phys');
  return { start: range.first, end: range.end, ...rights, physical };
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

/** Hears of what two lists do not share: rows of the first as removed, of the second as added. */
function compare(before: Rows, after: Rows, differs: (removed: boolean, row: Rows) => void): void {
  let old = before.next();
  let now = after.next();
  while (old || now) {
    const order = !old ? 1 : !now ? -1 : before.frame - after.frame;
    if (order === 0 && isSame(before, after)) {
      old = before.next();
      now = after.next();
    } else if (order <= 0) {
      differs(true, before);
      old = before.next();
    } else {
      differs(false, after);
      now = after.next();
    }
  }
}

function isSame(a: Rows, b: Rows): boolean {
  return a.span === b.span && a.target === b.target && a.rights === b.rights && a.lo === b.lo && a.hi === b.hi;
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
