// Recordings read as the debugger does it, beside trace-cmd report, which only prints them.
//
//   node trace.mjs make EVENTS FILE    a recording of as many events, made of those that KVM's MMU records, on 4 CPUs
//   node trace.mjs read FILE           events, nanoseconds for each, and bytes that each occupies; the best of several rounds
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { buildRecord, PageBuilder } from '../adapter/trace/build-pages.ts';
import { writeTraceDat } from '../adapter/trace/dat-write.ts';
import { readRecordingFile } from '../adapter/trace/file.ts';
import { parseFormat } from '../adapter/trace/format.ts';
import { datParts } from '../test/adapter/trace-parts.ts';

const ROUNDS = 5;
const CPUS = 4;
/** A fault of a guest with EPT or NPT, and what its handling records. */
const BURST = [
  'kvm_exit',
  'kvm_page_fault',
  'kvm_mmu_spte_requested',
  'kvm_tdp_mmu_spte_changed',
  'kvm_mmu_set_spte',
  'kvm_entry',
];

const [work, ...rest] = process.argv.slice(2);

function make(events: number, path: string): void {
  const parts = datParts(readFileSync('test/trace/shadow.dat'));
  const formats = BURST.map((name) =>
    parseFormat(parts.formats.find(({ text }) => text.startsWith(`name: ${name}\n`))!.text),
  );
  const builders = Array.from({ length: CPUS }, () => new PageBuilder());
  for (let i = 0; i < events; i++) {
    const format = formats[i % formats.length]!;
    const burst = Math.floor(i / formats.length);
    const values: Record<string, bigint | number> = { common_pid: 1000 + (burst % CPUS) };
    for (const { name, size } of format.fields) {
      if (name.startsWith('common_')) continue;
      // Numbers as large as they are in life: addresses, entries, levels.
      values[name] = size === 8 ? 0x100000000 + burst * 4096 : size === 4 ? burst % 1000 : 1;
    }
    if (format.name === 'kvm_exit') Object.assign(values, { exit_reason: 48, isa: 1 });
    builders[burst % CPUS]!.record(1_000_000_000_000n + BigInt(i * 400), buildRecord(format, values));
  }
  const comms = new Map(builders.map((_, cpu) => [1000 + cpu, `CPU ${cpu}/KVM`]));
  const fd = openSync(path, 'w');
  for (const chunk of writeTraceDat({ ...parts, cpus: builders.map(({ pages }) => pages), comms }))
    writeSync(fd, chunk);
  closeSync(fd);
}

function read(path: string): void {
  let best = Number.POSITIVE_INFINITY;
  let events = 0;
  let bytes = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const begin = performance.now();
    const recording = readRecordingFile(path);
    best = Math.min(best, performance.now() - begin);
    events = recording.length;
    bytes = recording.bytes;
    for (const problem of recording.problems) console.error(problem);
  }
  console.log(`${events} ${(best * 1e6) / events} ${bytes / events}`);
}

if (work === 'make') make(Number(rest[0]), rest[1]!);
else read(rest[0]!);
