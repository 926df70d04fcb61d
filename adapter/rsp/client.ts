import { type KvmInfo, parseInfo } from './info.ts';
import {
  encodePacket,
  fromHex,
  fromLatin1,
  LONGEST,
  LostError,
  latin1,
  PacketReader,
  quote,
  RspError,
  toHex,
  wordsOf,
} from './packet.ts';
import { parseTargetDescription, type RegisterPlace, readRegister, registerBytes } from './registers.ts';
import { parseStop, type StopEvent } from './stop.ts';
import type { ByteStream } from './stream.ts';
import {
  FULL_ANSWER,
  parseTrace,
  parseTraceFormats,
  parseTraceLost,
  type TraceFormats,
  type TraceLost,
  type TracePage,
} from './trace.ts';
import { parseViolations, type Violations } from './violations.ts';

/** Bytes of a packet where the stub does not say: what every stub takes. */
const LEAST_PACKET = 400;
/** Room that the letters, the address and the length of a memory packet take. */
const MEMORY_HEADER = 64;
/** Bytes of pages that are taken at once: a machine that records faster than they come would never let the taking end. */
const PAGES_MOST = 1 << 26;
/** How often a packet is sent again after the stub has called it damaged. */
const TRIES = 3;

interface Request {
  readonly frame: Uint8Array;
  /** For messages. */
  readonly text: string;
  tries: number;
  resolve(reply: Uint8Array): void;
  reject(error: Error): void;
}

/** A step of one instruction, or steps until RIP has left [from, to). */
export type Resume = 'continue' | 'step' | { readonly from: bigint; readonly to: bigint };

/**
 * A client of one GDB stub. Requests are sent one at a time and answered in their order; a promise rejects with an RspError
 * when the stub answers with an error, with a LostError when the connection has ended. Where the stub offers it, the client works in non-stop mode,
 * in which requests are answered while vCPUs run; else only `stop` may be asked of a running machine.
 */
export class RspClient {
  readonly #stream: ByteStream;
  readonly #reader = new PacketReader();
  readonly #queue: Request[] = [];
  #current: Request | undefined;
  #lost: LostError | undefined;
  #acks = true;
  #nonStop = false;
  /** In all-stop mode: the next packet is a stop reply. */
  #running = false;
  #features: ReadonlyMap<string, string> = new Map();
  /** The end of the operation that uses several packets and may not be mixed with another. */
  #turn: Promise<unknown> = Promise.resolve();
  #thread: string | undefined;
  #physical = false;
  #registers: Promise<readonly RegisterPlace[]> | undefined;
  #onStop: (event: StopEvent) => void = () => {};
  #onConsole: (bytes: Uint8Array) => void = () => {};
  #onLost: (error: RspError) => void = () => {};

