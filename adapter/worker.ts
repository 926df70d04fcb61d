import type { DebugProtocol } from '@vscode/debugprotocol';
import { KvmMmuSession } from './session.ts';

// The adapter in a browser's Worker: protocol messages as `postMessage` objects. There are no files here: a message
// `{type: "file", path, text}` provides one before the launch request that names it.

interface WorkerScope {
  postMessage(message: unknown): void;
  onmessage: ((event: { data: unknown }) => void) | null;
}

const scope = globalThis as unknown as WorkerScope;
const files = new Map<string, string>();
const channel = new MessageChannel();
const waiting: (() => void)[] = [];
channel.port1.onmessage = () => waiting.shift()?.();

const session = new KvmMmuSession({
  async readText(path) {
    const text = files.get(path);
    if (text === undefined) throw new Error(`cannot read "program" ${path}: nobody has provided it to this Worker`);
    return text;
  },
  yieldToLoop: () =>
    new Promise((resolve) => {
      waiting.push(resolve);
      channel.port2.postMessage(0);
    }),
});
session.onDidSendMessage((message) => scope.postMessage(message));
scope.onmessage = ({ data }) => {
  if (typeof data !== 'object' || data === null || !('type' in data)) return;
  if (data.type === 'file') {
    if ('path' in data && 'text' in data && typeof data.path === 'string' && typeof data.text === 'string')
      files.set(data.path, data.text);
  } else session.handleMessage(data as DebugProtocol.ProtocolMessage);
};
