import type { Mirror } from '../../engine/mirror.ts';
import { MissingFrames } from '../../engine/mirror.ts';
import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import { LostError } from '../rsp/packet.ts';
import { type KernelState, parseTables } from '../rsp/tables.ts';

/** What KVM has built for a machine, read from the kernel at most once a stop, and only when somebody asks. */
export class KvmBuilt {
  readonly #client: RspClient;
  readonly #info: KvmInfo;
  readonly #print: (text: string) => void;
  #state: KernelState | undefined;
  /** Why it cannot be read, though it was thought to be. */
  #problem: string | undefined;
  /** What was said last, so that it is not said at each stop. */
  #said: string | undefined;

  constructor(client: RspClient, info: KvmInfo, print: (text: string) => void) {
    this.#client = client;
    this.#info = info;
    this.#print = print;
  }

  /** The machine has run: what was read is no longer so. */
  forget(): void {
    this.#state = undefined;
    this.#problem = undefined;
  }

  /** @returns undefined where it cannot be had. @throws MissingFrames while it has not been read */
  now(): ReturnType<NonNullable<Mirror['built']>> {
    if (this.#info.has.tables !== '' || this.#problem !== undefined) return undefined;
    if (!this.#state) throw new MissingFrames([], true);
    return { tables: this.#state.tables, maxPhyAddr: this.#info.maxphyaddr };
  }

  async fetch(): Promise<void> {
    try {
      this.#state = parseTables(await this.#client.vendor('qKvm.Tables'), this.#info.secondStage);
    } catch (error) {
      if (error instanceof LostError) throw error;
      this.#problem = (error as Error).message;
      if (this.#problem !== this.#said) this.#print(`KVM’s own tables cannot be read: ${this.#problem}\n`);
      this.#said = this.#problem;
    }
  }
}
