import type { DebugProtocol } from '@vscode/debugprotocol';
import type { Machine } from '../engine/machine.ts';
import { hex } from '../engine/memory/words.ts';
import { type Located, toHost } from './addresses.ts';
import { fromBase64, toBase64 } from './base64.ts';
import { RequestError } from './request-error.ts';
import type { Target } from './targets/target.ts';

/** One answer to readMemory has at most this many bytes; the rest is reported as unreadable, and can be asked for. */
const MAX_READ = 1 << 20;

/** Bytes from a place on, as far as something is mapped. @throws RequestError */
export function readMemory(
  machine: Machine,
  located: Located,
  args: DebugProtocol.ReadMemoryArguments,
): NonNullable<DebugProtocol.ReadMemoryResponse['body']> {
  if (!Number.isInteger(args.count) || args.count < 0)
    throw new RequestError(`count must be a whole number from 0, not ${args.count}`);
  const start = BigInt.asUintN(64, located.address + BigInt(args.offset ?? 0));
  const count = Math.min(args.count, MAX_READ);
  const bytes: number[] = [];
  while (bytes.length < count) {
    const host = toHost(machine, { ...located, address: BigInt.asUintN(64, start + BigInt(bytes.length)) });
    if (!host) break;
    const size = Math.min(count - bytes.length, 4096 - host.offset);
    bytes.push(...machine.pageBytes(host.pfn).subarray(host.offset, host.offset + size));
  }
  return {
    address: hex(start),
    data: toBase64(bytes),
    ...(bytes.length < args.count ? { unreadableBytes: args.count - bytes.length } : {}),
  };
}

/** Writes bytes from a place on. @throws RequestError where nothing is mapped, unless a part of them will do */
export async function writeMemory(
  target: Target,
  located: Located,
  args: DebugProtocol.WriteMemoryArguments,
): Promise<NonNullable<DebugProtocol.WriteMemoryResponse['body']>> {
  const bytes = fromBase64(args.data);
  if (!bytes) throw new RequestError('the data is not base64');
  const start = BigInt.asUintN(64, located.address + BigInt(args.offset ?? 0));
  if (target.guest) {
    await target.guest.write({ ...located, address: start }, Uint8Array.from(bytes));
    return { bytesWritten: bytes.length };
  }
  for (let done = 0; done < bytes.length; ) {
    const host = toHost(target.machine, { ...located, address: BigInt.asUintN(64, start + BigInt(done)) });
    if (!host) {
      if (args.allowPartial && done > 0) return { bytesWritten: done };
      throw new RequestError(`nothing is mapped at ${hex(start + BigInt(done))}`);
    }
    const size = Math.min(bytes.length - done, 4096 - host.offset);
    target.edit({ kind: 'memory', pfn: host.pfn, offset: host.offset, bytes: bytes.slice(done, done + size) });
    done += size;
  }
  return { bytesWritten: bytes.length };
}
