// From starting the adapter's process to its first stop, and the same for a Node process that does nothing.
import { spawnSync } from 'node:child_process';
import { Client, spawnAdapter } from '../test/adapter/client.ts';

async function once(): Promise<number> {
  const begin = performance.now();
  const client = new Client(spawnAdapter());
  await client.start(`${process.cwd()}/examples/first-fault.mmu`);
  const milliseconds = performance.now() - begin;
  await client.close();
  return milliseconds;
}

const times: number[] = [];
for (let i = 0; i < 7; i++) times.push(await once());
const begin = performance.now();
for (let i = 0; i < 7; i++) spawnSync(process.execPath, ['-e', '0']);
const idle = (performance.now() - begin) / 7;
times.sort((a, b) => a - b);
console.log(
  `launch to first stop: median ${times[3]!.toFixed(0)} ms; an idle Node process takes ${idle.toFixed(0)} ms`,
);
process.exit(0);
