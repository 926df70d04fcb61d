import { hex } from '../../engine/memory/words.ts';
import type { RspClient } from '../rsp/client.ts';
import { LostError } from '../rsp/packet.ts';

/** A breakpoint that the helper has: in memory, or in a debug register where nothing is mapped. */
type Inserted = { readonly kind: 'software'; readonly gpa: bigint } | { readonly kind: 'hardware' };

/** The breakpoints that the helper has, by virtual address. They change while no vCPU runs. */
export class InsertedBreakpoints {
  /** The guest's own bytes that breakpoints stand in place of, by guest-physical address. */
  readonly patches = new Map<bigint, number>();
  readonly #client: RspClient;
  readonly #gpaOf: (address: bigint) => Promise<bigint | undefined>;
  readonly #print: (text: string) => void;
  readonly #inserted = new Map<bigint, Inserted>();

  /** `gpaOf`: what memory a virtual address means now. */
  constructor(
    client: RspClient,
    gpaOf: (address: bigint) => Promise<bigint | undefined>,
    print: (text: string) => void,
  ) {
    this.#client = client;
    this.#gpaOf = gpaOf;
    this.#print = print;
  }

  /** @throws RspError when it is refused: debug registers are few */
  async insert(address: bigint): Promise<void> {
    if (this.#inserted.has(address)) return;
    const gpa = await this.#gpaOf(address);
    const inserted: Inserted = gpa === undefined ? { kind: 'hardware' } : { kind: 'software', gpa };
    await this.#client.insertBreakpoint(inserted.kind, address);
    this.#inserted.set(address, inserted);
    // The helper answers with what the guest has there, whatever stands in memory.
    const [original] = gpa === undefined ? [] : await this.#client.readPhysical(gpa, 1);
    if (gpa !== undefined && original !== undefined) this.patches.set(gpa, original);
  }

  /** Takes one out, if it is there. What is refused is said. */
  async remove(address: bigint): Promise<void> {
    const inserted = this.#inserted.get(address);
    if (inserted) await this.#orSay(`the breakpoint at ${hex(address)} stays`, this.#takeOut(address, inserted));
  }

  async #takeOut(address: bigint, inserted: Inserted): Promise<void> {
    await this.#client.removeBreakpoint(inserted.kind, address);
    this.#inserted.delete(address);
    if (inserted.kind === 'hardware') return;
    // Two virtual addresses may mean one byte.
    const { gpa } = inserted;
    if (![...this.#inserted.values()].some((other) => other.kind === 'software' && other.gpa === gpa))
      this.patches.delete(gpa);
  }

  /** Inserts and removes until those that are wanted are there. What is refused is said. */
  async sync(wanted: ReadonlySet<bigint>): Promise<void> {
    for (const address of [...this.#inserted.keys()]) if (!wanted.has(address)) await this.remove(address);
    for (const address of wanted) await this.#orSay(`no breakpoint at ${hex(address)}`, this.insert(address));
  }

  async #orSay(what: string, done: Promise<void>): Promise<void> {
    try {
      await done;
    } catch (error) {
      if (error instanceof LostError) throw error;
      this.#print(`${what}: ${(error as Error).message}\n`);
    }
  }
}
