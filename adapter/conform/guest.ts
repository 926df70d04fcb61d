import type { RspClient } from '../rsp/client.ts';
import { RspError } from '../rsp/packet.ts';
import type { StopEvent } from '../rsp/stop.ts';
import type { ConformCase } from './cases.ts';
import { type ExtraBits, encodeCases } from './encode.ts';
import { CASES, COUNT, DATA_FRAME, dataBytes, MOST_CASES, RESULT_BYTES, RESULTS } from './layout.ts';

/** The guest program on KVM: takes a batch of cases, gives back what came of them. */
export class ConformGuest {
  readonly #client: RspClient;
  #stopped: Promise<StopEvent> | undefined;

  constructor(client: RspClient) {
    this.#client = client;
  }

  /** Puts the data into memory and lets the program set itself up. The client has shaken hands; the image is loaded. */
  async setUp(): Promise<void> {
    await this.#client.writePhysical(BigInt(DATA_FRAME) * 4096n, dataBytes());
    await this.start([]);
    await this.finish(0);
  }

  /** Runs cases to their end. */
  async run(cases: readonly ConformCase[], extra?: ExtraBits): Promise<DataView> {
    await this.start(cases, extra);
    return this.finish(cases.length);
  }

  /** Hands a batch over; `finish` is to be called before the next. */
  async start(cases: readonly ConformCase[], extra?: ExtraBits): Promise<void> {
    if (cases.length > MOST_CASES)
      throw new RangeError(`a batch of ${cases.length} cases is too large: there is room for ${MOST_CASES}`);
    const count = new Uint8Array(8);
    new DataView(count.buffer).setBigUint64(0, BigInt(cases.length), true);
    await this.#client.writePhysical(CASES, encodeCases(cases, extra));
    await this.#client.writePhysical(COUNT, count);
    this.#stopped = new Promise((resolve, reject) => {
      this.#client.onStop(resolve);
      this.#client.onLost(reject);
    });
    // Whoever waits for `finish` hears of it.
    this.#stopped.catch(() => {});
    await this.#client.resume('all');
  }

  /** The results of the batch, for `decodeResult`. @throws RspError when the guest did not come to its end */
  async finish(count: number): Promise<DataView> {
    if (!this.#stopped) throw new Error('no batch was started');
    const event = await this.#stopped;
    this.#stopped = undefined;
    if (event.kind === 'exited') throw new RspError('the machine has ended within a batch');
    const { kvm } = event;
    if (kvm !== undefined && kvm.reason !== 'port')
      throw new RspError(`the guest stopped within a batch: ${kvm.reason}${await this.#where()}`);
    const bytes = await this.#client.readPhysical(RESULTS, count * RESULT_BYTES);
    return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  async #where(): Promise<string> {
    const registers = await this.#client.readRegisters('1');
    const shown = ['rip', 'rsi', 'rbx', 'cr0', 'cr2', 'cr3', 'cr4', 'efer'].filter((name) => registers.has(name));
    return shown.map((name) => `, ${name.toUpperCase()} 0x${registers.get(name)!.toString(16)}`).join('');
  }
}
