import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { TraceFormats } from '../rsp/trace.ts';
import { writeTraceDat } from './dat-write.ts';
import { TraceError } from './errors.ts';
import { parseHeaderPage } from './layout.ts';

const COPIED_AT_ONCE = 1 << 20;

interface SpooledCpu {
  readonly path: string;
  readonly fd: number;
  pages: number;
}

/** A trace.dat in the making: pages wait on disk, beside the file, until all are there. */
export class Spool {
  readonly #output: string;
  readonly #folder: string;
  readonly #cpus = new Map<number, SpooledCpu>();
  #formats: TraceFormats | undefined;
  #pageSize = 0;

  /** @throws Error when nothing can be written there */
  constructor(output: string) {
    if (existsSync(output) && !statSync(output).isFile()) throw new Error(`${output} is there, and it is no file`);
    // A link stays one.
    this.#output = existsSync(output) ? realpathSync(output) : output;
    try {
      this.#folder = mkdtempSync(join(dirname(this.#output), `.${basename(this.#output)}-`));
    } catch (error) {
      throw new Error(`${output} cannot be written: ${(error as Error).message}`);
    }
  }

  /** Whether what the pages are made of has been told. */
  get hasBegun(): boolean {
    return this.#formats !== undefined;
  }

  /** Before the first page. @throws TraceError when header_page has a layout that this debugger cannot read */
  begin(formats: TraceFormats): void {
    this.#formats = formats;
    this.#pageSize = parseHeaderPage(formats.headerPage).pageSize;
  }

  /** A page, as `trace_pipe_raw` gives it. @throws TraceError for one that is too long, Error when the disk is full */
  add(cpu: number, page: Uint8Array): void {
    if (page.length > this.#pageSize)
      throw new TraceError(
        `a page of CPU ${cpu} has ${page.length} bytes, more than the ${this.#pageSize} of header_page`,
      );
    let to = this.#cpus.get(cpu);
    if (!to) {
      const path = join(this.#folder, `cpu${cpu}`);
      to = { path, fd: openSync(path, 'wx+'), pages: 0 };
      this.#cpus.set(cpu, to);
    }
    writeAll(to.fd, page);
    if (page.length < this.#pageSize) writeAll(to.fd, Buffer.alloc(this.#pageSize - page.length));
    to.pages++;
  }

  /** Puts the file in place, whole. @param comms threads' names. @throws Error */
  save(comms: ReadonlyMap<number, string>): void {
    const formats = this.#formats!;
    // A file without a page is no recording to some readers: one without a record is.
    if (this.#cpus.size === 0) this.add(0, Buffer.alloc(this.#pageSize));
    const count = Math.max(...this.#cpus.keys()) + 1;
    // Only their number counts: the pages themselves are on disk.
    const page = new Uint8Array(this.#pageSize);
    const cpus = Array.from({ length: count }, (_, cpu) =>
      Array<Uint8Array>(this.#cpus.get(cpu)?.pages ?? 0).fill(page),
    );
    const chunks = writeTraceDat({
      formats: formats.events.map(({ system, format }) => ({ system, text: format })),
      headerPage: formats.headerPage,
      headerEvent: formats.headerEvent,
      cpus,
      comms,
      uname: formats.uname,
      clock: formats.clock,
    });
    const path = join(this.#folder, 'trace.dat');
    const fd = openSync(path, 'wx');
    try {
      // What stands before the pages, and what fills it up to the first.
      for (let part = 0; part < 2; part++) writeAll(fd, chunks.next().value!);
      for (let cpu = 0; cpu < count; cpu++) {
        const from = this.#cpus.get(cpu);
        if (from) copy(from.fd, fd);
      }
    } finally {
      closeSync(fd);
    }
    renameSync(path, this.#output);
  }

  remove(): void {
    for (const { fd } of this.#cpus.values()) closeSync(fd);
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
}

/** The whole of a file to the end of another. */
function copy(from: number, to: number): void {
  const bytes = Buffer.allocUnsafe(COPIED_AT_ONCE);
  for (let at = 0; ; ) {
    const length = readSync(from, bytes, 0, bytes.length, at);
    if (length === 0) return;
    writeAll(to, bytes.subarray(0, length));
    at += length;
  }
}
