/** Bytes to and from a peer: a process's standard input and output, a socket, a pair of functions in a test. */
export interface ByteStream {
  /** Whom the bytes go to, for messages. */
  readonly name: string;
  write(bytes: Uint8Array): void;
  /** Called with each chunk; there is one listener. */
  onData(listener: (chunk: Uint8Array) => void): void;
  /** Called once when no more bytes will come, with what is known of the reason, in words. There is one listener. */
  onClose(listener: (reason: string) => void): void;
  close(): void;
}
