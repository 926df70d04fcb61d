import type { KvmInfo } from '../rsp/info.ts';
import type { TraceFormats, TracePage } from '../rsp/trace.ts';
import { Spool } from '../trace/spool.ts';
import type { PageTaker } from './event-pump.ts';

/** A session's events, which become a trace.dat when it ends. */
export class SavedEvents implements PageTaker {
  readonly #output: string;
  readonly #spool: Spool;
  readonly #print: (text: string) => void;
  readonly #threads: readonly number[];
  /** Why nothing more is saved. */
  #problem: string | undefined;

  /** @throws Error where nothing can be written at `output` */
  constructor(output: string, formats: TraceFormats, info: KvmInfo, print: (text: string) => void) {
    this.#output = output;
    this.#print = print;
    this.#threads = info.threads ?? [];
    this.#spool = new Spool(output);
    this.#spool.begin(formats);
  }

  takePages(pages: readonly TracePage[]): void {
    if (this.#problem !== undefined) return;
    try {
      for (const { cpu, bytes } of pages) this.#spool.add(cpu, bytes);
    } catch (error) {
      // A disk that is full is no reason to end the session.
      this.#problem = (error as Error).message;
      this.#print(`KVM’s events are saved no longer: ${this.#problem}\n`);
    }
  }

  /** Puts the file in place, with what was taken. @param lost how many events are missing, where that is known */
  close(lost: number | undefined): void {
    try {
      this.#spool.save(new Map(this.#threads.map((thread, vcpu) => [thread, `vcpu${vcpu}`])));
      const missing = this.#problem ?? (lost === undefined ? 'those of the last moments may be missing' : undefined);
      const told = missing ?? (lost === 0 ? 'none lost' : `${lost} were lost`);
      this.#print(`KVM’s events are saved in ${this.#output}: ${told}\n`);
    } catch (error) {
      this.#print(`KVM’s events cannot be saved in ${this.#output}: ${(error as Error).message}\n`);
    } finally {
      this.#spool.remove();
    }
  }

  /** Leaves nothing behind. */
  abandon(): void {
    this.#spool.remove();
  }
}
