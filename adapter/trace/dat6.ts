import {
  attempt,
  type Contents,
  CPUS_MOST,
  INSTANCES_MOST,
  limited,
  NAME_MOST,
  OPTION_MOST,
  Option,
  readComms,
  readEventFormats,
  readFtraceFormats,
  readHeaderInfo,
  readOption,
} from './dat-contents.ts';
import { TraceError } from './errors.ts';
import { type ByteSource, bytesSource, hexOffset, partOf, SourceReader } from './source.ts';

/** "options  ", "flyrecord" and "latency  ", each with a NUL. */
const KIND_BYTES = 10;

/** Reads what follows the page size. @throws TraceError where the file is damaged; what was read before is in the contents */
export function readVersion6(source: ByteSource, reader: SourceReader, contents: Contents): void {
  readHeaderInfo(reader, contents);
  readFtraceFormats(reader, contents);
  readEventFormats(reader, contents);
  reader.skip(reader.number(4, 'the size of kallsyms'), 'kallsyms');
  reader.skip(reader.number(4, 'the size of the printk formats'), 'the printk formats');
  readComms(reader, contents);
  const cpus = limited(reader.number(4, 'the number of CPUs'), CPUS_MOST, 'the number of CPUs');
  const instances: Instance[] = [];
  const count = readBody(source, reader, contents, cpus, instances);
  const top = reader.at;
  for (const { name, offset } of instances.slice(0, INSTANCES_MOST)) {
    attempt(contents, () => {
      if (offset < top) throw new TraceError(`instance ${name} lies at ${hexOffset(offset)}, within the header`);
      readBody(source, new SourceReader(source, offset), contents, count, undefined);
    });
  }
}

interface Instance {
  readonly name: string;
  readonly offset: number;
}

/**
 * What begins with "options", "flyrecord" or "latency".
 * @param instances filled from the options; undefined within an instance, which has none
 * @returns the number of CPUs, which options may say anew
 */
function readBody(
  source: ByteSource,
  reader: SourceReader,
  contents: Contents,
  cpus: number,
  instances: Instance[] | undefined,
): number {
  let count = cpus;
  let at = reader.at;
  let kind = reader.text(KIND_BYTES, 'the kind of data').trim();
  if (kind === 'options') {
    for (;;) {
      const id = reader.number(2, 'an option');
      if (id === Option.DONE) break;
      const size = limited(reader.number(4, 'the size of an option'), OPTION_MOST, 'the size of an option');
      const data = reader.bytes(size, `option ${id}`);
      const option = new SourceReader(bytesSource(data), 0, `option ${id}`);
      if (id === Option.CPUCOUNT)
        count = limited(option.number(4, 'the number of CPUs'), CPUS_MOST, 'the number of CPUs');
      else if (id === Option.BUFFER) {
        const offset = option.number(8, 'the place of an instance');
        instances?.push({ offset, name: option.string(NAME_MOST, 'the name of an instance') });
      } else readOption(id, data, contents);
    }
    at = reader.at;
    kind = reader.text(KIND_BYTES, 'the kind of data').trim();
  }
  if (kind === 'latency') contents.texts.push(partOf(source, reader.at, source.size - reader.at));
  else if (kind === 'flyrecord') {
    for (let cpu = 0; cpu < count; cpu++) {
      const offset = reader.number(8, `the place of the pages of CPU ${cpu}`);
      const size = reader.number(8, `the size of the pages of CPU ${cpu}`);
      contents.cpus.push({ cpu, offset, size, compressed: false, pageSize: undefined });
    }
  } else throw new TraceError(`at ${hexOffset(at)} should be "options", "flyrecord" or "latency"`);
  return count;
}
