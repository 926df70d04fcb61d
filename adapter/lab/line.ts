import type { ByteStream } from '../rsp/stream.ts';
import { encodeFrame, FROM_LAB, type Frame, FrameReader, PAYLOAD_MOST, TO_LAB } from './frames.ts';

/** Channels that init.c has; 0 is the lab's own. */
const CHANNELS = 32;
/** Lines of a program's standard error that are kept, for the message when it ends. */
const LAST_LINES = 5;

/** A program's standard input and output. */
export interface LabStream extends ByteStream {
  /** Its input is over; what it still says comes. */
  end(): void;
}

export interface LineEvents {
  /** A step of the boot, for people. */
  progress(words: string): void;
  /** Something that did not work, though the boot went on. */
  problem(words: string): void;
  /** The lab takes orders from now on. */
  ready(release: string, hasKvm: boolean): void;
}

interface Channel {
  take(frame: Frame): void;
  /** The lab is gone. */
  lost(reason: string): void;
}

const encoder = new TextEncoder();
const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

/** Programs and files of a lab, over the one line that leads into it. */
export class LabLine {
  readonly #stream: ByteStream;
  readonly #events: LineEvents;
  readonly #reader = new FrameReader();
  readonly #channels = new Map<number, Channel>();
  #gone: string | undefined;

  constructor(stream: ByteStream, events: LineEvents) {
    this.#stream = stream;
    this.#events = events;
    stream.onData((chunk) => {
      for (const frame of this.#reader.take(chunk)) this.#take(frame);
    });
    stream.onClose(() => this.lose('the line into the lab has been closed'));
  }

  /** The lab has ended: whoever waits for it hears why. */
  lose(reason: string): void {
    if (this.#gone !== undefined) return;
    this.#gone = reason;
    for (const channel of [...this.#channels.values()]) channel.lost(reason);
    this.#channels.clear();
  }

  #take(frame: Frame): void {
    if (frame.channel !== 0) {
      this.#channels.get(frame.channel)?.take(frame);
      return;
    }
    const words = text(frame.payload);
    if (frame.type === FROM_LAB.progress) this.#events.progress(words);
    else if (frame.type === FROM_LAB.problem) this.#events.problem(words);
    else if (frame.type === FROM_LAB.ready) {
      const [release, kvm] = words.split(' ');
      this.#events.ready(release!, kvm === 'kvm');
    }
  }

  #open(channel: Channel): number {
    if (this.#gone !== undefined) throw new Error(this.#gone);
    for (let number = 1; number < CHANNELS; number++) {
      if (this.#channels.has(number)) continue;
      this.#channels.set(number, channel);
      return number;
    }
    throw new Error(`a lab has at most ${CHANNELS - 1} programs at once`);
  }

  /** Writes a file into the lab's memory. @throws Error in the lab's words */
  put(path: string, bytes: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = (error?: string): void => {
        this.#channels.delete(number);
        if (error === undefined) resolve();
        else reject(new Error(`the lab does not take ${path}: ${error}`));
      };
      const number = this.#open({
        take: ({ type, payload }) => done(type === FROM_LAB.written ? undefined : text(payload)),
        lost: done,
      });
      this.#send(number, TO_LAB.openFile, encoder.encode(path));
      for (let at = 0; at < bytes.length; at += PAYLOAD_MOST)
        this.#send(number, TO_LAB.bytes, bytes.subarray(at, at + PAYLOAD_MOST));
      this.#send(number, TO_LAB.closeFile);
    });
  }

  /** Starts a program of the lab; the stream is its standard input and output. */
  run(argv: readonly string[]): LabStream {
    let onData: (chunk: Uint8Array) => void = () => {};
    let onClose: (reason: string) => void = () => {};
    let closed = false;
    let errors = '';
    const end = (reason: string): void => {
      if (closed) return;
      closed = true;
      this.#channels.delete(number);
      const lines = errors.split('\n').filter((line) => line.trim() !== '');
      onClose([reason, ...lines.slice(-LAST_LINES)].join('\n'));
    };
    const number = this.#open({
      take: ({ type, payload }) => {
        // The payload lies in the reader's buffer, and whoever listens may keep it.
        if (type === FROM_LAB.output) onData(payload.slice());
        else if (type === FROM_LAB.errors) errors = (errors + text(payload)).slice(-4096);
        else end(text(payload));
      },
      lost: end,
    });
    this.#send(number, TO_LAB.run, encoder.encode(argv.map((each) => `${each}\0`).join('')));
    return {
      name: `${argv[0]} in the lab`,
      write: (bytes) => {
        for (let at = 0; at < bytes.length && !closed; at += PAYLOAD_MOST)
          this.#send(number, TO_LAB.input, bytes.subarray(at, at + PAYLOAD_MOST));
      },
      onData(listener) {
        onData = listener;
      },
      onClose(listener) {
        onClose = listener;
      },
      end: () => {
        if (!closed) this.#send(number, TO_LAB.endInput);
      },
      close: () => {
        if (!closed) this.#send(number, TO_LAB.kill);
      },
    };
  }

  #send(channel: number, type: string, payload: Uint8Array = new Uint8Array(0)): void {
    if (this.#gone === undefined) this.#stream.write(encodeFrame(channel, type, payload));
  }
}
