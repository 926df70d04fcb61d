import { deflateSync } from 'node:zlib';
import type { writeTraceDat } from '../../adapter/trace/dat-write.ts';

type Parts = Parameters<typeof writeTraceDat>[0];

const u = (size: 2 | 4 | 8, value: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes.subarray(0, size);
};
const string = (text: string): Buffer => Buffer.from(`${text}\0`);
const sized = (size: 4 | 8, text: string): Buffer =>
  Buffer.concat([u(size, Buffer.byteLength(text)), Buffer.from(text)]);

/**
 * A trace.dat of version 7, with further options at will, as trace-cmd.dat.v7(5) describes it, with zlib or without: the trace-cmd that is at hand may have
 * neither.
 */
export function traceDat7(
  parts: Parts,
  compression: 'none' | 'zlib',
  extra: readonly (readonly [id: number, data: Buffer])[] = [],
): Buffer {
  const pagesPerChunk = 3;
  const chunks: Buffer[] = [];
  let length = 0;
  const put = (bytes: Buffer): number => {
    chunks.push(bytes);
    length += bytes.length;
    return length - bytes.length;
  };
  const packed = compression === 'zlib';
  const pack = (bytes: Buffer): Buffer => {
    const small = deflateSync(bytes);
    return Buffer.concat([u(4, small.length), u(4, bytes.length), small]);
  };
  const section = (id: number, bytes: Buffer, squeeze = packed): number => {
    const body = squeeze ? pack(bytes) : bytes;
    return put(Buffer.concat([u(2, id), u(2, squeeze ? 1 : 0), u(4, 0), u(8, body.length), body]));
  };
  put(Buffer.concat([Buffer.from([0x17, 0x08, 0x44]), string('tracing7').subarray(0, 8), string('')]));
  put(Buffer.concat([Buffer.from([0, 8]), u(4, 4096), string(compression), string(packed ? '1.2.13' : '')]));
  const optionsAt = put(u(8, 0));
  const option = (id: number, data: Buffer): Buffer => Buffer.concat([u(2, id), u(4, data.length), data]);
  const systems = [...new Set(parts.formats.map(({ system }) => system))];
  const formats = systems.map((system) => {
    const texts = parts.formats.filter((each) => each.system === system).map(({ text }) => sized(8, text));
    return Buffer.concat([string(system), u(4, texts.length), ...texts]);
  });
  const comms = [...parts.comms].map(([pid, comm]) => `${pid} ${comm}\n`).join('');
  const options = [
    option(5, string(parts.uname)),
    option(
      16,
      u(
        8,
        section(
          16,
          Buffer.concat([
            string('header_page'),
            sized(8, parts.headerPage),
            string('header_event'),
            sized(8, parts.headerEvent),
          ]),
        ),
      ),
    ),
    option(18, u(8, section(18, Buffer.concat([u(4, systems.length), ...formats])))),
    option(21, u(8, section(21, sized(8, comms)))),
  ];
  options.push(...extra.map(([id, data]) => option(id, data)));
  const buffer = put(Buffer.concat([u(2, 3), u(2, packed ? 1 : 0), u(4, 0), u(8, 0)]));
  put(Buffer.alloc(4096 - (length % 4096)));
  const cpus = parts.cpus.map((pages, cpu) => {
    const groups: Buffer[] = [];
    for (let at = 0; at < pages.length; at += pagesPerChunk)
      groups.push(Buffer.concat(pages.slice(at, at + pagesPerChunk)));
    const bytes = packed ? Buffer.concat([u(4, groups.length), ...groups.map(pack)]) : Buffer.concat(groups);
    return Buffer.concat([u(4, cpu), u(8, put(bytes)), u(8, packed ? bytes.length - 4 : bytes.length)]);
  });
  options.push(
    option(3, Buffer.concat([u(8, buffer), string(''), string(parts.clock), u(4, 4096), u(4, cpus.length), ...cpus])),
  );
  // Options in two sections, the second where the first ends.
  const later = section(0, Buffer.concat([...options.slice(2), option(0, u(8, 0))]));
  const first = section(0, Buffer.concat([...options.slice(0, 2), option(0, u(8, later))]));
  const whole = Buffer.concat(chunks);
  whole.writeBigUInt64LE(BigInt(first), optionsAt);
  return whole;
}
