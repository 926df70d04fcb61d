import { existsSync, readFileSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { hex } from '../../engine/memory/words.ts';
import { ElfProgram } from '../elf/program.ts';
import { ElfError } from '../elf/reader.ts';
import { Lab } from '../lab/boot.ts';
import type { LabPrinter } from '../lab/printer.ts';
import { RspClient } from '../rsp/client.ts';
import { connectSocket, spawnCommand } from '../rsp/node-stream.ts';
import type { ByteStream } from '../rsp/stream.ts';
import { KvmTarget } from '../targets/kvm.ts';
import { KvmBuilt } from './kvm-built.ts';
import type { KvmLaunch } from './launch.ts';
import { LocalRam } from './local-ram.ts';
import { type HelperPlace, thisMachine } from './place.ts';
import type { KvmPrinter } from './printer.ts';
import { within } from './within.ts';

/** How long a helper that is connected to has to answer. */
const ANSWER_MS = 10_000;

/** Starts or reaches a helper, and takes its machine over. @throws with a message for people */
export async function openKvm(launch: KvmLaunch, printer: KvmPrinter & LabPrinter): Promise<KvmTarget> {
  const { guest, lab } = launch;
  if (launch.connect === undefined && guest !== undefined && !existsSync(guest))
    throw new Error(
      `cannot read "guest" ${guest}: there is no such file${isAbsolute(guest) ? '' : ' (the path is relative)'}`,
    );
  const place = lab ? await Lab.boot(lab, printer) : thisMachine(launch.helper);
  try {
    return await openAt(place, launch, printer);
  } catch (error) {
    place.close();
    throw error;
  }
}

async function openAt(place: HelperPlace, launch: KvmLaunch, printer: KvmPrinter): Promise<KvmTarget> {
  const program = launch.guest === undefined ? undefined : readProgram(launch.guest, printer);
  const client = new RspClient(await streamTo(place, launch));
  const { connect } = launch;
  const owned = connect === undefined;
  let local: LocalRam | undefined;
  let ran = false;
  try {
    const where = typeof connect === 'string' ? connect : connect?.join(' ');
    const first = owned
      ? await client.handshake()
      : await within(client.handshake(), ANSWER_MS, `nobody answers at ${where}: another client may be connected`);
    if (!client.isHelper)
      throw new Error(
        'the stub that answers is not kvm-mmu-helper: this target needs its packets (native/PROTOCOL.md)',
      );
    const info = await client.info();
    ran = first.length < info.vcpus;
    if (launch.pageFaultHandler !== undefined)
      await client.vendor(`QKvm.Handler:${handlerAddress(launch.pageFaultHandler, program).toString(16)}`);
    const { disassemble, memoryOperands } = await import('./disassembly.ts');
    local = LocalRam.open(info);
    return await KvmTarget.open({
      client,
      info,
      first,
      program,
      disassemble,
      memoryOperands,
      owned,
      built: await KvmBuilt.open(client, info, printer.print, launch),
      place,
      local,
      ...printer,
    });
  } catch (error) {
    local?.close();
    // Somebody else's machine is left as it was: one that stood still goes on doing so where nothing is said.
    if (owned) client.kill();
    else if (ran) await within(client.detach(), ANSWER_MS, '').catch(() => client.close());
    else client.close();
    throw error;
  }
}

function streamTo(place: HelperPlace, { connect, args, guest }: KvmLaunch): ByteStream | Promise<ByteStream> {
  if (typeof connect === 'string') return connectSocket(connect);
  if (connect !== undefined) return spawnCommand(connect);
  return place.start(args, guest === undefined ? undefined : { path: guest });
}

/** Symbols and lines. A flat image has none, and a guest without them can be debugged all the same. */
function readProgram(path: string, printer: KvmPrinter): ElfProgram | undefined {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch {
    return undefined;
  }
  if (bytes[0] !== 0x7f || bytes[1] !== 0x45) return undefined;
  try {
    const program = new ElfProgram(bytes);
    if (program.problem !== undefined) printer.print(`${path}: ${program.problem}\n`);
    return program;
  } catch (error) {
    if (!(error instanceof ElfError)) throw error;
    printer.print(`${path}: no symbols: ${error.message}\n`);
    return undefined;
  }
}

function handlerAddress(written: string, program: ElfProgram | undefined): bigint {
  const address = /^(0x[0-9a-f]+|\d+)$/i.test(written) ? BigInt(written) : program?.address(written);
  if (address === undefined || address >> 64n !== 0n)
    throw new Error(
      `"pageFaultHandler": the guest has no symbol ${written}${address === undefined ? '' : ` (${hex(address)})`}`,
    );
  return address;
}
