import type { TraceDatParts } from '../../adapter/trace/dat-write.ts';

/** The parts of a trace.dat of version 6 that this project wrote, found by their places: no reader of ours is trusted here. */
export function datParts(file: Buffer): TraceDatParts & { readonly comms: ReadonlyMap<number, string> } {
  let at = 10 + 2 + 1 + 1 + 4;
  const number = (size: 4 | 8): number => {
    at += size;
    return size === 4 ? file.readUInt32LE(at - 4) : Number(file.readBigUInt64LE(at - 8));
  };
  const string = (): string => {
    const end = file.indexOf(0, at);
    const text = file.toString('utf8', at, end);
    at = end + 1;
    return text;
  };
  const sized = (size: 4 | 8): string => {
    const length = number(size);
    at += length;
    return file.toString('utf8', at - length, at);
  };
  string();
  const headerPage = sized(8);
  string();
  const headerEvent = sized(8);
  for (let left = number(4); left > 0; left--) sized(8);
  const formats: { system: string; text: string }[] = [];
  for (let systems = number(4); systems > 0; systems--) {
    const system = string();
    for (let left = number(4); left > 0; left--) formats.push({ system, text: sized(8) });
  }
  sized(4);
  sized(4);
  const comms = new Map<number, string>();
  for (const [, pid, comm] of sized(8).matchAll(/^(\d+) (.*)$/gm)) comms.set(Number(pid), comm!);
  const count = number(4);
  at = file.indexOf('flyrecord\0', at) + 10;
  const cpus = Array.from({ length: count }, () => {
    const offset = number(8);
    const size = number(8);
    return Array.from(
      { length: size / 4096 },
      (_, i) => new Uint8Array(file.subarray(offset + 4096 * i, offset + 4096 * (i + 1))),
    );
  });
  return { formats, headerPage, headerEvent, cpus, comms, uname: 'Linux host 6.18.44 x86_64', clock: 'mono' };
}