  constructor(stream: ByteStream) {
    this.#stream = stream;
    stream.onData((chunk) => this.#receive(chunk));
    stream.onClose((reason) => this.#lose(`${stream.name} has ended${reason === '' ? '' : `: ${reason}`}`));
  }

  /** Called for every stop that happens after `handshake`. There is one listener. */
  onStop(listener: (event: StopEvent) => void): void {
    this.#onStop = listener;
  }

  /** What the guest writes to its console. */
  onConsole(listener: (bytes: Uint8Array) => void): void {
    this.#onConsole = listener;
  }

  /** Called once when the connection is lost, besides rejecting what is pending. */
  onLost(listener: (error: RspError) => void): void {
    this.#onLost = listener;
  }

  /** What the stub said of itself in `qSupported`: `+`, `-`, `?` or a value, by name. */
  get features(): ReadonlyMap<string, string> {
    return this.#features;
  }

  /** Whether the peer is this project's helper, with its vendor packets. */
  get isHelper(): boolean {
    return this.has('kvm-mmu');
  }

  has(feature: string): boolean {
    return this.#features.get(feature) === '+';
  }

  /** Agrees with the stub on what both can do. @returns the threads that stand stopped now */
  async handshake(): Promise<StopEvent[]> {
    this.#features = parseFeatures(
      await this.#ask('qSupported:swbreak+;hwbreak+;vContSupported+;binary-upload+;kvm-mmu+'),
    );
    if (this.has('QStartNoAckMode')) {
      await this.#expectOk('QStartNoAckMode');
      this.#acks = false;
    }
    if (this.isHelper) await this.#expectOk('QKvm.Events:1');
    if (this.has('QNonStop')) {
      await this.#expectOk('QNonStop:1');
      this.#nonStop = true;
    }
    const first = await this.#ask('?');
    return first === 'OK' ? [] : [parseStop(first), ...(this.#nonStop ? await this.#furtherStops() : [])];
  }

  /** The helper's machine. @throws RspError also where the stub is another */
  async info(): Promise<KvmInfo> {
    return parseInfo(await this.vendor('qKvm.Info'));
  }

  /** Begins or ends the recording of violations by the helper. @throws RspError also where the host cannot do it */
  traceViolations(on: boolean): Promise<void> {
    return this.#expectOk(`QKvm.Violations:${on ? 1 : 0}`);
  }

  /** Takes the violations that were recorded since the last time. @throws RspError also where none are recorded */
  async takeViolations(): Promise<Violations> {
    return parseViolations(await this.vendor('qKvm.Violations'));
  }

  /**
   * Begins to record KVM's events, of all threads of the host; when that has begun, changes which. `all` adds those of the walks
   * that KVM makes of guests' tables, of entries and exits. @throws RspError also where the host cannot do it
   */
  startTrace(all = false): Promise<void> {
    return this.#expectOk(`QKvm.Trace:1${all ? ',all' : ''}`);
  }

  /** What is needed to read the pages; the same whatever is recorded. @throws RspError also where the host cannot do it */
  async traceFormats(): Promise<TraceFormats> {
    return parseTraceFormats(await this.vendor('qKvm.TraceFormats'));
  }

  /**
   * Takes what was recorded since the last time: pages of several CPUs, those of one in their order. At most 64 MiB and a few pages;
   * then more may be there. @throws RspError also where nothing is recorded
   */
  async takeTrace(): Promise<TracePage[]> {
    const pages: TracePage[] = [];
    for (let taken = 0; taken < PAGES_MOST; ) {
      const reply = await this.#request('qKvm.Trace', latin1('qKvm.Trace'));
      if (reply.length === 0) throw new RspError(`${this.#stream.name} does not know the packet "qKvm.Trace"`);
      if (reply[0] === 0x45) throwIfError('qKvm.Trace', fromLatin1(reply));
      let length = 0;
      for (const page of parseTrace(reply)) {
        pages.push(page);
        length += page.bytes.length;
      }
      if (length < FULL_ANSWER) break;
      taken += length;
    }
    return pages;
  }

  /** What was lost since the recording began. @throws RspError also where nothing is recorded */
  async traceLost(): Promise<TraceLost> {
    return parseTraceLost(await this.vendor('qKvm.TraceLost'));
  }

  /** Ends the recording: what was not taken is gone. */
  stopTrace(): Promise<void> {
    return this.#expectOk('QKvm.Trace:0');
  }

  /** Sends a packet as it is written; the answer's text. @throws RspError for an error and where the stub does not know it */
  async vendor(text: string): Promise<string> {
    const reply = await this.#ask(text);
    if (reply === '') throw new RspError(`${this.#stream.name} does not know the packet ${quote(text)}`);
    return reply;
  }

  /**
   * Reads memory by a thread's virtual addresses. Shorter than asked when what follows is not mapped.
   * @throws RspError when nothing is mapped at the address
   */
  readVirtual(thread: string, address: bigint, length: number): Promise<Uint8Array> {
    return this.#exclusive(async () => {
      await this.#select(thread, false);
      return this.#read(address, length);
    });
  }

  /** Reads guest-physical memory. @throws RspError when there is none, or the stub cannot tell */
  readPhysical(address: bigint, length: number): Promise<Uint8Array> {
    return this.#exclusive(async () => {
      await this.#select(undefined, true);
      return this.#read(address, length);
    });
  }

  writeVirtual(thread: string, address: bigint, bytes: Uint8Array): Promise<void> {
    return this.#exclusive(async () => {
      await this.#select(thread, false);
      await this.#write(address, bytes);
    });
  }

  writePhysical(address: bigint, bytes: Uint8Array): Promise<void> {
    return this.#exclusive(async () => {
      await this.#select(undefined, true);
      await this.#write(address, bytes);
    });
  }

  /** A thread's registers by name. One that the stub cannot tell is left out. */
  readRegisters(thread: string): Promise<Map<string, bigint>> {
    return this.#exclusive(async () => {
      const places = await this.#places();
      await this.#select(thread, this.#physical);
      const text = await this.#ask('g');
      const known = fromHex(text.replaceAll('x', '0'));
      const told = places.filter(({ offset, bytes }) => !text.slice(2 * offset, 2 * (offset + bytes)).includes('x'));
      return new Map(told.map((place) => [place.name, readRegister(known, place)]));
    });
  }

  /** Writes registers one after the other. @throws RspError also for a name that the target description lacks */
  writeRegisters(thread: string, values: Readonly<Record<string, bigint>>): Promise<void> {
    return this.#exclusive(async () => {
      const places = await this.#places();
      await this.#select(thread, this.#physical);
      for (const [name, value] of Object.entries(values)) {
        const place = places.find((candidate) => candidate.name === name);
        if (!place) throw new RspError(`there is no register ${name}: ${places.map((each) => each.name).join(', ')}`);
        await this.#expectOk(`P${place.number.toString(16)}=${toHex(registerBytes(place, value))}`);
      }
    });
  }

  /** Writes all registers at once, as `readRegisters` gave them. @throws RspError also for one that is missing */
  replaceRegisters(thread: string, values: ReadonlyMap<string, bigint>): Promise<void> {
    return this.#exclusive(async () => {
      const places = await this.#places();
      await this.#select(thread, this.#physical);
      const text = places.map((place) => {
        const value = values.get(place.name);
        if (value === undefined) throw new RspError(`register ${place.name} is missing`);
        return toHex(registerBytes(place, value));
      });
      await this.#expectOk(`G${text.join('')}`);
    });
  }

  /** Inserts a breakpoint at a virtual address: `software` patches memory, `hardware` uses a debug register. */
  insertBreakpoint(kind: 'software' | 'hardware', address: bigint): Promise<void> {
    return this.#expectOk(`Z${kind === 'software' ? 0 : 1},${address.toString(16)},1`);
  }

  removeBreakpoint(kind: 'software' | 'hardware', address: bigint): Promise<void> {
    return this.#expectOk(`z${kind === 'software' ? 0 : 1},${address.toString(16)},1`);
  }

  /** Lets a thread, or all, go on. Resolves when the stub has heard it; the stop that ends it comes to `onStop`. */
  async resume(thread: string | 'all', how: Resume = 'continue'): Promise<void> {
    const letter = how === 'continue' ? 'c' : how === 'step' ? 's' : `r${how.from.toString(16)},${how.to.toString(16)}`;
    const action = `vCont;${letter}${thread === 'all' ? '' : `:${thread}`}`;
    if (this.#nonStop) return this.#expectOk(action);
    await this.#exclusive(async () => {
      if (this.#lost) throw this.#lost;
      this.#refuseWhileRunning(action);
      this.#running = true;
      this.#stream.write(encodePacket(latin1(action)));
    });
  }

  /** Stops a thread; in all-stop mode the machine. The stop comes to `onStop`. */
  async stop(thread: string): Promise<void> {
    if (this.#nonStop) return this.#expectOk(`vCont;t:${thread}`);
    this.#stream.write(Uint8Array.of(0x03));
  }

  /** Ends the machine and the connection. */
  kill(): void {
    if (!this.#lost) this.#stream.write(encodePacket(latin1('k')));
    this.#end('killed');
  }

  /** Lets the machine run on without a debugger, and ends the connection. */
  async detach(): Promise<void> {
    await this.#expectOk('D');
    this.#end('detached');
  }

  /** Ends the connection and says nothing: what that means is the stub's affair. */
  close(): void {
    this.#end('left');
  }

  #end(how: string): void {
    this.#onLost = () => {};
    this.#lose(`${this.#stream.name} was ${how}`);
    this.#stream.close();
  }

  // ---- several packets

  /** Runs an operation of several packets alone. */
  #exclusive<T>(operation: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(operation);
    this.#turn = result.catch(() => {});
    return result;
  }

  /** Chooses the thread of the following packets, and what their addresses are. */
  async #select(thread: string | undefined, physical: boolean): Promise<void> {
    if (thread !== undefined && thread !== this.#thread) {
      await this.#expectOk(`Hg${thread}`);
      this.#thread = thread;
    }
    if (physical !== this.#physical) {
      await this.#expectOk(`Qqemu.PhyMemMode:${physical ? 1 : 0}`);
      this.#physical = physical;
    }
  }

  /** Bytes of memory that one packet carries: each may have to be escaped, or be written as two digits. */
  get #memoryChunk(): number {
    const size = Number.parseInt(this.#features.get('PacketSize') ?? '0', 16) || 0;
    return Math.floor((Math.max(size, LEAST_PACKET) - MEMORY_HEADER) / 2);
  }

  async #read(address: bigint, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const wanted = Math.min(length - done, this.#memoryChunk);
      let got: Uint8Array;
      try {
        got = await this.#readChunk(address + BigInt(done), wanted);
      } catch (error) {
        if (done === 0 || this.#lost) throw error;
        break;
      }
      bytes.set(got.subarray(0, wanted), done);
      done += Math.min(got.length, wanted);
      if (got.length < wanted) break;
    }
    return done === length ? bytes : bytes.slice(0, done);
  }

  async #readChunk(address: bigint, length: number): Promise<Uint8Array> {
    const place = `${address.toString(16)},${length.toString(16)}`;
    if (!this.has('binary-upload')) return fromHex(await this.#ask(`m${place}`));
    const request = `x${place}`;
    const reply = await this.#request(request, latin1(request));
    if (fromLatin1(reply.subarray(0, 1)) !== 'b') {
      throwIfError(request, fromLatin1(reply));
      throw new RspError(`the answer to ${request} begins with ${quote(fromLatin1(reply.subarray(0, 8)))}, not with b`);
    }
    return reply.subarray(1);
  }

  async #write(address: bigint, bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const chunk = bytes.subarray(done, done + this.#memoryChunk);
      const head = `X${(address + BigInt(done)).toString(16)},${chunk.length.toString(16)}`;
      const content = new Uint8Array(head.length + 1 + chunk.length);
      content.set(latin1(`${head}:`));
      content.set(chunk, head.length + 1);
      const reply = fromLatin1(await this.#request(head, content));
      // A stub without X takes digits.
      requireOk(head, reply === '' ? await this.#ask(`M${head.slice(1)}:${toHex(chunk)}`) : reply);
      done += chunk.length;
    }
  }

  #places(): Promise<readonly RegisterPlace[]> {
    this.#registers ??= this.#transfer('features', 'target.xml').then(parseTargetDescription);
    return this.#registers;
  }

  /** Reads an object of the stub part by part (GDB manual, E.4, `qXfer`). */
  async #transfer(object: string, annex: string): Promise<string> {
    let text = '';
    for (;;) {
      const request = `qXfer:${object}:read:${annex}:${text.length.toString(16)},${this.#memoryChunk.toString(16)}`;
      const reply = await this.vendor(request);
      const part = reply.slice(1);
      if (reply[0] !== 'm' && reply[0] !== 'l')
        throw new RspError(`the answer to ${request} begins with ${quote(reply.slice(0, 8))}, not with m or l`);
      text += part;
      if (text.length > LONGEST)
        throw new RspError(`${object} ${annex} has more than the ${LONGEST} bytes that are accepted`);
      if (reply[0] === 'l') return text;
      if (part === '') throw new RspError(`${request} is answered with nothing, and that more follows`);
    }
  }

  /** Takes the stops that the stub keeps until they are asked for. */
  async #furtherStops(): Promise<StopEvent[]> {
    const events: StopEvent[] = [];
    for (;;) {
      const reply = await this.#ask('vStopped');
      if (reply === 'OK') return events;
      events.push(parseStop(reply));
    }
  }

  // ---- one packet

  async #expectOk(text: string): Promise<void> {
    requireOk(text, await this.#ask(text));
  }

  /** A request of text, answered with text. @throws RspError for an error reply */
  async #ask(text: string): Promise<string> {
    const reply = fromLatin1(await this.#request(text, latin1(text)));
    throwIfError(text, reply);
    return reply;
  }

  #request(text: string, content: Uint8Array): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      if (this.#lost) return reject(this.#lost);
      try {
        this.#refuseWhileRunning(text);
      } catch (error) {
        return reject(error);
      }
      this.#queue.push({ frame: encodePacket(content), text, tries: 1, resolve, reject });
      this.#sendNext();
    });
  }

  #refuseWhileRunning(text: string): void {
    if (this.#running)
      throw new RspError(`${quote(text)} cannot be asked while the machine runs: the stub has no non-stop mode`);
  }

  #sendNext(): void {
    if (this.#current || this.#lost) return;
    this.#current = this.#queue.shift();
    if (this.#current) this.#stream.write(this.#current.frame);
  }

  #receive(chunk: Uint8Array): void {
    for (const event of this.#reader.feed(chunk)) {
      if (this.#lost) return;
      switch (event.kind) {
        case 'ack':
          break;
        case 'nak':
          this.#sendAgain();
          break;
        case 'damaged':
          if (this.#acks) this.#stream.write(latin1('-'));
          else this.#fail(`${this.#stream.name}: ${event.error.message}`);
          break;
        case 'notification':
          this.#notified(event.content);
          break;
        case 'packet':
          if (this.#acks) this.#stream.write(latin1('+'));
          this.#answered(event.content);
          break;
      }
    }
  }

  #sendAgain(): void {
    const request = this.#current;
    if (!request) return;
    if (request.tries++ < TRIES) this.#stream.write(request.frame);
    else this.#fail(`${this.#stream.name} called ${quote(request.text)} damaged ${TRIES} times`);
  }

  #answered(content: Uint8Array): void {
    const request = this.#current;
    if (request) {
      this.#current = undefined;
      request.resolve(content);
      this.#sendNext();
    } else if (this.#running) this.#stoppedOrSaid(fromLatin1(content));
    // An answer to nothing: a frame that was sent twice.
  }

  /** All-stop: output of the guest, or the stop that `resume` waits for. */
  #stoppedOrSaid(reply: string): void {
    this.#guarded(() => {
      if (/^O([0-9a-f]{2})+$/i.test(reply)) this.#onConsole(fromHex(reply.slice(1)));
      else {
        this.#running = false;
        throwIfError('vCont', reply);
        this.#onStop(parseStop(reply));
      }
    });
  }

  #notified(content: Uint8Array): void {
    const text = fromLatin1(content);
    const colon = text.indexOf(':');
    const name = text.slice(0, colon);
    this.#guarded(() => {
      if (name === 'KvmConsole') this.#onConsole(fromHex(text.slice(colon + 1)));
      else if (name === 'Stop') {
        const first = parseStop(text.slice(colon + 1));
        // The stub keeps further stops to itself until this one is acknowledged.
        const further = this.#furtherStops();
        this.#onStop(first);
        further.then(
          (events) => {
            for (const event of events) this.#onStop(event);
          },
          (error: unknown) => this.#fail((error as Error).message),
        );
      }
    });
  }

  /** Runs what nobody waits for: what the peer got wrong ends the connection. */
  #guarded(action: () => void): void {
    try {
      action();
    } catch (error) {
      if (!(error instanceof RspError)) throw error;
      this.#fail(`${this.#stream.name}: ${error.message}`);
    }
  }

  #fail(message: string): void {
    this.#lose(message);
    this.#stream.close();
  }

  #lose(message: string): void {
    if (this.#lost) return;
    this.#lost = new LostError(message);
    const pending = this.#current ? [this.#current, ...this.#queue] : [...this.#queue];
    this.#current = undefined;
    this.#queue.length = 0;
    for (const request of pending) request.reject(this.#lost);
    this.#onLost(this.#lost);
  }
}

/** `name+;name-;name?;name=value` */
function parseFeatures(reply: string): Map<string, string> {
  const pairs = reply.split(';').filter((item) => item !== '');
  return new Map(
    pairs.map((item) => {
      const equals = item.indexOf('=');
      return equals < 0 ? [item.slice(0, -1), item.slice(-1)] : [item.slice(0, equals), item.slice(equals + 1)];
    }),
  );
}

/** `E16`, or `E.` and words. */
function throwIfError(request: string, reply: string): void {
  if (reply.startsWith('E.')) throw new RspError(`${quote(request)}: ${wordsOf(reply.slice(2))}`);
  if (/^E[0-9a-f]{2}$/i.test(reply))
    throw new RspError(`${quote(request)}: error ${Number.parseInt(reply.slice(1), 16)}`);
}

function requireOk(request: string, reply: string): void {
  throwIfError(request, reply);
  if (reply !== 'OK')
    throw new RspError(
      reply === '' ? `the stub does not know ${quote(request)}` : `${quote(request)} is answered with ${quote(reply)}`,
    );
}
