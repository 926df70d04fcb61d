// The way to KVM through the helper: what kvm-reference.c does, but as the debug adapter does it.
//
//   node kvm.mjs stops N FILE      N times, the guest program in FILE runs to its port and is resumed
//   node kvm.mjs read N FILE       N bytes of guest memory through /proc, as a client on the same machine reads
//   node kvm.mjs packets N FILE    the same by packets, as any other client does
//   node kvm.mjs conform N         N cases of `kvm-mmu conform`
//
// Prints a checksum and nanoseconds: per stop or case, or for all the bytes; the best of several rounds.
import { closeSync, openSync, writeSync } from 'node:fs';
import { ConformGuest } from '../adapter/conform/guest.ts';
import { MEMORY_SIZE, PROGRAM } from '../adapter/conform/layout.ts';
import { probe } from '../adapter/conform/probe.ts';
import { conform } from '../adapter/conform/run.ts';
import { LocalRam } from '../adapter/kvm/local-ram.ts';
import { RspClient } from '../adapter/rsp/client.ts';
import { spawnHelper } from '../adapter/rsp/node-stream.ts';

const ROUNDS = 5;
const [work, written, file = 'native/build/conform.bin'] = process.argv.slice(2);
const count = Number(written);
const client = new RspClient(
  spawnHelper('native/build/kvm-mmu-helper', [
    '--memory',
    `${MEMORY_SIZE >> 20}M`,
    '--image',
    `${file}@0x${PROGRAM.toString(16)}`,
  ]),
);

/** The nanoseconds of the best round, each once. */
async function best(round: () => Promise<void> | void): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < ROUNDS; i++) {
    const begin = performance.now();
    await round();
    least = Math.min(least, performance.now() - begin);
  }
  return least * 1e6;
}

let sum = 0;

async function stops(): Promise<number> {
  let stopped: () => void = () => {};
  client.onStop((event) => {
    if (event.kind !== 'stopped' || event.kvm?.reason !== 'port')
      throw new Error(`not at the port: ${JSON.stringify(event)}`);
    sum += event.kvm.port!;
    stopped();
  });
  const nanoseconds = await best(async () => {
    for (let i = 0; i < count; i++) {
      const next = new Promise<void>((resolve) => {
        stopped = resolve;
      });
      await client.resume('all');
      await next;
    }
  });
  return nanoseconds / count;
}

/** Memory that was never written would be read without being there. */
async function fill(): Promise<void> {
  const { pid, memory } = await client.info();
  const fd = openSync(`/proc/${pid}/fd/${memory.fd}`, 'r+');
  writeSync(fd, Buffer.alloc(count, 0x5a), 0, count, 0);
  closeSync(fd);
}

async function read(): Promise<number> {
  await fill();
  const ram = LocalRam.open(await client.info());
  if (!ram) throw new Error('the helper’s memory cannot be opened');
  return best(() => {
    sum += ram.read(0n, count).at(-1)!;
  });
}

async function packets(): Promise<number> {
  await fill();
  return best(async () => {
    sum += (await client.readPhysical(0n, count)).at(-1)!;
  });
}

async function cases(): Promise<number> {
  const { maxphyaddr } = await client.info();
  const guest = new ConformGuest(client);
  await guest.setUp();
  const { host } = await probe(guest, maxphyaddr);
  let first = 0;
  const nanoseconds = await best(async () => {
    const { differing } = await conform(guest, host, { seed: 1, first, cases: count });
    if (differing > 0) throw new Error('engine and KVM differ: see kvm-mmu conform --seed 1');
    first += count;
    sum += count;
  });
  return nanoseconds / count;
}

const works: Readonly<Record<string, () => Promise<number>>> = { stops, read, packets, conform: cases };
await client.handshake();
const nanoseconds = await works[work!]!();
console.log(`${sum} ${nanoseconds.toFixed(2)}`);
client.kill();
process.exit(0);
