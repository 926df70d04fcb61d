import type { ByteStream } from '../../adapter/rsp/stream.ts';

/** A frame around text of bytes, written apart from the client's own framing. Nothing in it may need an escape. */
export function frame(text: string, start: '$' | '%' = '$'): string {
  let sum = 0;
  for (const char of text) sum += char.charCodeAt(0);
  return `${start}${text}#${(sum % 256).toString(16).padStart(2, '0')}`;
}

/**
 * A stub in memory. What the client sends is listed in `heard`, packets without their frames; `answer` gives the raw bytes
 * to send back for each packet, or undefined for silence.
 */
export class Stub implements ByteStream {
  readonly name = 'the stub';
  readonly heard: string[] = [];
  closed = false;
  #rest = '';
  #onData: (chunk: Uint8Array) => void = () => {};
  #onClose: (reason: string) => void = () => {};
  readonly #answer: (packet: string) => string | undefined;

  constructor(answer: (packet: string) => string | undefined) {
    this.#answer = answer;
  }

  /** Raw bytes to the client, later: as from another process. */
  send(raw: string): void {
    setImmediate(() => {
      if (!this.closed) this.#onData(Buffer.from(raw, 'latin1'));
    });
  }

  /** The connection ends by itself. */
  end(reason: string): void {
    setImmediate(() => this.#onClose(reason));
  }

  write(bytes: Uint8Array): void {
    this.#rest += Buffer.from(bytes).toString('latin1');
    for (;;) {
      const [all, packet, other] = /^(?:\$([^#]*)#..|([^$]))/s.exec(this.#rest) ?? [];
      if (all === undefined) return;
      this.#rest = this.#rest.slice(all.length);
      this.heard.push(other ?? packet!);
      const raw = packet === undefined ? undefined : this.#answer(packet);
      if (raw !== undefined) this.send(raw);
    }
  }

  onData(listener: (chunk: Uint8Array) => void): void {
    this.#onData = listener;
  }

  onClose(listener: (reason: string) => void): void {
    this.#onClose = listener;
  }

  close(): void {
    this.closed = true;
  }
}
