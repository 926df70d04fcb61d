import { frameToAddress } from '../../engine/memory/words.ts';
import type { RspClient } from '../rsp/client.ts';
import { l1Address } from './nested-guests.ts';
import type { RealMachine } from './real-machine.ts';
import { pagingOf, type Stubs } from './stubs.ts';

/** Accessed, of a table entry. */
const A = 0x20;

/**
 * Puts the guests' tables, as the engine has laid them out, and the stubs into the real memory; the engine's own copy is dropped.
 * @param codes of the stubs, by their file's name
 */
export async function fillMemory(real: RealMachine, codes: ReadonlyMap<Stubs['code'], Uint8Array>): Promise<void> {
  const { machine, client, stubs } = real;
  const roots: { name: string; isNested: boolean; gpa: bigint }[] = [];
  for (const { name, nested } of machine.program.guests) {
    const gpa = frameToAddress(machine.guestRoots.get(name)!);
    roots.push({ name, isNested: nested !== undefined, gpa: await l1Address(real, name, gpa) });
  }
  for (const frame of [...machine.memory.frames()]) {
    const page = machine.memory.page(frame);
    await client.writePhysical(frameToAddress(frame), new Uint8Array(page.buffer, page.byteOffset, 4096));
    machine.memory.drop(frame);
  }
  for (const { gpa, pages, code } of stubs.values()) {
    for (const [offset, bytes] of pages) await client.writePhysical(gpa + offset, bytes);
    await client.writePhysical(gpa, codes.get(code)!);
  }
  for (const { name, isNested, gpa } of roots) {
    const own = stubs.get(pagingOf(machine.program, name))!;
    await (isNested ? giveNested(client, own, gpa) : giveStubs(client, own, gpa));
  }
}

/** The root of L1's nested tables gets the entry by which its guests see the stubs. */
async function giveNested(client: RspClient, { nested }: Stubs, root: bigint): Promise<void> {
  // Where no statement enters a guest nobody walks it.
  if (!nested) return;
  const { index, entry } = nested;
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, entry, true);
  await client.writePhysical(root + BigInt(index * 8), bytes);
}

/** A root table gets the entries by which the stubs are seen, unless it has them: what is written from outside makes shadow tables anew. */
export async function giveStubs(client: RspClient, { index, entryBytes, entries }: Stubs, root: bigint): Promise<void> {
  const bytes = new Uint8Array(entryBytes * entries.length);
  const view = new DataView(bytes.buffer);
  entries.forEach((entry, at) => {
    if (entryBytes === 8) view.setBigUint64(8 * at, entry, true);
    else view.setUint32(4 * at, Number(entry), true);
  });
  const gpa = root + BigInt(index * entryBytes);
  const there = await client.readPhysical(gpa, bytes.length);
  // A processor that has used it has set A.
  const isThere = there.every((byte, at) => byte === bytes[at] || (at % entryBytes === 0 && (byte ^ bytes[at]!) === A));
  if (!isThere) await client.writePhysical(gpa, bytes);
}
