import { existsSync, readFileSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { hex } from '../../engine/memory/words.ts';
import { ElfProgram } from '../elf/program.ts';
import { ElfError } from '../elf/reader.ts';
import { RspClient } from '../rsp/client.ts';
import { connectSocket, spawnCommand, spawnHelper } from '../rsp/node-stream.ts';
import type { ByteStream } from '../rsp/stream.ts';
import { KvmTarget } from '../targets/kvm.ts';
import { built } from './built.ts';
import type { KvmLaunch } from './launch.ts';
import { LocalRam } from './local-ram.ts';
import type { KvmPrinter } from './printer.ts';
import { within } from './within.ts';

/** How long a helper that is connected to has to answer. */
const ANSWER_MS = 10_000;

/** Starts or reaches a helper, and takes its machine over. @throws with a message for people */
export async function openKvm(launch: KvmLaunch, printer: KvmPrinter): Promise<KvmTarget> {
  const program = launch.guest === undefined ? undefined : readProgram(launch.guest, printer);
  const client = new RspClient(streamTo(launch));
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

function streamTo({ connect, helper, args, guest }: KvmLaunch): ByteStream {
  if (typeof connect === 'string') return connectSocket(connect);
  if (connect !== undefined) return spawnCommand(connect);
  if (process.platform !== 'linux') throw new Error('KVM is there on Linux only; "connect" reaches a helper elsewhere');
  if (helper !== undefined && !existsSync(helper)) throw new Error(`there is no helper at ${helper}`);
  if (guest !== undefined && !existsSync(guest))
    throw new Error(
      `cannot read "guest" ${guest}: there is no such file${isAbsolute(guest) ? '' : ' (the path is relative)'}`,
    );
  return spawnHelper(helper ?? built('kvm-mmu-helper'), args);
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
