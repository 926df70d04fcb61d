import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { built } from '../kvm/built.ts';
import { jsonAnswer } from '../rsp/json-answer.ts';
import { RspError } from '../rsp/packet.ts';
import { parseTraceFormats, parseTraceLost, type TraceLost } from '../rsp/trace.ts';
import { Spool } from '../trace/spool.ts';
import { readOptions, UsageError } from './usage.ts';

/** Exit status when nothing can be recorded, or what was recorded cannot be saved. */
const CANNOT_RUN = 3;
/** Of a command, as shells tell it. */
const NOT_FOUND = 127;
const NOT_RUN = 126;
/** The CPU of the record that ends the helper's stream. */
const END_CPU = 0xffff;
/** Bytes before a page: its CPU and length. */
const HEADER = 6;
/** No page and no end is longer. */
const LONGEST_RECORD = 1 << 25;

/** `kvm-mmu record`: KVM's events while a command runs, as a trace.dat. The exit status: the command's. */
export async function record(args: string[]): Promise<number> {
  const separator = args.indexOf('--');
  const { values, positionals } = readOptions({
    args: separator < 0 ? args : args.slice(0, separator),
    allowPositionals: true,
    options: {
      output: { type: 'string', short: 'o', default: 'trace.dat' },
      all: { type: 'boolean', default: false },
      helper: { type: 'string' },
    },
  });
  const command = separator < 0 ? [] : args.slice(separator + 1);
  if (positionals.length > 0) throw new UsageError(`record takes no ${positionals[0]}: the command stands behind --`);
  if (command.length === 0) throw new UsageError('record takes a command behind --');
  let spool: Spool | undefined;
  try {
    const helper = values.helper ?? built('kvm-mmu-helper');
    if (!existsSync(helper)) throw new Error(`there is no helper at ${helper}`);
    spool = new Spool(values.output);
    const stream = new HelperStream(spool);
    const ended = await runHelper(
      [helper, '--record', '3', ...(values.all ? ['--all'] : []), '--', ...command],
      stream,
    );
    // It has said why.
    if (!spool.hasBegun) {
      if (ended.code === 0) throw new Error(`${helper} records nothing: it is no helper`);
      return ended.code === NOT_FOUND || ended.code === NOT_RUN ? ended.code : CANNOT_RUN;
    }
    const { end } = stream;
    if (!end)
      throw new Error(
        `the recording was cut off: the helper ended with ${ended.signal ?? `exit status ${ended.code}`}; ${values.output} is not written`,
      );
    spool.save(parseComms(end.comms));
    const lost = end.lost.overrun + end.lost.dropped;
    console.error(
      `kvm-mmu: ${end.events} events in ${values.output}${lost > 0 ? `; ${lost} were lost` : ', none lost'}`,
    );
    return end.status;
  } catch (error) {
    console.error(`kvm-mmu: ${(error as Error).message}`);
    return CANNOT_RUN;
  } finally {
    spool?.remove();
  }
}

/** The command has this process's standard input and output. Ctrl-C is for it: this process lives on and saves. */
function runHelper(
  [helper, ...args]: readonly [string, ...string[]],
  taker: HelperStream,
): Promise<{ readonly code: number | null; readonly signal: string | null }> {
  const ignored = (): void => {};
  process.on('SIGINT', ignored).on('SIGQUIT', ignored);
  const child = spawn(helper, args, { stdio: ['inherit', 'inherit', 'inherit', 'pipe'] });
  const passOn = (signal: NodeJS.Signals): void => void child.kill(signal);
  process.on('SIGTERM', passOn).on('SIGHUP', passOn);
  return new Promise<{ code: number | null; signal: string | null }>((resolve, reject) => {
    let failed: unknown;
    const stream = child.stdio[3] as Readable;
    stream.on('data', (chunk: Buffer) => {
      if (failed !== undefined) return;
      try {
        taker.take(chunk);
      } catch (error) {
        failed = error;
        // The helper ends the command when nobody takes what it records.
        stream.destroy();
      }
    });
    stream.on('error', ignored);
    child.on('error', reject);
    child.on('close', (code, signal) => (failed === undefined ? resolve({ code, signal }) : reject(failed)));
  }).finally(() => {
    process.off('SIGINT', ignored).off('SIGQUIT', ignored).off('SIGTERM', passOn).off('SIGHUP', passOn);
  });
}

/** What stands at the end of the helper's stream (native/PROTOCOL.md, "Recording a command"). */
interface End {
  readonly events: number;
  readonly lost: TraceLost;
  /** The command's exit status, as shells tell it. */
  readonly status: number;
  /** Lines of a thread and its name. */
  readonly comms: string;
}

/** What the helper writes, taken apart. */
class HelperStream {
  readonly #spool: Spool;
  #rest: Buffer = Buffer.alloc(0);
  end: End | undefined;

  constructor(spool: Spool) {
    this.#spool = spool;
  }

  /** @throws Error when the stream is not one of the helper's, or the disk is full */
  take(chunk: Buffer): void {
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    if (!this.#spool.hasBegun) {
      const newline = this.#rest.indexOf(10);
      if (newline < 0) return;
      this.#spool.begin(parseTraceFormats(this.#rest.toString('utf8', 0, newline)));
      this.#rest = this.#rest.subarray(newline + 1);
    }
    let at = 0;
    while (this.#rest.length - at >= HEADER) {
      const cpu = this.#rest.readUInt16LE(at);
      const length = this.#rest.readUInt32LE(at + 2);
      if (length > LONGEST_RECORD) throw new RspError(`the helper records ${length} bytes at once`);
      if (this.#rest.length - at - HEADER < length) break;
      const bytes = this.#rest.subarray(at + HEADER, at + HEADER + length);
      if (cpu === END_CPU) this.end = parseEnd(bytes.toString('utf8'));
      else this.#spool.add(cpu, bytes);
      at += HEADER + length;
    }
    this.#rest = this.#rest.subarray(at);
  }
}

function parseEnd(text: string): End {
  const { parse, count, words, record: object } = jsonAnswer('kvm-mmu-helper --record');
  const end = parse(text);
  return {
    events: count(end, 'events'),
    lost: parseTraceLost(JSON.stringify(object(end.lost, 'lost'))),
    status: count(end, 'status'),
    comms: words(end, 'comms'),
  };
}

function parseComms(text: string): Map<number, string> {
  return new Map([...text.matchAll(/^(\d+) (.*)$/gm)].map(([, pid, comm]) => [Number(pid), comm!]));
}
