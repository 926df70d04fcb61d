import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { openRecording } from '../../adapter/trace/open.ts';
import { Inference, type InferredMachine } from '../../engine/history/infer.ts';
import { project } from '../../engine/history/project.ts';
import type { Machine } from '../../engine/machine.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// The emulator knows its tables; its tracepoints tell less. What is worked out from them must be the tables all the same.

/** Accessed and dirty of EPT and NPT: the processor sets them without an event. */
const SILENT = { ept: 0x300n, npt: 0x60n };

/** The trace that KVM would have left, as tracefs prints it; every task is a thread. */
export function traceText(machine: Machine, from = 0): Uint8Array {
  const threads = new Map<string, number>();
  const lines = [...project(machine)].slice(from).map(({ step, task, event, text }) => {
    if (!threads.has(task)) threads.set(task, 100 + threads.size);
    return `  task-${threads.get(task)}  [000] ..... ${(step / 1e6).toFixed(6)}: ${event}: ${text}\n`;
  });
  return new TextEncoder().encode(`# tracer: nop\n#\n${lines.join('')}`);
}

/** Every entry below a root, by level and gfn: `LEVEL GFN` → value without silent bits; what is absent is left out. */
function entriesOf(machine: Machine): Map<string, bigint>[] {
  const silent = SILENT[machine.config.second as 'ept' | 'npt'];
  return machine.roots().map((root) => {
    const found = new Map<string, bigint>();
    const visit = (pfn: number): void => {
      const page = machine.pages.get(pfn)!;
      const { format } = { format: machine.secondFormat };
      for (let index = 0; index < 512; index++) {
        const value = machine.readEntry(pfn, index);
        if (BigInt.asUintN(63, value) === 0n) continue;
        found.set(`${page.level} ${(page.gfn + index * format.span[page.level]!).toString(16)}`, value & ~silent);
        const child = Number((value >> 12n) & 0xff_ffff_ffffn);
        if ((value & 0x800n) !== 0n && page.level > 1 && (value & 0x80n) === 0n) visit(child);
      }
    };
    visit(root.pfn);
    return found;
  });
}

function inferredEntries({ tables }: InferredMachine): Map<string, bigint>[] {
  const silent = SILENT[tables.kind as 'ept' | 'npt'];
  const roots = new Map(tables.roots.map((root) => [root.frame, root]));
  return [...roots.values()].map((root) => {
    const found = new Map<string, bigint>();
    const visit = (frame: number, level: number, first: number): void => {
      const { entries } = tables.tables.get(frame)!;
      for (let index = 0; index < 512; index++) {
        const value = BigInt(entries[2 * index + 1]!) * 2n ** 32n + BigInt(entries[2 * index]!);
        if (BigInt.asUintN(63, value) === 0n) continue;
        const gfn = first + index * 512 ** (level - 1);
        found.set(`${level} ${gfn.toString(16)}`, value & ~silent);
        if ((value & 0x800n) !== 0n && level > 1 && (value & 0x80n) === 0n)
          visit(Number((value >> 12n) & 0xff_ffff_ffffn), level - 1, gfn);
      }
    };
    visit(root.frame, root.levels, 0);
    return found;
  });
}

const sorted = (trees: Map<string, bigint>[]): string[] =>
  trees
    .map((tree) =>
      [...tree]
        .map(([place, value]) => `${place} ${value.toString(16)}`)
        .sort()
        .join('\n'),
    )
    .filter((text) => text !== '')
    .sort();

function runOf(text: string): Machine {
  const { program } = parseScenario(text);
  assert.ok(program);
  const run = new Run(program);
  assert.equal(run.runToEnd(1_000_000), true);
  return run.machine;
}

// Of shadow tables the upper levels are not told: labs compare those (test/lab/tables.test.ts).
for (const name of readdirSync('examples').filter(
  (file) =>
    file.endsWith('.mmu') &&
    !['on-kvm.mmu', 'populate.mmu', 'quadrant.mmu', 'mode-switch.mmu', 'legacy-guest.mmu'].includes(file),
)) {
  test(`${name}: the tables are worked out from its tracepoints`, () => {
    const machine = runOf(readFileSync(`examples/${name}`, 'utf8'));
    const recording = openRecording(traceText(machine));
    const inference = new Inference(recording);
    inference.goTo(recording.length);
    const machines = inference.machines();
    assert.equal(machines.length, 1);
    assert.equal(machines[0]!.tables.why, 'worked out from tracepoints');
    assert.deepEqual(sorted(inferredEntries(machines[0]!)), sorted(entriesOf(machine)));
    // Any moment can be gone back to, and from there forwards again.
    const middle = Math.floor(recording.length / 2);
    inference.goTo(middle);
    const there = sorted(inferredEntries(inference.machines()[0]!));
    const again = new Inference(recording);
    again.goTo(middle);
    assert.deepEqual(there, sorted(inferredEntries(again.machines()[0]!)));
  });
}

test('below a root of five levels the table of level 4 is no root', () => {
  const machine = runOf(
    'machine {\n  memory 0 +16M\n  second-stage tdp npt 5-level\n}\nvcpu 0 {\n  write 0x1000\n  read 0x800000\n}',
  );
  const recording = openRecording(traceText(machine));
  const inference = new Inference(recording);
  inference.goTo(recording.length);
  const [{ tables }] = inference.machines() as [InferredMachine];
  assert.deepEqual(
    tables.roots.map(({ which, levels }) => [which, levels]),
    [['current', 5]],
  );
  assert.ok([...tables.tables.values()].every(({ doubtful }) => doubtful === undefined || doubtful.size === 0));
});

for (const second of ['ept', 'npt'])
  test(`${second}: of a large page that is not executable (NX huge pages) the pieces of 4K are`, () => {
    const machine = runOf(
      `machine {\n  memory 0 +16M huge 2M\n  second-stage tdp ${second} 4-level\n  policy nx-huge-pages = on\n}\nguest g {\n  map 0x400000 -> 0x400000 2M\n}\nvcpu 0 in g {\n  write 0x400000\n  fetch 0x401000\n}\nexpect nx_lpage_splits == 1`,
    );
    assert.deepEqual(machine.small.failures, []);
    const recording = openRecording(traceText(machine));
    const inference = new Inference(recording);
    inference.goTo(recording.length);
    assert.deepEqual(sorted(inferredEntries(inference.machines()[0]!)), sorted(entriesOf(machine)));
  });
