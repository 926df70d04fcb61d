import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import type { DebugProtocol } from '@vscode/debugprotocol';
import { Client, type Transport } from './client.ts';

// The adapter's Worker bundle in a realm that has what a browser's Worker has, and neither `require` nor `process`.

const REALM = `
const { parentPort, workerData } = require('node:worker_threads');
const vm = require('node:vm');
const scope = { postMessage: (message) => parentPort.postMessage(message), MessageChannel, setTimeout, clearTimeout, queueMicrotask, performance, atob, btoa, URL, structuredClone, TextEncoder, TextDecoder, console, onmessage: null };
scope.self = scope;
vm.createContext(scope);
vm.runInContext(workerData.code, scope, { filename: 'worker.js' });
parentPort.on('message', (data) => scope.onmessage({ data }));
`;

function startWorker(files: Readonly<Record<string, string>>): Transport {
  const worker = new Worker(REALM, { eval: true, workerData: { code: readFileSync('dist/worker.js', 'utf8') } });
  for (const [path, text] of Object.entries(files)) worker.postMessage({ type: 'file', path, text });
  return {
    send: (message) => worker.postMessage(message),
    onMessage: (listener) => worker.on('message', (message: DebugProtocol.ProtocolMessage) => listener(message)),
    close: () => void worker.terminate(),
  };
}

test('a session runs in a Worker: stop at a fault, step, hover, pause', async () => {
  const text = readFileSync('examples/first-fault.mmu', 'utf8');
  const client = new Client(
    startWorker({ '/first-fault.mmu': text, '/endless.mmu': 'vcpu 0 {\n  loop { read 0x1000 }\n}\n' }),
  );
  const stop = await client.start('/first-fault.mmu', {
    filterOptions: [{ filterId: 'second-stage', condition: '!table' }],
    filters: [],
  });
  assert.match(
    stop.body.text,
    /^vCPU 0 \w+ gpa 0x[0-9a-f]+: EPT level-\d entry \d+ is not present; handle_ept_violation is next\.$/,
  );
  assert.match((await client.move('stepIn')).body.text, /kvm_mmu_page_fault/);
  assert.match(
    (await client.request('evaluate', { expression: '0x200000', context: 'hover' })).result,
    /^gpa 0x20_0000/,
  );
  await client.close();

  const second = new Client(startWorker({ '/endless.mmu': 'vcpu 0 {\n  loop { read 0x1000 }\n}\n' }));
  const first = second.start('/endless.mmu', { filters: [] });
  await second.event('mmu/changed', (event) => event.body.type === 'running');
  await second.request('pause', { threadId: 1 });
  assert.equal((await first).body.reason, 'pause');
  await second.close();
});
