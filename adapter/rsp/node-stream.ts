import { type ChildProcess, spawn } from 'node:child_process';
import { createConnection } from 'node:net';
import { StringDecoder } from 'node:string_decoder';
import type { ByteStream } from './stream.ts';

/** Lines of a child's standard error that are kept, for the message when it ends. */
const LAST_LINES = 5;
const LONGEST_LINE = 1000;

/** Children that are to die with this process. */
const children = new Set<ChildProcess>();
let watching = false;

/** Ends a child when this process ends by itself. */
export function dieWithUs(child: ChildProcess): void {
  if (!watching) {
    watching = true;
    process.on('exit', () => {
      for (const each of children) each.kill('SIGKILL');
    });
  }
  children.add(child);
  child.on('exit', () => children.delete(child));
}

/** The helper, spoken to by its standard input and output. */
export function spawnHelper(path: string, args: readonly string[]): ByteStream {
  return spawnCommand([path, ...args]);
}

/** A command whose standard input and output reach a stub: `ssh host kvm-mmu-helper`, `nc -U PATH`. */
export function spawnCommand(argv: readonly string[]): ByteStream {
  const [command, ...args] = argv;
  if (command === undefined) throw new RangeError('a command to spawn needs at least its name');
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  dieWithUs(child);
  const lines: string[] = [];
  const decoder = new StringDecoder('utf8');
  let rest = '';
  child.stderr.on('data', (chunk: Buffer) => {
    const parts = (rest + decoder.write(chunk)).split('\n');
    rest = parts.pop()!.slice(-LONGEST_LINE);
    lines.push(...parts.filter((line) => line.trim() !== '').map((line) => line.slice(0, LONGEST_LINE)));
    lines.splice(0, lines.length - LAST_LINES);
  });
  // Writing to a child that has just ended fails: its end says more.
  child.stdin.on('error', () => {});
  let failed: string | undefined;
  let listener: (reason: string) => void = () => {};
  let closed = false;
  const close = (reason: string): void => {
    if (closed) return;
    closed = true;
    listener([reason, ...lines, rest].filter((part) => part.trim() !== '').join('\n'));
  };
  child.on('error', (error) => {
    failed = error.message;
    // Without a process there is no `close`.
    if (child.pid === undefined) close(failed);
  });
  child.on('close', (code, signal) => close(failed ?? (signal === null ? `exit status ${code}` : `signal ${signal}`)));
  return {
    name: command,
    write: (bytes) => void child.stdin.write(bytes),
    onData: (take) => void child.stdout.on('data', take),
    onClose(take) {
      listener = take;
    },
    close() {
      child.stdin.end();
      child.kill();
    },
  };
}

/** A stub that listens on a Unix socket. */
export function connectSocket(path: string): ByteStream {
  const socket = createConnection(path);
  let reason = '';
  socket.on('error', (error) => {
    reason = error.message;
  });
  return {
    name: path,
    write: (bytes) => void socket.write(bytes),
    onData: (take) => void socket.on('data', take),
    onClose: (take) => void socket.on('close', () => take(reason)),
    close: () => void socket.destroy(),
  };
}
