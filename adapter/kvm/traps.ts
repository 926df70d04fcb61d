import type { RspClient } from '../rsp/client.ts';
import type { KvmInfo, KvmSlot } from '../rsp/info.ts';

/** Guest-physical addresses, the end exclusive. */
export interface GpaRange {
  readonly from: bigint;
  readonly to: bigint;
}

interface Stretch {
  readonly gpa: bigint;
  readonly size: bigint;
}

/** The memory that is armed for second-stage faults. */
export class Traps {
  readonly #client: RspClient;
  readonly #print: (text: string) => void;
  #armed: Stretch[] = [];
  /** What was carried out last; undefined: it was not. */
  #told: string | undefined = '';

  constructor(client: RspClient, print: (text: string) => void) {
    this.#client = client;
    this.#print = print;
  }

  /** Arms the pages of slots in a range, or none; what is armed so already stays as it is. No vCPU runs. */
  async arm({ has }: KvmInfo, slots: readonly KvmSlot[], range: GpaRange | undefined): Promise<void> {
    const wanted = range ? stretches(slots, range) : [];
    const told = wanted.map(place).join(' ');
    if (told === this.#told) return;
    this.#told = undefined;
    // A slot may be gone by now, and its traps with it.
    for (const stretch of this.#armed) await this.#client.vendor(`vKvm.Untrap:${place(stretch)}`).catch(() => {});
    this.#armed = [];
    if (wanted.length > 0 && has.userfaultfd)
      this.#print(`second-stage faults cannot be stopped at: ${has.userfaultfd}\n`);
    else await this.#armAll(has, wanted);
    this.#told = told;
  }

  async #armAll(has: KvmInfo['has'], wanted: readonly Stretch[]): Promise<void> {
    for (const stretch of wanted) {
      this.#armed.push(stretch);
      await this.#client.vendor(`vKvm.Trap:${place(stretch)},touch`);
      if (!has['userfaultfd-wp']) await this.#client.vendor(`vKvm.Trap:${place(stretch)},write`);
    }
    if (wanted.length > 0 && has['userfaultfd-wp'])
      this.#print(`first writes cannot be stopped at: ${has['userfaultfd-wp']}\n`);
  }
}

const place = ({ gpa, size }: Stretch): string => `${gpa.toString(16)},${size.toString(16)}`;

function stretches(slots: readonly KvmSlot[], { from, to }: GpaRange): Stretch[] {
  return slots.flatMap(({ gpa, size }) => {
    const first = from > gpa ? from - (from % 4096n) : gpa;
    const end = to < gpa + size ? ((to + 4095n) / 4096n) * 4096n : gpa + size;
    return first < end ? [{ gpa: first, size: end - first }] : [];
  });
}
