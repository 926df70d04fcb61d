/** What goes over a lab's line: native/lab/init.c is the other end. */
export const HEADER = 4;
/** Bytes of a frame's payload at most. */
export const PAYLOAD_MOST = 60_000;

/** From here to the lab. */
export const TO_LAB = {
  openFile: 'F',
  bytes: 'B',
  closeFile: 'C',
  run: 'R',
  input: 'I',
  endInput: 'E',
  kill: 'K',
} as const;
/** From the lab. */
export const FROM_LAB = {
  progress: 'L',
  problem: 'W',
  ready: 'H',
  output: 'D',
  errors: 'S',
  exit: 'X',
  written: 'O',
  refused: 'N',
} as const;

export interface Frame {
  /** A program that runs in the lab, or a file that is written; 0 for words about the lab itself. */
  readonly channel: number;
  readonly type: string;
  readonly payload: Uint8Array;
}

export function encodeFrame(channel: number, type: string, payload: Uint8Array): Uint8Array {
  if (payload.length > PAYLOAD_MOST) throw new RangeError(`a frame of ${payload.length} bytes is too long`);
  const frame = new Uint8Array(HEADER + payload.length);
  frame.set([channel, type.charCodeAt(0), payload.length & 255, payload.length >> 8]);
  frame.set(payload, HEADER);
  return frame;
}

/** Puts frames together from the pieces in which a stream brings them. */
export class FrameReader {
  #rest: Uint8Array = new Uint8Array(0);

  *take(chunk: Uint8Array): Generator<Frame> {
    let bytes = chunk;
    if (this.#rest.length > 0) {
      bytes = new Uint8Array(this.#rest.length + chunk.length);
      bytes.set(this.#rest);
      bytes.set(chunk, this.#rest.length);
    }
    let at = 0;
    while (bytes.length - at >= HEADER) {
      const end = at + HEADER + bytes[at + 2]! + 256 * bytes[at + 3]!;
      if (end > bytes.length) break;
      yield {
        channel: bytes[at]!,
        type: String.fromCharCode(bytes[at + 1]!),
        payload: bytes.subarray(at + HEADER, end),
      };
      at = end;
    }
    this.#rest = bytes.slice(at);
  }
}
