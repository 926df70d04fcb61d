import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { DebugProtocol } from '@vscode/debugprotocol';

const ADAPTER = 'dist/adapter.cjs';

/** Something that carries protocol messages both ways: the adapter's process, or a Worker. */
export interface Transport {
  send(message: DebugProtocol.ProtocolMessage): void;
  onMessage(listener: (message: DebugProtocol.ProtocolMessage) => void): void;
  close(): void;
}

/** Starts `dist/adapter.cjs` and speaks the base protocol on its standard input and output. */
export function spawnAdapter(): Transport & { readonly process: ChildProcess } {
  const child = spawn(process.execPath, [ADAPTER], { stdio: ['pipe', 'pipe', 'inherit'] });
  let listener: (message: DebugProtocol.ProtocolMessage) => void = () => {};
  let buffer = Buffer.alloc(0);
  child.stdout.on('data', (data: Buffer) => {
    buffer = Buffer.concat([buffer, data]);
    for (;;) {
      const end = buffer.indexOf('\r\n\r\n');
      if (end < 0) return;
      const length = Number(/Content-Length: (\d+)/.exec(buffer.toString('latin1', 0, end))?.[1]);
      if (buffer.length < end + 4 + length) return;
      const body = buffer.toString('utf8', end + 4, end + 4 + length);
      buffer = buffer.subarray(end + 4 + length);
      listener(JSON.parse(body) as DebugProtocol.ProtocolMessage);
    }
  });
  return {
    process: child,
    send(message) {
      const body = Buffer.from(JSON.stringify(message));
      child.stdin.write(`Content-Length: ${body.length}\r\n\r\n`);
      child.stdin.write(body);
    },
    onMessage(next) {
      listener = next;
    },
    close: () => child.kill(),
  };
}

/** A debug client that keeps a transcript: what a golden file compares. */
export class Client {
  readonly events: DebugProtocol.Event[] = [];
  readonly #transport: Transport;
  readonly #pending = new Map<number, (response: DebugProtocol.Response) => void>();
  #waiting: {
    readonly test: (event: DebugProtocol.Event) => boolean;
    readonly resolve: (event: DebugProtocol.Event) => void;
  }[] = [];
  #seq = 1;

  constructor(transport: Transport) {
    this.#transport = transport;
    transport.onMessage((message) => {
      if (message.type === 'response') {
        const response = message as DebugProtocol.Response;
        this.#pending.get(response.request_seq)?.(response);
        this.#pending.delete(response.request_seq);
      } else if (message.type === 'event') {
        const event = message as DebugProtocol.Event;
        this.events.push(event);
        const found = this.#waiting.find((waiting) => waiting.test(event));
        if (found) {
          this.#waiting = this.#waiting.filter((waiting) => waiting !== found);
          found.resolve(event);
        }
      }
    });
  }

  /** Sends a request; resolves with the response, whether it succeeded or not. */
  raw(command: string, args: unknown = {}): Promise<DebugProtocol.Response> {
    const seq = this.#seq++;
    return new Promise((resolve) => {
      this.#pending.set(seq, resolve);
      this.#transport.send({ seq, type: 'request', command, arguments: args } as DebugProtocol.Request);
    });
  }

  /** Sends a request that must succeed. @returns its body. */
  // biome-ignore lint/suspicious/noExplicitAny: tests read many shapes of bodies, and a wrong one fails the test.
  async request(command: string, args: unknown = {}): Promise<any> {
    const response = await this.raw(command, args);
    if (!response.success) throw new Error(`${command}: ${errorText(response)}`);
    return response.body;
  }

  /** Resolves with the next event of a kind that comes from now on. */
  event(
    name: string,
    test: (event: DebugProtocol.Event) => boolean = () => true,
    seconds = 10,
  ): Promise<DebugProtocol.Event> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () =>
          reject(
            new Error(
              `no ${name} event within ${seconds} s; the last were ${this.events
                .slice(-5)
                .map((event) => event.event)
                .join(', ')}`,
            ),
          ),
        1000 * seconds,
      );
      this.#waiting.push({
        test: (event) => event.event === name && test(event),
        resolve: (event) => {
          clearTimeout(timer);
          resolve(event);
        },
      });
    });
  }

  async initialize(): Promise<void> {
    await this.request('initialize', {
      adapterID: 'kvm-mmu',
      linesStartAt1: true,
      columnsStartAt1: true,
      pathFormat: 'path',
    });
  }

  /** Initialize, launch, breakpoints, configurationDone. Resolves with the first stop or the end. */
  async start(
    program: string | undefined,
    options: {
      readonly launch?: object;
      readonly filters?: readonly string[];
      readonly lines?: readonly number[];
      readonly filterOptions?: readonly DebugProtocol.ExceptionFilterOptions[];
      /** Seconds in which it must be there, and come to its first stop. */
      readonly patience?: number;
    } = {},
  ): Promise<DebugProtocol.Event> {
    await this.initialize();
    const initialized = this.event('initialized', () => true, options.patience);
    await this.request('launch', { type: 'kvm-mmu', request: 'launch', name: 'test', program, ...options.launch });
    await initialized;
    if (options.lines)
      await this.request('setBreakpoints', {
        source: { path: program },
        breakpoints: options.lines.map((line) => ({ line })),
      });
    await this.request('setExceptionBreakpoints', {
      filters: options.filters ?? ['second-stage', 'guest'],
      filterOptions: options.filterOptions ?? [],
    });
    const stop = this.stop(options.patience);
    await this.request('configurationDone');
    return stop;
  }

  /** The next stop, or the end of the session. */
  stop(seconds = 20): Promise<DebugProtocol.Event> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no stop within ${seconds} s`)), 1000 * seconds);
      this.#waiting.push({
        test: (event) => event.event === 'stopped' || event.event === 'terminated',
        resolve: (event) => {
          clearTimeout(timer);
          resolve(event);
        },
      });
    });
  }

  /** A motion request, and where it leads. */
  async move(command: string, threadId = 1): Promise<DebugProtocol.Event> {
    const stop = this.stop();
    await this.request(command, { threadId });
    return stop;
  }

  async close(): Promise<void> {
    await this.raw('disconnect');
    this.#transport.close();
  }
}

export function errorText(response: DebugProtocol.Response): string {
  const error = (response.body as DebugProtocol.ErrorResponse['body'] | undefined)?.error;
  return error
    ? error.format.replace(/\{(\w+)\}/g, (_, name: string) => error.variables?.[name] ?? '')
    : (response.message ?? '');
}

/** A stop with its stack, as a golden file shows it. */
export async function stopText(client: Client, event: DebugProtocol.Event): Promise<string> {
  if (event.event !== 'stopped') return `${event.event}\n`;
  const { threadId, text, reason } = event.body as { threadId: number; text: string; reason: string };
  const { stackFrames } = (await client.request('stackTrace', {
    threadId,
  })) as DebugProtocol.StackTraceResponse['body'];
  const frames = stackFrames.map((frame) => `    ${frame.name} ${frame.source?.name}:${frame.line}`);
  return [`${reason}: ${text}`, ...frames, ''].join('\n');
}

export const examplePath = (name: string): string =>
  fileURLToPath(new URL(`../../../examples/${name}`, import.meta.url));
